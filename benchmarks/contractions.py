"""Contractions beside PyTorch: every convolution of ResNet-18 and -50, matrix products, others.

Each side runs in a process of its own, in turn, several rounds: dlc, PyTorch contiguous, PyTorch
channels last. Shown is the median of the rounds, how far the rounds are apart, the ratio to the
better of PyTorch's two, and the share of the multiply-add peak that was measured in the rounds.
A convolution reads a padded NHWC image and adds a bias, as inside a model. The machine should have
nothing else to do: the spread says whether that was so.

    python -m benchmarks.contractions [--rounds 5] [--threads 2] [--only conv,matmul] [--isa LEVEL]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SIDES = ("dlc", "torch", "channels_last")
SECONDS = 0.08  # of one measurement


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


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="kinds, separated by commas")
    parser.add_argument("--isa", default="", help="instruction-set level of dlc's kernels")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = options.only.split(",") if options.only else [case.kind for case in CASES]
    cases = [case for case in CASES if case.kind in kinds]
    if options.side:
        for line in measure(options.side, cases, options.threads):
            print(json.dumps(line), flush=True)
        return
    rounds: list[dict[str, Any]] = []
    for number in range(options.rounds):
        for side in SIDES:
            say(f"round {number + 1} of {options.rounds}, {side}")
            for line in run_side(side, options):
                rounds.append({"side": side, "round": number, **line})
    say("")
    report(cases, rounds, options.threads)


def say(text: str) -> None:
    """Progress, on a line of its own that the next one replaces."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def run_side(side: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The measurements of one side, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.contractions", "--side", side]
    command += ["--threads", str(options.threads), "--only", options.only]
    variables = {"OMP_NUM_THREADS": str(options.threads)}
    variables |= {"DLC_ISA": options.isa} if options.isa else {}
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def report(cases: list[Case], rounds: list[dict[str, Any]], threads: int) -> None:
    """Print medians over the rounds."""
    peaks = [line["flops_per_second"] for line in rounds if line["case"] == "peak"]
    peak = statistics.median(peaks)
    print(
        f"{threads} threads, multiply-add peak {peak / 1e9:.0f} GFLOP/s "
        f"({min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f})\n"
        f"{'':44s}{'MFLOP':>7s}{'dlc us':>9s}{'spread':>7s}{'torch':>9s}{'ch.last':>9s}"
        f"{'ratio':>7s}{'GFLOP/s':>9s}{'of peak':>9s}"
    )
    for case in cases:
        times = {
            side: [r["seconds"] for r in rounds if r["case"] == case.name and r["side"] == side]
            for side in SIDES
        }
        ours = statistics.median(times["dlc"])
        theirs = [statistics.median(times[side]) for side in SIDES[1:] if times[side]]
        shown = [f"{1e6 * each:9.1f}" for each in theirs] + [" " * 9] * (2 - len(theirs))
        rate = case.flops / ours
        print(
            f"{case.name:44s}{case.flops / 1e6:7.1f}{1e6 * ours:9.1f}"
            f"{max(times['dlc']) / min(times['dlc']):7.2f}{''.join(shown)}"
            f"{min(theirs) / ours:7.2f}{rate / 1e9:9.1f}{rate / peak:9.0%}"
        )


def measure(side: str, cases: list[Case], threads: int) -> Iterator[dict[str, Any]]:
    """The median time of every case, on one side."""
    rng = np.random.default_rng(0)
    if side == "dlc":
        from dlc.driver import peak

        yield {"case": "peak", "flops_per_second": peak(threads).flops}
        machine = Machine(threads)
        for case in cases:
            yield {"case": case.name, "seconds": median_time(machine.prepare(case, rng))}
        return
    for case in cases:
        if side == "torch" or case.kind in ("conv", "depthwise"):
            yield {"case": case.name, "seconds": median_time(torch_call(case, side, threads))}


def median_time(call: Callable[[], object]) -> float:
    """Seconds of a call: the median over many, after some to warm up."""
    times = []
    end = time.perf_counter() + SECONDS / 4
    while time.perf_counter() < end or len(times) < 3:
        call()
        times.append(0.0)
    times, end = [], time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times) < 7:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


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
        from dlc.backends.numba_cpu.contract import Contraction, conv2d_sizes, tile_vectors

        batch, channels, size, columns, kernel, stride, padding = case.sizes
        pixels, edge = out(size, kernel, stride, padding), size + 2 * padding
        x = rng.standard_normal((batch, edge, edge, channels), dtype=np.float32)
        w = rng.standard_normal((-(-columns // 32), kernel, kernel, channels, 32), np.float32)
        y = np.zeros((batch, pixels, pixels, columns), np.float32)
        sizes = conv2d_sizes(
            bias(),
            shape=y.shape[:3],
            columns=columns,
            channels=channels,
            kernel=(kernel, kernel),
            x_strides=tuple(step // 4 for step in x.strides),
            y_strides=tuple(step // 4 for step in y.strides[:3]),
            stride=(stride, stride),
        )
        vectors = tile_vectors(self.isa, "float32", columns)
        contraction = Contraction(self.isa, "float32", bias(), vectors)
        values = {"x": x, "w": w, "y": y, "bias": np.zeros(columns, np.float32)}
        return self.call((contraction.kernel, values | sizes))

    def product(self, case: Case, rng: np.random.Generator) -> Callable[[], object]:
        """A product; `matmul` packs its right side in every call, `linear` did so before."""
        from dlc.backends.numba_cpu.contract import Contraction, matmul_sizes, tile_vectors
        from dlc.backends.numba_cpu.packing import matmul_panels, pack_panels

        batch, rows, columns, depth = case.sizes
        x = rng.standard_normal((batch, rows, depth), dtype=np.float32)
        w = rng.standard_normal((batch, depth, columns), dtype=np.float32)
        panels = np.zeros((batch, -(-columns // 32), depth, 32), np.float32)
        epilogue = bias() if case.kind == "linear" else plain()
        vectors = tile_vectors(self.isa, "float32", columns)
        kernel = Contraction(self.isa, "float32", epilogue, vectors).kernel
        y, zeros = np.zeros((batch, rows, columns), np.float32), np.zeros(columns, np.float32)
        sizes = matmul_sizes(epilogue, rows=rows, columns=columns, depth=depth, batch=batch)
        product = (kernel, {"x": x, "w": panels, "y": y, "bias": zeros} | sizes)
        if case.kind == "linear":
            return self.call(product)
        packing = {"x": w, "y": panels} | matmul_panels(depth, columns, batch)
        return self.call((pack_panels("float32"), packing), product)

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
    main()
