"""Methods of symbolic tensors that are not of single elements, each one application of an op.

They stand apart from `Node` so that the list reads as a table; operators and elementwise functions
are in `operators`. A method has PyTorch's name and
arguments where PyTorch has the method; none changes a tensor in place, because nodes are values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

from dlc.errors import ShapeError, TraceError
from dlc.ir.operators import Operators, applied, public
from dlc.ir.operators import where as where
from dlc.ir.sizes import Poly, Size, as_size, product
from dlc.ir.types import is_float

if TYPE_CHECKING:
    from dlc.ir.node import Node

# Methods named `float`, `int` and `bool` hide the types inside the class, so annotations use these.
Int: TypeAlias = int
Flag: TypeAlias = bool
Axes: TypeAlias = int | Sequence[int] | None


class Extremum(NamedTuple):
    """What `max` and `min` along one dimension give."""

    values: Node
    indices: Node


@public
class Arithmetic(Operators):
    """Operators and methods that build nodes."""

    __slots__ = ()

    # Element types.

    def to(self, dtype: object) -> Node:
        """This tensor in another element type; itself where it has that type already."""
        from dlc.ir.types import as_dtype

        node = self._node
        return node if node.dtype == as_dtype(dtype) else applied("cast", node, dtype=dtype)

    def _in(self, dtype: object) -> Node:
        """This tensor in the element type that something is to be computed in, None for its own."""
        return self._node if dtype is None else self.to(dtype)

    def type_as(self, other: Node) -> Node:
        return self.to(other.dtype)

    def float(self) -> Node:
        return self.to("float32")

    def double(self) -> Node:
        return self.to("float64")

    def int(self) -> Node:
        return self.to("int32")

    def long(self) -> Node:
        return self.to("int64")

    def bool(self) -> Node:
        return self.to("bool")

    # Reductions; `dim=None` reduces over all dimensions.

    def sum(self, dim: Axes = None, keepdim: Flag = False, dtype: object = None) -> Node:
        return applied("sum", self._in(dtype), axes=dim, keepdims=keepdim)

    def mean(self, dim: Axes = None, keepdim: Flag = False, dtype: object = None) -> Node:
        return applied("mean", self._in(dtype), axes=dim, keepdims=keepdim)

    def prod(self, dim: Axes = None, keepdim: Flag = False, dtype: object = None) -> Node:
        return applied("prod", self._in(dtype), axes=dim, keepdims=keepdim)

    def amax(self, dim: Axes = None, keepdim: Flag = False) -> Node:
        return applied("amax", self, axes=dim, keepdims=keepdim)

    def amin(self, dim: Axes = None, keepdim: Flag = False) -> Node:
        return applied("amin", self, axes=dim, keepdims=keepdim)

    def any(self, dim: Axes = None, keepdim: Flag = False) -> Node:
        """Whether an element is not zero, as bool (of uint8 as uint8, as in PyTorch)."""
        return self._logic("any", dim, keepdim)

    def all(self, dim: Axes = None, keepdim: Flag = False) -> Node:
        """Whether no element is zero, as bool (of uint8 as uint8, as in PyTorch)."""
        return self._logic("all", dim, keepdim)

    def _logic(self, op: str, dim: Axes, keepdim: Flag) -> Node:
        found = self.to("bool")
        if not isinstance(dim, Sequence) or dim:  # PyTorch reduces over no dimension here
            found = applied(op, found, axes=dim, keepdims=keepdim)
        return found.to("uint8") if self._node.dtype == "uint8" else found

    def argmax(self, dim: Int | None = None, keepdim: Flag = False) -> Node:
        return applied("argmax", self, axis=dim, keepdims=keepdim)

    def argmin(self, dim: Int | None = None, keepdim: Flag = False) -> Node:
        return applied("argmin", self, axis=dim, keepdims=keepdim)

    def max(self, dim: Node | Int | None = None, keepdim: Flag = False) -> Node | Extremum:
        """The greatest element; along ``dim`` a pair of values and their positions; of a tensor and
        another one, as `maximum`.
        """
        if isinstance(dim, Arithmetic):
            return self.maximum(dim)
        return self.amax() if dim is None else self._extremum("argmax", dim, keepdim)

    def min(self, dim: Node | Int | None = None, keepdim: Flag = False) -> Node | Extremum:
        """The least element; else as `max`."""
        if isinstance(dim, Arithmetic):
            return self.minimum(dim)
        return self.amin() if dim is None else self._extremum("argmin", dim, keepdim)

    def _extremum(self, op: str, dim: Int, keepdim: Flag) -> Extremum:
        indices = applied(op, self, axis=dim, keepdims=True)
        values = self.gather(dim, indices)  # not amax: the gradient goes to one of several equals
        return Extremum(*((n if keepdim else n.squeeze(dim)) for n in (values, indices)))

    def var(
        self,
        dim: Axes = None,
        correction: Int = 1,
        keepdim: Flag = False,
        *,
        unbiased: Flag | None = None,
    ) -> Node:
        """The mean square distance from the mean, over n - ``correction``; ``unbiased`` is the same
        in PyTorch's older words: a correction of 1, or of 0.
        """
        correction = correction if unbiased is None else Int(unbiased)
        return applied("var", self, axes=dim, correction=correction, keepdims=keepdim)

    def std(self, *args: Any, **kwargs: Any) -> Node:
        """The square root of `var`, with its arguments; its gradient is 0 where it is 0."""
        variance = self.var(*args, **kwargs)
        flat = variance == 0
        return where(flat, 0.0, where(flat, 1.0, variance).sqrt())

    def logsumexp(self, dim: Axes = None, keepdim: Flag = False) -> Node:
        return applied("logsumexp", self, axes=dim, keepdims=keepdim)

    def softmax(self, dim: Int, dtype: object = None) -> Node:
        return self._normalised("softmax", dim, dtype)

    def log_softmax(self, dim: Int, dtype: object = None) -> Node:
        return self._normalised("log_softmax", dim, dtype)

    def _normalised(self, op: str, dim: Int, dtype: object) -> Node:
        node = self._in(dtype)
        empty = is_float(node.dtype) and node.ndim and node.shape[_axis(node, dim)] == 0
        return node if empty else applied(op, node, axis=dim)

    # Shapes. A size is an int, a `Dim`, or what `shape` gives.

    def reshape(self, *shape: Any) -> Node:
        """The same elements in another shape; one size may be -1."""
        return applied("reshape", self, shape=_spread(shape))

    view = reshape

    def flatten(self, start_dim: Int = 0, end_dim: Int = -1) -> Node:
        """Dimensions ``start_dim`` to ``end_dim``, both included, as one."""
        node, shape = self._node, self._node.shape
        if not shape:
            return self.reshape(1)
        first, last = _axis(node, start_dim), _axis(node, end_dim)
        if first > last:
            raise _misfit(
                node, "flatten expects start_dim <= end_dim", f"{start_dim} and {end_dim}"
            )
        return self.reshape(*shape[:first], product(shape[first : last + 1]), *shape[last + 1 :])

    def squeeze(self, dim: Axes = None) -> Node:
        """Without the dimensions of size 1, or without those of ``dim`` that have size 1."""
        node, shape = self._node, self._node.shape
        given = range(len(shape)) if dim is None else (dim,) if isinstance(dim, int) else dim
        drop = {k for k in (_axis(node, d) for d in given) if shape[k] == 1}
        return self.reshape(*(size for k, size in enumerate(shape) if k not in drop))

    def unsqueeze(self, dim: Int) -> Node:
        """With a dimension of size 1 at ``dim``."""
        shape, at = self._node.shape, _axis(self._node, dim, more=1)
        return self.reshape(*shape[:at], 1, *shape[at:])

    def permute(self, *dims: Any) -> Node:
        """Dimensions in another order."""
        return applied("transpose", self, axes=_spread(dims))

    def transpose(self, dim0: Int, dim1: Int) -> Node:
        """Two dimensions exchanged."""
        axes = list(range(self._node.ndim))
        i, j = _axis(self._node, dim0), _axis(self._node, dim1)
        axes[i], axes[j] = axes[j], axes[i]
        return self.permute(axes)

    @property
    def T(self) -> Node:
        """Dimensions in reverse order."""
        return self.permute(tuple(reversed(range(self._node.ndim))))

    @property
    def mT(self) -> Node:
        """The last two dimensions exchanged."""
        return self.transpose(-2, -1)

    def expand(self, *shape: Any) -> Node:
        """Broadcast to a shape; -1 keeps a size."""
        return applied("expand", self, shape=_spread(shape))

    def expand_as(self, other: Node) -> Node:
        return self.expand(other.shape)

    def flip(self, *dims: Any) -> Node:
        return applied("flip", self, axes=_spread(dims))

    def detach(self) -> Node:
        """The same values; no gradient goes through them."""
        return applied("detach", self)

    def contiguous(self) -> Node:
        """This tensor: how it lies in memory is the compiler's business."""
        return self._node

    clone = contiguous  # and a value need not be copied

    def size(self, dim: Int | None = None) -> Any:
        """The shape, or one size of it."""
        shape = self._node.shape
        return shape if dim is None else shape[_axis(self._node, dim)]

    def dim(self) -> Int:
        return self._node.ndim

    def numel(self) -> Size:
        return product(self._node.shape)

    def is_floating_point(self) -> Flag:
        return "float" in self._node.dtype

    # Parts.

    def __getitem__(self, key: object) -> Node:
        from dlc.ir.indexing import index

        items = key if isinstance(key, tuple) else (key,)
        return index(self._node, tuple(i._node if isinstance(i, Arithmetic) else i for i in items))

    def __setitem__(self, key: object, value: object) -> NoReturn:
        raise TraceError(
            f"a symbolic tensor ({self._node.describe()}) cannot be changed in place"
            f"{self._node._here()}: tensors are values; make another one with dlc.where, dlc.cat "
            "or scatter_add"
        )

    def __len__(self) -> Int:
        return self._static_length("len()")

    def __iter__(self) -> Iterator[Node]:
        return iter(self.unbind(0))

    def _static_length(self, use: str, dim: Int = 0) -> Int:
        node = self._node
        if not node.ndim:
            raise TraceError(f"{use} of a scalar: {node.describe()}")
        size = node.shape[_axis(node, dim)]
        if isinstance(size, Poly):
            raise TraceError(
                f"{use} needs a size known while the model is traced, and dimension {dim} of "
                f"{node.describe()} is {size}; use tensor operations over the whole dimension, "
                "or compile with an integer in place of the Dim"
            )
        return size

    def select(self, dim: Int, index: Any) -> Node:
        """The part at ``index`` of a dimension, which goes away."""
        return self[(*(slice(None),) * _axis(self._node, dim), index)]

    def narrow(self, dim: Int, start: Any, length: Any) -> Node:
        """``length`` elements of a dimension, from ``start``."""
        part = slice(start, as_size(start) + as_size(length))
        return self[(*(slice(None),) * _axis(self._node, dim), part)]

    def unbind(self, dim: Int = 0) -> tuple[Node, ...]:
        """All parts along a dimension, which goes away; its size must be known."""
        return tuple(
            self.select(dim, i) for i in range(self._static_length("a loop over a tensor", dim))
        )

    def split(self, split_size: Int | Sequence[Int], dim: Int = 0) -> tuple[Node, ...]:
        """Parts of ``split_size`` elements (the last may be shorter), or of the given sizes."""
        total = self._static_length("split", dim)
        if isinstance(split_size, int) and split_size < 1:
            raise _misfit(self._node, "split expects at least one element a part", split_size)
        sizes = list(split_size) if isinstance(split_size, Sequence) else _parts(total, split_size)
        if sum(sizes) != total:
            raise _misfit(self._node, f"split expects sizes that add up to {total}", sizes)
        starts = [sum(sizes[:k]) for k in range(len(sizes))]
        return tuple(self.narrow(dim, start, n) for start, n in zip(starts, sizes, strict=True))

    def chunk(self, chunks: Int, dim: Int = 0) -> tuple[Node, ...]:
        """At most ``chunks`` parts of equal size, the last one perhaps shorter."""
        if chunks < 1:
            raise _misfit(self._node, "chunk expects at least one chunk", chunks)
        return self.split(max(1, -(-self._static_length("chunk", dim) // chunks)), dim)

    def gather(self, dim: Int, index: Node) -> Node:
        return applied("gather", self, index, axis=dim)

    def scatter_add(self, dim: Int, index: Node, src: Node) -> Node:
        return applied("scatter_add", self, index, src, axis=dim)

    def index_select(self, dim: Int, index: Node) -> Node:
        return applied("take", self, index, axis=dim)

    # Linear algebra.

    def matmul(self, other: object) -> Node:
        return applied("matmul", self, other)

    mm = bmm = matmul

    # Values, which a symbolic tensor does not have.

    def item(self) -> NoReturn:
        raise TraceError(
            f"a symbolic tensor ({self._node.describe()}) has no value while the model is traced; "
            "return it from the function and read it from the result of the call"
        )

    numpy = tolist = item


def _spread(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sizes given one by one or as one sequence."""
    return tuple(values[0]) if len(values) == 1 and isinstance(values[0], (tuple, list)) else values


def _axis(node: Node, dim: int, more: int = 0) -> int:
    """A dimension of a tensor with ``more`` than the node has, counted from the front."""
    ndim = node.ndim + more
    if not -ndim <= dim < ndim:
        raise _misfit(node, f"expected a dimension from {-ndim} to {ndim - 1}", dim)
    return dim % ndim


def _misfit(node: Node, expected: str, got: object) -> ShapeError:
    return ShapeError(f"{expected}, got {got}{node._here()}. The tensor is {node.describe()}")


def _parts(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, max(total, 1), size)]
