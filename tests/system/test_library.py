"""LeNet as a library that a C compiler links: from ctypes, from C, on other processors by qemu."""

import os
import re
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from helpers.libraries import (
    Net,
    compiled_lenet,
    images,
    jit,
    lenet,
    lenet_graph,
    logits,
    shared_library,
)

from dlc.backends import reference
from dlc.backends.aot import words
from dlc.backends.aot.library import write_library
from dlc.backends.native.isa import runnable

pytestmark = pytest.mark.system

DOCS = Path(__file__).parents[2] / "docs" / "library.md"
HERE = [isa.name for isa in runnable()]
X86 = ["x86-64-v2", "x86-64-v3", "x86-64-v4"]
BATCHES = (1, 3, 8)

# What a library may ask of the system, all of libc; the last four are weak, and not used.
LIBC = """
    clock_gettime close getauxval lseek madvise memcpy memmove memset mmap munmap open
    pthread_create pthread_join sched_getcpu sched_yield syscall
    _ITM_deregisterTMCloneTable _ITM_registerTMCloneTable __cxa_finalize __gmon_start__
"""


@cache
def example(language):
    """The blocks of the documentation in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)


@cache
def expected(level):
    """The bits of the JIT for a level that this machine can run, by batch."""
    run = jit(compiled_lenet(level), lenet().state_dict())
    return {batch: run(images(batch))[0] for batch in BATCHES}


def write(folder, levels, **options):
    """LeNet's library for some levels."""
    path = folder / "lenet.so"
    made = {level: compiled_lenet(level) for level in levels}
    write_library(made, lenet().state_dict(), path, **options)
    return path


def build(folder, compiler):
    """The documentation's program, linked with the library in a folder."""
    [source] = example("c")
    (folder / "classify.c").write_text(source)
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-Wl,-rpath,$ORIGIN"]
    command = [compiler, *flags, "classify.c", "lenet.so", "-o", "classify"]
    subprocess.run(command, check=True, cwd=folder)
    return folder / "classify"


def classify(batch, *command):
    """What the program makes of some images, and on which level."""
    done = subprocess.run(command, input=images(batch).tobytes(), capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    level = done.stderr.decode().split()[-1]
    return np.frombuffer(done.stdout, np.float32).reshape(-1, 10), level


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The library for all levels of this machine, and the program."""
    folder = tmp_path_factory.mktemp("native")
    write(folder, HERE)
    build(folder, "cc")
    return folder


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("threads", [1, 2])
def test_from_ctypes(tmp_path, level, threads):
    path = write(tmp_path, [level])
    with Net(shared_library(path), tmp_path / "lenet.safetensors", logits, threads) as net:
        assert net.level(net.handle) == level.encode()
        for batch in BATCHES:
            np.testing.assert_array_equal(net([batch], images(batch))[0], expected(level)[batch])


@pytest.mark.parametrize("batch", BATCHES)
def test_from_c(folder, batch):
    y, level = classify(batch, folder / "classify", folder / "lenet.safetensors")
    assert level == HERE[-1]
    np.testing.assert_array_equal(y, expected(level)[batch])


def test_from_c_without_weights(folder):
    done = subprocess.run([folder / "classify", "none"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "the weights' file cannot be opened and read\n"


def test_a_wrong_batch(folder):
    with Net(shared_library(folder / "lenet.so"), folder / "lenet.safetensors", logits) as net:
        for batch in (0, 65):
            assert net.run([batch], images(1), images(1)) == words.BAD_SIZE


def test_the_documentation(tmp_path, monkeypatch):
    """Its blocks of Python, one after the other; the first for the level of this machine alone."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in example("python"):
        block = block.replace('("x86-64-v2", "x86-64-v3", "x86-64-v4")', repr([HERE[-1]]))
        exec(compile(block, DOCS, "exec"), names)
    graph, state = names["graph"], names["model"].state_dict()
    [y] = reference.run(graph, {"x": names["x"], **state}, dtype="float64")
    np.testing.assert_allclose(names["y"], y, rtol=1e-5, atol=1e-5)


def test_what_it_shows_and_needs(folder):
    """Six functions, libc, and memory that is never writable and executable at once."""
    path = folder / "lenet.so"
    symbols = output("nm", "-D", path).splitlines()
    shown = {line.split()[-1] for line in symbols if " T " in line}
    kinds = ("create", "run", "destroy", "error", "bad_index", "level")
    assert shown == {f"lenet_{kind}" for kind in kinds}
    needed = {line.split()[-1].split("@")[0] for line in symbols if " T " not in line}
    assert needed <= set(LIBC.split())
    dynamic = output("readelf", "--wide", "--dynamic", path)
    assert re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic) == ["libc.so.6"]
    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == ["lenet.so"]
    assert "TEXTREL" not in dynamic
    segments = output("readelf", "--wide", "--segments", path)
    assert re.search(r"GNU_STACK .* RW ", segments)
    assert not re.search(r"RWE", segments)


def test_the_same_library_every_time(tmp_path, folder):
    again = write(tmp_path, HERE)
    for suffix in (".so", ".h", ".safetensors"):
        made, before = again.with_suffix(suffix), (folder / "lenet.so").with_suffix(suffix)
        assert made.read_bytes() == before.read_bytes()


def test_names_with_commas_and_spaces(tmp_path):
    folder = tmp_path / "a, b"
    folder.mkdir()
    made = {HERE[0]: compiled_lenet(HERE[0])}
    write_library(made, lenet().state_dict(), folder / "le,net 5.so", "lenet")
    dynamic = output("readelf", "--wide", "--dynamic", folder / "le,net 5.so")
    assert re.findall(r"\(SONAME\).*\[(.*)\]", dynamic) == ["le,net 5.so"]


def test_everybody_may_read_the_files(folder):
    mask = os.umask(0)
    os.umask(mask)
    for suffix in (".h", ".safetensors"):
        mode = (folder / "lenet").with_suffix(suffix).stat().st_mode
        assert mode & 0o777 == 0o666 & ~mask


# Processors that this machine is not.


def build_for(machine, levels, folder):
    """A function from a processor to the command that runs the program on it, emulated."""
    compiler, here = f"{machine}-linux-gnu-gcc", machine == os.uname().machine
    write(folder, levels, compiler=compiler)
    root = [] if here else ["-L", f"/usr/{machine}-linux-gnu"]
    program = [build(folder, compiler), folder / "lenet.safetensors"]
    return lambda processor: [f"qemu-{machine}", *root, "-cpu", processor, *program]


@pytest.fixture(scope="module")
def x86(tmp_path_factory):
    return build_for("x86_64", X86, tmp_path_factory.mktemp("x86"))


@pytest.fixture(scope="module")
def aarch64(tmp_path_factory):
    return build_for("aarch64", ["aarch64"], tmp_path_factory.mktemp("aarch64"))


@pytest.mark.parametrize(
    ("processor", "level"), [("Nehalem", "x86-64-v2"), ("Haswell", "x86-64-v3")]
)
def test_older_x86_processors(x86, processor, level):
    """Emulated arithmetic is exact, so that the bits are those of the level, whatever runs here."""
    for batch in BATCHES:
        y, chosen = classify(batch, *x86(processor))
        assert chosen == level
        close_to_float64(y, batch)
        if level in HERE:
            np.testing.assert_array_equal(y, expected(level)[batch])


def test_aarch64(aarch64):
    for batch in BATCHES:
        y, chosen = classify(batch, *aarch64("neoverse-n1"))
        assert chosen == "aarch64"
        close_to_float64(y, batch)


def test_an_x86_processor_below_all_levels(x86):
    refused(x86("qemu64"), "x86-64-v2")


def test_an_aarch64_processor_below_all_levels(aarch64):
    refused(aarch64("cortex-a72"), "aarch64")


def refused(command, level):
    done = subprocess.run(command, input=b"", capture_output=True, timeout=120)
    assert done.returncode == 1
    message = f"this library needs a processor of level {level} or better\n"
    assert done.stderr.decode() == message


def close_to_float64(y, batch):
    """Within the defaults of `torch.testing.assert_close` for float32."""
    arrays = {"x": images(batch), **lenet().state_dict()}
    [exact] = reference.run(lenet_graph(), arrays, dtype="float64")
    np.testing.assert_allclose(y, exact, rtol=1.3e-6, atol=1e-5)


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
