"""A schedule becomes a plan and native objects: one kernel for each group, compiled once for each
distinct source.

A kernel is named by what it computes and a digest of its source, so that layers which differ in
sizes only share it, and the cache finds it again in another model.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dlc.backends.native.crew import Job, compile_all
from dlc.backends.native.isa import Isa
from dlc.backends.numba_cpu.contraction import contract_kernels
from dlc.backends.numba_cpu.halo import halo_kernel
from dlc.backends.numba_cpu.kernel import NativeFunction
from dlc.backends.numba_cpu.loops import pointwise_kernel
from dlc.backends.numba_cpu.moves import movement_kernel
from dlc.backends.numba_cpu.opaque import OPAQUE, opaque_kernel
from dlc.backends.numba_cpu.pool import pool_grad_kernel
from dlc.backends.numba_cpu.reduce import reduce_kernels
from dlc.backends.numba_cpu.weights import weights_kernel
from dlc.backends.numba_cpu.window import window_kernel
from dlc.backends.numba_cpu.writer import HEADER, SCRATCH, KernelSource, Start, Value, Where
from dlc.ir.node import Node
from dlc.ir.op import Kind
from dlc.ir.plan import Address, Arg, Buffer, Layout, Plan, Scratch, Site, Step
from dlc.ir.schedule import Group, Schedule
from dlc.ir.sizes import Size, as_size, bounds
from dlc.ir.types import TensorType
from dlc.ops.pool import POOL_GRADIENTS
from dlc.runtime.bundle import Compiled
from dlc.runtime.cache import Store


@dataclass
class Lowering:
    """Lowers the schedules of one model for one ISA level.

    ``helpers`` processes compile beside this one; ``progress`` is told what comes next, how many
    parts are done, and of how many. ``beside`` are other objects for the store, made meanwhile.
    """

    isa: Isa
    store: Store = field(default_factory=Store)
    progress: Callable[[str, int, int], None] = lambda name, done, total: None
    helpers: int = 0
    beside: Mapping[str, Job] = field(default_factory=dict)
    buffers: dict[Buffer, int] = field(default_factory=dict)
    kernels: dict[str, KernelSource] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    scratch: int = 0
    sites: dict[Node, int] = field(default_factory=dict)

    def compile(self, prepare: Schedule, main: Schedule, prepared: int) -> Compiled:
        """The plan of both schedules and the objects of their kernels."""
        graph = main.graph
        for leaf in graph.parameters:  # before views of them
            if main.buffers[leaf].role == "state":
                self._buffer(main.buffers[leaf])
        steps = [self._steps(schedule) for schedule in (prepare, main)]
        results = [i for i in range(len(graph.outputs)) if i not in graph.aliases]
        plan = Plan(
            buffers=(),
            prepare=tuple(steps[0]),
            main=tuple(steps[1]),
            inputs=tuple(self._buffer(main.buffers[node]) for node in graph.inputs),
            outputs=tuple(self._buffer(main.buffers[graph.outputs[i]]) for i in results),
            dims=tuple(graph.dims),
            arena=max(prepare.arena, main.arena),
            prepared=prepared,
            scratch=self.scratch,
            input_names=tuple(str(node.name) for node in graph.inputs),
            output_names=tuple(graph.output_names[i] for i in results),
            sites=tuple(map(_site, self.sites)),
            state=main.state,
        )
        plan = replace(plan, buffers=tuple(self.buffers))
        self._build()
        return Compiled(
            plan, self.objects, {k: v.source for k, v in self.kernels.items()}, self.constants
        )

    def _steps(self, schedule: Schedule) -> list[Step]:
        steps = []
        for node, buffer in schedule.buffers.items():
            if buffer.role == "constant" and node.op.name == "constant":  # no view of one
                self.constants[buffer.name] = node.attrs["value"]
        for group in schedule.groups:
            if group.view:
                continue
            once_more = " again" if group.again else ""
            for node in group.outputs:
                around = any(a or b for a, b in schedule.layouts[node].halo)
                if around and not schedule.takes_place(group, node):
                    zeros = halo_kernel(node, schedule.layouts[node], "kernel")
                    kernel, label = self._named("halo", zeros), f"halo{once_more}"
                    steps.append(self._step(kernel, schedule, label, zeros.barrier))
            *first, last = kernels_of(group, schedule, self.isa)
            for made in (*first, last):  # they write apart, and meet behind the last of them
                kernel, ends = self._named(group.label, made), made is last or made.barrier
                label = f"{group.label}{once_more}"
                steps.append(self._step(kernel, schedule, label, ends, group))
        return steps

    def _named(self, label: str, kernel: KernelSource) -> KernelSource:
        """The kernel under its final name, kept for compilation."""
        source, externs = _counted(kernel.source), [extern.name for extern in kernel.externs]
        digest = _digest(self.isa.name, source, kernel.params, externs)
        stem = kernel.stem or re.sub(r"[^a-z0-9_]+", "_", label.lower())[:40].strip("_")
        name = f"{stem}_{digest[:12]}"
        source = re.sub(r"^def \w+\(", f"def {name}(", source, count=1)
        kernel = replace(kernel, name=name, source=source)
        self.kernels.setdefault(name, kernel)
        return kernel

    def _step(
        self,
        kernel: KernelSource,
        schedule: Schedule,
        label: str,
        barrier: bool = True,
        group: Group | None = None,
    ) -> Step:
        args = tuple(self._arg(arg, schedule) for arg in kernel.args)
        if kernel.scratch != 0:
            self.scratch = max(self.scratch, bounds(kernel.scratch)[1])
        if group is None:
            return Step(kernel.name, args, barrier, label)
        touched = [
            schedule.buffers[n].nbytes
            for n in (*group.inputs, *group.outputs)
            if n in schedule.buffers
        ]
        nbytes = sum((as_size(n) for n in touched), start=as_size(0))
        origins = sorted(
            {origin.module for node in group.inside for origin in node.origins if origin.module}
        )
        where = f" ({', '.join(origins[:2])})" if origins else ""
        guarded = bool(group.in_place)
        flops = group.flops if kernel.flops is None else kernel.flops
        return Step(kernel.name, args, barrier, label + where, flops, nbytes, guarded)

    def _arg(self, arg: Any, schedule: Schedule) -> Arg:
        if arg is HEADER:
            header = Buffer("header", "header", TensorType("int64", (16,)), Layout.rows(1))
            return Address(self._buffer(header))
        if arg is SCRATCH:
            return Scratch()
        if isinstance(arg, Where):
            return self.sites.setdefault(arg.node, len(self.sites) + 1)
        if isinstance(arg, (Value, Start)):
            buffer = schedule.buffers[arg.node]
            start: Size = 0
            if isinstance(arg, Value):
                start = buffer.layout.start(arg.node.shape) + arg.elements
            return Address(self._buffer(buffer), start)
        return as_size(arg)

    def _buffer(self, buffer: Buffer) -> int:
        return self.buffers.setdefault(buffer, len(self.buffers))

    def _build(self) -> None:
        """The objects of all kernels and of what they call: from the store, else compiled."""
        jobs = {
            name: job for name, job in self.beside.items() if not self.store.get(self._key(name))
        }
        for name, kernel in self.kernels.items():
            tiles = {tile.name: tile for tile in kernel.objects}
            for symbol in (*tiles, name):
                if symbol not in self.objects and symbol not in jobs:
                    tile = tiles.get(symbol)
                    found = self.store.get(self._key(symbol))
                    if found is not None:
                        self.objects[symbol] = found
                    else:
                        jobs[symbol] = self._tile_job(tile) if tile else self._kernel_job(kernel)
        for symbol, code in compile_all(jobs, self.helpers, self.progress).items():
            self.store.put(self._key(symbol), code)
            if symbol not in self.beside:
                self.objects[symbol] = code

    def _key(self, symbol: str) -> tuple[str, ...]:
        """A symbol holds a digest of all that its object depends on, but for dlc's own code."""
        return ("object", self.isa.name, symbol)

    def _tile_job(self, tile: NativeFunction) -> Job:
        return Job(tile.name, self.isa.name, tile.text(), speed=0)

    def _kernel_job(self, kernel: KernelSource) -> Job:
        return Job(kernel.name, self.isa.name, kernel.source, kernel.params, kernel.externs)


def _counted(source: str) -> str:
    """The source with its loop variables counted in their order, so that kernels which walk other
    dimensions in the same way are one.
    """
    names: dict[str, str] = {}
    return re.sub(
        r"\bi(?!(?:32|64)\b)\d+\b",  # i32 and i64 are casts
        lambda found: names.setdefault(found[0], f"i{len(names)}"),
        source,
    )


def kernels_of(group: Group, schedule: Schedule, isa: Isa) -> list[KernelSource]:
    """The kernel sources of a group, by the kind of its anchor: of contractions and reductions one
    or more.
    """
    if group.anchor.op.kind is Kind.CONTRACT:
        return contract_kernels(group, schedule.layouts, isa)
    if group.anchor.op.kind is Kind.REDUCE:
        return reduce_kernels(group, schedule.layouts, "kernel")
    return [_kernel_of(group, schedule, isa)]


def _kernel_of(group: Group, schedule: Schedule, isa: Isa) -> KernelSource:
    kind = group.anchor.op.kind
    if kind is Kind.WINDOW:
        return window_kernel(group, schedule.layouts, "kernel")
    if group.anchor.op.name in POOL_GRADIENTS:
        return pool_grad_kernel(group, schedule.layouts, isa, "kernel")
    if group.anchor.op.name == "pack_winograd":
        return weights_kernel(group, schedule.layouts, isa)
    if kind is Kind.OPAQUE and group.anchor.op.name in OPAQUE:
        return opaque_kernel(group, schedule.layouts, "kernel")
    moved = movement_kernel(group, schedule.layouts, isa, "kernel")
    return moved or pointwise_kernel(group, schedule.layouts, "kernel")


def _site(node: Node) -> Site:
    """What to say when an op finds an error in data."""
    x, which = node.inputs[0], node.inputs[min(1, len(node.inputs) - 1)]
    extent = x.shape[node.attrs["axis"]] if "axis" in node.attrs else 0
    modules = ", ".join(sorted(origin.module for origin in node.origins if origin.module)[:2])
    if node.attrs.get("what") == "labels":
        shape = which.shape
        if node.op.name == "gather":  # one for each sample, in a column of its own
            shape = tuple(n for axis, n in enumerate(shape) if axis != node.attrs["axis"])
        return Site("a loss", modules, shape, extent, "labels")
    return Site(node.op.name, modules, which.shape, extent)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
