"""Gradients of every convolution of ResNet-18, for its data and for its weight, beside PyTorch.

dlc compiles a step that computes both and updates the weight, so that the weight lies and is packed
as in training; counted are the kernels of the gradients, packing and the update included, and not
the copies of the benchmark's own arrays into the order in which a model's values lie anyway.
PyTorch computes each gradient alone, contiguous and channels last. Each side runs in a process of
its own, in turn. FLOPs are those of the direct sum.

    python -m benchmarks gradients [--rounds 5] [--threads 2] [--only weight,data]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.__main__ import main
from benchmarks.common import Compared, Options, Result, comparison, measure_all
from benchmarks.contractions import RESNETS, SHARE, WARM, out
from dlc.cli.turns import Subject, Times, timed
from dlc.errors import ExecutionError, explain

SIDES = ("dlc", "torch", "channels_last")
KINDS = ("data", "weight")
#: Whose a kernel is, by how its label begins; the first that fits. Copies are nobody's.
KERNELS = {
    "conv2d_weight": "weight",
    "sum+": "weight",
    "conv2d": "data",
    "pack": "data",
    "pad": "data",
    "reshape": "data",
    "transpose": "data",
    "slice": "data",
    "relayout": "",
    "halo": "",
}
IMAGES = 8
TARGET = 0.9


@dataclass(frozen=True)
class Case:
    """A convolution of square images: channels, size, output channels, kernel, stride, padding."""

    sizes: tuple[int, int, int, int, int, int]

    def name(self, kind: str) -> str:
        """What a person calls one of its gradients."""
        channels, size, columns, kernel, stride, _ = self.sizes
        return f"{kind} {channels}x{size}x{size}, {kernel}x{kernel}/{stride} -> {columns}"

    @property
    def edge(self) -> int:
        """Height and width of the result."""
        _, size, _, kernel, stride, padding = self.sizes
        return out(size, kernel, stride, padding)

    @property
    def flops(self) -> int:
        """Of each gradient."""
        channels, _, columns, kernel, _, _ = self.sizes
        return 2 * IMAGES * self.edge**2 * columns * channels * kernel * kernel


#: The first eleven are those of ResNet-18.
CASES = tuple(Case(sizes) for sizes in RESNETS[:11])


def run(options: Options) -> Result:
    """Measure every case, all of them in each turn."""
    wanted = [any(options.wants(case.name(kind)) for kind in KINDS) for case in CASES]
    chosen = [number for number, want in enumerate(wanted) if want]
    times = measure_all("gradients", SIDES, chosen, options)
    cases = []
    for case in (CASES[number] for number in chosen):
        for name in filter(options.wants, map(case.name, KINDS)):
            taken = {side: turns(times[side], name) for side in SIDES}
            cases.append(Compared(name, case.flops, taken, times["peak"], TARGET))
    title = f"Gradients of convolutions, {IMAGES} images, on {options.threads} threads"
    return comparison(title, cases)


def turns(times: Times, name: str) -> tuple[float, float, float]:
    """The median turn, the fastest and the slowest one."""
    return (times.median(name), *times.spread(name))


def subject(side: str, chosen: Sequence[int], threads: int) -> Subject:
    """One side's process: a turn measures every case."""
    make = compiled if side == "dlc" else torch_calls
    cases = [make(CASES[number], side, threads) for number in chosen]

    def turn(seconds: float) -> dict[str, float]:
        return {name: value for case in cases for name, value in case(seconds).items()}

    return Subject(turn)


def torch_calls(case: Case, side: str, threads: int) -> Callable[[float], dict[str, float]]:
    """Both gradients as PyTorch computes them."""
    import torch

    torch.set_num_threads(threads)
    last = side == "channels_last"
    order = torch.channels_last if last else torch.contiguous_format
    channels, size, columns, kernel, stride, padding = case.sizes
    shapes = ((IMAGES, columns, case.edge, case.edge), (IMAGES, channels, size, size))
    shapes = (*shapes, (columns, channels, kernel, kernel))
    g, x, w = (torch.randn(shape).contiguous(memory_format=order) for shape in shapes)
    pairs = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)

    def gradient(kind: str) -> Callable[[], object]:
        mask = [kind == "data", kind == "weight", False]
        return lambda: torch.ops.aten.convolution_backward(g, x, w, None, *pairs, mask)

    calls = {case.name(kind): timed(gradient(kind), WARM) for kind in KINDS}
    return lambda seconds: {n: c(SHARE * seconds)["seconds"] for n, c in calls.items()}


def compiled(case: Case, side: str, threads: int) -> Callable[[float], dict[str, float]]:
    """Both gradients as kernels of a step that dlc compiles, which updates the weight."""
    from dlc import driver, nn
    from dlc.frontend.scope import active
    from dlc.ir.node import Node, apply

    channels, size, columns, kernel, stride, padding = case.sizes
    layer = nn.Conv2d(channels, columns, kernel, bias=False)
    slide = {"stride": stride, "padding": padding, "dilation": 1, "groups": 1}

    def step(x: Node, g: Node) -> Node:
        scope = active()
        assert scope is not None, "a step is traced, never called"
        scope.adopt(layer, "")
        w = scope.value(layer.weight)
        for_weight = apply("conv2d_weight_grad", x, g, kernel=kernel, **slide)
        scope.assign(layer.weight, w - 1e-3 * for_weight)
        return apply("conv2d_input_grad", g, w, input_shape=(size, size), **slide)

    rng = np.random.default_rng(0)
    shapes = ((IMAGES, channels, size, size), (IMAGES, columns, case.edge, case.edge))
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    exe = driver.compile(step, *arrays, threads=threads, progress=False)
    calls = timed(lambda: exe(*arrays), WARM)

    def measured(seconds: float) -> dict[str, float]:
        repeats = max(3, round(SHARE * seconds / calls(WARM)["fastest"]))
        return times_by_kind(case, exe.profile(*arrays, repeats=repeats))

    return measured


def times_by_kind(case: Case, profile: Any) -> dict[str, float]:
    """The times of the kernels of each gradient together."""
    found = dict.fromkeys(KINDS, 0.0)
    for kernel in profile.kernels:
        kind = next((k for start, k in KERNELS.items() if kernel.label.startswith(start)), None)
        if kind is None:
            expected = f"kernels whose labels begin with {', '.join(KERNELS)}"
            raise ExecutionError(explain("the benchmark of gradients", expected, kernel.label))
        if kind:
            found[kind] += kernel.seconds
    return {case.name(kind): seconds for kind, seconds in found.items()}


if __name__ == "__main__":
    sys.exit(main(["gradients", *sys.argv[1:]]))
