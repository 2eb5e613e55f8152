"""LeNet-5 beside PyTorch: the same training step for step, and the time of steps and calls.

Training amplifies rounding: two runs that round differently part, in PyTorch too. So the losses
are compared with a third run, by PyTorch in float64: what matters is whether dlc stays as near to
it as PyTorch's own float32 does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.cli.showcase import contest
from dlc.cli.showcase.contest import Trained
from dlc.cli.turns import Side, Subject, take_turns, timed
from dlc.frontend.data import Dataset, batches

#: What is timed: a name, and what it is called on the page.
TIMED = {
    "step": "training step, 64 images",
    "many": "inference, 64 images",
    "one": "inference, 1 image",
}


@dataclass(frozen=True)
class Twins:
    """The losses of each step: in dlc, and in PyTorch at two precisions."""

    dlc: list[float]
    torch: list[float]
    exact: list[float]

    def apart(self) -> tuple[list[float], list[float]]:
        """How far dlc and PyTorch are from float64, at each step."""
        exact = np.array(self.exact)
        ours, theirs = (np.abs(np.array(each) - exact) for each in (self.dlc, self.torch))
        return ours.tolist(), theirs.tolist()

    def summary(self) -> str:
        """In words."""
        between = np.abs(np.array(self.dlc) - np.array(self.torch))
        ours, theirs = map(np.array, self.apart())
        tenth = min(10, len(between))
        return (
            f"losses differ by {between[:tenth].max():.1g} at most in the first {tenth} steps and "
            f"by {between.max():.1g} in all {len(between)}; from float64, dlc parts by "
            f"{ours.max():.1g} and PyTorch by {theirs.max():.1g}"
        )


def retrain(trained: Trained, train: Dataset, epochs: int, tell: Callable[..., None]) -> Twins:
    """Repeat a training in PyTorch: the same first weights, the same batches, the same schedule."""
    import torch

    from dlc.frontend.models import in_torch

    torch.set_num_threads(1)  # two runs beside the preparation of batches: more would only wait
    runs, steps = [], len(trained.losses)
    for dtype in (torch.float32, torch.float64):
        model = in_torch.lenet5()
        weights = {name: torch.from_numpy(array) for name, array in trained.initial.items()}
        model.load_state_dict(weights)
        model = model.to(dtype).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=contest.RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, contest.RATE, total_steps=steps)
        runs.append((model, optimizer, schedule, dtype, []))
    order = batches(train.transform(contest.AUGMENTATION), contest.BATCH, shuffle=True, seed=0)
    done = 0
    for _ in range(epochs):
        for images, labels in order:
            tell("PyTorch, float32 and float64", done, steps)
            x, y = torch.from_numpy(images), torch.from_numpy(labels)
            for model, optimizer, schedule, dtype, losses in runs:
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(x.to(dtype)), y)
                loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
            done += 1
    return Twins(trained.losses, runs[0][-1], runs[1][-1])


# Times, each side in a process of its own.


def times(
    torch: bool, threads: int, rounds: int, seconds: float, tell: Callable[[str, int, int], None]
) -> dict[str, dict[str, float]]:
    """Seconds by side and by what is timed: medians of the turns."""
    here, theirs = {"threads": threads}, {"OMP_NUM_THREADS": str(threads)}
    sides = {"dlc": Side(f"{__name__}:dlc_side", here)}
    if torch:
        sides["PyTorch"] = Side(f"{__name__}:torch_side", here, theirs)
    found = take_turns(sides, rounds=rounds, seconds=seconds, tell=tell)
    return {side: {name: each.median(name) for name in TIMED} for side, each in found.items()}


def dlc_side(threads: int) -> Subject:
    """LeNet-5's step and calls, compiled by dlc."""
    from dlc.driver import compile
    from dlc.frontend import models, nn, optim
    from dlc.ir.sizes import Dim
    from dlc.ir.types import TensorSpec
    from dlc.training.step import train_step

    x, y = _samples()
    model = models.lenet5()
    options: Mapping[str, Any] = {"max_batch": contest.BATCH, "threads": threads}
    step = train_step(model, nn.CrossEntropyLoss(), optim.AdamW(lr=1e-4), **options)
    still = models.lenet5().eval()
    images = TensorSpec((Dim("batch", 1, contest.BATCH), *x.shape[1:]))
    exe = compile(still, images, threads=threads, progress=False)
    return _subject(lambda: step(x, y), lambda: exe(x), lambda: exe(x[:1]))


def torch_side(threads: int) -> Subject:
    """The same in PyTorch, as its users write it."""
    import torch

    from dlc.frontend.models import in_torch

    torch.set_num_threads(threads)
    x, y = map(torch.from_numpy, _samples())
    model, still = in_torch.lenet5().train(), in_torch.lenet5().eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def call(images: torch.Tensor) -> None:
        with torch.inference_mode():
            still(images)

    return _subject(step, lambda: call(x), lambda: call(x[:1]))


def _samples() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    images = rng.random((contest.BATCH, 1, 28, 28), dtype=np.float32)
    return images, rng.integers(0, 10, contest.BATCH)


def _subject(*calls: Callable[[], object]) -> Subject:
    parts = {name: timed(call) for name, call in zip(TIMED, calls, strict=True)}

    def measure(seconds: float) -> dict[str, float]:
        share = seconds / len(parts)
        return {name: part(share)["seconds"] for name, part in parts.items()}

    return Subject(measure)
