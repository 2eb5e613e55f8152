"""The runtime: what runs a compiled plan, without the compiler.

executable  what users call: checks, parameters, results
runner      a plan bound to memory: frames, arenas, the general and the fast way in
entry       the fast way: a C function over a fixed frame
frame       where the words of a call lie
pool        threads that run frames
threads     how many there should be
loader      objects into this process
exclusive   the door to LLVM and Numba: one thread at a time, closed over a fork
elf         what an object defines and needs
bundle      a compiled model as bytes, for the cache
cache       what was compiled before, on disk
profile     where the time of a call goes, kernel by kernel
peak        what the machine can do, which profiles compare with
"""
