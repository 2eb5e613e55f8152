"""A schedule becomes a plan and native objects: one kernel for each group, compiled once for each
distinct source.

A kernel is named by what it computes and a digest of its source, so that layers which differ in
sizes only share it, and the cache finds it again in another model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dlc.backends.native.frontend import lower
from dlc.backends.native.isa import Isa
from dlc.backends.native.objects import build
from dlc.backends.numba_cpu.contraction import contract_kernel
from dlc.backends.numba_cpu.halo import halo_kernel
from dlc.backends.numba_cpu.loops import pointwise_kernel
from dlc.backends.numba_cpu.opaque import OPAQUE, opaque_kernel
from dlc.backends.numba_cpu.reduce import reduce_kernel
from dlc.backends.numba_cpu.window import window_kernel
from dlc.backends.numba_cpu.writer import HEADER, SCRATCH, SITE, KernelSource, Start, Value
from dlc.ir.op import Kind
from dlc.ir.plan import Address, Arg, Buffer, Layout, Plan, Scratch, Step
from dlc.ir.schedule import Group, Schedule
from dlc.ir.sizes import Size, as_size
from dlc.ir.types import TensorType
from dlc.runtime.bundle import Compiled

logger = logging.getLogger("dlc.backends.numba_cpu")


@dataclass
class Lowering:
    """Lowers the schedules of one model for one ISA level."""

    isa: Isa
    cached: Callable[[Sequence[object], Callable[[], bytes]], bytes]
    progress: Callable[[str, int, int], None] | None = None
    buffers: dict[Buffer, int] = field(default_factory=dict)
    kernels: dict[str, KernelSource] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    scratch: Any = 0
    site: int = 0

    def compile(self, prepare: Schedule, main: Schedule, prepared: int) -> Compiled:
        """The plan of both schedules and the objects of their kernels."""
        steps = [self._steps(schedule) for schedule in (prepare, main)]
        graph = main.graph
        plan = Plan(
            buffers=(),
            prepare=tuple(steps[0]),
            main=tuple(steps[1]),
            inputs=tuple(self._buffer(main.buffers[node]) for node in graph.inputs),
            outputs=tuple(self._buffer(main.buffers[node]) for node in graph.outputs),
            dims=tuple(graph.dims),
            arena=max(prepare.arena, main.arena),
            prepared=prepared,
            scratch=self.scratch,
            input_names=tuple(str(node.name) for node in graph.inputs),
            output_names=graph.output_names,
            aliases=graph.aliases,
        )
        plan = replace(plan, buffers=tuple(self.buffers))
        self._build()
        return Compiled(
            plan, self.objects, {k: v.source for k, v in self.kernels.items()}, self.constants
        )

    def _steps(self, schedule: Schedule) -> list[Step]:
        steps = []
        for node, buffer in schedule.buffers.items():
            if buffer.role == "constant":
                self.constants[buffer.name] = node.attrs["value"]
        for group in schedule.groups:
            if group.view:
                continue
            for node in group.outputs:
                if any(a or b for a, b in schedule.layouts[node].halo):
                    kernel = self._named(
                        "halo", halo_kernel(node, schedule.layouts[node], "kernel")
                    )
                    steps.append(self._step(kernel, schedule, "halo", barrier=False))
            kernel = self._named(group.label, kernel_of(group, schedule, self.isa))
            self.site = len(steps) + 1
            steps.append(self._step(kernel, schedule, group.label, group=group))
        return steps

    def _named(self, label: str, kernel: KernelSource) -> KernelSource:
        """The kernel under its final name, kept for compilation."""
        externs = [extern.name for extern in kernel.externs]
        digest = _digest(self.isa.name, kernel.source, kernel.params, externs)
        stem = kernel.stem or re.sub(r"[^a-z0-9_]+", "_", label.lower())[:40].strip("_")
        name = f"{stem}_{digest[:12]}"
        source = re.sub(r"^def \w+\(", f"def {name}(", kernel.source, count=1)
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
            self.scratch = _larger(self.scratch, kernel.scratch)
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
        return Step(kernel.name, args, barrier, label + where, group.flops, nbytes)

    def _arg(self, arg: Any, schedule: Schedule) -> Arg:
        if arg is HEADER:
            header = Buffer("header", "header", TensorType("int64", (16,)), Layout.rows(1))
            return Address(self._buffer(header))
        if arg is SCRATCH:
            return Scratch()
        if arg is SITE:
            return self.site
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
        total = len(self.kernels)
        for number, (name, kernel) in enumerate(self.kernels.items()):
            if self.progress:
                self.progress(name, number, total)
            self._build_objects(kernel)
            externs = [extern.name for extern in kernel.externs]
            key = ("kernel", self.isa.name, kernel.source, kernel.params, externs)
            self.objects[name] = self.cached(key, lambda k=kernel: compile_kernel(k, self.isa))

    def _build_objects(self, kernel: KernelSource) -> None:
        for tile in kernel.objects:
            if tile.name not in self.objects:
                self.objects[tile.name] = self.cached(
                    ("tile", self.isa.name, tile.name),
                    lambda t=tile: build(t.text(), [t.name], self.isa, speed=0),
                )


def kernel_of(group: Group, schedule: Schedule, isa: Isa) -> KernelSource:
    """The kernel source of a group, by the kind of its anchor."""
    kind = group.anchor.op.kind
    if kind is Kind.CONTRACT:
        return contract_kernel(group, schedule.layouts, isa)
    if kind is Kind.REDUCE:
        return reduce_kernel(group, schedule.layouts, "kernel")
    if kind is Kind.WINDOW:
        return window_kernel(group, schedule.layouts, "kernel")
    if kind is Kind.OPAQUE and group.anchor.op.name in OPAQUE:
        return opaque_kernel(group, schedule.layouts, "kernel")
    return pointwise_kernel(group, schedule.layouts, "kernel")


def compile_kernel(kernel: KernelSource, isa: Isa) -> bytes:
    """The relocatable object of one kernel."""
    logger.debug("compiling %s for %s", kernel.name, isa.name)
    text = lower(kernel.source, kernel.name, kernel.params, isa, kernel.externs)
    return build(text, [kernel.name], isa, [extern.name for extern in kernel.externs])


def _larger(a: Any, b: Any) -> Any:
    from dlc.ir.sizes import bounds

    return a if bounds(a)[1] >= bounds(b)[1] else b


def _digest(*parts: object) -> str:
    import hashlib

    return hashlib.sha256(repr(parts).encode()).hexdigest()
