"""The native path: generated Python source becomes machine code, the same for JIT and library.

In processing order:

- `isa.py`: the instruction-set levels that kernels are built for, and which this machine has;
- `arithmetic.py`: floating-point arithmetic on scalars or vectors, one builder for both;
- `elementary.py`: exp, log, tanh and their kin, of that arithmetic and without a branch, with the
  polynomials of `coefficients.py`;
- `emit.py`: all of them by name, and expressions in text;
- `intrinsics.py`: those functions and a few memory operations as names that kernel source may use;
- `python_twin.py`: the same names in plain Python, so that a kernel's source also runs uncompiled;
- `frontend.py`: kernel source to LLVM text, with Numba typing and lowering it;
- `objects.py`: LLVM text to one relocatable object for one level;
- `crew.py`: many of them at once, in helper processes too;
- `machine.py`, `interpreter.py`: the native program that runs a table of steps, by the same path;
- `entry.py`: the way from Python into it.

`dlc.runtime.loader` links the objects into this process; any linker makes a library of them.
"""
