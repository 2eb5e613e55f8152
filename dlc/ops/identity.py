"""Ops that give back what they are given: what differs is how gradients and memory see it.

They are removed or cost nothing once gradients are taken and memory is planned; between, they keep
apart what interning would make one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, NumericsError, ShapeError
from dlc.ir.node import Node
from dlc.ir.op import Access, Array, ErrorSample, Kind, Move, OpDef, Sample
from dlc.ir.sizes import equal, shape_text
from dlc.ir.types import TensorType
from dlc.ops.common import plain, require_float, specials, uniform


def _same(x: TensorType, **_: Any) -> TensorType:
    return x


def _copy(x: Array, **_: Any) -> Array:
    return x.copy()


def _tag(x: TensorType, *, tag: int) -> dict[str, Any]:
    if isinstance(tag, bool) or not isinstance(tag, int):
        raise ArgumentError(f"expects an integer tag, got {tag!r}")
    return {"tag": tag}


def _name(x: TensorType, *, name: str) -> dict[str, Any]:
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"expects the name of what is assigned to, got {name!r}")
    return {"name": name}


def _torch(torch: Any, x: Any, **_: Any) -> Any:
    return x.clone()


def _samples(**attrs: Any) -> Any:
    def samples(rng: np.random.Generator) -> list[Sample]:
        whole = rng.integers(-5, 5, (2, 3))
        return [
            Sample(uniform(rng, (3, 4)), attrs),
            Sample(uniform(rng, (0, 3)), attrs),
            plain(specials(), **attrs),
            plain(whole, **attrs),
            plain(whole > 0, **attrs),
        ]

    return samples


def _grad(g: Node, y: Node, x: Node, **_: Any) -> tuple[Node]:
    return (g,)


variable = OpDef(
    "variable",
    Kind.POINTWISE,
    infer=_same,
    ref=_copy,
    doc="its input, as a variable of its own to differentiate in",
    attrs=_tag,
    grad=_grad,
    scalar="{0}",
    samples=_samples(tag=1),
    errors=lambda: [
        ErrorSample((TensorType("float32", (2,)),), {"tag": "x"}, ArgumentError, "an integer tag")
    ],
    torch=_torch,
    ulp=0.0,
)

detach = OpDef(
    "detach",
    Kind.POINTWISE,
    infer=_same,
    ref=_copy,
    doc="its input, through which no gradient goes",
    no_grad="stopping it is what the op is for",
    scalar="{0}",
    samples=_samples(),
    errors=list,
    torch=lambda torch, x: x.detach().clone(),
    ulp=0.0,
)


def _check_finite(x: Array) -> Array:
    wrong = np.argwhere(~np.isfinite(x))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise NumericsError(f"check_finite expects a finite value, got {x[place]} at {place}")
    return x.copy()


def _floats(x: TensorType) -> TensorType:
    require_float(x)
    return x


check_finite = OpDef(
    "check_finite",
    Kind.MOVE,
    infer=_floats,
    ref=_check_finite,
    doc="its input; NaN or infinity is an error of the call, which then changes no parameter",
    grad=_grad,
    move=Move(lambda i, types: [Access(0, tuple(i))]),
    samples=lambda rng: [Sample(uniform(rng, s)) for s in ((3, 4), (), (0, 3))],
    errors=lambda: [ErrorSample((TensorType("int64", (2,)),), {}, DTypeError, "floats")],
    torch=_torch,
    checks=True,
    ulp=0.0,
)


def _after_type(x: TensorType, first: TensorType) -> TensorType:
    if x.ndim != first.ndim or not all(map(equal, x.shape, first.shape)):
        shapes = f"{shape_text(x.shape)} and {shape_text(first.shape)}"
        raise ShapeError(f"expects two tensors of one shape, got {shapes}")
    return x


after = OpDef(
    "after",
    Kind.POINTWISE,
    arity=2,
    infer=_after_type,
    ref=lambda x, first: x.copy(),
    doc="x, once the other is computed: an error found on the way there is one of the call",
    grad=lambda g, y, x, first: (g, None),
    scalar="{0}",
    samples=lambda rng: [
        *(Sample(uniform(rng, s, s), differentiable=(0,)) for s in ((3, 4), (), (0, 3))),
        plain(specials(), -specials()),
        plain(rng.integers(-5, 5, (2, 3)), np.ones((2, 3))),
    ],
    errors=lambda: [
        ErrorSample(
            (TensorType("float32", (2,)), TensorType("float32", (3,))),
            {},
            ShapeError,
            "two tensors of one shape, got (2,) and (3,)",
        )
    ],
    torch=lambda torch, x, first: x.clone(),
    ulp=0.0,
)

assign = OpDef(
    "assign",
    Kind.POINTWISE,
    infer=_same,
    ref=_copy,
    doc="its input, as the new value of a parameter or buffer: written in its place",
    attrs=_name,
    no_grad="assignments are made behind all gradients",
    scalar="{0}",
    samples=_samples(name="weight"),
    errors=lambda: [
        ErrorSample((TensorType("float32", (2,)),), {"name": ""}, ArgumentError, "the name of what")
    ],
    torch=_torch,
    ulp=0.0,
)

again = OpDef(
    "again",
    Kind.POINTWISE,
    infer=_same,
    ref=_copy,
    doc="its input, for what is computed from it once more: equal nodes would be one",
    grad=_grad,
    scalar="{0}",
    samples=_samples(),
    errors=list,
    torch=_torch,
    ulp=0.0,
)
