"""Whole models beside PyTorch: eager, without gradients, contiguous and channels_last.

The same inputs, the same float32, the same number of threads. dlc's time holds the entry from
Python, the conversion of the images to its own order, and the outputs' memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.common import Compared, Options, Result, comparison, environment, measure, summary
from dlc.cli.turns import Side

TWINS = "dlc.frontend.models.in_torch"


@dataclass(frozen=True)
class Model:
    """A model of the zoo at a batch size, and the ratio to PyTorch's best that it is to reach."""

    name: str
    batch: int
    target: float

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.name}, batch {self.batch}"


MODELS = (
    Model("lenet5", 1, 15),
    Model("lenet5", 64, 5),
    Model("mlp", 128, 1.8),
    Model("resnet18", 1, 1.2),
    Model("resnet50", 1, 1.2),
    Model("vgg16", 1, 1.2),
)


def run(options: Options) -> Result:
    """Measure every model."""
    cases = [_case(model, options) for model in MODELS if options.wants(model.title)]
    return comparison(f"Models on {options.threads} threads", cases)


def _case(model: Model, options: Options) -> Compared:
    fields = {"inputs": [], "dim": [("batch", 1, 128)], "weights": None, "train": False}
    common = {
        "model": {"model": model.name, **fields},
        "at": {"batch": model.batch},
        "threads": options.threads,
    }
    torch = {**common, "twin": f"{TWINS}:{model.name}"}
    variables = environment(options.threads)
    last = {**torch, "channels_last": True}
    sides = {
        "dlc": Side("dlc.cli.sides:compiled", common),
        "PyTorch": Side("dlc.cli.sides:torch", torch, variables),
        "channels_last": Side("dlc.cli.sides:torch", last, variables),
    }
    times = measure(model.title, sides, options)
    return Compared(
        model.title,
        times["dlc"].info["flops"],
        {side: summary(times[side], options) for side in sides},
        times["peak"],
        model.target,
    )
