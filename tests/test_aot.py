"""Libraries without a C compiler: their tables, their header, and all their native code.

What a library consists of is linked by ORC here; `tests/system/test_library.py` has a C compiler
do it.
"""

import ctypes
import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.libraries import (
    BATCH,
    IMAGES,
    Net,
    compiled,
    compiled_lenet,
    images,
    jit,
    lenet,
    logits,
)
from hypothesis import given
from hypothesis import strategies as st

import dlc
from dlc import nn
from dlc.backends.aot import program, words
from dlc.backends.aot.interface import interface_of
from dlc.backends.aot.library import assemble, write_library, write_weights
from dlc.backends.aot.tables import Sizes, bytes_row, text_row, with_copies
from dlc.backends.native import objects
from dlc.backends.native.isa import LEVELS, host, runnable
from dlc.errors import (
    ArgumentError,
    CompileError,
    DependencyError,
    ExecutionError,
    ShapeError,
    TargetError,
    WeightsError,
)
from dlc.ir.plan import Buffer, Layout, Plan
from dlc.ir.sizes import Dim, as_size, evaluate
from dlc.ir.types import tensor
from dlc.runtime.bundle import Compiled
from dlc.runtime.loader import link


def functions(levels, weights, features=-1, name="lenet"):
    """The C functions of a library that ORC links, for `Net`; for a processor with `features`."""
    best_first = {LEVELS[n]: levels[n] for n in reversed(LEVELS) if n in levels}
    contents = assemble(best_first, weights, name)
    parts = list(contents.objects.values())
    if host().triple.startswith("x86_64"):  # a C compiler's own library has these words
        text = f"@__cpu_model = global [4 x i32] [i32 0, i32 0, i32 0, i32 {features}]"
        parts.append(objects.build(text, ["__cpu_model"], host()))
    linked = link(parts, contents.interface.functions)

    def function(symbol, prototype):
        made = prototype(linked.address(symbol))
        made.linked = linked
        return made

    return function


@pytest.fixture(scope="module")
def weights_path(tmp_path_factory):
    return tmp_path_factory.mktemp("weights") / "lenet.safetensors"


@pytest.fixture(scope="module")
def library(weights_path):
    """LeNet's functions, compiled for this machine."""
    stored = write_weights(weights_path, lenet().state_dict())
    return functions({host().name: compiled_lenet(host().name)}, stored)


@pytest.fixture
def net(library, weights_path):
    with Net(library, weights_path, logits) as net:
        assert net.status == words.OK, net.error(net.status)
        yield net


def test_the_kernels_are_the_objects_of_the_jit(weights_path, library):
    made = compiled_lenet(host().name)
    stored = write_weights(weights_path, lenet().state_dict())
    linked = assemble({host(): made}, stored, "lenet").objects
    assert {name: linked[name] for name in made.objects} == made.objects
    assert linked.keys() - made.objects.keys() == {"interpreter", "program", "tables"}


def test_the_bits_are_those_of_the_jit(net):
    run = jit(compiled_lenet(host().name), lenet().state_dict())
    for batch in (1, 3, 8, 64, 1):
        x = images(batch)
        np.testing.assert_array_equal(net([batch], x)[0], run(x)[0], strict=True)


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_threads_change_no_bit(library, weights_path, net, threads):
    x = images(8)
    with Net(library, weights_path, logits, threads) as other:
        np.testing.assert_array_equal(other([8], x)[0], net([8], x)[0])


def test_inputs_stay_as_they_are(net):
    x = images(3)
    before = x.copy()
    net([3], x)
    np.testing.assert_array_equal(x, before)


def test_calls_from_many_threads(net):
    run = jit(compiled_lenet(host().name), lenet().state_dict())
    cases = [(images(batch), run(images(batch))[0]) for batch in (1, 2, 5, 8)]
    wrong = []

    def work(number):
        for i in range(200):
            x, expected = cases[(i + number) % len(cases)]
            if not np.array_equal(net([len(x)], x)[0], expected):
                wrong.append((number, i))

    workers = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def in_child(function):
    """What a function returns, a number, in a forked child."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            status = function()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_forked_child_runs_and_closes(net):
    x = images(8)
    expected = net([8], x)[0]

    def work():
        same = np.array_equal(net([8], x)[0], expected)
        net.close()
        return int(same)

    assert in_child(work) == 1
    np.testing.assert_array_equal(net([8], x)[0], expected)


@pytest.mark.parametrize("batch", [0, 65, -1, 1 << 62])
def test_a_batch_outside_its_range(net, batch):
    y = np.full((1, 10), np.nan, np.float32)
    assert net.run([batch], images(1), y) == words.BAD_SIZE
    assert net.error(words.BAD_SIZE).endswith(b"lenet_run expects batch in 1..64")
    assert np.isnan(y).all()


def test_a_null_pointer(library, net):
    assert net.run([1], None, images(1)) == words.BAD_ARGUMENT
    assert net.run([1], images(1), None) == words.BAD_ARGUMENT
    closed = Net(library, "no such file", logits)
    assert closed.run([1], images(1), images(1)) == words.BAD_ARGUMENT
    assert bad_index(closed) == (None, -7, -7)
    closed.close()


@pytest.mark.parametrize("threads", [-1, words.THREADS_MAX + 1])
def test_too_many_threads(library, weights_path, threads):
    net = Net(library, weights_path, logits, threads)
    assert (net.status, net.handle.value) == (words.BAD_ARGUMENT, None)


def test_a_missing_file(library, tmp_path):
    net = Net(library, tmp_path / "none", logits)
    assert (net.status, net.handle.value) == (words.UNREADABLE_WEIGHTS, None)


def test_files_of_other_weights(library, weights_path, tmp_path):
    data = weights_path.read_bytes()
    renamed = data.replace(b"conv1.bias", b"conv9.bias")
    for case, content in enumerate([b"", data[:-1], data + b"\0", renamed, data[8:] + data[:8]]):
        path = tmp_path / str(case)
        path.write_bytes(content)
        net = Net(library, path, logits)
        assert (net.status, net.handle.value) == (words.OTHER_WEIGHTS, None), case


def test_new_weights_need_no_new_library(library, tmp_path):
    dlc.seed(1)
    other = dlc.models.lenet5().eval()
    dlc.save_weights(other, tmp_path / "other.safetensors")
    run = jit(compiled_lenet(host().name), other.state_dict())
    with Net(library, tmp_path / "other.safetensors", logits) as net:
        assert net.status == words.OK, net.error(net.status)
        np.testing.assert_array_equal(net([3], images(3))[0], run(images(3))[0])


def test_not_enough_memory(tmp_path, rng):
    """The memory of a call is planned for the greatest size: here 16 PiB, more than addresses."""
    w = rng.normal(size=(4, 4)).astype(np.float32)
    rows = dlc.TensorSpec((Dim("rows", 1, 1 << 50), 4))
    stored = write_weights(tmp_path / "weights", {})
    entry = functions({host().name: compiled(lambda x: x @ w @ w, rows)}, stored)
    net = Net(entry, tmp_path / "weights", logits)
    assert (net.status, net.handle.value) == (words.OUT_OF_MEMORY, None)


def test_not_enough_threads(library, weights_path):
    """Their stacks do not fit into what the process may still take."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

    def work():
        resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 28),) * 2)
        return Net(library, weights_path, logits, threads=words.THREADS_MAX).status

    assert in_child(work) == words.OUT_OF_THREADS


def test_every_status_has_a_message(net):
    known = [net.error(status) for status in range(words.OUT_OF_THREADS + 1)]
    assert len({*known, net.error(-1)}) == len(known) + 1
    assert net.error(-1) == net.error(len(known)) == b"not a status of this library"


@pytest.mark.parametrize("level", [isa.name for isa in runnable()])
def test_the_best_level_that_the_processor_has_is_taken(level, tmp_path):
    names = [isa.name for isa in runnable()]
    levels = {name: compiled(lambda x: x + 1.0, IMAGES, level=name) for name in names}
    stored = write_weights(tmp_path / "weights", {})
    entry = functions(levels, stored, features=program.feature_bits(LEVELS[level]))
    shapes = lambda batch: [((batch, 1, 28, 28), "float32")]  # noqa: E731
    with Net(entry, tmp_path / "weights", shapes) as net:
        assert net.level(net.handle) == level.encode()
        np.testing.assert_array_equal(net([2], images(2))[0], images(2) + 1)


# Other models.


def run_as_library(function, *arrays, specs, shapes, dims, folder, parameters=()):
    """Results of a function as a library, after a comparison with the JIT."""
    made = compiled(function, *specs)
    stored = write_weights(folder / "weights", dict(parameters))
    with Net(functions({host().name: made}, stored), folder / "weights", shapes) as net:
        assert net.status == words.OK, net.error(net.status)
        results = net(dims, *arrays)
    for result, expected in zip(results, jit(made, dict(parameters))(*arrays), strict=True):
        np.testing.assert_array_equal(result, expected, strict=True)
    return results


def test_results_that_no_kernel_writes(tmp_path):
    x = images(2)

    def function(x):
        doubled = x * 2.0
        return x, doubled, doubled.reshape(-1), doubled

    same, flat = ((2, 1, 28, 28), "float32"), ((2 * 784,), "float32")
    results = run_as_library(
        function,
        x,
        specs=[IMAGES],
        shapes=lambda _: [same, same, flat, same],
        dims=[2],
        folder=tmp_path,
    )
    for result, expected in zip(results, function(x), strict=True):
        np.testing.assert_array_equal(result, expected)


def test_several_inputs_and_sizes(tmp_path, rng):
    rows, columns = Dim("rows", 1, 9), Dim("columns", 0, 50)
    x, w = rng.normal(size=(5, 7)), rng.normal(size=(7, 33))
    [y] = run_as_library(
        lambda x, w: dlc.functional.relu(x @ w),
        x,
        w,
        specs=[dlc.TensorSpec((rows, 7), "float64"), dlc.TensorSpec((7, columns), "float64")],
        shapes=lambda columns, rows: [((rows, columns), "float64")],
        dims=[33, 5],  # by name
        folder=tmp_path,
    )
    np.testing.assert_allclose(y, np.maximum(x @ w, 0), rtol=1e-12, atol=1e-12)


def test_constants(tmp_path, rng):
    table = rng.normal(size=(3, 5)).astype(np.float32)
    x = rng.normal(size=(4, 3)).astype(np.float32)
    [y] = run_as_library(
        lambda x: x @ table,
        x,
        specs=[dlc.TensorSpec((BATCH, 3))],
        shapes=lambda batch: [((batch, 5), "float32")],
        dims=[4],
        folder=tmp_path,
    )
    np.testing.assert_allclose(y, x @ table, rtol=1e-5, atol=1e-5)


def test_scratch_memory(tmp_path, rng):
    """Threads of a call share it out: here what a Winograd convolution transforms."""
    model = nn.Conv2d(32, 40, 3, padding=1).eval()
    x = rng.normal(size=(3, 32, 20, 21)).astype(np.float32)
    spec = dlc.TensorSpec((BATCH, *x.shape[1:]))
    assert compiled(model, spec).plan.scratch > 0
    [y] = run_as_library(
        model,
        x,
        specs=[spec],
        shapes=lambda batch: [((batch, 40, 20, 21), "float32")],
        dims=[3],
        folder=tmp_path,
        parameters=model.state_dict(),
    )
    np.testing.assert_array_equal(y, model(x))


def test_an_index_out_of_range(tmp_path):
    model = nn.Embedding(10, 4)
    made = compiled(model, dlc.TensorSpec((BATCH,), "int64"))
    stored = write_weights(tmp_path / "weights", model.state_dict())
    shapes = lambda batch: [((batch, 4), "float32")]  # noqa: E731
    with Net(functions({host().name: made}, stored), tmp_path / "weights", shapes) as net:
        y = np.zeros((3, 4), np.float32)
        assert bad_index(net) == (None, -7, -7)
        assert net.run([3], np.array([1, 10, 2]), y) == words.BAD_INDEX
        assert b"lenet_bad_index says which" in net.error(words.BAD_INDEX)
        assert bad_index(net) == (b"take expects indices from 0 to 9", 1, 10)
        [y] = net([3], np.array([1, 9, 2]))
        np.testing.assert_array_equal(y, model.state_dict()["weight"][[1, 9, 2]])
        assert net.run([2], np.array([0, -(2**40)]), y) == words.BAD_INDEX
        assert bad_index(net) == (b"take expects indices from 0 to 9", 1, -(2**40))


def test_the_op_and_the_module_of_an_index_out_of_range(tmp_path):
    """Each op has a text of its own, with the sizes that are known at call time by name."""

    class Lookup(nn.Module):
        def __init__(self):
            super().__init__()
            self.word, self.place = nn.Embedding(50, 4), nn.Embedding(7, 4)

        def forward(self, word, place, order):
            return (self.word(word) + self.place(place))[order]

    model, indices = Lookup(), dlc.TensorSpec((BATCH,), "int64")
    made = compiled(model, indices, indices, indices)
    stored = write_weights(tmp_path / "weights", model.state_dict())
    shapes = lambda batch: [((batch, 4), "float32")]  # noqa: E731
    good, y = np.array([0, 1, 2]), np.empty((3, 4), np.float32)
    with Net(functions({host().name: made}, stored), tmp_path / "weights", shapes) as net:
        for which, limit, text in (
            (0, 50, b"take (word) expects indices from 0 to 49"),
            (1, 7, b"take (place) expects indices from 0 to 6"),
            (2, 3, b"take expects indices from 0 to batch - 1"),
        ):
            given = [good, good, good]
            given[which] = np.array([0, 1, limit])
            assert net.run([3], *given, y) == words.BAD_INDEX
            assert bad_index(net) == (text, 2, limit)
        assert net.function("bad_index", ctypes.c_char_p, *[ctypes.c_void_p] * 3)(
            net.handle, None, None
        )


def bad_index(net):
    """What a library tells of the last index out of range; -7 where it wrote nothing."""
    position, index = ctypes.c_int64(-7), ctypes.c_int64(-7)
    tell = net.function("bad_index", ctypes.c_char_p, *[ctypes.c_void_p] * 3)
    text = tell(net.handle, ctypes.byref(position), ctypes.byref(index))
    return text, position.value, index.value


# Tables.

DIMS = (Dim("batch", 1, 64), Dim("length", 0, 1000))
SIZES = st.recursive(
    st.one_of(st.integers(-50, 50), st.sampled_from([as_size(dim) for dim in DIMS])),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] * pair[1]),
        st.tuples(inner, st.integers(1, 9)).map(lambda pair: pair[0] // pair[1]),
    ),
    max_leaves=6,
)


@given(st.lists(SIZES, max_size=5), st.integers(1, 64), st.integers(0, 1000))
def test_sizes_are_evaluated_natively_as_in_python(sizes, batch, length):
    """The native function, here as the Python that it is written in."""
    table = Sizes(DIMS)
    numbers = [table.number(size) for size in sizes]
    values = [batch, length, *[None] * (len(table) - 2)]
    program.evaluate(table.table, values, 2, len(table))
    named = {"batch": batch, "length": length}
    assert [values[number] for number in numbers] == [evaluate(size, named) for size in sizes]
    assert len(set(numbers)) == len(set(sizes))


def test_a_size_that_does_not_fit_into_a_word():
    wide = as_size(Dim("n", 0, 1 << 40))
    with pytest.raises(ShapeError, match="narrow the ranges"):
        Sizes([Dim("n", 0, 1 << 40)]).number(wide * wide)


def test_rows_of_bytes():
    assert bytes_row(b"\1\0\0\0\0\0\0\0\2") == [1, 2]
    assert text_row("level 4") == [int.from_bytes(b"level 4\0", "little")]
    assert text_row("level 44")[1:] == [0]


def plan(inputs=("x",), outputs=("y",), name="parameter", role="parameter"):
    """A plan of nothing but buffers: inputs, outputs and one parameter."""
    kind = tensor("float32", (3,))
    roles = [*((n, "input") for n in inputs), *((n, "output") for n in outputs)]
    buffers = tuple(Buffer(n, role, kind, Layout.rows(1)) for n, role in [*roles, (name, role)])
    numbers = range(len(roles))
    return Plan(
        buffers,
        (),
        (),
        tuple(numbers[: len(inputs)]),
        tuple(numbers[len(inputs) :]),
        (),
        0,
        0,
        input_names=inputs,
        output_names=outputs,
    )


def test_a_plan_whose_results_are_written_stays_as_it_is():
    assert with_copies(plan()) == plan()


def test_names_in_c():
    names = ("x.0", "x_0", "net", "float", "2d")
    header = interface_of(plan(inputs=names), "net2", "aarch64").header()
    parameters = header.partition("int net2_run(")[2].partition(")")[0].split(",")
    assert [text.split("*")[-1] for text in parameters] == [
        "net",
        "x_0",
        "x_0_",
        "net_",
        "float_",
        "_2d",
        "y",
    ]
    assert "net2_run expects no sizes" in header


# What `write_library` refuses.

LEVEL = host().name
PARAMETERS = {"parameter": np.zeros(3, np.float32)}


def empty(**changes):
    return {LEVEL: Compiled(plan(**changes), {}, {}, {})}


@pytest.mark.parametrize(
    ("levels", "parameters", "name", "error", "message"),
    [
        ({}, {}, "n", TargetError, "got none"),
        ({"x86-64-v9": None}, {}, "n", TargetError, "got 'x86-64-v9'"),
        ({"aarch64": None, "x86-64-v2": None}, {}, "n", TargetError, "one architecture"),
        (empty(), {}, "n", WeightsError, "'parameter' .* got none"),
        (empty(), {"parameter": np.zeros(3)}, "n", WeightsError, r"got float64\[3\]"),
        (empty(), {"parameter": np.zeros(4, "f4")}, "n", WeightsError, r"got float32\[4\]"),
        (empty(), PARAMETERS, "2d", ArgumentError, "C identifier"),
        (empty(), PARAMETERS, "a-b", ArgumentError, "name="),
        (
            empty(name="running", role="state"),
            PARAMETERS,
            "n",
            ArgumentError,
            r"running\. Call eval",
        ),
    ],
)
def test_what_cannot_be_a_library(tmp_path, levels, parameters, name, error, message):
    with pytest.raises(error, match=message):
        write_library(levels, parameters, tmp_path / "n.so", name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("compiler", "error", "message"),
    [
        ("no-such-compiler", DependencyError, "install gcc"),
        ("/dev/null", DependencyError, "/dev/null cannot be run"),
        ("false", CompileError, "false does not link"),
        ("true", ExecutionError, "cannot write"),  # it makes no file
    ],
)
def test_a_failure_leaves_older_files_whole(tmp_path, compiler, error, message):
    old = {f"n.{suffix}": suffix.encode() for suffix in ("so", "h", "safetensors")}
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        write_library(empty(), PARAMETERS, tmp_path / "n.so", compiler=compiler)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_a_name_of_its_own(tmp_path):
    """The linker does nothing here but make the file that it was asked for."""
    linker = tmp_path / "linker"
    linker.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n: > "$2"\n')
    linker.chmod(0o755)
    write_library(empty(), PARAMETERS, tmp_path / "lib-2.so", "two", compiler=str(linker))
    made = {path.name for path in tmp_path.iterdir()} - {"linker"}
    assert made == {"lib-2.so", "two.h", "two.safetensors"}
    assert '"two.safetensors"' in (tmp_path / "two.h").read_text()


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ExecutionError, match="cannot write the library"):
        write_library(empty(), PARAMETERS, tmp_path / "none" / "n.so")


def test_what_is_no_regular_file_stays(tmp_path):
    os.mkfifo(tmp_path / "n.h")
    with pytest.raises(ExecutionError, match="it is a pipe, no regular file"):
        write_library(empty(), PARAMETERS, tmp_path / "n.so")
    assert os.listdir(tmp_path) == ["n.h"]
    assert (tmp_path / "n.h").is_fifo()
