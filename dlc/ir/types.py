"""Types of values: an element type and a shape of sizes.

A node's type comes from its op's rule and never from a pass, so types are small, frozen and
comparable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from dlc.errors import DTypeError, ShapeError
from dlc.ir.sizes import Dim, Size, as_size, product, shape_text

FLOATS = ("float32", "float64")
INTEGERS = ("uint8", "int32", "int64")
DTYPES = ("bool", *INTEGERS, *FLOATS)  # in order of promotion

#: Bytes of one element, by element type.
ITEMSIZE = {name: np.dtype(name).itemsize for name in DTYPES}


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape of one tensor, for example ``float32[batch, 3, 56, 56]``."""

    dtype: str
    shape: tuple[Size, ...] = ()

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def count(self) -> Size:
        """Number of elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> Size:
        """Bytes of the elements, without padding."""
        return self.count * ITEMSIZE[self.dtype]

    def with_shape(self, shape: Iterable[object]) -> TensorType:
        """The same element type with another shape."""
        return tensor(self.dtype, shape)

    def with_dtype(self, dtype: object) -> TensorType:
        """The same shape with another element type."""
        return TensorType(as_dtype(dtype), self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class TupleType:
    """The type of an op with several outputs, which `project` takes apart."""

    elements: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.elements))})"


Type: TypeAlias = TensorType | TupleType


def tensor(dtype: object, shape: Iterable[object] = ()) -> TensorType:
    """A `TensorType` from anything that names an element type and a shape."""
    return TensorType(as_dtype(dtype), tuple(as_size(size) for size in shape))


def as_dtype(dtype: object) -> str:
    """The name of an element type given as a name, or a NumPy or torch dtype."""
    text = str(dtype).removeprefix("torch.")
    if text in DTYPES:
        return text
    try:  # None is float64 to NumPy
        name = text if dtype is None else np.dtype(dtype).name  # type: ignore[call-overload]
    except (TypeError, ValueError):
        name = text
    if name not in DTYPES:
        raise DTypeError(f"element types are {', '.join(DTYPES)}; got {text!r}")
    return str(name)


def promote(a: str, b: str) -> str:
    """The element type that an operation on ``a`` and ``b`` has, by PyTorch's rule for tensors.

    Floats win over integers, the wider over the narrower of one kind.
    """
    return max(a, b, key=DTYPES.index)


def is_float(dtype: str) -> bool:
    """Whether an element type is a floating-point type."""
    return dtype in FLOATS


class TensorSpec:
    """What `dlc.compile` and `dlc.trace` know of an argument before any value exists: shape and
    element type.

    Parameters
    ----------
    shape : sequence of int or Dim
    dtype : str or NumPy or torch dtype, default "float32"
    name : str, optional
        The name of the graph input; by default the parameter's name in the traced function.
    """

    def __init__(
        self, shape: Iterable[int | Dim | Size], dtype: object = "float32", name: str | None = None
    ):
        if not isinstance(shape, Iterable) or isinstance(shape, str):
            raise ShapeError(
                f"a TensorSpec has a sequence of sizes, such as (1, 3, 224, 224); got {shape!r}"
            )
        self.type = tensor(dtype, shape)
        self.name = name
        if any(isinstance(size, int) and size < 0 for size in self.shape):
            raise ShapeError(
                f"a TensorSpec has sizes of 0 or more, got {shape_text(self.shape)}; one that may "
                "vary is a dlc.Dim, such as Dim('batch', 1, 64)"
            )

    @property
    def shape(self) -> tuple[Size, ...]:
        """Sizes, each an int or a symbolic size."""
        return self.type.shape

    @property
    def dtype(self) -> str:
        """Name of the element type."""
        return self.type.dtype

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorSpec):
            return NotImplemented
        return (self.type, self.name) == (other.type, other.name)

    def __hash__(self) -> int:
        return hash((self.type, self.name))

    def __repr__(self) -> str:
        return f"TensorSpec({shape_text(self.shape)}, {self.dtype!r})"
