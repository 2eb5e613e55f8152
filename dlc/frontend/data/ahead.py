"""Work done ahead of its use, in background threads, in order.

NumPy, decoders and dlc's kernels release the interpreter lock, so that the next batch is made while
a step runs.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

#: What the names of the threads begin with.
NAME = "dlc-batches"


def ahead(
    prepare: Callable[[int], T], numbers: Iterable[int], workers: int, depth: int
) -> Generator[T, None, None]:
    """Yield ``prepare(number)`` for each number, with up to `depth` more under way or ready.

    The threads end with the generator: when it is exhausted, closed or dropped, after the calls
    that they are in. An exception of `prepare` is raised here, with its own traceback.

    Parameters
    ----------
    prepare : callable
        Called in a background thread; by several at once where there are more workers.
    numbers : iterable of int
    workers : int
        Number of threads; with 0 the work is done here.
    depth : int
    """
    if not workers:
        yield from map(prepare, numbers)
        return
    left = iter(numbers)
    pending: deque[tuple[int, Future[T]]] = deque()
    process, pool = os.getpid(), ThreadPoolExecutor(workers, NAME)
    try:
        while True:
            if process != os.getpid():  # a fork has no threads: what they had to do is done anew
                process, pool = os.getpid(), ThreadPoolExecutor(workers, NAME)
                pending = deque((number, pool.submit(prepare, number)) for number, _ in pending)
            for number in islice(left, depth + 1 - len(pending)):
                pending.append((number, pool.submit(prepare, number)))
            if not pending:
                return
            yield pending.popleft()[1].result()
    finally:
        # The garbage collector may end a generator anywhere, in such a thread too, which cannot
        # wait for itself.
        wait = not threading.current_thread().name.startswith(NAME)
        pool.shutdown(wait, cancel_futures=True)
