"""What a library's native program needs of Linux: memory, files, processors, and the interpreter.

They are primitives of `dlc.backends.native.machine`, kept apart because only libraries use them:
in Python's process, NumPy and Python own the memory.
"""

from __future__ import annotations

from dlc.backends.native.machine import Words, c_function, primitive

# The symbols that a program of these leaves undefined; `__cpu_model` is in the compiler's own
# library, linked statically by every C compiler.
SYSTEM = ("__cpu_model", "close", "getauxval", "lseek", "madvise", "mmap", "munmap", "open")
INTERPRETER = ("dlc_call", "dlc_start", "dlc_stop")

WIPE_ON_FORK = 18  # advice for `advise`: a forked child finds zeros

# Of each feature in `Isa.requires` the bit in `features`: for x86-64 GCC's numbers, for aarch64
# those of HWCAP. Where one is missing here, a processor with the level's others has it too: cx16,
# f16c, lzcnt and movbe came before or with what stands beside them in their level.
FEATURES = {
    "popcnt": 2,
    "sse3": 5,
    "ssse3": 6,
    "sse4.1": 7,
    "sse4.2": 8,
    "avx": 9,
    "avx2": 10,
    "fma": 14,
    "avx512f": 15,
    "bmi": 16,
    "bmi2": 17,
    "avx512vl": 20,
    "avx512bw": 21,
    "avx512dq": 22,
    "avx512cd": 23,
    "fp-armv8": 0,
    "neon": 1,
    "lse": 8,
}


@primitive(
    "@__cpu_model = external hidden global [4 x i32]",
    "declare i64 @getauxval(i64)",
    x86_64="""%at = getelementptr i32, ptr @__cpu_model, i64 3
%bits = load i32, ptr %at
%result = zext i32 %bits to i64
ret i64 %result""",
    aarch64="%bits = call i64 @getauxval(i64 16)\nret i64 %bits",
)
def features() -> int:
    """What the processor has, and the system lets be used, as bits of `FEATURES`."""


_MMAP = "declare ptr @mmap(ptr, i64, i32, i32, i32, i64)"
_MAPPED = """%location = ptrtoint ptr %pages to i64
%failed = icmp eq i64 %location, -1
%result = select i1 %failed, i64 0, i64 %location
ret i64 %result"""


# 3: to read and write; 34: private, of no file.
@primitive(
    _MMAP,
    body="%pages = call ptr @mmap(ptr null, i64 %size, i32 3, i32 34, i32 -1, i64 0)\n" + _MAPPED,
)
def new_memory(size: int) -> int:
    """The address of new pages of zeros, 0 where there is no memory."""


# 1: to read; 2: private.
@primitive(
    _MMAP,
    body="%fd = trunc i64 %file to i32\n"
    "%pages = call ptr @mmap(ptr null, i64 %size, i32 1, i32 2, i32 %fd, i64 0)\n" + _MAPPED,
)
def file_memory(file: int, size: int) -> int:
    """The address at which the first bytes of a file can be read, or 0."""


@c_function("munmap", "i32")
def free_memory(pages: Words, size: int) -> int:
    """Give pages back."""


@c_function("madvise", "i32")
def advise(pages: Words, size: int, advice: int) -> int:
    """Tell the system something about pages; -1 where it does not know about that."""


@primitive(
    "declare i32 @open(ptr, i32, ...)",
    # To read only, and not in programs that this one starts.
    body=f"""%file = call i32 (ptr, i32, ...) @open(ptr %path, i32 {0o2000000})
%result = sext i32 %file to i64
ret i64 %result""",
)
def open_file(path: Words) -> int:
    """Open a file for reading; its number, or -1."""


@primitive(
    "declare i64 @lseek(i32, i64, i32)",
    body="""%fd = trunc i64 %file to i32
%size = call i64 @lseek(i32 %fd, i64 0, i32 2)
ret i64 %size""",
)
def file_size(file: int) -> int:
    """The number of bytes in a file, or -1."""


@c_function("close", "i32")
def close_file(file: int) -> int:
    """Close a file."""


@primitive(
    "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)",
    body="call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %source, i64 %size, i1 false)\nret i64 0",
)
def copy(to: Words, source: Words, size: int) -> int:
    """Copy bytes."""


# The step interpreter, an object of its own: the one that the JIT uses.


@c_function("dlc_call")
def call(pool: Words, frame: Words) -> int:
    """Run a frame; how many threads took part."""


@c_function("dlc_start")
def start(pool: Words) -> int:
    """Start the workers of a pool; 0, or the number of the error that kept one from starting."""


@c_function("dlc_stop")
def stop(pool: Words) -> int:
    """End the workers of a pool."""
