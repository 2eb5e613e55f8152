"""A trained network without Python: a library, and a C program that reads digits with it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import CompileError, ExecutionError
from dlc.frontend.module import Module
from dlc.ir.sizes import Dim
from dlc.ir.types import TensorSpec

Array: TypeAlias = "np.ndarray[Any, Any]"
BATCH = 64

PROGRAM = """\
/* Reads digits: 28 x 28 raw floats each from standard input, ink 1 on paper 0. */
#include <stdio.h>
#include <stdlib.h>

#include "lenet.h"

enum { SIDE = 28, CLASSES = 10 };

static void check(int status) {
    if (status != LENET_OK) {
        fprintf(stderr, "%s\\n", lenet_error(status));
        exit(EXIT_FAILURE);
    }
}

int main(int argc, char **argv) {
    static float image[SIDE * SIDE], logits[CLASSES];
    lenet_t *net;

    check(lenet_create(&net, argc > 1 ? argv[1] : "lenet.safetensors", 0));
    while (fread(image, sizeof image, 1, stdin) == 1) {
        int best = 0;
        check(lenet_run(net, 1, image, logits));
        for (int i = 0; i < CLASSES; i++)
            if (logits[i] > logits[best])
                best = i;
        printf("%d ", best);
        for (int i = 0; i < CLASSES; i++)
            printf(" %.9g", logits[i]);
        printf("\\n");
    }
    lenet_destroy(net);
    return EXIT_SUCCESS;
}
"""
COMMAND = ("cc", "-O2", "classify.c", "lenet.so", "-Wl,-rpath,$ORIGIN", "-o", "classify")


@dataclass(frozen=True)
class Answer:
    """What the C program made of some digits.

    Attributes
    ----------
    labels : tuple of int
    logits : array
        float32 (N, 10): nine digits are enough to print each exactly.
    same : bool
        Whether the logits have the bits that the executable in Python gives.
    library_bytes : int
    """

    labels: tuple[int, ...]
    logits: Array
    same: bool
    library_bytes: int


def compiler() -> str | None:
    """Where the C compiler is, if there is one."""
    return shutil.which("cc")


def classify(model: Module, images: Array, folder: Path) -> Answer:
    """Write the library and the program into a folder, build it, and let it read some digits.

    Parameters
    ----------
    model : Module
        In inference mode.
    images : array
        float32 (N, 1, 28, 28).
    folder : Path

    Raises
    ------
    CompileError, ExecutionError
        The program cannot be built, or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "lenet.so"
    _write(model, library)
    (folder / "classify.c").write_text(PROGRAM, encoding="utf-8")
    built = subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True)
    if built.returncode:
        raise CompileError(f"cc cannot build {folder / 'classify.c'}: {built.stderr.strip()}")
    pixels = np.ascontiguousarray(images, np.float32).tobytes()
    done = subprocess.run(["./classify"], cwd=folder, input=pixels, capture_output=True)
    if done.returncode:
        raise ExecutionError(f"{folder / 'classify'} failed: {done.stderr.decode().strip()}")
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    logits = np.array([row[1:] for row in rows], np.float32)
    same = np.array_equal(logits, np.concatenate([model(image[None]) for image in images]))
    return Answer(tuple(int(row[0]) for row in rows), logits, same, library.stat().st_size)


def _write(model: Module, path: Path) -> None:
    """The library for this machine's level, for batches from 1 to 64."""
    from dlc import passes
    from dlc.backends.aot.library import write_library
    from dlc.backends.native.isa import host
    from dlc.backends.numba_cpu.lower import Lowering
    from dlc.frontend.trace import trace
    from dlc.passes.schedule import schedule
    from dlc.runtime.cache import CodeStore

    images = TensorSpec((Dim("batch", 1, BATCH), 1, 28, 28))
    graph = passes.run(trace(model, images).graph, "O2")
    compiled = Lowering(host(), CodeStore()).compile(*schedule(graph))
    write_library({host().name: compiled}, model.state_dict(), path)


def shown(answer: Answer, labels: Sequence[int]) -> str:
    """In words: what the program read, and what the digits are."""
    read = " ".join(map(str, answer.labels))
    really = " ".join(map(str, labels))
    bits = "the bits of Python's" if answer.same else "NOT the bits of Python's"
    return f"reads {read}, where the labels are {really}; its logits have {bits}"
