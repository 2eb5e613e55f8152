"""The page docs/coverage.md, printed from the op table: what each operator is, how it is checked.

A page that is generated cannot promise what the table does not hold. Print it with
``python -m dlc.ops.coverage``; a test keeps the stored page in step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dlc.ir.op import OPS, Kind, OpDef

HEAD = """# Operators

Printed from the op table by `python -m dlc.ops.coverage`. Each operator is one record in `dlc/ops`:
type rule, NumPy reference, gradient, data for the backends, samples and, where PyTorch has it, a
twin. For every record tests check, in float32 and float64:

- the reference has the type that the rule says, with integers and with symbolic sizes;
- the gradient and the gradient of the gradient are central differences;
- the PyTorch twin agrees, forward and backward;
- the data that backends lower (an expression, an index, a combination, an expansion) computes what
  the reference computes;
- wrong arguments raise the error that the record says.

*Samples* is the number of arguments that all of this runs on.
"""


def page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *_summary(), *(line for kind in Kind for line in _section(kind))])


def _summary() -> Iterable[str]:
    twins = sum(op.torch is not None for op in OPS)
    gradients = sum(_has_gradient(op) for op in OPS)
    yield f"{len(OPS)} operators, {gradients} with a gradient, {twins} with a PyTorch twin.\n"


def _section(kind: Kind) -> Iterable[str]:
    ops = [op for op in OPS if op.kind is kind]
    if ops:
        yield f"## {kind.value.capitalize()}\n"
        yield "| op | what it is | gradient | PyTorch twin | samples |"
        yield "| --- | --- | --- | --- | ---: |"
        yield from map(_row, ops)
        yield ""


def _row(op: OpDef) -> str:
    doc = op.doc.replace("|", "\\|")
    twin = "yes" if op.torch else "none"
    samples = len(list(op.samples(np.random.default_rng(0)))) if op.samples else 0
    return f"| `{op.name}` | {doc} | {_gradient(op)} | {twin} | {samples} |"


def _has_gradient(op: OpDef) -> bool:
    return op.grad is not None or (op.expand is not None and not op.no_grad)


def _gradient(op: OpDef) -> str:
    if op.grad is not None:
        return "yes"
    return f"none: {op.no_grad}" if op.no_grad else "of its expansion"


if __name__ == "__main__":
    print(page(), end="")
