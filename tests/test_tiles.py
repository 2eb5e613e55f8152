"""Register tiles: every number of rows, ragged columns, sums around the length of a chain."""

import itertools
import re

import numpy as np
import pytest
from helpers.native_kernels import GUARD, LEVELS, bound, guarded, tile_entry, words

from dlc.backends.native import objects
from dlc.backends.native.isa import LEVELS as ALL_LEVELS
from dlc.backends.numba_cpu.tiles import CHAIN, PANEL, Tile
from dlc.backends.numba_cpu.vectors import Epilogue, Operand
from dlc.errors import CompileError

FULL = Epilogue(
    "relu(acc * scale + bias + residual)",
    (Operand("scale", "column"), Operand("bias", "column"), Operand("residual", "full")),
)
SWISH = Epilogue("acc * sigmoid(acc) + bias", (Operand("bias", "column"),))
DTYPES = ("float32", "float64")
# (outer, inner, depth) around one chain, over several, and in short runs.
SUMS = [
    (1, 1, 1),
    (1, 1, CHAIN),
    (1, 1, CHAIN + 1),
    (2, 3, 5),
    (3, 1, 100),
    (7, 1, 21),
    (1, 4, 2 * CHAIN + 3),
]

levels = pytest.mark.parametrize("isa", LEVELS, ids=lambda isa: isa.name)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


class Case:
    """One call of a tile: its arrays, and what it must give."""

    def __init__(self, rng, tile, rows, columns, runs):
        outer, inner, depth = runs
        dtype, self.tile, self.runs = tile.dtype, tile, runs
        self.inner_step, self.outer_step = depth + 3, inner * (depth + 3) + 5
        # Rows overlap, are in no order, and y's are neither x's nor the residual's.
        self.x_rows = 2 * rng.permutation(rows) + 1
        self.y_rows = (PANEL + 5) * rng.permutation(rows)
        self.residual_rows = (PANEL + 1) * rng.permutation(rows)
        size = 2 * rows + outer * self.outer_step + depth
        self.x = rng.standard_normal(size).astype(dtype)
        self.w = rng.standard_normal((outer * inner * depth, PANEL)).astype(dtype)
        self.scale, self.bias = rng.standard_normal((2, columns)).astype(dtype)
        self.residual = rng.standard_normal((PANEL + 1) * rows).astype(dtype)
        self.rows, self.columns, self.chunk = rows, columns, chunk_of(depth)
        self.y, self.check = guarded(((PANEL + 5) * rows,), dtype)

    def run(self):
        """The result, after checking that nothing else was written."""
        outer, inner, depth = self.runs
        sizes = {"rows": self.rows, "columns": self.columns, "chunk": self.chunk, "depth": depth}
        sizes |= {"outer": outer, "outer_step": self.outer_step}
        sizes |= {"inner": inner, "inner_step": self.inner_step}
        arrays = {
            name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)
        }
        before = {name: value.copy() for name, value in arrays.items() if name != "y"}
        tile_entry(self.tile)(*words(self.tile.params, arrays | sizes))
        for name, value in before.items():
            np.testing.assert_array_equal(arrays[name], value, err_msg=name)
        self.check()
        places = self.y_rows[:, None] + np.arange(self.columns)
        others = np.ones(self.y.shape, bool)
        others[places] = False
        assert np.isnan(self.y[others]).all(), "written beside the columns"
        return self.y[places]

    def terms(self):
        """The rows of x as they meet w, in float64."""
        outer, inner, depth = self.runs
        steps = [
            a * self.outer_step + b * self.inner_step + np.arange(depth)
            for a in range(outer)
            for b in range(inner)
        ]
        return self.x[self.x_rows[:, None] + np.concatenate(steps)].astype(np.float64)


def chunk_of(depth):
    return -(-depth // -(-depth // CHAIN)) if depth else 1


def check(case):
    """Compare a case with `FULL` with float64, element by element."""
    y, terms, w = case.run(), case.terms(), case.w[:, : case.columns].astype(np.float64)
    residual = case.residual[case.residual_rows[:, None] + np.arange(case.columns)]
    scale, bias = case.scale.astype(np.float64), case.bias.astype(np.float64)
    expected = np.maximum(terms @ w * scale + bias + residual, 0)
    size = (np.abs(terms) @ np.abs(w)) * np.abs(scale) + np.abs(bias) + np.abs(residual)
    assert (np.abs(y - expected) <= bound(size, len(w), case.tile.dtype, roundings=3)).all()


@levels
@dtypes
@pytest.mark.parametrize("vectors", [2, 1])
def test_every_shape(rng, isa, dtype, vectors):
    tile = Tile(isa, dtype, vectors, FULL)
    lanes = isa.lanes(dtype)
    widths = {1, lanes - 1, lanes, tile.columns - 1, tile.columns}
    for rows, columns, runs in itertools.product(range(1, tile.rows + 1), widths, SUMS):
        check(Case(rng, tile, rows, columns, runs))


@levels
def test_no_rows_and_no_products(rng, isa):
    tile = Tile(isa, "float32", 2, FULL)
    empty = Case(rng, tile, 3, tile.columns, (1, 1, 0))
    check(empty)
    none = Case(rng, tile, 1, tile.columns, (1, 1, 4))
    none.rows = 0
    assert np.isnan(none.run()).all()


@levels
@dtypes
def test_long_expression(rng, isa, dtype):
    assert FULL.short
    assert not SWISH.short
    tile = Tile(isa, dtype, 2, SWISH)
    for rows, columns in itertools.product((1, tile.rows), (tile.columns, tile.columns - 1)):
        case = Case(rng, tile, rows, columns, (1, 1, 40))
        acc = case.terms() @ case.w[:, :columns].astype(np.float64)
        tolerance = 1e-5 if dtype == "float32" else 1e-13
        expected = acc / (1 + np.exp(-acc)) + case.bias
        np.testing.assert_allclose(case.run(), expected, tolerance, 10 * tolerance)


def test_bits_are_those_of_every_fma_level_and_number_of_rows(rng):
    fused = [isa for isa in LEVELS if isa.fma]
    for runs in SUMS:
        bits = set()
        for isa, vectors in itertools.product(fused, (1, 2)):
            tile = Tile(isa, "float32", vectors, Epilogue())
            for rows in range(1, tile.rows + 1):
                case = Case(np.random.default_rng(1), tile, rows, 4, runs)
                case.x = np.random.default_rng(2).standard_normal(case.x.size).astype("float32")
                case.w = np.random.default_rng(3).standard_normal(case.w.shape).astype("float32")
                case.x_rows = np.arange(rows)
                bits.add(case.run()[0].tobytes())
        assert len(bits) == 1, runs


@levels
def test_special_values(rng, isa):
    tile = Tile(isa, "float32", 2, Epilogue("relu(acc)"))
    case = Case(rng, tile, 2, 4, (1, 1, 1))
    case.x[case.x_rows] = 1.0
    case.w[0, :4] = np.nan, np.inf, -np.inf, -1e-45
    np.testing.assert_array_equal(case.run(), [[np.nan, np.inf, 0.0, 0.0]] * 2)


@levels
def test_twin_agrees(rng, isa):
    tile = Tile(isa, "float64", 2, FULL)
    case = Case(rng, tile, 3, 3, (2, 2, 3))
    names = {param.name: getattr(case, param.name, None) for param in tile.params}
    outer, inner, depth = case.runs
    names |= {"outer": outer, "inner": inner, "depth": depth}
    y = case.run()
    case.y[...] = np.nan
    tile.twin()(*(v.reshape(-1) if isinstance(v, np.ndarray) else v for v in names.values()))
    np.testing.assert_allclose(case.y[case.y_rows[:, None] + np.arange(3)], y, 1e-12)


@pytest.mark.parametrize("isa", ALL_LEVELS.values(), ids=lambda isa: isa.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulators_stay_in_registers(isa, dtype):
    tile = Tile(isa, dtype, 2, FULL)
    text = objects.assembly(tile.text(), [tile.name], isa, speed=0)
    adds = re.compile(r"fmla\s" if isa.name == "aarch64" else r"vfn?m|addp[sd]\s")
    most = max(innermost_loops(text), key=lambda loop: sum(map(bool, map(adds.search, loop))))
    assert sum(bool(adds.search(line)) for line in most) == 2 * tile.rows
    spill = re.compile(r"mm\d+.*\(%rsp\)|\(%rsp\).*mm\d+|\bq\d+.*\[sp")
    assert not [line for line in most if spill.search(line)]


def innermost_loops(text):
    """The lines of each loop that is one block: from a label to a jump back to it."""
    label, lines = "", []
    for line in text.splitlines():
        if found := re.match(r"(\.LBB\w+):", line):
            label, lines = found[1], []
        elif jump := re.search(r"\s(?:j\w+|b\.\w+|b|cbn?z\s+\w+,)\s+(\.LBB\w+)$", line):
            if jump[1] == label:
                yield lines
            label, lines = "", []
        else:
            lines.append(line)


def test_names_tell_functions_apart():
    isa = ALL_LEVELS["x86-64-v3"]
    tiles = [
        Tile(level, dtype, vectors, epilogue)
        for level in ALL_LEVELS.values()
        for dtype in DTYPES
        for vectors in (1, 2)
        for epilogue in (Epilogue(), FULL, SWISH)
    ]
    assert len({tile.name for tile in tiles}) == len(tiles)
    assert Tile(isa, "float32", 2, FULL).name == Tile(isa, "float32", 2, FULL).name


def test_operands_have_a_kind():
    with pytest.raises(CompileError, match='"column", "full" or "scalar", not \'row\''):
        Operand("bias", "row")


def test_guards_hold_a_vector():
    assert GUARD >= PANEL
