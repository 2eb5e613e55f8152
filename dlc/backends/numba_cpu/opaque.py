"""Kernels of ops that fit no common form, one function each, by op name."""

from __future__ import annotations

from collections.abc import Mapping

from dlc.backends.numba_cpu.writer import KernelSource
from dlc.errors import CompileError
from dlc.ir.node import Node
from dlc.ir.plan import Layout
from dlc.ir.schedule import Group


def opaque_kernel(group: Group, layouts: Mapping[Node, Layout], name: str) -> KernelSource:
    """The kernel of a group anchored by an opaque op."""
    raise CompileError(f"{group.anchor.describe()} has no kernel for the CPU")
