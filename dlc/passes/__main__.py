"""Print `docs/passes.md`: every pass, its options and its rules, from the tables themselves.

A page that is printed cannot fall behind the code; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields

from dlc.ir.manager import Pass
from dlc.ir.pattern import Rule
from dlc.ir.verify import CHECKS
from dlc.passes import passes
from dlc.passes.pipelines import LEVELS


def page() -> str:
    """The page as Markdown."""
    lines = [_HEAD]
    for level, steps in LEVELS.items():
        lines.append(f"| `{level}` | {', '.join(f'`{step}`' for step in steps)} |")
    for name, kind in passes().items():
        lines += ["", f"## {name}", "", *_about(kind())]
    lines += ["", _VERIFIER]
    lines += [f"| {check.name} | {check.demand} |" for check in CHECKS]
    return "\n".join(lines) + "\n"


def _about(step: Pass) -> Iterator[str]:
    yield (type(step).__doc__ or "").split("\n")[0]
    options = [f"`{field.name}={field.default!r}`" for field in fields(step)]
    if options:
        yield f"\nOptions: {', '.join(options)}."
    for verb, properties in (("Requires", step.requires), ("Ensures", step.ensures)):
        if properties:
            yield f"\n{verb}: {'; '.join(f'{p.name} ({p.meaning})' for p in properties)}."
    rules: Sequence[Rule] = getattr(step, "rules", ())
    if rules:
        yield "\n| rule | where | numerics |\n| --- | --- | --- |"
    for rule in rules:
        guards = "; ".join(guard.name for guard in rule.guards)
        numerics = f"{rule.rounding} roundings" if rule.rounding else "exact"
        yield f"| `{rule.name}` | {guards} | {numerics} |"


_HEAD = """\
# Passes

A pass makes a new graph from an old one. Most are tables of rules; a rule is an equation, applied
from left to right wherever its left side matches and what is said under "where" holds, until none
applies any more. A rule is exact to the bit (also for NaN, infinities and signed zeros), or it
says how many roundings it adds to or takes from an element: with c of them, a sum of K products
stays within gamma_(K+c) = (K+c) u / (1 - (K+c) u) times the sum of the absolute products, where u
is half a unit in the last place.

A rule is written in the arithmetic of the DSL; the parameters of its functions are the variables
(`dlc/ir/pattern.py` says what else a pattern may hold):

```python
rule("-(-x) -> x", lambda x: op.neg(-x), lambda x: x)
rule(
    "conv(x, w)·s -> conv(x, w·s)",
    lambda x, w, s, c, conv: conv(op.conv2d(x, w, **c)) * s,
    lambda x, w, s, c: op.conv2d(x, on_outputs(w, s), **c),
    used_once("conv"),
    parametric("w", "s"),
    _channels_of("s", "conv"),
    rounding=2,
)
```

`dlc.passes.run(graph, "simplify,fold-bn")` runs passes by name, `"simplify(budget=3)"` gives an
option, `"O2"` names a level; `dump="folder"` writes the text form after each pass,
`check=Check(reference.run)` evaluates the graph before and after each pass in float64 and names the
first wrong rule with both sides, and `dlc.ir.manager.bisect` finds the first rewrite after which
any other condition fails.

| level | passes |
| --- | --- |"""

_VERIFIER = """\
## The verifier

Between two passes the graph is verified. Each check names the node at fault and the pass that made
it.

| check | what it demands |
| --- | --- |"""


if __name__ == "__main__":
    print(page(), end="")
