"""3x3 convolutions direct and by Winograd's algorithm, beside PyTorch, at the sizes of networks.

Every way of doing it runs in a process of its own, in turn, and reads other weights in every call:
in a network other layers' weights have pushed them out of the caches, and Winograd's are larger.
The last columns say which one the choice of algorithms takes, how far it is from the fastest, and
its ratio to PyTorch.

    python -m benchmarks winograd [--rounds 5] [--threads 2] [--only 56x56]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from benchmarks.__main__ import main
from benchmarks.common import Options, Result, measure_all
from benchmarks.contractions import Machine, bias
from dlc.cli.turns import Subject, Times, timed
from dlc.report import duration, quantity

#: Sides, with the tile of results of dlc's; 0 is a direct sum.
TILES = {"direct": 0, "F(2x2)": 2, "F(4x4)": 4}
SIDES = (*TILES, "PyTorch")
#: Bytes of weights that no cache holds.
COLD = 100e6
SHARE = 0.3  # of a turn, for each case


@dataclass(frozen=True)
class Case:
    """A convolution of square images, padded by 1."""

    images: int
    inputs: int
    size: int
    outputs: int

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.images}x{self.inputs}x{self.size}x{self.size} -> {self.outputs}"

    @property
    def flops(self) -> int:
        """Of the direct sum."""
        return 18 * self.images * self.size**2 * self.inputs * self.outputs


VGG = (
    *((64, 224, 64), (64, 112, 128), (128, 112, 128), (128, 56, 256)),
    *((256, 56, 256), (256, 28, 512), (512, 28, 512), (512, 14, 512)),
)
RESNET = ((64, 56, 64), (128, 28, 128), (256, 14, 256), (512, 7, 512))
OTHERS = ((32, 56, 32), (16, 112, 16), (512, 4, 512), (64, 8, 64))
CASES = (
    *(Case(1, *sizes) for sizes in (*VGG, *RESNET, *OTHERS)),
    *(Case(8, *sizes) for sizes in RESNET),
)


def run(options: Options) -> Result:
    """Measure every case, all of them in each turn."""
    chosen = [number for number, case in enumerate(CASES) if options.wants(case.name)]
    times = measure_all("winograd", SIDES, chosen, options)
    values = []
    for case in (CASES[number] for number in chosen):
        seconds = {side: time_of(times[side], case, options) for side in SIDES}
        known = {"name": case.name, "flops": case.flops, "takes": takes(case)}
        values.append({**known, "seconds": seconds})
    columns = ["case", "direct FLOPs", *SIDES, "takes", "of fastest", "ratio"]
    title = f"3x3 convolutions on {options.threads} threads"
    return Result(title, columns, [row(value) for value in values], values)


def time_of(times: Times, case: Case, options: Options) -> float:
    """What counts of a case."""
    if options.best:
        return times.spread(f"{case.name} fastest")[0]
    return times.median(f"{case.name} seconds")


def takes(case: Case) -> str:
    """The side that the choice of algorithms takes."""
    from dlc.passes.convolutions import winograd_tile

    m = winograd_tile((case.images, case.size, case.size), case.inputs, case.outputs)
    return next(side for side, tile in TILES.items() if tile == m)


def row(value: dict[str, Any]) -> list[str]:
    """A case as it is printed."""
    seconds, taken = value["seconds"], value["seconds"][value["takes"]]
    return [
        value["name"],
        quantity(value["flops"], "FLOP"),
        *(duration(seconds[side]) for side in SIDES),
        value["takes"],
        f"{taken / min(seconds[side] for side in TILES):.2f} ×",
        f"{seconds['PyTorch'] / taken:.2f} ×",
    ]


def subject(side: str, chosen: Sequence[int], threads: int) -> Subject:
    """One side's process: a turn measures every case."""
    make = torch_calls if side == "PyTorch" else Convolutions(threads, TILES[side]).calls
    calls = {}
    for case in (CASES[number] for number in chosen):
        each = cycle(make(case, np.random.default_rng(0)))
        calls[case.name] = timed(lambda each=each: next(each)(), 0.02)

    def turn(seconds: float) -> dict[str, float]:
        found = {}
        for name, call in calls.items():
            taken = call(SHARE * seconds)
            found |= {f"{name} {field}": value for field, value in taken.items()}
        return found

    return Subject(turn)


def copies(weights: Any, nbytes: int, copy: Callable[[Any], Any]) -> list[Any]:
    """Weights as often as no cache holds them."""
    return [copy(weights) for _ in range(max(2, round(COLD / nbytes)))]


def torch_calls(case: Case, rng: np.random.Generator) -> list[Callable[[], object]]:
    """PyTorch, channels last; `OMP_NUM_THREADS` says on how many threads."""
    import torch

    torch.set_grad_enabled(False)
    order = torch.channels_last
    x = torch.randn(case.images, case.inputs, case.size, case.size).contiguous(memory_format=order)
    w = torch.randn(case.outputs, case.inputs, 3, 3).contiguous(memory_format=order)
    b = torch.randn(case.outputs)
    weights = copies(w, w.nbytes, torch.clone)
    return [lambda w=w: torch.nn.functional.conv2d(x, w, b, padding=1) for w in weights]


class Convolutions(Machine):
    """dlc's convolutions with tiles of m, or direct."""

    def __init__(self, threads: int, m: int) -> None:
        super().__init__(threads)
        self.m = m

    def calls(self, case: Case, rng: np.random.Generator) -> list[Callable[[], object]]:
        """A call for each copy of the weights."""
        from dlc.ops.winograd import overhang

        inner = slice(1, case.size + 1)
        edge = case.size + 2 + (overhang(case.size, self.m) if self.m else 0)
        x = np.zeros((case.images, edge, edge, case.inputs), np.float32)
        x[:, inner, inner] = rng.standard_normal((case.images, case.size, case.size, case.inputs))
        y = np.zeros((case.images, case.size, case.size, case.outputs), np.float32)
        make = self._winograd if self.m else self._direct
        kernel, values = make(case, x, y)
        weights = copies(values["w"], values["w"].nbytes, np.copy)
        return [self.call((kernel, values | {"w": each})) for each in weights]

    def _direct(self, case: Case, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
        w = np.ones((-(-case.outputs // 32), 3, 3, case.inputs, 32), np.float32)
        return self.direct(x, w, y)

    def _winograd(self, case: Case, x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
        from dlc.backends.numba_cpu.winograd import Winograd, winograd_sizes

        winograd = Winograd(self.isa, "float32", self.m, bias())
        sizes = winograd_sizes(
            winograd,
            shape=y.shape[:3],
            columns=case.outputs,
            depth=case.inputs,
            x_strides=tuple(step // 4 for step in x.strides[:3]),
            y_strides=tuple(step // 4 for step in y.strides[:3]),
        )
        w = np.ones((winograd.points, -(-case.outputs // 32), case.inputs, 32), np.float32)
        scratch = np.zeros(sizes["share"] * self.threads, np.float32)
        values = {"x": x, "w": w, "y": y, "bias": np.zeros(case.outputs, np.float32)}
        return winograd.kernel, {**values, **sizes, "scratch": scratch}


if __name__ == "__main__":
    sys.exit(main(["winograd", *sys.argv[1:]]))
