"""Totals of reductions and windows, as source: what they begin with, and how two of them join."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlc.backends.numba_cpu.writer import STORED, TYPES, float_literals, integer_form, literal
from dlc.ir.node import Node
from dlc.ir.op import Reduction


@dataclass(frozen=True, eq=False)
class Total:
    """One reduction: its sum in the array ``held``, and of a variance also the squared distances
    from the mean, in ``away``.
    """

    node: Node
    held: str
    away: str = ""

    @property
    def arrays(self) -> tuple[str, ...]:
        """Their names."""
        return (self.held, self.away) if self.away else (self.held,)

    @property
    def dtype(self) -> str:
        """Element type in which it accumulates."""
        return self.node.inputs[0].dtype if rule_of(self.node).position else self.node.dtype

    @property
    def neutral(self) -> str:
        """What it begins with, as source."""
        return neutral(rule_of(self.node), self.dtype)


def arrays_of(wave: Sequence[Total]) -> list[str]:
    """The arrays of totals, each once."""
    return list(dict.fromkeys(array for total in wave for array in total.arrays))


def has_spread(wave: Sequence[Total]) -> bool:
    """Whether one of the reductions is a variance, so that elements are counted."""
    return any(total.away for total in wave)


def local_kind(dtype: str) -> str:
    """The type of a local array of totals."""
    return TYPES[STORED.get(dtype, dtype)]


def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes that a reduction removes, by number."""
    ndim = node.inputs[0].ndim
    axes = node.attrs.get("axes", node.attrs.get("axis"))
    if axes is None:
        return tuple(range(ndim))
    return (axes,) if isinstance(axes, int) else tuple(axes)


def rule_of(node: Node) -> Reduction:
    """What the op of a reduction says of its totals."""
    assert node.op.reduction is not None, node
    return node.op.reduction


def combine(node: Node, a: str, b: str) -> str:
    """Source that joins two partial results of a reduction or a window."""
    text = rule_of(node).combine.format(a="_a_", b="_b_")
    text = float_literals(text) if node.inputs[0].dtype.startswith("float") else integer_form(text)
    return text.replace("_a_", a).replace("_b_", f"({b})")


def neutral(rule: Reduction, dtype: str) -> str:
    """The neutral element as source, within the range of the element type."""
    import numpy as np

    if dtype.startswith("float"):
        return literal(rule.init, dtype)
    if dtype == "bool":
        return str(int(rule.init > 0))
    info = np.iinfo(dtype)
    return literal(min(max(rule.init, info.min), info.max), dtype)
