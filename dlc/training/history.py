"""What a training run was: the figures of each epoch, as a table and as curves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dlc.errors import ArgumentError, DependencyError, ExecutionError, explain
from dlc.files import whole

#: Figures of the validation data carry this prefix.
VALIDATION = "val_"


@dataclass
class History:
    """The figures of each epoch, in order.

    Attributes
    ----------
    epochs : list of dict
        "epoch" (from 1), "loss" and the metrics, those of the validation data as "val_loss" and so
        on, "lr", and "seconds". Figures of the training data are means over the samples of the
        epoch, while the model changed (of a loss with ``reduction="sum"``, the sum).
    best_epoch : int
        The epoch whose monitored figure was best; 0 where there is none yet.
    """

    epochs: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.epochs)

    def __getitem__(self, name: str) -> list[Any]:
        """A figure over the epochs; None where an epoch has none."""
        known = dict.fromkeys(name for epoch in self.epochs for name in epoch)
        if name not in known:
            expected = f"a name among {', '.join(known)}" if known else "one epoch or more"
            raise ArgumentError(explain("History", expected, repr(name) if known else "none"))
        return [epoch.get(name) for epoch in self.epochs]

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for epoch in self.epochs for name in epoch))
        rows = [[_text(epoch.get(name)) for name in names] for epoch in self.epochs]
        widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
        lines = [
            "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True))
            for row in ([*names], *rows)
        ]
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the curves of the loss and of each metric, side by side, to a file that is written
        whole or not at all.

        Parameters
        ----------
        path : path
            Its ending names the format: .png, .svg, .pdf, or another of matplotlib's.

        Raises
        ------
        ArgumentError
            There is no epoch yet, or matplotlib has no format of this ending.
        ExecutionError
            The file cannot be written; an older one is as it was.
        DependencyError
            matplotlib is not installed.
        """
        if not self.epochs:
            raise ArgumentError(explain("History.plot", "one epoch or more", "none"))
        try:
            from matplotlib.figure import Figure
        except ImportError:
            advice = "Install it with: pip install 'dlc[examples]'"
            message = explain("History.plot", "matplotlib", "none", advice=advice)
            raise DependencyError(message) from None
        figure = Figure(layout="constrained")
        if Path(path).suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
            expected = "a name that ends in .png, .svg, .pdf or another format of matplotlib's"
            raise ArgumentError(explain("History.plot", expected, repr(os.fspath(path))))
        self._draw(figure)
        try:
            with whole(path) as aside:
                figure.savefig(aside)
        except OSError as error:
            raise ExecutionError(
                f"cannot write the curves to {os.fspath(path)!r}: {error.strerror or error}; what "
                "was there before is unchanged"
            ) from error

    def _draw(self, figure: Any) -> None:
        names = [name for name in self._figures() if not name.startswith(VALIDATION)]
        figure.set_size_inches(4.5 * len(names), 3.4)
        steps = [epoch["epoch"] for epoch in self.epochs]
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for label, curve in (("training", name), ("validation", VALIDATION + name)):
                if curve in self._figures():
                    axes.plot(steps, self[curve], marker=".", label=label)
            axes.set(xlabel="epoch", title=name)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            axes.legend()

    def _figures(self) -> list[str]:
        known = dict.fromkeys(name for epoch in self.epochs for name in epoch)
        return [name for name in known if name not in ("epoch", "lr", "seconds")]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"
