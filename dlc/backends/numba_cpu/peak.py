"""How fast this machine multiplies and adds: the yardstick beside which kernels are shown.

It is measured, not looked up: clocks depend on vectors, temperature and neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

from dlc.backends.native.frontend import Extern, Param
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.kernel import Kernel, make_kernel
from dlc.backends.numba_cpu.vectors import PLAIN, WORD, VectorFunction, declare, word

#: Independent sums: more than the multiply-adds that a core has in flight (two units of four
#: cycles), and few enough for 16 registers.
SUMS = 12


@dataclass(frozen=True)
class PeakLoop:
    """A native function of multiply-adds in registers: `void name(y, rounds)`.

    It stores one vector at y, so that there is a result.
    """

    isa: Isa
    dtype: str

    @property
    def name(self) -> str:
        """The symbol."""
        return f"peak_{self.isa.name.replace('-', '_')}_{self.dtype}"

    @property
    def extern(self) -> Extern:
        """How kernel source calls it."""
        return Extern(self.name, (Param("y", f"{self.dtype}*"), Param("rounds", "int64")))

    @property
    def flops(self) -> int:
        """Floating-point operations of a round."""
        return 2 * SUMS * self.isa.lanes(self.dtype)

    def text(self) -> str:
        """The LLVM module that defines it."""
        module = ir.Module(self.name)
        function = declare(module, self.name, self.extern.params)
        f = VectorFunction(function, self.extern.params, self.isa, self.dtype, PLAIN)
        b, entry = f.builder, f.builder.block
        loop, done = f.blocks("loop", "done")
        y = f.load(f.arg["y"])
        b.branch(loop)
        b.position_at_end(loop)
        i, sums = f.phi(WORD), [f.phi(f.vector) for _ in range(SUMS)]
        # One factor is a sum, so that the products cannot be taken out of the loop.
        following = [f.emitter.fma(each, y, y) for each in sums]
        i_next = b.add(i, word(1))
        begin = [f.emitter.constant(number) for number in range(SUMS)]  # or LLVM keeps one of them
        f.feed([i, *sums], [word(0), *begin], entry)
        f.feed([i, *sums], [i_next, *following], loop)
        f.rolled(b.cbranch(b.icmp_signed("<", i_next, f.arg["rounds"]), loop, done))
        b.position_at_end(done)
        total = following[0]
        for each in following[1:]:
            total = b.fadd(total, each)
        f.store(total, f.arg["y"])
        b.ret_void()
        return str(module)


def peak_kernel(isa: Isa, dtype: str) -> Kernel:
    """A kernel in which every thread runs `rounds` rounds of `PeakLoop`, each on 128 elements of y.

    The parameters are y, `threads` times 128 elements of zeros, and `rounds`.
    """
    loop = PeakLoop(isa, dtype)
    body = f"    {loop.name}(at(y, thread * 128), rounds)\n"
    params = (Param("y", f"{dtype}*"), Param("rounds", "int64"))
    return make_kernel("peak", body, params, (loop,))
