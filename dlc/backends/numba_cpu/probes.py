"""Kernels that measure: the clock between two steps, the multiply-adds that a core can do, and what
lies between two steps.

They are kernels like any other, built by the same path and run by the same interpreter, so that
what they measure is what a model's kernels meet.
"""

from __future__ import annotations

from llvmlite import ir

from dlc.backends.native.frontend import Param
from dlc.backends.native.isa import Isa
from dlc.backends.native.machine import Words, nanoseconds, pointer, program
from dlc.backends.native.objects import build
from dlc.backends.numba_cpu.vectors import (
    PLAIN,
    POINTER,
    WORD,
    VectorFunction,
    declare,
    word,
)

CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME = 1, 3

#: The kernel's name for each element type.
PEAK = {"float32": "dlc_peak_float32", "float64": "dlc_peak_float64"}


def clocks(isa: Isa) -> bytes:
    """The object of two steps that write down when they run, `dlc_stamp` and `dlc_cpu_stamp`, and
    of one that does not even that, `dlc_nothing`.
    """
    return program([dlc_stamp, dlc_cpu_stamp, dlc_nothing], isa, ("clock_gettime",))


def dlc_stamp(arguments: Words, thread: int, threads: int) -> int:
    """The first thread puts the time, in nanoseconds, where the first argument points."""
    if thread == 0:
        times = pointer(arguments[0])
        times[0] = nanoseconds(CLOCK_MONOTONIC)
    return 0


def dlc_cpu_stamp(arguments: Words, thread: int, threads: int) -> int:
    """Every thread puts the processor time that it has had into its place of a row."""
    times = pointer(arguments[0])
    times[thread] = nanoseconds(CLOCK_THREAD_CPUTIME)
    return 0


def dlc_nothing(arguments: Words, thread: int, threads: int) -> int:
    """Every thread goes on at once, to meet the others."""
    return 0


def chains(isa: Isa) -> int:
    """How many independent chains of operations the peak kernel keeps in registers.

    Enough to fill four pipes of a latency of six cycles where there are 32 registers, and two pipes
    where there are 16.
    """
    return isa.registers - (8 if isa.registers > 16 else 2)


def flops_per_round(isa: Isa, dtype: str) -> int:
    """Operations of one thread in one round of the peak kernel."""
    return (2 if isa.fma else 1) * chains(isa) * isa.lanes(dtype)


def peak(isa: Isa, dtype: str) -> bytes:
    """The object of a kernel that does nothing but multiply-adds on registers.

    Its arguments are the number of rounds, the address of the elements that it starts from (a
    factor of one, an addend, and one for each chain), and where each thread puts 64 bytes of
    results. Every thread does all the rounds.
    """
    module = ir.Module(PEAK[dtype])
    params = (Param("arguments", "int64*"), Param("thread", "int64"), Param("threads", "int64"))
    function = declare(module, PEAK[dtype], params)
    _Peak(function, params, isa, dtype, PLAIN).emit(chains(isa))
    return build(str(module), [PEAK[dtype]], isa, speed=0)


class _Peak(VectorFunction):
    """Emits the peak kernel.

    With a fused multiply-add, each chain is acc = acc * factor + addend. Without one, half of the
    chains multiply and half add, as the two may run on pipes of their own, and so that neither
    waits for the other. LLVM does not know the values and can leave nothing out.
    """

    def emit(self, count: int) -> None:
        """The whole function, with `count` chains."""
        b = self.builder
        rounds, data, results = (self._argument(i) for i in range(3))
        elements, place = b.inttoptr(data, POINTER), b.inttoptr(results, POINTER)
        factor, addend = self._splat(elements, 0), self._splat(elements, 1)
        starts = [self._splat(elements, 2 + i) for i in range(count)]
        loop, done = self.blocks("round", "done")
        before = b.block
        b.branch(loop)
        b.position_at_end(loop)
        left = self.phi(WORD)
        acc = [self.phi(self.vector) for _ in range(count)]
        step = self._fused if self.emitter.isa.fma else self._apart
        made = step(acc, factor, addend)
        less = b.sub(left, word(1))
        self.feed([left, *acc], [rounds, *starts], before)
        self.feed([left, *acc], [less, *made], loop)
        self.rolled(b.cbranch(b.icmp_signed(">", less, word(0)), loop, done))
        b.position_at_end(done)
        total = made[0]
        for value in made[1:]:
            total = b.fadd(total, value)
        own = b.gep(place, [b.mul(self.arg["thread"], word(64))], source_etype=ir.IntType(8))
        self.store(total, own)
        b.ret_void()

    def _fused(self, acc: list[ir.Value], factor: ir.Value, addend: ir.Value) -> list[ir.Value]:
        return [self.emitter.fma(value, factor, addend) for value in acc]

    def _apart(self, acc: list[ir.Value], factor: ir.Value, addend: ir.Value) -> list[ir.Value]:
        b, half = self.builder, len(acc) // 2
        products = [b.fmul(value, factor) for value in acc[:half]]
        return products + [b.fadd(value, addend) for value in acc[half:]]

    def _argument(self, i: int) -> ir.Value:
        place = self.builder.gep(self.arg["arguments"], [word(i)], source_etype=WORD)
        return self.builder.load(place, typ=WORD)

    def _splat(self, elements: ir.Value, i: int) -> ir.Value:
        return self.emitter.splat(self.builder.load(self.at(elements, i), typ=self.element))
