"""`dlc.diff`: a model beside its PyTorch twin, layer by layer: rounding, or a bug, and where first?

Each layer is compiled and fed with what PyTorch's layer reads in float64, and so is the code
between layers; so every layer is judged by itself, and a wrong one does not taint those after it.
`diff_judge` says what counts as wrong, and why.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, DTypeError, Error, explain
from dlc.frontend.module import Module
from dlc.frontend.parameter import as_array
from dlc.ir.sizes import shape_text
from dlc.ir.types import is_float
from dlc.testing import diff_dlc
from dlc.testing import diff_judge as judging
from dlc.testing.diff_judge import NOTHING, OK, WRONG, Judgement, judge, merge
from dlc.testing.diff_report import DiffReport, Row, row

if TYPE_CHECKING:
    from dlc.testing.diff_torch import Backward, Key, Reference, Run, Twin

__all__ = ["DiffReport", "Row", "diff"]

Array: TypeAlias = "np.ndarray[Any, Any]"
RESULT = diff_dlc.RESULT


def diff(
    model: Module,
    torch_module: Any,
    *inputs: Any,
    gradients: bool = False,
    threads: int | None = None,
) -> DiffReport:
    """Compare a model with its PyTorch twin, layer by layer.

    Parameters
    ----------
    model : Module
        With the same weights as ``torch_module``; it differs where they do. Neither is changed.
    torch_module : torch.nn.Module
        On the CPU. Layers are matched by module path.
    *inputs : array or torch tensor
        What both are called with.
    gradients : bool
        Also compare gradients, in all parameters and float inputs, of the sum of all outputs
        times fixed random numbers.
    threads : int, optional
        Threads of the compiled code, by default what the machine allows.

    Returns
    -------
    DiffReport
        ``.ok``, ``.rows``, ``.first``, ``.html(path)``; `print` shows a table.

    Raises
    ------
    ArgumentError
        ``torch_module`` is no PyTorch module or refuses the inputs, one of these is empty, or one
        of the two models draws random numbers.
    DTypeError
        The model mixes element types.
    Error
        A layer asks for what dlc cannot trace.

    Examples
    --------
    >>> report = dlc.diff(model, torch_model, images)       # doctest: +SKIP
    >>> assert report.ok, report                            # doctest: +SKIP
    """
    arrays = [as_array(each) for each in inputs]
    _check(model, torch_module)
    if empty := [each.shape for each in arrays if not each.size]:
        expected = "inputs with something in them, to compare"
        raise ArgumentError(explain("dlc.diff", expected, f"an array of shape {empty[0]}"))
    comparison = _Comparison(model, torch_module, _floating(model, arrays), threads)
    return comparison.report(arrays, gradients)


def _check(model: Any, torch_module: Any) -> None:
    torch = sys.modules.get("torch")  # whoever has a module of it has it loaded
    if not isinstance(model, Module):
        expected = "a dlc Module first"
        raise ArgumentError(explain("dlc.diff", expected, type(model).__name__))
    if torch is None or not isinstance(torch_module, torch.nn.Module):
        expected = "a torch.nn.Module second"
        raise ArgumentError(explain("dlc.diff", expected, type(torch_module).__name__))
    from dlc.testing.diff_torch import random_modules

    if found := list(random_modules(torch_module)):
        advice = "Their masks would differ: call .eval() on both models, or set p=0."
        got = f"dropout in training mode: {', '.join(found)}"
        raise ArgumentError(
            explain("dlc.diff", "models without random numbers", got, advice=advice)
        )


def _floating(model: Module, arrays: Sequence[Array]) -> str:
    """The one element type of the model's floats."""
    found = {variable.dtype for _, variable in model.named_variables() if is_float(variable.dtype)}
    found |= {array.dtype.name for array in arrays if array.dtype.kind == "f"}
    if len(found) > 1:
        expected, got = "one floating-point type in model and inputs", ", ".join(sorted(found))
        raise DTypeError(explain("dlc.diff", expected, got))
    return next(iter(found), "float32")


class _Comparison:
    """The two models of a diff, and the runs that it is made of."""

    def __init__(self, model: Module, torch_module: Any, dtype: str, threads: int | None):
        self._ours, self._theirs = model, torch_module
        self._dtype, self._threads = dtype, threads
        self._unit = judging.rounding_unit(dtype)

    def _twin(self, dtype: str = "float64", jitter: float = 0.0) -> Twin:
        """A fresh copy of PyTorch's module: a run in training mode changes its statistics."""
        from dlc.testing.diff_torch import Twin

        return Twin(self._theirs, dtype, jitter)

    def _three(self) -> tuple[Twin, Twin, Twin]:
        """In float64, in the type of the comparison, and in float64 with rounding errors."""
        return self._twin(), self._twin(self._dtype), self._twin(jitter=self._unit)

    @functools.cached_property
    def _layers(self) -> tuple[Twin, Twin, Twin]:
        """For single layers, whose results do not depend on the statistics that they change."""
        return self._three()

    def report(self, inputs: Sequence[Array], gradients: bool) -> DiffReport:
        """Run everything and put the rows together."""
        self._inputs = inputs
        self._plain = self._runs_through()
        rng = np.random.default_rng(0)
        outputs = [each.detach().numpy() for each in self._plain[0].outputs]
        self._weights = [rng.normal(size=y.shape).astype(self._dtype) for y in outputs]
        rows = list(self._rows(gradients))
        known = {path for path, _ in self._ours.named_modules()}
        return DiffReport(
            type(self._ours).__name__,
            type(self._theirs).__name__,
            self._dtype,
            tuple(rows),
            tuple(state_differences(self._ours, self._theirs)),
            tuple(self._on_one_side(self._counts, known)),
            tuple(self._notes(rows)),
        )

    def _rows(self, gradients: bool) -> Iterator[Row]:
        self._match(gradients)
        self._through = diff_dlc.through(self._ours, self._inputs, self._paths, self._threads)
        found = [each for key in self._order for each in self._forward_rows(key)]
        yield from found
        yield self._whole_row(any(each.verdict == WRONG for each in found))
        if gradients:
            for key in reversed(self._references):
                yield from self._gradient_rows(key)
            yield self._whole_gradients_row()

    # Which layers are compared.

    def _match(self, gradients: bool) -> None:
        """Run all layers by themselves: those deepest in the trees that both models call equally
        often, under one path. A layer that turns out to be called otherwise is code between others.
        """
        from dlc.testing.diff_torch import called, references

        counts: dict[str, int] = {}
        for path, _ in called(self._twin(), self._inputs):
            counts[path] = counts.get(path, 0) + 1
        known = {path for path, _ in self._ours.named_modules()}
        common = {path: counts[path] for path in counts if path in known}
        self._backward: tuple[Backward, ...] = ()
        while True:
            self._paths = [path for path in common if not _has_inside(path, common)]
            found, results = references(self._twin(), self._inputs, self._paths, self._dtype)
            self._references: dict[Key, Reference] = found
            if gradients:
                self._backward = self._gradients_through()
            local = self._run_apart()
            differ = [path for path in self._paths if local.counts[path] != common[path]]
            if not differ:
                break
            for path in differ:
                del common[path]
        self._local, self._results = local, results
        self._order = [*found, RESULT]
        self._forced = self._runs_apart()
        self._counts = counts

    def _run_apart(self) -> diff_dlc.Local:
        fed = {
            key: diff_dlc.Fed(each.inputs, each.outputs, each.result, self._cotangents(key))
            for key, each in self._references.items()
        }
        return diff_dlc.apart(self._ours, self._inputs, fed, self._threads)

    def _on_one_side(self, counts: Mapping[str, int], known: set[str]) -> Iterator[str]:
        """Modules without modules inside that are no part of any pair, by their class."""
        theirs = {
            path: module
            for path, module in self._theirs.named_modules()
            if path in counts and path not in known and not _has_inside(path, counts)
        }
        ours = {
            path: module
            for path, module in self._ours.named_modules()
            if path not in counts and not list(module.children())
        }
        for side, modules in (("PyTorch", theirs), ("dlc", ours)):
            classes: dict[str, list[str]] = {}
            for path, module in modules.items():
                classes.setdefault(type(module).__name__, []).append(path)
            yield from (f"{name} in {side}: {', '.join(each)}" for name, each in classes.items())

    # PyTorch's runs.

    def _runs_through(self) -> tuple[Run, ...]:
        """PyTorch's layers in the ordinary course of things."""
        from dlc.testing.diff_torch import pass_on

        paths = [path for path, _ in self._theirs.named_modules()]
        try:
            return tuple(t.run(t.tensors(self._inputs), paths, pass_on) for t in self._three())
        except (RuntimeError, TypeError) as error:
            got = " and ".join(f"{each.dtype} {shape_text(each.shape)}" for each in self._inputs)
            advice = f"PyTorch's {type(self._theirs).__name__} says: {error}"
            expected = "inputs that the PyTorch model takes"
            message = explain("dlc.diff", expected, got or "none", advice=advice)
            raise ArgumentError(message) from error

    def _runs_apart(self) -> tuple[Run, Run]:
        """PyTorch's layers fed by the references, in the type of the comparison and disturbed."""
        from dlc.testing.diff_torch import given

        _, same, disturbed = self._three()
        first, second = (
            twin.run(twin.tensors(self._inputs), self._paths, given(twin, self._references))
            for twin in (same, disturbed)
        )
        return first, second

    def _gradients_through(self) -> tuple[Backward, ...]:
        from dlc.testing.diff_torch import backward

        return tuple(
            backward(twin, self._inputs, self._paths, self._weights) for twin in self._three()
        )

    def _cotangents(self, key: Key) -> list[Array | None]:
        """The gradients in a layer's outputs, rounded; empty where they are not asked for."""
        if not self._backward:
            return []
        found = self._backward[0].layers[key]
        return [None if each is None else each.astype(self._dtype) for each in found]

    # Rows.

    def _forward_rows(self, key: Key) -> Iterator[Row]:
        """What comes to a layer, unless it is another's output as it is; and the layer."""
        arrival = self._arrival_row(key)
        if arrival is not None:
            yield arrival
        if key == RESULT:
            return
        path, call = key
        local, reference = self._local, self._references[key]
        forced = [run.calls[key] for run in self._forced]
        layer = self._ours.get_submodule(path)
        name = type(layer).__name__ + (f" (call {call + 1})" if call else "")
        parts = []
        bounds = self._bounds(key)
        for number, exact in enumerate(reference.exact):
            if number >= len(local.outputs.get(key, ())):
                break
            ours, (theirs, moved) = local.outputs[key][number], _nth(forced, number)
            bound = bounds.get("output") if number == 0 else None
            parts.append(("", judge(ours, exact, theirs, moved, bound, self._factor(path))))
        for buffer, ours in local.buffers.get(key, {}).items():
            if buffer in reference.buffers:
                theirs, moved = (seen.buffers[buffer].numpy() for seen in forced)
                parts.append((buffer, judge(ours, reference.buffers[buffer], theirs, moved)))
        found = merge(parts) or judging.failed("gives nothing to compare")
        if key in local.failures:
            found = judging.failed(local.failures[key])
        elif len(local.outputs.get(key, ())) != len(reference.exact):
            found = judging.failed(f"gives {len(local.outputs.get(key, ()))} tensors")
        yield row(
            *("layer", path, name, found),
            accumulated=self._accumulated(key),
            shape=reference.exact[0].shape if reference.exact else (),
            hints=self._hints(key) if found.verdict == WRONG else (),
        )

    def _arrival_row(self, key: Key) -> Row | None:
        """What the code before a layer makes for it, or for the model's outputs."""
        local = self._local
        if key == RESULT:
            exact, ours, name = self._results, local.results, "the output"
            theirs, moved = ([t.numpy() for t in run.outputs] for run in self._forced)
        else:
            exact, ours = self._references[key].arrived, local.arrived.get(key, [])
            theirs, moved = ([t.numpy() for t in run.calls[key].inputs] for run in self._forced)
            name = key[0]
        path, where = local.origins.get(key, (key[0].rpartition(".")[0], ""))
        if len(ours) != len(exact):
            why = f"gives {len(ours)} tensors where PyTorch gives {len(exact)}"
            return row("between", path, name, judging.failed(why), where=where)
        found = merge(("", judge(*four)) for four in zip(ours, exact, theirs, moved, strict=True))
        passed_on = key in local.direct and found and found.verdict in (OK, NOTHING)
        if found is None or passed_on:
            return None
        hints: list[str] = []
        if found.verdict == WRONG:
            from dlc.testing.diff_hints import patterns

            hints = [words for a, b in zip(ours, exact, strict=True) for words in patterns(a, b)]
        shape = exact[0].shape
        return row("between", path, name, found, where=where, shape=shape, hints=hints)

    def _accumulated(self, key: Key) -> tuple[float | None, float | None]:
        """How far a layer's outputs are from float64 after all layers before it."""
        exact, theirs = ([t.numpy() for t in run.calls[key].outputs] for run in self._plain[:2])
        ours = self._through.outputs.get(key)
        return None if ours is None else _farthest(ours, exact), _farthest(theirs, exact)

    def _whole_row(self, explained: bool) -> Row:
        """The model as it is compiled for users, with everything fused."""
        exact, theirs, moved = ([t.numpy() for t in run.outputs] for run in self._plain)
        try:
            ours = diff_dlc.whole(self._ours, self._inputs, self._threads)
        except Error as error:
            found = judging.failed(str(error))
        else:
            found = self._merged(ours, exact, theirs, moved)
        hints = (_PASSES,) if found.verdict == WRONG and not explained else ()
        far = (found.error, found.torch_error)
        name = type(self._ours).__name__
        return row("model", "", name, found, accumulated=far, shape=exact[0].shape, hints=hints)

    @staticmethod
    def _merged(ours: Any, exact: Any, theirs: Any, moved: Any) -> Judgement:
        if len(ours) != len(exact):
            return judging.failed(f"gives {len(ours)} outputs where PyTorch gives {len(exact)}")
        parts = [("", judge(*four)) for four in zip(ours, exact, theirs, moved, strict=True)]
        return merge(parts) or judging.failed("gives no outputs")

    # Gradients.

    def _gradient_rows(self, key: Key) -> Iterator[Row]:
        """The gradients of one layer, in its parameters and inputs."""
        from dlc.testing.diff_torch import local_gradients

        weights = self._cotangents(key)
        arguments = self._plain[0].calls[key].arguments
        fed = self._references[key].inputs
        exact, theirs, moved = (
            local_gradients(twin, key, arguments, fed, weights) for twin in self._layers
        )
        ours, bounds = self._local.gradients.get(key, {}), self._bounds(key)
        for name, gradient in exact.items():
            if name not in ours:
                why = self._local.failures.get(key, "has no gradient in dlc")
                found = judging.failed(why)
            else:
                four = ours[name], gradient, theirs[name], moved[name]
                found = judge(*four, bounds.get(name), self._factor(key[0]))
            shape = gradient.shape
            yield row(
                *("gradient", key[0], name, found),
                accumulated=self._accumulated_gradient(f"{key[0]}.{name}".lstrip(".")),
                shape=shape,
            )

    def _accumulated_gradient(self, name: str) -> tuple[float | None, float | None]:
        exact, theirs, _ = (each.parameters.get(name) for each in self._backward)
        ours = self._whole_gradients[0].get(name)
        if exact is None or theirs is None:
            return None, None
        return None if ours is None else _farthest([ours], [exact]), _farthest([theirs], [exact])

    @functools.cached_property
    def _whole_gradients(self) -> tuple[dict[str, Array], dict[int, Array], str]:
        """All gradients of the model, in parameters and inputs, in one compiled function; or none,
        and why it cannot be compiled.
        """
        given = self._ours, self._inputs, self._weights, self._threads
        try:
            return *diff_dlc.whole_gradients(*given), ""
        except Error as error:
            return {}, {}, str(error)

    def _whole_gradients_row(self) -> Row:
        """All gradients that came through the whole net."""
        ours, of_inputs, failure = self._whole_gradients
        exact, theirs, moved = self._backward
        parts = [
            (name, judging.judge_norm(g, *(b.parameters[name] for b in self._backward)))
            for name, g in ours.items()
            if name in exact.parameters
        ]
        parts += [
            (f"input{i}", judging.judge_norm(g, exact.inputs[i], theirs.inputs[i], moved.inputs[i]))
            for i, g in of_inputs.items()
        ]
        found = merge(parts) or judging.failed("gives no gradients")
        if missing := [name for name in exact.parameters if name not in ours]:
            found = judging.failed(failure or f"has no gradient in {', '.join(missing)}")
        far = (found.error, found.torch_error)
        return row("gradients", "", "all gradients", found, accumulated=far)

    # Bounds and hints.

    def _bounds(self, key: Key) -> dict[str, Array]:
        """The bounds of a linear layer's results, by name; none for another layer."""
        from dlc.testing.diff_torch import linear_bound

        fed, weights = self._references[key].inputs, self._cotangents(key)
        g = weights[0] if weights else None
        linear = linear_bound(self._layers[0], key, fed, g)
        if linear is None:
            return {}
        bounds = {
            name: judging.linear_bound(size, linear.products[name], self._dtype)
            for name, size in linear.sizes.items()
        }
        if key[0] in self._local.winograd:
            self._widen(bounds, key, fed[0], g)
        return bounds

    def _factor(self, path: str) -> float:
        return judging.WINOGRAD if path in self._local.winograd else 1.0

    def _widen(self, bounds: dict[str, Array], key: Key, x: Array, g: Array | None) -> None:
        """Take Winograd's bound where it is the larger."""
        layer = self._theirs.get_submodule(key[0])
        w = layer.weight.detach().numpy()
        named = {"same": (1, 1), "valid": (0, 0)}
        padding = named.get(layer.padding, layer.padding)
        wide = judging.winograd_bound(x, w, padding, self._dtype)
        bounds["output"] = np.maximum(bounds["output"], wide)
        if g is not None:
            turned = np.flip(w, (2, 3)).swapaxes(0, 1)
            back = (2 - padding[0], 2 - padding[1])
            wide = judging.winograd_bound(g, turned, back, self._dtype)
            bounds["input0"] = np.maximum(bounds["input0"], wide)

    def _hints(self, key: Key) -> list[str]:
        from dlc.testing.diff_hints import attributes, experiments

        path = key[0]
        ours = self._ours.get_submodule(path)
        found = attributes(ours, self._theirs.get_submodule(path))
        if outputs := self._local.outputs.get(key):
            fed, exact = self._references[key].inputs, self._references[key].exact
            arguments = self._plain[0].calls[key].arguments
            found += experiments(self._layers[0], key, arguments, fed, outputs[0], exact[0])
        return found

    def _notes(self, rows: Sequence[Row]) -> Iterator[str]:
        """What differs without showing, and what could not be run."""
        from dlc.testing.diff_hints import attributes

        if self._through.failure:
            yield f"no accumulated errors, dlc's model does not run: {self._through.failure}"
        if self._ours.training != self._theirs.training:
            modes = ("training" if m.training else "inference" for m in (self._ours, self._theirs))
            yield "dlc's model is in {} mode, PyTorch's in {} mode".format(*modes)
        wrong = {each.path for each in rows if each.verdict == WRONG}
        for path in self._paths:
            theirs = self._theirs.get_submodule(path)
            for words in attributes(self._ours.get_submodule(path), theirs):
                if path not in wrong:
                    yield f"{path or 'the model'}: {words}, without effect here"


_PASSES = (
    "each layer is right by itself, so a pass over the whole graph is not: "
    "dlc.compile(model, ..., verify=2) names the rule"
)


def state_differences(model: Module, torch_module: Any) -> Iterator[str]:
    """How the state dicts of the two models differ, a line a name."""
    ours, theirs = model.state_dict(), torch_module.state_dict()
    for name, tensor in theirs.items():
        if name not in ours:
            yield f"{name} is PyTorch's only"
            continue
        a, b = ours[name], as_array(tensor)
        if a.shape != b.shape:
            yield f"{name} has shape {a.shape} in dlc and {b.shape} in PyTorch"
        elif a.dtype != b.dtype:
            yield f"{name} has type {a.dtype} in dlc and {b.dtype} in PyTorch"
        elif not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            yield f"{name} {_values_differ(a, b)}"
    yield from (f"{name} is dlc's only" for name in ours if name not in theirs)


def _values_differ(a: Array, b: Array) -> str:
    error = np.abs(a.astype(np.float64) - b.astype(np.float64))
    many = int((a != b).sum())
    words = f"differs in {many} of {a.size} elements, by up to {np.nanmax(error):.3g}"
    if a.ndim == 2 and a.shape[0] == a.shape[1] and np.array_equal(a, b.T):
        words += ": one is the other transposed"
    if a.dtype == np.float32 and np.array_equal(a, b.astype(np.float16).astype(np.float32)):
        words += ": dlc's are PyTorch's rounded to float16"
    return words


def _has_inside(path: str, paths: Mapping[str, Any]) -> bool:
    """Whether one of ``paths`` is a module inside that of ``path``."""
    inside = f"{path}." if path else ""
    return any(other != path and other.startswith(inside) for other in paths)


def _nth(forced: Sequence[Any], number: int) -> tuple[Array, Array]:
    same, disturbed = (seen.outputs[number].numpy() for seen in forced)
    return same, disturbed


def _farthest(arrays: Sequence[Array], exact: Sequence[Array]) -> float:
    """The largest distance of several arrays from exact ones."""
    errors = [judging.distance(a, b).max(initial=0.0) for a, b in zip(arrays, exact)]
    return float(max(errors, default=0.0))
