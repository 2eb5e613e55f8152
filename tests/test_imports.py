"""The direction of imports, and what `import dlc` costs."""

import ast
import json
from pathlib import Path

import pytest

import dlc

ROOT = Path(dlc.__file__).parent

# What each part of dlc may import of the rest. A part that is not here belongs here first.
COMMON = {"dlc.errors", "dlc.config", "dlc.debug", "dlc.files", "dlc.progress", "dlc.report"}
BELOW_DRIVER = {"dlc.ir", "dlc.ops", "dlc.passes", "dlc.frontend", "dlc.backends", "dlc.runtime"}
MAY_IMPORT = {
    "dlc.errors": set(),
    "dlc.config": set(),
    "dlc.debug": set(),
    "dlc.files": set(),
    "dlc.progress": set(),
    "dlc.report": set(),
    "dlc.ir": set(),
    "dlc.ops": {"dlc.ir"},
    "dlc.passes": {"dlc.ir", "dlc.ops"},
    "dlc.frontend": {"dlc.ir", "dlc.ops", "dlc.passes"},
    "dlc.runtime": {"dlc.ir.plan", "dlc.ir.sizes", "dlc.ir.types", "dlc.ops"},
    "dlc.backends": {"dlc.ir", "dlc.ops", "dlc.runtime"},
    "dlc.nn": {"dlc.frontend"},
    "dlc.functional": {"dlc.frontend"},
    "dlc.optim": {"dlc.frontend"},
    "dlc.driver": BELOW_DRIVER,
    "dlc.training": BELOW_DRIVER | {"dlc.driver"},
    "dlc.testing": BELOW_DRIVER | {"dlc.driver", "dlc.training"},
    "dlc.cli": BELOW_DRIVER | {"dlc.driver", "dlc.training", "dlc.testing"},
    "dlc.__main__": {"dlc.cli"},
    "dlc": BELOW_DRIVER | {"dlc.driver", "dlc.training", "dlc.testing", "dlc.cli"},
}

# A warm start loads no compiler front end; only these places may name one, even inside a function.
ONLY_IN = {
    "numba": ("dlc.backends",),
    "llvmlite": ("dlc.backends", "dlc.runtime.loader"),
}

# What `import dlc` must not load.
HEAVY = ("numba", "llvmlite", "torch", "networkx", "rich", "onnx", "matplotlib", "sklearn")


def modules():
    """Every module of dlc: name, parsed source and whether it is a package."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("dlc", *path.relative_to(ROOT).with_suffix("").parts)
        package = parts[-1] == "__init__"
        yield ".".join(parts[:-1] if package else parts), ast.parse(path.read_text()), package


def imports(name, tree, package):
    """Full names that a module imports, at its top or in a function, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # in a package, one dot is the package itself
                words = name.split(".")
                above = words[: len(words) - node.level + package]
                base = ".".join([*above, base] if base else above)
            # `from dlc import config` imports dlc.config: what is imported is the longer name.
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def within(name, parts):
    return any(name == part or name.startswith(part + ".") for part in parts)


def part_of(name):
    """The row of MAY_IMPORT that a module belongs to."""
    part = ".".join(name.split(".")[:2])
    return part if part in MAY_IMPORT else "dlc"


def violations(name, tree, package):
    """What a module imports and may not, as `module:line imports name`."""
    own = part_of(name)
    allowed = COMMON | MAY_IMPORT[own] | ({own} if own != "dlc" else set())
    for target, line in imports(name, tree, package):
        if target == "dlc" or (within(target, ["dlc"]) and not within(target, allowed)):
            yield f"{name}:{line} imports {target}"
        for library, places in ONLY_IN.items():
            if within(target, [library]) and not within(name, places):
                yield f"{name}:{line} imports {target}"


def test_every_part_is_in_the_table():
    unknown = [name for name, _, _ in modules() if name != "dlc" and part_of(name) == "dlc"]
    assert not unknown, f"say in MAY_IMPORT what these may import: {unknown}"


def test_imports_point_downward():
    found = [line for module in modules() for line in violations(*module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("dlc.ir.graph", "from dlc.ops import tanh"),
        ("dlc.ir.graph", "from dlc import ops"),
        ("dlc.ir.graph", "def draw():\n    import dlc.passes.fuse"),
        ("dlc.ops.elementwise", "from ..passes import fuse"),
        ("dlc.runtime.executable", "from dlc.ir import graph"),
        ("dlc.runtime.executable", "from dlc.ir.graph import Graph"),
        ("dlc.runtime.pool", "def build():\n    from numba import njit"),
        ("dlc.passes.fuse", "import llvmlite.ir"),
        ("dlc.backends.native.isa", "from dlc.driver import compile"),
        ("dlc.frontend.nn", "import dlc.driver"),
        ("dlc.config", "from dlc import ir"),
        ("dlc.passes.fuse", "import dlc"),
        ("dlc.passes.fuse", "from dlc import Tensor"),
    ],
)
def test_a_wrong_import_is_found(name, source):
    assert list(violations(name, ast.parse(source), False))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("dlc.ir.graph", "from dlc.errors import ShapeError\nfrom dlc import config"),
        ("dlc.ir.graph", "from .node import Node\nfrom . import types\nimport networkx"),
        ("dlc.runtime.executable", "from dlc.ir.plan import Plan\nfrom dlc.ir import plan"),
        ("dlc.runtime.loader", "from llvmlite import binding"),
        ("dlc.backends.numba_cpu.lower", "import numba\nfrom ..native import isa"),
        ("dlc.driver", "from dlc import backends, frontend, passes, runtime"),
    ],
)
def test_a_right_import_passes(name, source):
    assert not list(violations(name, ast.parse(source), False))


def test_import_loads_nothing_heavy(run_python):
    program = """
        import json, sys
        import dlc
        print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
    """
    loaded = set(json.loads(run_python(program)))
    assert "dlc" in loaded
    assert not loaded & set(HEAVY)


def test_lowering_loads_no_numba(run_python):
    """It writes kernels; whoever compiles them loads it, mostly in another process."""
    program = """
        import sys
        import dlc.backends.numba_cpu.lower
        print("numba" in sys.modules)
    """
    assert run_python(program) == "False\n"


def test_import_is_quick(run_python):
    """`import dlc` takes less than 0.1 s of CPU beyond NumPy's; the best of five, for the noise."""
    program = """
        import time
        import numpy
        start = time.process_time()
        import dlc
        print(time.process_time() - start)
    """
    assert min(float(run_python(program)) for _ in range(5)) < 0.1


def test_the_links_at_the_root_lead_into_the_package():
    for name in ("frontend", "passes", "backends", "runtime"):
        link = ROOT.parent / name
        assert link.is_symlink()
        assert link.readlink() == Path("dlc", name)
