"""The driver: from a function or module to something that runs. The only file that knows all parts.

trace -> passes -> prepare and main -> layout, fusion, memory -> one object per kernel -> linked ->
Executable
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dlc import config
from dlc.errors import ArgumentError, TargetError, explain
from dlc.frontend import hook
from dlc.frontend.module import Module
from dlc.frontend.parameter import latest_change, latest_version
from dlc.frontend.trace import Traced, flatten_arguments, trace
from dlc.ir.graph import Graph
from dlc.ir.plan import Plan
from dlc.ir.sizes import bounds
from dlc.runtime import cache as disk
from dlc.runtime import threads as machine
from dlc.runtime.executable import Executable, Kernel
from dlc.runtime.loader import Linked
from dlc.runtime.pool import ENTRIES, Pool, shared

Array: TypeAlias = "np.ndarray[Any, Any]"
logger = logging.getLogger("dlc.driver")
TARGETS = ("cpu", "reference")


def compile(
    function: Callable[..., Any],
    *specs: Any,
    target: str = "cpu",
    opt: str = "O2",
    threads: int | None = None,
    verify: int = 0,
    progress: bool | None = None,
    freeze: bool = False,
) -> Executable:
    """Compile a function or module for arguments of given shapes.

    Parameters
    ----------
    function : callable
        A module, or a function of tensors.
    *specs : array or TensorSpec
        Its arguments; a dimension is an int or a `Dim`.
    target : {"cpu", "reference"}
        "cpu" compiles to native kernels, "reference" runs NumPy op by op.
    opt : {"O0", "O1", "O2"}
        How much the passes do.
    threads : int, optional
        Threads of a call; by default what the machine allows (see docs/configuration.md).
    verify : int
        1 verifies the graph after each pass, 2 also evaluates it before and after in float64.
    freeze : bool
        Copy the parameters now and let the originals go, rather than follow them.

    Raises
    ------
    TargetError
        There is no such target.
    Error
        The function cannot be traced or compiled; the message says where and why.
    """
    if target not in TARGETS:
        raise TargetError(explain("dlc.compile", f"a target of {', '.join(TARGETS)}", repr(target)))
    traced = trace(function, *specs)
    sources: Mapping[str, Any] = traced.parameters
    if freeze:
        sources = {name: _Frozen(variable.numpy()) for name, variable in sources.items()}
    return _executable(traced, sources, target, opt, threads, max(verify, config.get("verify")))


def _executable(
    traced: Traced,
    sources: Mapping[str, Any],
    target: str = "cpu",
    opt: str = "O2",
    threads: int | None = None,
    verify: int = 0,
) -> Executable:
    optimised = functools.cache(lambda: optimise(traced.graph, opt, verify))
    if target == "reference":
        runner, kernels = _Reference(optimised()), ()
    else:
        runner, kernels = _native(traced.graph, optimised, (opt, verify), threads)
    return Executable(
        optimised, runner, kernels, sources, _flattener(traced), _finisher(traced), latest_version, _is_flat(traced)
    )


def optimise(graph: Graph, opt: str = "O2", verify: int = 0) -> Graph:
    """The graph after the passes of an optimisation level, checked as ``verify`` says."""
    from dlc import passes
    from dlc.backends import reference
    from dlc.ir.values import Check

    def evaluate(graph: Graph, arrays: Mapping[str, Array]) -> Sequence[Array]:
        return reference.run(graph, arrays, dtype="float64")

    return passes.run(graph, opt, verify=verify > 0, check=Check(evaluate) if verify > 1 else None)


class _Frozen:
    """A parameter's value at the time of compilation."""

    version = 0

    def __init__(self, array: Array):
        self._array = array

    def numpy(self) -> Array:
        return self._array


class _Reference:
    """Runs a graph op by op in NumPy."""

    recent = None

    def __init__(self, graph: Graph):
        self._graph = graph
        self._parameters: Mapping[str, Array] = {}

    def refresh(self, parameters: Mapping[str, Array]) -> None:
        self._parameters = parameters

    def __call__(self, *arrays: Array) -> list[Array]:
        from dlc.backends import reference

        named = {
            str(node.name): array for node, array in zip(self._graph.inputs, arrays, strict=True)
        }
        return reference.run(self._graph, {**self._parameters, **named})


def _native(
    graph: Graph, optimised: Callable[[], Graph], options: tuple[object, ...], threads: int | None
) -> tuple[Any, tuple[Kernel, ...]]:
    """A runner of native code; a graph that was compiled before comes whole from the cache, without
    any pass.
    """
    from dlc.backends.native.isa import host
    from dlc.runtime.bundle import pack, unpack
    from dlc.runtime.loader import link
    from dlc.runtime.runner import Runner

    isa = host()

    def build() -> bytes:
        from dlc.backends.numba_cpu.lower import Lowering
        from dlc.passes.schedule import schedule

        return pack(Lowering(isa, _cached).compile(*schedule(optimised())))

    compiled = unpack(_cached(("model", graph.structure_key(), options, isa.name), build))
    linked = link(list(compiled.objects.values()), compiled.plan.kernels)
    runner = Runner(compiled.plan, linked, _pool(machine.count(threads)), compiled.constants, _entry())
    return runner, _kernels(compiled.plan, compiled.sources)


def _cached(parts: Sequence[object], make: Callable[[], bytes]) -> bytes:
    """What ``make`` gives, from the disk cache where it was made before by the same code."""
    key = disk.digest(disk.code_version(), *(repr(part) for part in parts))
    return disk.default().get_or(key, make)


def _pool(threads: int) -> Pool:
    """The process-wide pool of a number of threads."""

    def load() -> Linked:
        from dlc.backends.native import isa
        from dlc.runtime.loader import link

        def build() -> bytes:
            from dlc.backends.native import interpreter

            return interpreter.build(isa.host())

        return link([_cached(("interpreter", isa.host().name), build)], ENTRIES)

    return shared(threads, load)


@functools.cache
def _entry() -> Linked:
    """The native entry of calls from Python."""
    from dlc.backends.native.isa import host
    from dlc.runtime.entry import ENTRIES as names
    from dlc.runtime.loader import link

    def build() -> bytes:
        from dlc.backends.native import entry

        return entry.build(host())

    return link([_cached(("entry", host().name), build)], names)


def _kernels(plan: Plan, sources: Mapping[str, str]) -> tuple[Kernel, ...]:
    return tuple(
        Kernel(
            step.kernel,
            step.label,
            sources[step.kernel],
            bounds(step.flops)[1],
            bounds(step.bytes)[1],
        )
        for step in plan.main
    )


def _flattener(traced: Traced) -> Callable[..., Sequence[Array]]:
    """From a call's arguments to the arrays of the graph's inputs."""

    def flatten(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Array]:
        leaves, arguments = flatten_arguments(args, kwargs)
        if arguments != traced.arguments:
            raise ArgumentError(
                "the call's arguments differ from those that were compiled: only arrays may change between "
                "calls; Python values are part of the compiled function. Compile again for these"
            )
        return [np.asarray(leaf) for leaf in leaves]

    return flatten


def _finisher(traced: Traced) -> Callable[[Sequence[Array]], Any]:
    """From the graph's outputs to the function's result; new values of buffers go to their owners."""
    results = len(traced.graph.outputs) - len(traced.graph.aliases)

    def finish(outputs: Sequence[Array]) -> Any:
        for number, name in traced.graph.aliases.items():
            traced.parameters[name].data = outputs[number]
        return traced.structure.build(list(outputs[:results]))

    return finish


def _is_flat(traced: Traced) -> bool:
    """Whether calls give plain arrays by position and get one back."""
    args, kwargs = traced.arguments.children
    arrays = all(child.kind == "leaf" for child in args.children) and not kwargs.children
    return arrays and traced.structure.kind == "leaf" and not traced.graph.aliases


class _Calls:
    """Compiled variants of one function, by the shapes and the state of their arguments."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self._lock = threading.Lock()
        self._compiled: dict[Any, Executable] = {}
        self._seen = -1

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        leaves, arguments = flatten_arguments(args, kwargs)
        key = (arguments, tuple((leaf.dtype.name, leaf.shape) for leaf in leaves))
        with self._lock:
            if latest_change() != self._seen:
                self._compiled.clear()
                self._seen = latest_change()
            executable = self._compiled.get(key)
        if executable is None:
            executable = compile_call(self.function, args, kwargs)
            with self._lock:
                executable = self._compiled.setdefault(key, executable)
        return executable(*args, **kwargs)

    def __deepcopy__(self, memo: object) -> None:
        """A copy of a module compiles for itself."""


def compile_call(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Executable:
    """Compile a function for the arguments of one call."""
    traced = trace(function, *args, **kwargs)
    return _executable(traced, traced.parameters)


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors on its first call for each combination of shapes and element
    types.
    """
    calls = _Calls(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return calls(args, kwargs)

    return call


def _call_module(module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    calls = module.__dict__.get("_dlc_calls")
    if calls is None:
        calls = _Calls(module)
        object.__setattr__(module, "_dlc_calls", calls)
    return calls(args, kwargs)


hook.call_module = _call_module


def trace_graph(function: Callable[..., Any], *specs: Any) -> Graph:
    """The graph of a function or module on arguments of given shapes, before any pass."""
    return trace(function, *specs).graph


def run_native(graph: Graph, arrays: Sequence[Array], threads: int | None = None) -> list[Array]:
    """Compile a graph as it is, expanding composite ops only, and run it once on arrays."""
    runner, _ = _native(graph, lambda: optimise(graph, "O0"), ("graph",), threads)
    runner.refresh({})
    outputs: list[Array] = runner(*arrays)
    return outputs
