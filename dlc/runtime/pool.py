"""A pool of native threads, as Python holds it: it is made, called, forked, and ended in order.

The work is done by the native step interpreter (`dlc.backends.native.interpreter` says how its
threads start, meet and wait); what is left for Python is the life of the threads. They must be
joined before the code that they run in is freed, and a forked child, which has none of them, must
not wait for any.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dlc.errors import ArgumentError, ExecutionError, explain
from dlc.runtime import frame
from dlc.runtime.loader import Linked

__all__ = ["ENTRIES", "Pool", "shared"]

ENTRIES = ("dlc_call", "dlc_start", "dlc_stop")


class Pool:
    """Threads that run frames (`dlc.runtime.frame`) together with the thread that calls.

    A pool runs one call at a time. A call that comes while another runs is done by its own thread
    alone: the bits are the same, and nothing waits. Fewer threads take part, too, when the process
    may use fewer processors than the pool has threads, or when a worker does not wake in time.

    Parameters
    ----------
    linked : Linked
        Holds the interpreter's entries, `ENTRIES`; it must not be closed before the pool.
    threads : int
        Number of threads, the calling one included.
    whole_team : bool
        Let every call wait for all the threads it asks for, whatever the number of processors and
        however busy they are: slow then, but a test or a measurement gets the team that it wants.

    Raises
    ------
    ArgumentError
        If `threads` is below 1.
    ExecutionError
        If the system does not grant that many threads.
    """

    def __init__(self, linked: Linked, threads: int, *, whole_team: bool = False) -> None:
        if threads < 1:
            raise ArgumentError(explain("a pool", "at least one thread", str(threads)))
        self.threads = threads
        self._words = _aligned_words(frame.pool_words(threads))
        self._whole_team = whole_team
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
        lifetime = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
        self.call_address = linked.address("dlc_call")
        self._call = signature(self.call_address)
        stop = lifetime(linked.address("dlc_stop"))
        self.address = int(self._words.ctypes.data)
        self._prepare()
        self._end = weakref.finalize(self, _stop, stop, self._words, linked)
        _pools.add(self)
        error = lifetime(linked.address("dlc_start"))(self.address)
        if error:
            started = 1 + int(self._words[frame.POOL_STARTED])
            self.close()
            raise ExecutionError(
                f"could not start thread {started + 1} of a pool of {threads}: "
                f"{os.strerror(error)}. Set DLC_NUM_THREADS to {started}, or raise the limit on "
                f"threads (ulimit -u)."
            )

    def call(self, frame_address: int) -> int:
        """Run a frame; the GIL is free meanwhile.

        Parameters
        ----------
        frame_address : int
            Address of the frame's words, which must stay alive and alone in use.

        Returns
        -------
        int
            How many threads took part. The frame's header says whether a kernel found an error.
        """
        return int(self._call(self.address, frame_address))

    def close(self) -> None:
        """End the workers, after the call that they are in; later calls run alone.

        Doing so twice is harmless. It also happens when the pool is collected, and at exit.
        """
        self._end()

    def _prepare(self) -> None:
        """Set the words of a pool without workers: a new one, or a forked child's."""
        self._words[:] = 0
        self._words[frame.POOL_THREADS] = self.threads
        self._words[frame.POOL_WHOLE] = self._whole_team


def shared(threads: int, load: Callable[[], Linked]) -> Pool:
    """The process-wide pool of a number of threads.

    Parameters
    ----------
    threads : int
        Number of threads, the calling one included.
    load : callable
        Links the interpreter; called once a process, at the first use.

    Returns
    -------
    Pool
        The same one for the same number; nobody closes it.
    """
    with _lock:
        if threads not in _shared:
            _code[:] = _code or [load()]
            _shared[threads] = Pool(_code[0], threads)
        return _shared[threads]


_lock = threading.Lock()
_code: list[Linked] = []
_shared: dict[int, Pool] = {}
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _stop(stop: Callable[[int], int], words: npt.NDArray[np.int64], linked: Linked) -> None:
    """End a pool's workers; `linked` is held so that their code outlives them."""
    stop(int(words.ctypes.data))


def _aligned_words(count: int) -> npt.NDArray[np.int64]:
    """Zeros that begin on a line of their own."""
    block = np.zeros(count + frame.LINE, np.int64)
    skip = -(block.ctypes.data // 8) % frame.LINE
    return block[skip : skip + count]


def _after_fork() -> None:
    """In a forked child: none of the workers exists; the next call starts new ones."""
    global _lock
    _lock = threading.Lock()
    for pool in list(_pools):
        if pool._end.alive:
            pool._prepare()


os.register_at_fork(after_in_child=_after_fork)
