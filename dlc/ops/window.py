"""Arithmetic of sliding windows, which convolution and pooling share.

Tap (i, j) of every window at once is one strided slice of the padded input, so a window op is a
loop over its taps. Type rules, references and PyTorch twins are written in these terms, and the
rule for the number of windows stands in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import index
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import ArgumentError, DTypeError, ShapeError
from dlc.ir.op import Array
from dlc.ir.sizes import Size, as_size, bounds, equal, shape_text
from dlc.ir.types import FLOATS, TensorType

Pair: TypeAlias = tuple[int, int]
Padding: TypeAlias = tuple[Pair, Pair]
SizePair: TypeAlias = tuple[Size, Size]
Shape: TypeAlias = tuple[int, ...]

_AXES = ("rows", "columns")


@dataclass(frozen=True)
class Windows:
    """The windows that slide over the two spatial axes of an image.

    Parameters
    ----------
    size : pair of Size
        Rows and columns of the input, without padding.
    kernel, stride, dilation : pair of int
    padding : ((top, bottom), (left, right))
    ceil_mode : bool
        A last window may reach beyond the padding, if it starts in the input or the padding before
        it (PyTorch's rule).
    """

    size: SizePair
    kernel: Pair
    stride: Pair
    padding: Padding
    dilation: Pair = (1, 1)
    ceil_mode: bool = False

    @property
    def out(self) -> SizePair:
        """Number of windows by row and column; raises `ShapeError` where there is none."""
        return self._count(0), self._count(1)

    def _count(self, axis: int) -> Size:
        size, (before, after), stride = self.size[axis], self.padding[axis], self.stride[axis]
        reach = self.reach(axis)
        if self.ceil_mode:  # up to stride - 1 further, but not beyond the input's last element
            last_start = size + before - 1 + min(0, after - reach + stride - 1)
        else:
            last_start = size + before + after - reach - 1
        if bounds(last_start)[0] < 0:
            raise ShapeError(
                f"expects a kernel that fits the padded input, got one that spans {reach + 1} "
                f"{_AXES[axis]} for {size} padded by {before} and {after}{_range(size)}"
            )
        return last_start // stride + 1

    def reach(self, axis: int) -> int:
        """Distance from the first tap of a window to its last."""
        return self.dilation[axis] * (self.kernel[axis] - 1)

    # What follows is for known sizes.

    @property
    def frame(self) -> Padding:
        """Padding that covers every window: the one given, less what no window reads."""
        first, second = (self._frame(axis) for axis in (0, 1))
        return first, second

    def _frame(self, axis: int) -> Pair:
        before, windows = self.padding[axis][0], index(self.out[axis])
        end = (windows - 1) * self.stride[axis] + self.reach(axis) + 1
        return before, max(0, end - before - index(self.size[axis]))

    def pad(self, x: Array, value: float = 0.0) -> Array:
        """``x`` (N, C, H, W) inside its frame."""
        return np.pad(x, ((0, 0), (0, 0), *self.frame), constant_values=value)

    def crop(self, padded: Array) -> Array:
        """What lies inside the frame: the inverse of `pad`."""
        (top, _), (left, _) = self.padding
        height, width = self.size
        return padded[:, :, top : top + height, left : left + width]

    def taps(self, padded: Array) -> Iterator[tuple[int, int, Array]]:
        """``(i, j, tap)``: a view (N, C, OH, OW) of element (i, j) of every window."""
        (rows, columns), (dy, dx), (sy, sx) = self.out, self.dilation, self.stride
        for i in range(self.kernel[0]):
            for j in range(self.kernel[1]):
                y, x = i * dy, j * dx
                down = slice(y, y + sy * (rows - 1) + 1, sy)
                right = slice(x, x + sx * (columns - 1) + 1, sx)
                yield i, j, padded[:, :, down, right]

    def starts(self, axis: int) -> Array:
        """Where each window starts along an axis, in rows or columns of the input."""
        return np.arange(index(self.out[axis])) * self.stride[axis] - self.padding[axis][0]


def whole(name: str, value: object, least: int = 1, forms: str = "an int") -> int:
    """An attribute as an int not below ``least``."""
    try:
        number = index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ArgumentError(f"expects {name} as {forms}, got {value!r}") from None
    if number < least:
        raise ArgumentError(f"expects {name} of at least {least}, got {value!r}")
    return number


def pair(name: str, value: object, least: int = 1, forms: str = "") -> Pair:
    """An attribute given as an int or as (rows, columns), as a pair of ints."""
    forms = forms or "an int or (rows, columns)"
    if not isinstance(value, (tuple, list)):
        value = value, value
    if len(value) != 2:
        raise ArgumentError(f"expects {name} as {forms}, got {value!r}")
    return whole(name, value[0], least, forms), whole(name, value[1], least, forms)


def rows_columns(name: str, value: object) -> SizePair:
    """An attribute given as (rows, columns), which may be symbolic."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ArgumentError(f"expects {name} as (rows, columns), got {value!r}")
    return as_size(value[0]), as_size(value[1])


def padding_of(value: object) -> Padding:
    """Padding given as an int, (rows, columns) or ((top, bottom), (left, right)), as the last."""
    forms = "an int, (rows, columns) or ((top, bottom), (left, right))"
    if isinstance(value, (tuple, list)) and any(isinstance(side, (tuple, list)) for side in value):
        if len(value) != 2:
            raise ArgumentError(f"expects padding as {forms}, got {value!r}")
        return pair("padding", value[0], 0, forms), pair("padding", value[1], 0, forms)
    rows, columns = pair("padding", value, 0, forms)
    return (rows, rows), (columns, columns)


def check_image(x: TensorType, role: str = "an input", axes: str = "(N, C, H, W)") -> None:
    """Refuse what is not a 4-dimensional float tensor."""
    if x.ndim != 4:
        raise ShapeError(
            f"expects {role} {axes}, got {shape_text(x.shape)}"
            + ("; add a batch axis of size 1" if x.ndim == 3 and role == "an input" else "")
        )
    check_float(x, role)


def check_float(x: TensorType, role: str = "an input") -> None:
    """Refuse what is not a float tensor."""
    if x.dtype not in FLOATS:
        raise DTypeError(f"expects {role} of {' or '.join(FLOATS)}, got {x.dtype}; cast it first")


def check_one_dtype(**operands: TensorType) -> None:
    """Refuse float operands of different precision, rather than convert one in silence."""
    if len({type.dtype for type in operands.values()}) > 1:
        came = ", ".join(f"{name} {type.dtype}" for name, type in operands.items())
        raise DTypeError(f"expects operands of one element type, got {came}; cast one of them")


def check_gradient(g: TensorType, y: TensorType) -> None:
    """Refuse a gradient that has not the type of the output whose gradient it is."""
    check_one_dtype(operand=y, gradient=g)
    same_rank = g.ndim == y.ndim
    if not same_rank or not all(equal(a, b) for a, b in zip(g.shape, y.shape)):
        raise ShapeError(
            f"expects a gradient of the output's shape {shape_text(y.shape)}, "
            f"got {shape_text(g.shape)}"
        )


def _range(size: Size) -> str:
    if isinstance(size, int):
        return ""
    low, high = bounds(size)
    return f" ({size} is {low} to {high}; raise the minimum of its Dim)"


def torch_vjp(torch: Any, function: Callable[[Any], Any], x: Any, g: Any) -> Any:
    """PyTorch's gradient of ``function`` at ``x`` along ``g``, itself differentiable."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x), x, g, create_graph=True)[0]
