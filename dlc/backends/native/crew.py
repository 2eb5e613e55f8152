"""Compiles many kernels at once: in this process, and in helper processes beside it.

Numba and LLVM each hold a lock of their own, so that threads would only wait for each other. A
helper is a fresh interpreter that reads jobs from a pipe and writes objects back; it costs about as
much as ten kernels to start, so a few kernels are compiled here alone. A helper that dies takes no
job with it: what it had not finished is compiled here.

Run: python -m dlc.backends.native.crew   (a helper, as `compile_all` starts it)
"""

from __future__ import annotations

import builtins
import contextlib
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from dlc.backends.native.frontend import Extern, Param, lower
from dlc.backends.native.isa import LEVELS
from dlc.backends.native.objects import build
from dlc.debug import LLVM, setup
from dlc.errors import CompileError
from dlc.runtime.exclusive import importing

logger = logging.getLogger("dlc.backends.native")

#: Jobs from which helpers pay, and jobs for each of them.
FEWEST, SHARE = 8, 4
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Job:
    """One object to make.

    Parameters
    ----------
    name : str
        The symbol.
    isa : str
    text : str
        Python source of a kernel, or with ``params`` None an LLVM module.
    params : tuple of Param, optional
    externs : tuple of Extern
    speed : int
        How much LLVM optimises, 0 to 3.
    module : str
        In place of a text, a module of dlc whose ``build(isa)`` makes the object.
    """

    name: str
    isa: str
    text: str = ""
    params: tuple[Param, ...] | None = None
    externs: tuple[Extern, ...] = ()
    speed: int = 3
    module: str = ""

    def run(self) -> bytes:
        """The relocatable object."""
        isa, text = LEVELS[self.isa], self.text
        if self.module:
            with importing():
                module = import_module(self.module)
            made: bytes = module.build(isa)
            return made
        if self.params is not None:
            text = lower(text, self.name, self.params, isa, self.externs)
        logger.log(LLVM, "%s", text)
        externs = [extern.name for extern in self.externs]
        return build(text, [self.name], isa, externs, speed=self.speed)

    def to_json(self) -> str:
        """The job as text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job that `to_json` wrote."""
        given = json.loads(text)
        if given["params"] is not None:
            given["params"] = tuple(Param(**param) for param in given["params"])
        given["externs"] = tuple(
            Extern(extern["name"], tuple(Param(**param) for param in extern["params"]))
            for extern in given["externs"]
        )
        return cls(**given)


def compile_all(
    jobs: Mapping[str, Job],
    helpers: int = 0,
    report: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> dict[str, bytes]:
    """Compile jobs, the longest first, with up to ``helpers`` processes beside this one.

    Raises
    ------
    CompileError
        The first job that failed.
    """
    longest_first = sorted(jobs, key=lambda name: (not jobs[name].module, -len(jobs[name].text)))
    waiting = deque(longest_first)
    made: dict[str, bytes] = {}
    wanted = min(helpers, len(jobs) // SHARE) if len(jobs) >= FEWEST else 0
    threads = [
        threading.Thread(target=_drive, args=(jobs, waiting, made), name=f"dlc-compile-{i}")
        for i in range(wanted)
    ]
    for thread in threads:
        thread.start()
    try:
        while (name := _next(waiting.popleft)) is not None:
            report(name, len(made), len(jobs))
            made[name] = jobs[name].run()
    finally:
        waiting.clear()  # after an error here, helpers finish what they are at
        for thread in threads:
            thread.join()
    for name in longest_first:
        if name not in made:
            made[name] = jobs[name].run()  # raises here what went wrong there
    return made


def _next(take: Callable[[], str]) -> str | None:
    try:
        return take()
    except builtins.IndexError:
        return None


def _drive(jobs: Mapping[str, Job], waiting: deque[str], made: dict[str, bytes]) -> None:
    """Feed one helper until no job waits; a job that it fails at is left to the caller."""
    try:
        helper = _start()
    except OSError as error:
        logger.warning("a compile helper does not start: %s", error)
        return
    assert helper.stdin is not None, "opened with a pipe"
    assert helper.stdout is not None, "opened with a pipe"
    try:
        while (name := _next(waiting.pop)) is not None:  # the caller takes from the other end
            _write(helper.stdin, jobs[name].to_json().encode())
            answer = _read(helper.stdout)
            if answer:
                made[name] = answer
    except (BrokenPipeError, EOFError):
        logger.warning("a compile helper ended with status %s", helper.wait())
    finally:
        with contextlib.suppress(BrokenPipeError):  # what it never read is flushed once more
            helper.stdin.close()
        helper.stdout.close()
        helper.wait()


def _start() -> subprocess.Popen[bytes]:
    """A helper; it finds modules where dlc is, and not in the directory it happens to be in."""
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "dlc.backends.native.crew"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def _write(stream: BinaryIO | Any, data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: BinaryIO | Any) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data: bytes = stream.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _help() -> None:
    """Serve jobs until the pipe closes; an empty answer means that a job failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the caller, who then closes the pipe
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not reach the pipe
    setup()
    while True:
        try:
            job = Job.from_json(_read(jobs).decode())
        except EOFError:
            return
        try:
            answer = job.run()
        except CompileError:
            answer = b""
        _write(answers, answer)


if __name__ == "__main__":
    _help()
