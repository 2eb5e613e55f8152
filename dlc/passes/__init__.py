"""Passes: transformations from graph to graph, a file each, and the pipelines that order them.

In the order in which they run:

simplify        remove what changes nothing
fold_constants  compute what depends on constants only
canonicalise    one form for what can be written in several ways
fold_bn         batch norms, scales and biases into convolutions and linear layers
decompose       composite ops into simpler ones
select          an algorithm for each contraction
convolutions    those of convolutions and of their gradients for the input
sink_reshapes   pointwise work behind a contraction in the shape that it stores
prepare         split off what depends on parameters only
layout          physical order and padding of buffers
fuse            groups around an anchor
siblings        groups that walk the same elements made one
updates         new values of parameters in the kernels of their gradients
traffic         what groups read and write, and how much
order           what makes room runs as soon as it can
recompute       values made again rather than kept, within a budget
in_place        new values of parameters written over the old ones
schedule        groups into steps
memory          liveness, arena

pipelines       which run at each level of optimisation
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import dlc.ops  # noqa: F401  (fills the op table, which rules name ops of)
from dlc.errors import ArgumentError, Error
from dlc.ir import manager
from dlc.ir.graph import Graph
from dlc.ir.manager import Pass
from dlc.ir.values import Check

__all__ = ["parse", "passes", "run"]


def run(
    graph: Graph,
    pipeline: str | Sequence[Pass],
    *,
    verify: bool = True,
    check: Check | None = None,
    dump: str | Path | None = None,
) -> Graph:
    """Run passes over a graph.

    Parameters
    ----------
    graph : Graph
    pipeline : str or sequence of Pass
        Such as ``"simplify,fold-bn"``, ``"simplify(budget=3)"`` or a level, ``"O2"``; see `parse`.
    verify, check, dump
        See `dlc.ir.manager.run`.
    """
    steps = parse(pipeline) if isinstance(pipeline, str) else pipeline
    return manager.run(graph, steps, verify=verify, check=check, dump=dump)[0]


def parse(pipeline: str) -> tuple[Pass, ...]:
    """The passes that a text names: names and levels separated by commas, options in parentheses.

    Raises
    ------
    ArgumentError
        A name or an option is unknown, or the text is no list of names.
    """
    found: list[Pass] = []
    for name, options in _split(pipeline):
        found += _levels()[name] if name in _levels() and not options else [_pass(name, options)]
    return tuple(found)


@cache
def passes() -> Mapping[str, type[Pass]]:
    """Every pass by name, from one scan of this package."""
    found: dict[str, type[Pass]] = {}
    for module in iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if _is_pass(value) and value.__module__ == f"{__name__}.{module.name}":
                if value.name in found:
                    raise Error(f"two passes have the name {value.name!r}; rename one of them")
                found[value.name] = value
    return dict(sorted(found.items()))


def _is_pass(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Pass) and not inspect.isabstract(value)


def _levels() -> Mapping[str, tuple[Pass, ...]]:
    from dlc.passes.pipelines import LEVELS

    return LEVELS


_ITEM = re.compile(r"\s*([A-Za-z][\w-]*)\s*")


def _split(pipeline: str) -> Iterator[tuple[str, str]]:
    """Names, each with the text of its options."""
    at = 0
    while pipeline.strip():
        match = _ITEM.match(pipeline, at)
        if match is None:
            raise _malformed(pipeline, at, "the name of a pass")
        at = match.end()
        options = ""
        if pipeline.startswith("(", at):
            close = _closing(pipeline, at)
            options, at = pipeline[at + 1 : close], close + 1
        yield match[1], options
        rest = pipeline[at:].lstrip()
        if not rest:
            return
        if not rest.startswith(","):
            raise _malformed(pipeline, at, "a comma or '('")
        at = pipeline.index(",", at) + 1


def _closing(text: str, start: int) -> int:
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    raise _malformed(text, len(text), "')'")


def _malformed(text: str, at: int, expected: str) -> ArgumentError:
    came = repr(text[at:]) if text[at:].strip() else "the end"
    return ArgumentError(f"the pipeline {text!r} expects {expected} at column {at + 1}, got {came}")


def _pass(name: str, options: str) -> Pass:
    known = passes()
    if name not in known:
        names = [*known, *_levels()]
        near = difflib.get_close_matches(name, names, 1)
        advice = f"; did you mean {near[0]!r}?" if near else "."
        raise ArgumentError(f"there is no pass {name!r}{advice} The passes are {', '.join(names)}")
    given = _options(name, options)
    defaults = {field.name: field.default for field in fields(known[name])}
    for option, value in given.items():
        if option not in defaults:
            have = ", ".join(defaults) or "none"
            raise ArgumentError(f"the pass {name} has the options {have}, got {option!r}")
        kind = type(defaults[option])
        if type(value) is not kind:
            raise ArgumentError(
                f"the option {option} of {name} is of type {kind.__name__}, got {value!r}"
            )
    return known[name](**given)


def _options(name: str, text: str) -> dict[str, object]:
    """Python literals by keyword."""
    try:
        call = ast.parse(f"options({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError):
        raise ArgumentError(
            f"the pass {name} expects options such as (budget=10), got ({text})"
        ) from None
