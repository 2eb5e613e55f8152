"""The driver: from a function or module to something that runs. The only file that knows all parts.

trace -> passes -> prepare and main -> layout, fusion, memory -> one object per kernel -> linked ->
Executable
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from dlc import config, debug
from dlc.errors import ArgumentError, ShapeError, TargetError, explain
from dlc.frontend import gradient, hook
from dlc.frontend.gradient import Argnums
from dlc.frontend.met import Met, Variants
from dlc.frontend.module import Module
from dlc.frontend.numeric import is_whole
from dlc.frontend.parameter import advance, latest_version
from dlc.frontend.scope import active
from dlc.frontend.trace import Traced, flatten_arguments, trace
from dlc.frontend.tree import Structure
from dlc.ir.graph import Graph
from dlc.ir.plan import Plan
from dlc.ir.sizes import bounds, is_size, shape_text
from dlc.ir.types import TensorSpec
from dlc.progress import bar
from dlc.report import duration, quantity
from dlc.runtime import cache as disk
from dlc.runtime import threads as machine
from dlc.runtime.entry import ENTRIES as NATIVE_ENTRY
from dlc.runtime.exclusive import importing
from dlc.runtime.executable import Clock, Executable, Kernel
from dlc.runtime.loader import Linked
from dlc.runtime.pool import ENTRIES, Pool, shared

if TYPE_CHECKING:
    from dlc.backends.native.crew import Job
    from dlc.backends.native.isa import Isa
    from dlc.progress import Report
    from dlc.runtime.bundle import Compiled
    from dlc.runtime.peak import Bursts, Meetings, Peak
    from dlc.runtime.profile import Profile

Array: TypeAlias = "np.ndarray[Any, Any]"
logger = logging.getLogger("dlc.driver")
TARGETS, LEVELS = ("cpu", "reference"), ("O0", "O1", "O2")
CLOCKS = ("dlc_stamp", "dlc_cpu_stamp", "dlc_nothing")


def compile(
    function: Callable[..., Any],
    *specs: Any,
    target: str = "cpu",
    opt: str = "O2",
    threads: int | None = None,
    verify: int = 0,
    progress: bool | None = None,
    freeze: bool = False,
    memory_budget: int | None = None,
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
        1 verifies the graph after each pass, 2 also evaluates it before and after in float64. The
        passes then run even if the model is in the cache.
    progress : bool, optional
        Show what is being compiled; by default on a terminal (see docs/configuration.md).
    freeze : bool
        Copy the parameters now and let the originals go, rather than follow them.
    memory_budget : int, optional
        Bytes that the values which a call makes on its way take together at most, at the largest
        sizes (``executable.memory["values"]``): where they would take more, some are computed
        again rather than kept, with the same bits. Arguments, results, parameters and what
        optimisers remember do not count.

    Raises
    ------
    MemoryError
        No way was found to need as little as ``memory_budget``; the message says how little is
        enough.
    TargetError
        There is no such target.
    ArgumentError
        An option has a value that it cannot take.
    Error
        The function cannot be traced or compiled; the message says where and why.
    """
    if target not in TARGETS:
        raise TargetError(explain("dlc.compile", f"a target of {', '.join(TARGETS)}", repr(target)))
    if opt not in LEVELS:
        raise ArgumentError(explain("dlc.compile", f"opt to be {', '.join(LEVELS)}", repr(opt)))
    if verify not in (0, 1, 2):
        raise ArgumentError(explain("dlc.compile", "verify to be 0, 1 or 2", repr(verify)))
    if target == "reference" and memory_budget is not None:
        advice = 'Compile with target="cpu".'
        expected, got = "no memory_budget where NumPy runs op by op", f"{memory_budget}"
        raise ArgumentError(explain("dlc.compile", expected, got, advice=advice))
    _check_specs(specs)
    traced = _traced(function, specs, {})
    executable = _executable(traced, target, opt, threads, verify, progress, memory_budget)
    if freeze:
        executable.freeze()
    return executable


def _check_specs(specs: tuple[Any, ...]) -> None:
    """Refuse a shape where an argument of that shape is meant."""
    if any(isinstance(spec, (np.ndarray, np.generic, TensorSpec)) for spec in specs):
        return  # beside those, a tuple of integers is an argument like any other
    for spec in specs:
        text = isinstance(spec, str) and spec.replace("x", "").isdigit()
        sizes = isinstance(spec, (tuple, list)) and spec and all(map(is_size, spec))
        if text or sizes:
            shape = tuple(spec) if sizes else tuple(map(int, filter(None, spec.split("x"))))
            advice = f"Write dlc.TensorSpec({shape_text(shape)})."
            expected, got = "arrays or TensorSpecs", f"{spec!r}, which is a shape"
            raise ArgumentError(explain("dlc.compile", expected, got, advice=advice))


def _traced(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Traced:
    """A function's graph on arguments: where every compilation begins."""
    debug.setup()
    with debug.timed(logger, "trace"):
        return trace(function, *args, **kwargs)


def _executable(
    traced: Traced,
    target: str = "cpu",
    opt: str = "O2",
    threads: int | None = None,
    verify: int = 0,
    progress: bool | None = None,
    memory_budget: int | None = None,
) -> Executable:
    graph = traced.graph
    _check_dims(graph)
    _check_budget(memory_budget)
    verify = max(verify, config.get("verify"))
    optimised = functools.cache(lambda: optimise(graph, opt, verify))
    profiler = None
    if target == "reference":
        runner, kernels = _Reference(optimised()), ()
    else:
        runner, kernels = _native(graph, optimised, opt, threads, progress, verify, memory_budget)
        profiler = functools.partial(_profile, runner)
    return Executable(
        optimised,
        runner,
        kernels,
        traced.parameters,
        _flattener(traced.arguments),
        _finisher(traced),
        Clock(latest_version, advance),
        _is_flat(traced),
        profiler,
    )


def optimise(graph: Graph, opt: str = "O2", verify: int = 0) -> Graph:
    """The graph after the passes of an optimisation level, checked as ``verify`` says."""
    return _passes(verify)(graph, opt)


def _passes(verify: int) -> Callable[..., Graph]:
    """What runs passes over a graph, and checks each of them as ``verify`` says."""
    with importing():
        from dlc.backends import reference
        from dlc.ir.values import Check
        from dlc.passes import pipelines, run  # noqa: F401  (the first run needs them)

    check = Check(reference.run) if verify > 1 else None
    return functools.partial(run, verify=verify > 0, check=check)


class _Reference:
    """Runs a graph op by op in NumPy."""

    recent = kept = None
    memory: Mapping[str, int] = {}

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
    graph: Graph,
    optimised: Callable[[], Graph],
    opt: str,
    threads: int | None,
    progress: bool | None = None,
    verify: int = 0,
    memory_budget: int | None = None,
) -> tuple[Any, tuple[Kernel, ...]]:
    """A runner of native code; a graph that was compiled before comes whole from the cache, without
    any pass (unless they are to be verified, or somebody wants to read what they choose).
    """
    with importing():
        from dlc.backends.native.isa import host
        from dlc.runtime.bundle import pack, unpack
        from dlc.runtime.loader import link
        from dlc.runtime.runner import Runner

    isa, start, made = host(), time.perf_counter(), []

    def build() -> bytes:
        made.append(graph.name)
        with bar(f"compiling {graph.name}", progress) as report:
            return pack(_lowered(optimised, isa, report, verify, memory_budget))

    logger.log(debug.IR, "traced:\n%s", graph)
    afresh = verify > 0 or logger.isEnabledFor(debug.CHOICES)
    key = ("model", graph.structure_key(), _modules(graph), opt, isa.name, memory_budget)
    compiled = unpack(build() if afresh else disk.CodeStore().get_or(key, build))
    for source in compiled.sources.values():
        logger.log(debug.SOURCE, "source:\n%s", source)
    with debug.timed(logger, f"link {len(compiled.objects)} objects"):
        linked = link(list(compiled.objects.values()), compiled.plan.kernels)
    pool = _pool(machine.count(threads))
    runner = Runner(compiled.plan, linked, pool, compiled.constants, _entry())
    kernels = _kernels(compiled.plan, compiled.sources)
    logger.log(
        debug.SUMMARY,
        "%s for %s, %d threads: %d kernels, %s, %s of arena; %s in %s",
        graph.name,
        isa.name,
        pool.threads,
        len(kernels),
        quantity(sum(kernel.flops for kernel in kernels), "FLOP"),
        quantity(compiled.plan.arena, "B"),
        "compiled" if made else "from the cache",
        duration(time.perf_counter() - start),
    )
    return runner, kernels


def _modules(graph: Graph) -> list[list[str]]:
    """The modules that each node comes from: a plan names them in its labels and errors."""
    return [sorted({o.module for o in node.origins if o.module}) for node in graph.nodes]


def _lowered(
    optimised: Callable[[], Graph],
    isa: Isa,
    report: Report,
    verify: int = 0,
    memory_budget: int | None = None,
) -> Compiled:
    """The plan and the objects of a graph, by way of passes, schedules and kernels."""
    with importing():
        from dlc.backends.numba_cpu.lower import Lowering
        from dlc.passes.schedule import schedule

    report("passes", 0, 0)
    with debug.timed(logger, "passes"):
        graph = optimised()
    with debug.timed(logger, "schedule"):
        prepare, main, prepared = schedule(graph, _passes(verify), memory_budget)
    for name, each in (("prepare", prepare), ("main", main)):
        logger.log(debug.IR, "%s, scheduled:\n%s", name, each.graph)
        for group in each.groups:
            logger.log(debug.CHOICES, "%s: %r", name, group)
    with debug.timed(logger, "kernels"):
        wanted = config.get("compile_helpers")
        helpers = machine.count() - 1 if wanted is None else wanted
        support = {"interpreter": _interpreter, "entry": _entry}
        beside = {
            name: _support_job(name)
            for name, linked in support.items()
            if not linked.cache_info().currsize
        }
        lowering = Lowering(isa, disk.CodeStore(), report, helpers, beside)
        return lowering.compile(prepare, main, prepared)


def peak(threads: int | None = None, dtype: str = "float32") -> Peak:
    """The machine's peak in floating-point operations a second, measured once a process.

    Parameters
    ----------
    threads : int, optional
        By default as many as a compiled program uses.
    dtype : {"float32", "float64"}

    Returns
    -------
    Peak
        ``.flops`` a second, with the number of threads and the level of instructions.
    """
    from dlc.backends.native.isa import host

    return _peak(machine.count(threads), dtype, host().name)


@functools.cache
def _peak(threads: int, dtype: str, isa: str) -> Peak:
    from dlc.runtime.peak import measure

    measuring = bursts(threads, dtype)
    with contextlib.closing(measuring.pool):
        return measure(measuring)


def bursts(threads: int, dtype: str = "float32") -> Bursts:
    """Calls that do nothing but multiply-adds, to measure the peak again and again."""
    from dlc.backends.native.isa import host
    from dlc.backends.numba_cpu import probes
    from dlc.runtime.peak import Bursts, PeakKernels

    if dtype not in probes.PEAK:
        raise ArgumentError(explain("peak", f"a dtype of {', '.join(probes.PEAK)}", repr(dtype)))
    isa, name = host(), probes.PEAK[dtype]
    work = _support(name, (name,), lambda: probes.peak(isa, dtype))
    flops = probes.flops_per_round(isa, dtype)
    kernels = PeakKernels(work, _clocks(), isa.name, dtype, flops)
    return Bursts(Pool(_interpreter(), threads, whole_team=True), kernels)


def meetings(pool: Pool) -> Meetings:
    """Calls in which the threads of a pool do nothing but meet."""
    from dlc.runtime.peak import Meetings

    return Meetings(pool, _clocks().address("dlc_nothing"))


def _profile(
    runner: Any, arrays: Sequence[Array], call: Callable[[], object], repeats: int | None
) -> Profile:
    from dlc.runtime.profile import measure

    def measured(dtype: str, threads: int) -> Peak:
        return peak(threads, dtype)

    stamp = _clocks().address("dlc_stamp")
    pool = Pool(_interpreter(), runner.pool.threads, whole_team=True)
    with contextlib.closing(pool):
        return measure(runner, pool, stamp, measured, arrays, call, repeats)


# Native code that is not a model's: linked once a process.


def _pool(threads: int) -> Pool:
    """The process-wide pool of a number of threads."""
    return shared(threads, _interpreter)


@functools.cache
def _interpreter() -> Linked:
    """The native program that runs a call."""
    return _support("interpreter", ENTRIES, lambda: _support_job("interpreter").run())


@functools.cache
def _entry() -> Linked:
    """The native entry of calls from Python."""
    return _support("entry", NATIVE_ENTRY, lambda: _support_job("entry").run())


def _support_job(name: str) -> Job:
    """How a module of the native path makes its object."""
    from dlc.backends.native.crew import Job
    from dlc.backends.native.isa import host

    return Job(name, host().name, module=f"dlc.backends.native.{name}")


@functools.cache
def _clocks() -> Linked:
    """Kernels that read clocks, or do nothing."""

    def build() -> bytes:
        from dlc.backends.native.isa import host
        from dlc.backends.numba_cpu import probes

        return probes.clocks(host())

    return _support("clocks", CLOCKS, build)


def _support(name: str, entries: Sequence[str], build: Callable[[], bytes]) -> Linked:
    """An object for this machine, from the cache where it was built before, linked."""
    from dlc.backends.native.isa import host
    from dlc.runtime.loader import link

    return link([disk.CodeStore().get_or(("object", host().name, name), build)], entries)


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


def _check_budget(memory_budget: object) -> None:
    if memory_budget is not None and not is_whole(memory_budget, 1):
        raise ArgumentError(explain("memory_budget", "a number of bytes", repr(memory_budget)))


def _check_dims(graph: Graph) -> None:
    """Refuse two dimensions of one name and different ranges: they would be taken for one."""
    for a, b in itertools.pairwise(graph.dims):
        if a.name == b.name:
            ranges = f"{a.min}..{a.max} and {b.min}..{b.max}"
            advice = "Use one Dim for both, or give them names of their own."
            expected = f"one range for the dimension {a.name!r}"
            raise ShapeError(explain("dlc.compile", expected, ranges, advice=advice))


def _flattener(expected: Structure) -> Callable[..., Sequence[Array]]:
    """From a call's arguments to the arrays of the graph's inputs."""

    def flatten(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sequence[Array]:
        leaves, arguments = flatten_arguments(args, kwargs)
        if arguments != expected:
            raise ArgumentError(_difference(expected, arguments))
        return [np.asarray(leaf) for leaf in leaves]

    return flatten


def _difference(expected: Structure, given: Structure) -> str:
    """Where the arguments of a call first differ from those that were compiled, and what to do."""
    for position, what in enumerate(("by position", "by name")):
        ours, theirs = expected.children[position], given.children[position]
        if ours.names != theirs.names:
            names = [", ".join(map(str, each.names)) for each in (ours, theirs)]
            counts = [str(len(each.names)) for each in (ours, theirs)]
            wanted, got = names if position else counts
            return explain(
                "the compiled function",
                f"{wanted or 'no'} arguments {what}",
                got or "none",
                advice="It is called as it was compiled: the same by position, the same by name.",
            )
        for name, a, b in zip(ours.names, ours.children, theirs.children, strict=True):
            if a != b:
                label = f"argument {name!r}" if position else f"argument {name + 1}"
                return explain(label, _kind(a), _kind(b), advice=_ADVICE)
    raise AssertionError("equal arguments differ in nothing")


_ADVICE = (
    "Only arrays may change from call to call; all else is part of the compiled function: compile "
    "again for other values, or use dlc.jit, which does."
)


def _kind(structure: Structure) -> str:
    if structure.kind == "leaf":
        return "an array"
    if structure.kind == "static":
        return repr(structure.value)
    return f"a {structure.kind} ({', '.join(map(_kind, structure.children))})"


def _finisher(traced: Traced) -> Callable[[Sequence[Array]], Any]:
    """From the graph's outputs to the function's result; buffers get their new values."""
    graph, structure = traced.graph, traced.structure
    owners = {number: traced.parameters[name] for number, name in graph.aliases.items()}
    results = len(graph.outputs) - len(owners)

    def finish(outputs: Sequence[Array]) -> Any:
        for number, new in enumerate(outputs[results:], start=results):  # where nobody keeps them
            owners[number].data = new
        return structure.build(list(outputs[:results]))

    return finish


def _is_flat(traced: Traced) -> bool:
    """Whether calls give plain arrays by position and get one back."""
    args, kwargs = traced.arguments.children
    arrays = all(child.kind == "leaf" for child in args.children) and not kwargs.children
    return arrays and traced.structure.kind == "leaf"


class _Calls:
    """Calls one function compiled: for each combination of shapes, as long as what the function
    met when it was traced is as it was.
    """

    def __init__(self) -> None:
        self._variants: Variants[Executable] = Variants()

    def __call__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        leaves, arguments = flatten_arguments(args, kwargs)
        key = (arguments, tuple((leaf.dtype, leaf.shape) for leaf in leaves))
        executable = self._variants.find(key, function)
        if executable is None:
            build = functools.partial(variant, function, args, kwargs)
            executable = self._variants.make(key, function, build)
        return executable(*args, **kwargs)


def variant(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], **options: Any
) -> tuple[Executable, Met]:
    """What `compile` gives with its options, and for how long: while what was met is as it was."""
    traced = _traced(function, args, kwargs)
    return _executable(traced, **options), traced.met


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of tensors on its first call for each combination of shapes and element
    types. Inside a trace it is the function itself.
    """
    calls = _Calls()

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return calls(function, args, kwargs) if active() is None else function(*args, **kwargs)

    return call


def grad(function: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Any]:
    """See `dlc.frontend.gradient.grad`; outside a trace it is compiled, on arrays."""
    return jit(gradient.grad(function, argnums))


def value_and_grad(function: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Any]:
    """See `dlc.frontend.gradient.value_and_grad`; outside a trace it is compiled, on arrays."""
    return jit(gradient.value_and_grad(function, argnums))


def _call_module(module: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    calls = module.__dict__.get("_dlc_calls")
    if calls is None:
        calls = module.__dict__["_dlc_calls"] = _Calls()
    return calls(module, args, kwargs)


hook.call_module = _call_module


def trace_graph(function: Callable[..., Any], *specs: Any) -> Graph:
    """The graph of a function or module on arguments of given shapes, before any pass."""
    return trace(function, *specs).graph


def run_native(graph: Graph, arrays: Sequence[Array], threads: int | None = None) -> list[Array]:
    """Compile a graph as it is, expanding composite ops only, and run it once on arrays."""
    runner, _ = _native(graph, lambda: optimise(graph, "O0"), "expanded", threads)
    runner.refresh({})
    outputs: list[Array] = runner(*arrays)
    return outputs
