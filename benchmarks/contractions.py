"""Contractions beside PyTorch: every convolution of ResNet-18 and -50, matrix products, others.

Each side runs in a process of its own, in turn, several rounds: dlc, PyTorch contiguous, PyTorch
channels last. Shown is the median of the rounds, how far the rounds are apart, the ratio to the
better of PyTorch's two, and the share of the multiply-add peak that was measured in the rounds.
A convolution reads a padded NHWC image and adds a bias, as inside a model. The machine should have
nothing else to do, and the spread says whether that was so; on a busy one, `--best` shows the
fastest call of each side instead, which comes closest to a quiet machine.

    python -m benchmarks.contractions [--rounds 5] [--threads 2] [--only conv,matmul] [--isa LEVEL]
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.__main__ import main
from benchmarks.common import Compared, Options, Result, comparison, measure_all
from dlc.cli.turns import Subject, Times, timed

SIDES = ("dlc", "torch", "channels_last")
SHARE = 0.25  # of a turn, for each case
WARM = 0.02  # seconds of calls that do not count


@dataclass(frozen=True)
class Case:
    """A contraction: its kind, and the sizes that the kind reads."""

    kind: str
    sizes: tuple[int, ...]
    note: str = ""

    @property
    def flops(self) -> int:
        """Floating-point operations, two for each multiply-add."""
        if self.kind in ("conv", "depthwise"):
            batch, channels, size, columns, kernel, stride, padding = self.sizes
            pixels = batch * out(size, kernel, stride, padding) ** 2
            taps = kernel * kernel * (channels if self.kind == "conv" else 1)
            return 2 * pixels * columns * taps
        batch, rows, columns, depth = self.sizes
        return 2 * batch * rows * columns * depth

    @property
    def target(self) -> float:
        """The ratio to PyTorch's best that it is to reach; 0 where none is set."""
        return {"conv": 0.95, "matmul": 1.8 if self.sizes[0] == 1 else 0.0}.get(self.kind, 0.0)

    def has(self, side: str) -> bool:
        """Whether a side has a way of its own to do it."""
        return side != "channels_last" or self.kind in ("conv", "depthwise")

    @property
    def name(self) -> str:
        """What a person calls it."""
        if self.kind in ("conv", "depthwise"):
            batch, channels, size, columns, kernel, stride, _ = self.sizes
            text = f"{batch}x{channels}x{size}x{size}, {kernel}x{kernel}/{stride} -> {columns}"
        else:
            batch, rows, columns, depth = self.sizes
            text = (f"{batch} x " if batch > 1 else "") + f"{rows} x {depth} x {columns}"
        return f"{self.kind} {text} {self.note}".strip()


def out(size: int, kernel: int, stride: int, padding: int) -> int:
    """Height and width of a result."""
    return (size + 2 * padding - kernel) // stride + 1


# Input channels, size, output channels, kernel, stride, padding; each once.
RESNETS = (
    (3, 224, 64, 7, 2, 3),
    (64, 56, 64, 3, 1, 1),
    (64, 56, 128, 3, 2, 1),
    (64, 56, 128, 1, 2, 0),
    (128, 28, 128, 3, 1, 1),
    (128, 28, 256, 3, 2, 1),
    (128, 28, 256, 1, 2, 0),
    (256, 14, 256, 3, 1, 1),
    (256, 14, 512, 3, 2, 1),
    (256, 14, 512, 1, 2, 0),
    (512, 7, 512, 3, 1, 1),
    (64, 56, 64, 1, 1, 0),
    (64, 56, 256, 1, 1, 0),
    (256, 56, 64, 1, 1, 0),
    (256, 56, 128, 1, 1, 0),
    (128, 56, 128, 3, 2, 1),
    (128, 28, 512, 1, 1, 0),
    (256, 56, 512, 1, 2, 0),
    (512, 28, 128, 1, 1, 0),
    (512, 28, 256, 1, 1, 0),
    (256, 28, 256, 3, 2, 1),
    (256, 14, 1024, 1, 1, 0),
    (512, 28, 1024, 1, 2, 0),
    (1024, 14, 256, 1, 1, 0),
    (1024, 14, 512, 1, 1, 0),
    (512, 14, 512, 3, 2, 1),
    (512, 7, 2048, 1, 1, 0),
    (1024, 14, 2048, 1, 2, 0),
    (2048, 7, 512, 1, 1, 0),
)
DEPTHWISE = (
    (32, 112, 32, 3, 1, 1),
    (64, 112, 64, 3, 2, 1),
    (144, 56, 144, 3, 1, 1),
    (256, 28, 256, 3, 1, 1),
    (512, 14, 512, 3, 1, 1),
    (672, 14, 672, 5, 1, 2),
    (960, 7, 960, 3, 1, 1),
)
CASES = (
    *(Case("conv", (1, *sizes)) for sizes in RESNETS),
    *(Case("matmul", (1, n, n, n)) for n in (512, 768, 1024, 1536, 2048)),
    Case("matmul", (12, 128, 128, 64)),
    Case("linear", (1, 128, 512, 784)),
    Case("linear", (1, 1, 1000, 2048)),
    Case("linear", (1, 1, 4096, 4096)),
    Case("linear", (1, 8, 4096, 4096)),
    *(Case("depthwise", (1, *sizes)) for sizes in DEPTHWISE),
)


def run(options: Options) -> Result:
    """Measure every case, all of them in each turn."""
    chosen = [number for number, case in enumerate(CASES) if options.wants(case.name)]
    times = measure_all("contractions", SIDES, chosen, options)
    cases = []
    for case in (CASES[number] for number in chosen):
        taken = {side: turns(times[side], case, options) for side in SIDES if case.has(side)}
        cases.append(Compared(case.name, case.flops, taken, times["peak"], case.target))
    return comparison(f"Contractions on {options.threads} threads", cases)


def turns(times: Times, case: Case, options: Options) -> tuple[float, float, float]:
    """What counts of a case, the fastest and the slowest turn."""
    name = f"{case.name}, best" if options.best else case.name
    fastest, slowest = times.spread(name)
    return (fastest if options.best else times.median(name), fastest, slowest)


def subject(side: str, chosen: Sequence[int], threads: int) -> Subject:
    """One side's process: a turn measures every case, the median and the best of many calls."""
    cases = [CASES[number] for number in chosen if CASES[number].has(side)]
    rng, machine = np.random.default_rng(0), Machine(threads) if side == "dlc" else None
    calls = {
        case.name: timed(
            machine.prepare(case, rng) if machine else torch_call(case, side, threads), WARM
        )
        for case in cases
    }

    def turn(seconds: float) -> dict[str, float]:
        found = {}
        for name, call in calls.items():
            call(WARM)  # what it works on has left the cache since the last turn
            taken = call(SHARE * seconds)
            found |= {name: taken["seconds"], f"{name}, best": taken["fastest"]}
        return found

    return Subject(turn)


# PyTorch.


def torch_call(case: Case, side: str, threads: int) -> Callable[[], object]:
    """The case as PyTorch does it."""
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if case.kind in ("conv", "depthwise"):
        batch, channels, size, columns, kernel, stride, padding = case.sizes
        groups = channels if case.kind == "depthwise" else 1
        order = torch.channels_last if side == "channels_last" else torch.contiguous_format
        x = torch.randn(batch, channels, size, size).contiguous(memory_format=order)
        w = torch.randn(columns, channels // groups, kernel, kernel).contiguous(memory_format=order)
        bias = torch.randn(columns)
        return lambda: torch.nn.functional.conv2d(x, w, bias, stride, padding, 1, groups)
    batch, rows, columns, depth = case.sizes
    x = torch.randn(batch, rows, depth)
    if case.kind == "linear":
        w, bias = torch.randn(columns, depth), torch.randn(columns)
        return lambda: torch.nn.functional.linear(x[0], w, bias)
    w = torch.randn(batch, depth, columns)
    return lambda: torch.matmul(x, w)


# dlc.


class Machine:
    """Compiles kernels and runs them on a pool of threads, as a model does."""

    def __init__(self, threads: int) -> None:
        from dlc.backends.native import interpreter
        from dlc.backends.native.isa import host
        from dlc.runtime.loader import link
        from dlc.runtime.pool import ENTRIES, Pool

        self.isa, self.threads = host(), threads
        self.linked: dict[str, Any] = {}
        program = link([interpreter.build(self.isa)], ENTRIES)
        self.pool = Pool(program, threads, whole_team=True)  # as PyTorch: no fewer when busy

    def address(self, kernel: Any) -> int:
        """The kernel, compiled and linked."""
        from dlc.backends.native.frontend import lower
        from dlc.backends.native.objects import build
        from dlc.runtime.loader import link

        if kernel.name not in self.linked:
            externs = [tile.extern for tile in kernel.tiles]
            text = lower(kernel.source, kernel.name, kernel.params, self.isa, externs)
            code = [build(text, [kernel.name], self.isa, [extern.name for extern in externs])]
            code += [build(t.text(), [t.name], self.isa, speed=0) for t in kernel.tiles]
            self.linked[kernel.name] = link(code, [kernel.name])
        return int(self.linked[kernel.name].address(kernel.name))

    def call(self, *steps: tuple[Any, dict[str, Any]]) -> Callable[[], object]:
        """A call that runs kernels with their arguments, a barrier behind each."""
        from dlc.runtime import frame

        rows = []
        for kernel, values in steps:
            chosen = [values[param.name] for param in kernel.params]
            row = [v.ctypes.data if isinstance(v, np.ndarray) else int(v) for v in chosen]
            rows.append(np.array(row, np.int64))
        table = [(self.address(k), r.ctypes.data, frame.BARRIER) for (k, _), r in zip(steps, rows)]
        steps_table = np.array(table, np.int64)
        words = np.zeros(frame.HEADER_WORDS, np.int64)
        words[frame.STEP_COUNT], words[frame.STEPS] = len(steps), steps_table.ctypes.data
        words[frame.THREADS] = self.threads
        keep = (rows, steps_table, steps)
        return lambda: (self.pool.call(words.ctypes.data), keep)

    def prepare(self, case: Case, rng: np.random.Generator) -> Callable[[], object]:
        """A call of the case."""
        if case.kind == "conv":
            return self.convolution(case, rng)
        if case.kind == "depthwise":
            return self.depthwise(case, rng)
        return self.product(case, rng)

    def convolution(self, case: Case, rng: np.random.Generator) -> Callable[[], object]:
        batch, channels, size, columns, kernel, stride, padding = case.sizes
        pixels, edge = out(size, kernel, stride, padding), size + 2 * padding
        x = rng.standard_normal((batch, edge, edge, channels), dtype=np.float32)
        w = rng.standard_normal((-(-columns // 32), kernel, kernel, channels, 32), np.float32)
        y = np.zeros((batch, pixels, pixels, columns), np.float32)
        return self.call(self.direct(x, w, y, stride))

    def direct(self, x: Any, w: Any, y: Any, stride: int = 1) -> tuple[Any, dict[str, Any]]:
        """A convolution of padded images with packed weights, and its arguments."""
        from dlc.backends.numba_cpu.contract import Contraction, conv2d_sizes, tile_vectors

        columns = y.shape[3]
        sizes = conv2d_sizes(
            bias(),
            shape=y.shape[:3],
            columns=columns,
            channels=x.shape[3],
            kernel=w.shape[1:3],
            x_strides=tuple(step // 4 for step in x.strides),
            y_strides=tuple(step // 4 for step in y.strides[:3]),
            stride=(stride, stride),
        )
        vectors = tile_vectors(self.isa, "float32", columns)
        contraction = Contraction(self.isa, "float32", bias(), vectors)
        values = {"x": x, "w": w, "y": y, "bias": np.zeros(columns, np.float32)}
        return contraction.kernel, values | sizes

    def product(self, case: Case, rng: np.random.Generator) -> Callable[[], object]:
        """A product: `matmul` with any right side, `linear` with weights that lie in panels."""
        from dlc.backends.numba_cpu.contract import (
            Contraction,
            matmul_sizes,
            scratch_elements,
            tile_vectors,
        )

        batch, rows, columns, depth = case.sizes
        packs = case.kind == "matmul"
        epilogue = plain() if packs else bias()
        x = rng.standard_normal((batch, rows, depth), dtype=np.float32)
        w = rng.standard_normal((batch, -(-columns // 32) * 32, depth), dtype=np.float32)
        strides = (depth * columns, columns, 1) if packs else None
        sizes = matmul_sizes(
            epilogue, rows=rows, columns=columns, depth=depth, batch=batch, w_strides=strides
        )
        vectors = tile_vectors(self.isa, "float32", columns)
        contraction = Contraction(self.isa, "float32", epilogue, vectors, packs)
        values = {"x": x, "w": w, "y": np.zeros((batch, rows, columns), np.float32)}
        values["bias"] = np.zeros(columns, np.float32)
        values["scratch"] = np.zeros(self.threads * scratch_elements(depth), np.float32)
        return self.call((contraction.kernel, values | sizes))

    def depthwise(self, case: Case, rng: np.random.Generator) -> Callable[[], object]:
        from dlc.backends.numba_cpu.depthwise import Depthwise, DepthwiseTile, depthwise_sizes

        batch, channels, size, _, kernel, stride, padding = case.sizes
        pixels, edge = out(size, kernel, stride, padding), size + 2 * padding
        x = rng.standard_normal((batch, edge, edge, channels), dtype=np.float32)
        w = rng.standard_normal((kernel, kernel, channels), dtype=np.float32)
        y = np.zeros((batch, pixels, pixels, channels), np.float32)
        sizes = depthwise_sizes(
            bias(),
            shape=y.shape[:3],
            columns=channels,
            lines=kernel,
            x_strides=tuple(step // 4 for step in x.strides[:3]),
            y_strides=tuple(step // 4 for step in y.strides[:3]),
            stride=stride,
        )
        tile = DepthwiseTile(self.isa, "float32", kernel, stride, 1, bias())
        values = {"x": x, "w": w, "y": y, "bias": np.zeros(channels, np.float32)}
        return self.call((Depthwise(tile).kernel, values | sizes))


def plain() -> Any:
    """The sum as it is."""
    from dlc.backends.numba_cpu.vectors import PLAIN

    return PLAIN


def bias() -> Any:
    """The sum and a bias."""
    from dlc.backends.numba_cpu.vectors import Epilogue, Operand

    return Epilogue("acc + bias", (Operand("bias", "column"),))


if __name__ == "__main__":
    sys.exit(main(["contractions", *sys.argv[1:]]))
