"""What a diff found: rows by module path, a verdict, and the text of both."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from dlc.report import percent, table, text
from dlc.testing.diff_judge import NOTHING, WRONG, Judgement

__all__ = ["DiffReport", "Row"]


@dataclass(frozen=True)
class Row:
    """One comparison: a layer fed with the reference's input, or the code between layers.

    Attributes
    ----------
    kind : {"layer", "between", "model", "gradient", "gradients"}
        A call of a layer; what comes to a layer from the code before it; the compiled model as a
        whole; a gradient of a layer; all gradients of the model.
    path : str
        The module: of "between", the one whose ``forward`` computes it; empty for the model.
    name : str
        The class of a layer, the layer that "between" leads to, the parameter of a gradient.
    where : str
        The user's file and line, where known.
    verdict : {"ok", "rounding", "WRONG", "nothing"}
        "ok": as near to float64 as PyTorch, or within a rounding unit of the largest element;
        "rounding": farther, as rounding explains; "nothing": there is no number to compare.
    local, torch_local : float
        Largest distance from float64, of dlc and of PyTorch, fed with the reference's input.
    tolerance : float
        What is allowed of ``local``.
    share : float or None
        For linear layers: the part that is used of the bound on rounding errors.
    accumulated, torch_accumulated : float or None
        Largest distance from float64 when fed through the net.
    scale : float
        The largest element.
    shape : tuple of int
    why : str
        The worst element and what was expected, or what else is wrong, or why there is nothing to
        compare; empty if all is well.
    hints : tuple of str
        What may explain it.
    """

    kind: str
    path: str
    name: str
    where: str
    verdict: str
    local: float
    torch_local: float
    tolerance: float
    share: float | None
    accumulated: float | None
    torch_accumulated: float | None
    scale: float
    shape: tuple[int, ...]
    why: str = ""
    hints: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the row is about, in a few words."""
        path = self.path or "the model"
        if self.kind == "between":
            return f"  {path} → {self.name}"
        return f"{path}: {self.name}" if self.kind == "gradient" else path

    @property
    def used(self) -> float:
        """The part of the tolerance that is used."""
        if not self.local:
            return 0.0
        return self.local / self.tolerance if self.tolerance else float("inf")


def row(
    kind: str,
    path: str,
    name: str,
    found: Judgement,
    *,
    where: str = "",
    accumulated: tuple[float | None, float | None] = (None, None),
    shape: tuple[int, ...] = (),
    hints: Iterable[str] = (),
) -> Row:
    """A row from a judgement."""
    return Row(
        kind=kind,
        path=path,
        name=name,
        where=where,
        verdict=found.verdict,
        local=found.error,
        torch_local=found.torch_error,
        tolerance=found.tolerance,
        share=found.share,
        accumulated=accumulated[0],
        torch_accumulated=accumulated[1],
        scale=found.scale,
        shape=shape,
        why=found.why,
        hints=tuple(hints),
    )


@dataclass(frozen=True)
class DiffReport:
    """A model beside its PyTorch twin. `print` shows it as a table.

    Attributes
    ----------
    model, torch_model : str
        Names of the two classes.
    dtype : str
        The element type that was compared.
    rows : tuple of Row
        In the order of execution, gradients after it in theirs.
    weights : tuple of str
        Differences of the two state dicts.
    unmatched : tuple of str
        Modules that run on one side only.
    notes : tuple of str
        Attributes that differ without effect on these inputs, and the like.
    """

    model: str
    torch_model: str
    dtype: str
    rows: tuple[Row, ...]
    weights: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the weights are equal, and all was compared and differs by rounding at most."""
        return not self.weights and self.first is None and not self.empty

    @property
    def first(self) -> Row | None:
        """The first divergence: the first row that is WRONG; None if there is none."""
        return next((each for each in self.rows if each.verdict == WRONG), None)

    @property
    def empty(self) -> list[Row]:
        """The rows in which there was nothing to compare."""
        return [each for each in self.rows if each.verdict == NOTHING]

    def html(self, path: str | os.PathLike[str]) -> None:
        """Write the report as one page for a browser, which needs nothing else."""
        from dlc.testing.diff_page import page

        with open(path, "w", encoding="utf-8") as file:
            file.write(page(self))

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values; numbers that JSON lacks as their names."""
        first = None if self.first is None else self.first.path
        return {"ok": self.ok, "first": first, **_plain(asdict(self))}

    def summary(self) -> str:
        """One sentence: clean, or where the first divergence is."""
        if self.first is None and self.empty:
            more = f" (and in {len(self.empty) - 1} more)" if len(self.empty) > 1 else ""
            return f"not compared: {place(self.empty[0])}, which {self.empty[0].why}{more}"
        if self.first is None:
            rest = "nothing differs by more than rounding"
            return f"the weights differ, yet {rest}" if self.weights else f"clean: {rest}"
        wrong = sum(each.verdict == WRONG for each in self.rows)
        more = f" ({wrong - 1} more below)" if wrong > 1 else ""
        return f"first divergence: {place(self.first)}{more}"

    def lines(self) -> list[str]:
        """What stands before the table: the verdict, its explanation, and what else is worth
        knowing.
        """
        found = []
        if self.weights:
            found += ["The weights differ:", *_indented(self.weights)]
        found.append(self.summary())
        if self.first is not None:
            found += _indented(filter(None, (self.first.why, *self.first.hints)))
        if self.unmatched:
            found += ["on one side only, judged as code between layers:"]
            found += _indented(self.unmatched)
        return [*found, *self.notes]

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        return Group(*map(Text, [*self.lines(), ""]), self.table())

    def table(self) -> Any:
        """The rows as a table for `rich`."""
        title = f"{self.model} and {self.torch_model} (PyTorch): errors against float64"
        return table(COLUMNS, [cells(each) for each in self.rows], title=title, left=2)

    def __str__(self) -> str:
        return text(self, width=200)


COLUMNS = (
    *("module", "layer", "verdict", "local", "PyTorch's", "of tolerance", "of bound"),
    *("accumulated", "PyTorch's", "largest"),
)


def cells(each: Row) -> list[str]:
    """A row as the words of a table."""
    title, name = each.title, each.name if each.kind in ("layer", "model", "gradients") else ""
    name = name or each.where
    return [
        *(title, name, each.verdict, number(each.local), number(each.torch_local)),
        *(share(each.used), "" if each.share is None else share(each.share)),
        *(number(each.accumulated), number(each.torch_accumulated), f"{each.scale:.3g}"),
    ]


def number(value: float | None) -> str:
    """An error to two digits."""
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def share(value: float) -> str:
    """A part of what is allowed; as a multiple where it is more."""
    if value == 0:
        return "0"
    if value == float("inf"):
        return "∞"
    if value < 5e-4:
        return "< 0.1 %"
    return percent(value) if value < 10 else f"{value:.3g} ×"


def place(first: Row) -> str:
    """Where a divergence is, in words."""
    at = f" ({first.where})" if first.where else ""
    path = first.path or "the model itself"
    if first.kind == "between":
        return f"{path}{at}, in what it computes for {first.name}"
    if first.kind == "gradient":
        return f"{path}, in the gradient of {first.name}"
    return f"{path} ({first.name})"


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    strange = isinstance(value, float) and value - value != 0
    return str(value) if strange else value
