"""Schedules of functions and models, and what must hold of every one."""

import re

from dlc.driver import optimise
from dlc.frontend.trace import trace
from dlc.ir.op import Kind
from dlc.ir.plan import SLACK
from dlc.ir.sizes import bounds
from dlc.passes.schedule import schedule


def scheduled(function, *specs, opt="O2"):
    """The schedules of `prepare` and `main` of a function or module, and the prepared bytes."""
    return schedule(optimise(trace(function, *specs).graph, opt))


def main(function, *specs, opt="O2"):
    """The schedule of what a call does."""
    return scheduled(function, *specs, opt=opt)[1]


def labels(made):
    """What each kernel of a schedule computes, whichever algorithm a contraction has."""
    names = (group.label for group in made.groups if not group.view)
    return [re.sub(r"\b(conv2d|matmul)_[a-z]+", r"\1", name) for name in names]


def check(made):
    """Everything that holds of every schedule."""
    check_order(made)
    check_convex(made)
    check_once(made)
    check_memory(made)


def check_order(made):
    """Every value is written before it is read, and every output is written."""
    there = {
        node for node in made.graph.nodes if node.op.name in ("input", "parameter", "constant")
    }
    for group in made.groups:
        own = set(group.inside)
        assert own.issuperset(group.outputs)
        for source in group.inputs:
            computed = source.op.name in ("iota", "size")
            assert source in there or computed, f"{source.describe()} is read before it is written"
        there.update(group.outputs)
    for node in made.graph.outputs:
        assert node in there, f"{node.describe()} is never written"


def check_convex(made):
    """No value leaves a group and comes back to it by way of another one."""
    for group in made.groups:
        own, behind = set(group.inside), set()
        for node in made.graph.nodes:
            sources = set(node.inputs)
            if node not in own and sources & (own | behind):
                behind.add(node)
            if node in own:
                written = sources & behind
                assert not written, f"{group} needs {written}, which needs it"


def check_once(made):
    """A value that is written is written by one group, and computed by that one only."""
    maker = {}
    for group in made.groups:
        for node in group.outputs:
            assert node not in maker, f"{node.describe()} is written twice"
            maker[node] = group
    for group in made.groups:
        for node in group.inside:
            home = maker.get(node, group)
            assert home is group, f"{node.describe()} is computed again in {group}"


def lives(made):
    """For each buffer of the arena where it lies, and the first and last group that it lives in."""
    found = {}
    for number, group in enumerate(made.groups):
        touched = [*group.inputs, *group.outputs]
        for node in touched:
            buffer = made.buffers.get(node)
            if buffer is not None and buffer.role == "arena":
                key = buffer.name, buffer.offset
                end = buffer.offset + bounds(buffer.nbytes)[1] + SLACK
                old = found.get(key, (buffer.offset, end, number, number))
                found[key] = (buffer.offset, max(end, old[1]), old[2], number)
    return found


def check_memory(made):
    """No two live buffers overlap, all of them lie inside the arena, and no two results are one."""
    results = {n for i, n in enumerate(made.graph.outputs) if i not in made.graph.aliases}
    results = {node for node in results if node.op.kind is not Kind.LEAF}
    buffers = [made.buffers[node] for node in results]
    assert len({(b.role, b.name, b.offset) for b in buffers}) == len(results)
    spent = {}
    for number, group in enumerate(made.groups):
        out = made.buffers[group.outputs[0]]
        if group.anchor.op.kind is Kind.CONTRACT and out.role == "arena":
            for node in group.inputs:
                buffer = made.buffers.get(node)
                if buffer is not None and buffer.role == "arena" and buffer.offset == out.offset:
                    spent[buffer.name, buffer.offset] = number  # the result takes its place
    rows = list(lives(made).items())
    for i, (key, (start, end, first, last)) in enumerate(rows):
        assert 0 <= start <= end <= made.arena, (key, start, end, made.arena)
        for other, (start2, end2, first2, last2) in rows[:i]:
            apart = end <= start2 or end2 <= start or last < first2 or last2 < first
            in_place = spent.get(key) == last == first2 or spent.get(other) == last2 == first
            assert apart or in_place, f"{key} and {other} overlap"
