"""Leaves: what a graph computes from, without computing.

They are ops like the others, so that a graph is nodes and nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dlc.errors import ArgumentError, DTypeError, ShapeError
from dlc.ir.op import Array, ErrorSample, Kind, OpDef, Sample
from dlc.ir.sizes import Dim, Size, as_size
from dlc.ir.types import DTYPES, TensorType, TupleType, Type, as_dtype, tensor
from dlc.ops.common import as_given, not_negative

ROLES = ("parameter", "buffer", "prepared")


def _named(name: str, dtype: object, shape: Any, **rest: Any) -> dict[str, Any]:
    if not isinstance(name, str) or not name:
        raise ArgumentError(f"expects a name, got {name!r}")
    if rest.get("role", ROLES[0]) not in ROLES:
        raise ArgumentError(f"expects the role {', '.join(ROLES)}, got {rest['role']!r}")
    sizes = not_negative(tensor(dtype, shape).shape)
    return {"name": name, "dtype": as_dtype(dtype), "shape": sizes, **rest}


def _declared(dtype: str, shape: tuple[Size, ...], **_: object) -> TensorType:
    return TensorType(dtype, shape)


def _unbound(name: str, **_: object) -> Array:
    raise ArgumentError(f"{name!r} has a value only in a call; pass an array of that name")


def _sized(*shape: Size) -> dict[str, Any]:
    return {"name": "x", "dtype": "float32", "shape": shape}


input_ = OpDef(
    "input",
    Kind.LEAF,
    arity=0,
    infer=_declared,
    ref=_unbound,
    doc="an argument of the graph, by name",
    attrs=_named,
    no_grad="it has no inputs",
    errors=lambda: [
        ErrorSample((), {"name": "", "dtype": "float32", "shape": ()}, ArgumentError, "a name"),
        ErrorSample((), {"name": "x", "dtype": "int7", "shape": ()}, DTypeError, "element types"),
        ErrorSample((), {"name": "x", "dtype": "bool", "shape": (1.5,)}, ShapeError, "a size is"),
        ErrorSample((), _sized(3, -1), ShapeError, "not negative, got (3, -1)"),
        ErrorSample((), _sized(as_size(Dim("n", 2, 9)) - 3), ShapeError, "got (n - 3,)"),
    ],
)


def _parameter(name: str, dtype: object, shape: Any, role: str = ROLES[0]) -> dict[str, Any]:
    return _named(name, dtype, shape, role=role)


parameter = OpDef(
    "parameter",
    Kind.LEAF,
    arity=0,
    infer=_declared,
    ref=_unbound,
    doc="a parameter or buffer of the model, by its name in the state dict",
    attrs=_parameter,
    no_grad="it has no inputs",
    errors=lambda: [
        ErrorSample(
            (), {"name": "w", "dtype": "bool", "shape": (), "role": "x"}, ArgumentError, "role"
        ),
    ],
)


def _constant(value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    if array.dtype.name not in DTYPES:
        raise DTypeError(f"expects an element type of {', '.join(DTYPES)}, got {array.dtype.name}")
    if array.flags.writeable or not array.flags.c_contiguous or not array.dtype.isnative:
        array = np.array(array, array.dtype.name, order="C")
        array.flags.writeable = False
    return {"value": array}


constant = OpDef(
    "constant",
    Kind.LEAF,
    arity=0,
    infer=lambda value: tensor(value.dtype, value.shape),
    ref=lambda value: value,
    doc="an array that is part of the graph",
    attrs=_constant,
    no_grad="it has no inputs",
    samples=lambda rng: [
        Sample((), {"value": rng.normal(size=(2, 3))}),
        Sample((), {"value": np.zeros((0, 2), "int32")}),
        Sample((), {"value": np.array(True)}),
    ],
    errors=lambda: [ErrorSample((), {"value": np.zeros(2, "complex64")}, DTypeError, "complex64")],
    torch=lambda torch, value: torch.from_numpy(value.copy()),
)

size = OpDef(
    "size",
    Kind.LEAF,
    arity=0,
    infer=lambda size: TensorType("int64"),
    ref=lambda size: np.array(size, np.int64),
    doc="a size as an int64 scalar",
    attrs=lambda size: {"size": as_size(size)},
    no_grad="it has no inputs",
    samples=lambda rng: [Sample((), {"size": 7})],
    errors=lambda: [ErrorSample((), {"size": 1.5}, ShapeError, "a size is an integer")],
    torch=lambda torch, size: torch.tensor(size),
)


def _iota(size: Any, dtype: object = "int64") -> dict[str, Any]:
    (count,) = not_negative((as_size(size),))
    if as_dtype(dtype) == "bool":
        raise DTypeError("expects an element type of numbers, got bool")
    return {"size": count, "dtype": as_dtype(dtype)}


iota = OpDef(
    "iota",
    Kind.LEAF,
    arity=0,
    infer=lambda size, dtype: TensorType(dtype, (size,)),
    ref=lambda size, dtype: np.arange(size).astype(dtype),
    doc="0, 1, 2 and so on",
    attrs=_iota,
    no_grad="it has no inputs",
    samples=lambda rng: [
        Sample((), {"size": 5, "dtype": "int64"}),
        Sample((), {"size": 0, "dtype": "int32"}),
        Sample((), {"size": 4, "dtype": "float32"}),
    ],
    errors=lambda: [
        ErrorSample((), {"size": -1, "dtype": "int64"}, ShapeError, "not negative"),
        ErrorSample((), {"size": 3, "dtype": "bool"}, DTypeError, "numbers"),
    ],
    torch=lambda torch, size, dtype: torch.arange(size, dtype=getattr(torch, dtype)),
)


def _project_type(x: Type, index: int) -> TensorType:
    if not isinstance(x, TupleType):
        raise ArgumentError("expects an op with several outputs")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(x.elements):
        raise ArgumentError(f"expects an output from 0 to {len(x.elements) - 1}, got {index!r}")
    return x.elements[index]


project = OpDef(
    "project",
    Kind.LEAF,
    attrs=as_given,
    infer=_project_type,
    ref=lambda x, index: x[index],
    doc="one output of an op that has several",
    no_grad="the op with several outputs takes the gradients of all of them at once",
    errors=lambda: [ErrorSample((TensorType("bool"),), {"index": 0}, ArgumentError, "several")],
)
