"""Training steps beside PyTorch: forward, backward and the update by Adam of all parameters.

PyTorch takes the step eagerly and with the way to the loss and back compiled by Inductor, each
contiguous and channels last; its Adam is always the fused one, the fastest that it has on a CPU.
Both sides take the same kind of batch from memory, again and again. Counted are the operations that
dlc's kernels do: forward, gradients of data and weights, 3x3 convolutions by Winograd's algorithm
with the fewer multiplications that it needs, and the update.

    python -m benchmarks steps [--rounds 5] [--threads 2] [--only resnet18]
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.__main__ import main
from benchmarks.common import Compared, Options, Result, comparison, environment, measure, summary
from dlc.cli.turns import Side, Subject, timed

if TYPE_CHECKING:
    from dlc.training.step import TrainStep

CLASSES, RATE = 10, 1e-3


@dataclass(frozen=True)
class Case:
    """A model of the zoo, its batch, and the ratio to PyTorch's best that is to be reached."""

    model: str
    batch: int
    image: tuple[int, int, int]
    target: float

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.model}, {'x'.join(map(str, self.image))}, batch {self.batch}"

    @property
    def options(self) -> dict[str, Any]:
        """What the model is made with, in both libraries."""
        return {} if self.image[0] == 1 else {"num_classes": CLASSES, "small_images": True}

    def data(self) -> tuple[Any, Any]:
        """Images and labels."""
        rng = np.random.default_rng(0)
        images = rng.standard_normal((self.batch, *self.image), np.float32)
        return images, rng.integers(0, CLASSES, self.batch)


CASES = (
    Case("lenet5", 64, (1, 28, 28), 3),
    Case("mlp", 128, (1, 28, 28), 2),
    Case("resnet18", 32, (3, 32, 32), 1.2),
    Case("vgg11_bn", 32, (3, 32, 32), 1.2),
)


@dataclass(frozen=True)
class Way:
    """One of PyTorch's."""

    channels_last: bool = False
    inductor: bool = False

    def suits(self, case: Case) -> bool:
        """Whether it differs from another way: only images have channels."""
        return not (self.channels_last and case.model == "mlp")


WAYS = {
    "PyTorch": Way(),
    "channels_last": Way(channels_last=True),
    "Inductor": Way(inductor=True),
    "Inductor, last": Way(channels_last=True, inductor=True),
}


def run(options: Options) -> Result:
    """Measure every case."""
    title = f"Training steps on {options.threads} threads"
    if missing := missing_for_inductor():
        title = f"{title}, without Inductor, which finds no {missing} here"
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if options.wants(case.name):
                sides = dict(_sides(case, options.threads, folder if not missing else ""))
                times = measure(case.name, sides, options)
                taken = {side: summary(times[side], options) for side in sides}
                flops = times["dlc"].info["flops"]
                cases.append(Compared(case.name, flops, taken, times["peak"], case.target))
    return comparison(title, cases)


def missing_for_inductor() -> str:
    """What the machine lacks for code that PyTorch's compiler writes."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return f"C++ compiler {compiler}"
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    return "" if os.path.exists(header) else "Python.h"


def _sides(case: Case, threads: int, folder: str) -> Iterator[tuple[str, Side]]:
    """Those that are compared; without a folder for its code, not Inductor."""
    common = {"case": CASES.index(case), "threads": threads}
    yield "dlc", Side("benchmarks.steps:compiled", common)
    variables = {**environment(threads), "TORCHINDUCTOR_CACHE_DIR": folder}
    for name, way in WAYS.items():
        if way.suits(case) and (folder or not way.inductor):
            yield name, Side("benchmarks.steps:torch", {**common, "way": name}, variables)


def compiled(case: int, threads: int) -> Subject:
    """dlc's side."""
    step, batch = dlc_step(CASES[case], threads)
    flops = sum(kernel.flops for kernel in step.executable(*batch).kernels)
    return Subject(timed(lambda: step(*batch)), {"flops": flops})


def torch(case: int, threads: int, way: str) -> Subject:
    """PyTorch's side."""
    return Subject(timed(torch_step(CASES[case], threads, WAYS[way])))


def dlc_step(case: Case, threads: int) -> tuple[TrainStep, tuple[Any, Any]]:
    """A step, not compiled yet, and its batch."""
    from dlc.frontend import models, nn, optim
    from dlc.training.step import train_step

    model = getattr(models, case.model)(**case.options)
    step = train_step(model, nn.CrossEntropyLoss(), optim.Adam(lr=RATE), threads=threads)
    return step, case.data()


def torch_step(case: Case, threads: int, way: Way) -> Callable[[], None]:
    """A step on a batch."""
    import torch

    from dlc.frontend.models import in_torch

    torch.set_num_threads(threads)
    order = torch.channels_last if way.channels_last else torch.contiguous_format
    network = getattr(in_torch, case.model)(**case.options).train().to(memory_format=order)
    images, labels = map(torch.from_numpy, case.data())
    images = images.contiguous(memory_format=order)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE, fused=True)

    def loss() -> torch.Tensor:
        return torch.nn.functional.cross_entropy(network(images), labels)

    forward = torch.compile(loss) if way.inductor else loss

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    sys.exit(main(["steps", *sys.argv[1:]]))
