"""Backends: what turns a graph or a schedule into something that runs.

- `reference.py`: NumPy, op by op, from the references of the op records: what everything is
  checked against;
- `native`: the native path that compiled backends share, from Python source to machine code;
- `numba_cpu`: kernels for the CPU;
- `aot`: the same objects and plan as a library that needs no Python.
"""
