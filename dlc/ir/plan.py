"""The plan: buffers and steps, all that backends and the runtime see of a model, and what an
artefact serialises.

A graph says what is computed; a plan says where each value lies and which kernel runs when. Passes
schedule a graph into groups over buffers, a backend turns each group into a kernel, and the result
is a table of steps that a small native interpreter walks. Sizes stay symbolic, so that one plan
serves a whole range of batch sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from dlc.ir.sizes import Dim, Floor, Poly, Size, as_size, product
from dlc.ir.types import ITEMSIZE, TensorType

#: The order of an image (N, C, H, W) in which convolutions compute.
CHANNELS_LAST = (0, 2, 3, 1)
#: Buffers in the arena begin at multiples of this many bytes: two cache lines, as the adjacent-line
#: prefetcher pairs them.
ALIGNMENT = 128
#: Bytes that stay readable behind each buffer of ours, for vector loads that run past a ragged
#: edge.
SLACK = 128


@dataclass(frozen=True, slots=True)
class Layout:
    """The physical form of a buffer: an order of its logical dimensions, and zeros around them.

    Parameters
    ----------
    order : tuple of int
        Logical dimensions from the slowest to the fastest; ``(0, 2, 3, 1)`` is NHWC.
    halo : tuple of (int, int)
        Zeros before and after, for each logical dimension.
    """

    order: tuple[int, ...]
    halo: tuple[tuple[int, int], ...]

    @classmethod
    def rows(cls, ndim: int) -> Layout:
        """Row-major order without a halo, the layout of a user's array."""
        return cls(tuple(range(ndim)), ((0, 0),) * ndim)

    def extents(self, shape: Sequence[Size]) -> tuple[Size, ...]:
        """Sizes with the halo, by logical dimension."""
        return tuple(low + size + high for size, (low, high) in zip(shape, self.halo, strict=True))

    def strides(self, shape: Sequence[Size]) -> tuple[Size, ...]:
        """Strides in elements, by logical dimension."""
        extents, strides, step = self.extents(shape), [as_size(0)] * len(self.order), as_size(1)
        for dim in reversed(self.order):
            strides[dim] = step
            step = step * extents[dim]
        return tuple(strides)

    def start(self, shape: Sequence[Size]) -> Size:
        """Offset in elements of the first element inside the halo."""
        total: Size = 0
        for stride, (low, _) in zip(self.strides(shape), self.halo, strict=True):
            total = total + stride * low
        return total

    def count(self, shape: Sequence[Size]) -> Size:
        """Elements with the halo."""
        return product(self.extents(shape))

    @property
    def plain(self) -> bool:
        """Whether this is row-major order without a halo."""
        return self == Layout.rows(len(self.order))


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory for one value.

    Parameters
    ----------
    name : str
    role : str
        "input", "output" (the caller's arrays), "parameter" (the model's), "state" (parameters and
        buffers that a call gives new values), "constant", "prepared" (made from parameters before
        the first run), "arena" (planned, reused) or "header" (the call's own words).
    type : TensorType
    layout : Layout
    offset : int
        Bytes from the start of the arena, of the prepared memory, or of the state.
    """

    name: str
    role: str
    type: TensorType
    layout: Layout
    offset: int = 0

    @property
    def strides(self) -> tuple[Size, ...]:
        """Strides in elements, by logical dimension."""
        return self.layout.strides(self.type.shape)

    @property
    def nbytes(self) -> Size:
        """Bytes with halo, without slack."""
        return self.layout.count(self.type.shape) * ITEMSIZE[self.type.dtype]


@dataclass(frozen=True, slots=True)
class Address:
    """An argument word: the address of an element of a buffer."""

    buffer: int
    elements: Size = 0


@dataclass(frozen=True, slots=True)
class Scratch:
    """An argument word: the address of the scratch memory that all threads of a step share (each
    takes its part).
    """


Arg: TypeAlias = "Address | Scratch | Size"


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call: ``kernel`` names the native symbol, ``barrier`` whether all threads meet
    behind it.

    A ``guarded`` step is left out once a kernel of the call has found an error. ``flops`` and
    ``bytes`` count what the kernel computes and moves at least, for profiles;
    ``label`` says what it is.
    """

    kernel: str
    args: tuple[Arg, ...]
    barrier: bool = True
    label: str = ""
    flops: Size = 0
    bytes: Size = 0
    guarded: bool = False


#: A kernel reports an index out of range as the number of its site, from 1, and this many times
#: the position of the index.
SITES = 1 << 16


@dataclass(frozen=True, slots=True)
class Site:
    """An op that takes places from data, and may meet one that does not exist.

    Parameters
    ----------
    op, module : str
        Its name, or what it is to a user, and the path of the module that it stands in.
    shape : tuple of Size
        Of the array of indices.
    extent : Size
        How many places there are.
    what : str
        What the indices are to a user.
    """

    op: str
    module: str
    shape: tuple[Size, ...]
    extent: Size
    what: str = "indices"


@dataclass(frozen=True)
class Plan:
    """A compiled model without its machine code.

    Parameters
    ----------
    buffers : tuple of Buffer
    prepare, main : tuple of Step
        Steps run when a parameter has changed, and on every call.
    inputs, outputs : tuple of int
        Buffers of the arguments and results in the caller's order. An output may be an input's or
        another output's buffer. New values of parameters are no outputs but in their state.
    dims : tuple of Dim
    arena, prepared, state : int
        Bytes, at the maximum of every dimension.
    scratch : Size
        Bytes of scratch memory for each thread.
    input_names, output_names : tuple of str
    sites : tuple of Site
        What kernels report errors of.
    """

    buffers: tuple[Buffer, ...]
    prepare: tuple[Step, ...]
    main: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dims: tuple[Dim, ...]
    arena: int
    prepared: int
    scratch: Size = 0
    input_names: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    name: str = "main"
    sites: tuple[Site, ...] = ()
    state: int = 0

    @property
    def states(self) -> list[Buffer]:
        """Parameters and buffers that a call gives new values, each in its own shape, which comes
        before those in which kernels read it.
        """
        found: dict[str, Buffer] = {}
        for buffer in self.buffers:
            if buffer.role == "state":
                found.setdefault(buffer.name, buffer)
        return list(found.values())

    @property
    def kernels(self) -> list[str]:
        """Names of the native symbols in the order of first use."""
        return list(dict.fromkeys(step.kernel for step in (*self.prepare, *self.main)))


# The form in which a plan is stored: JSON values only, each dataclass as [class, field, ...].
_CLASSES = {
    c.__name__: c for c in (Layout, Buffer, Address, Scratch, Step, Site, Plan, TensorType, Dim)
}


def to_json(value: Any) -> Any:
    """A plan, or a part of one, as JSON values."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Poly):
        return ["Poly", [[c, [_atom_json(atom) for atom in m]] for m, c in value.terms.items()]]
    if isinstance(value, tuple):
        return ["tuple", *map(to_json, value)]
    if isinstance(value, Mapping):
        return ["dict", *([k, to_json(v)] for k, v in value.items())]
    return [type(value).__name__, *(to_json(getattr(value, f.name)) for f in fields(value))]


def from_json(value: Any) -> Any:
    """The inverse of `to_json`."""
    if not isinstance(value, list):
        return value
    head, *rest = value
    if head == "tuple":
        return tuple(map(from_json, rest))
    if head == "dict":
        return {key: from_json(item) for key, item in rest}
    if head == "Poly":
        return Poly({tuple(_atom_from(atom) for atom in atoms): c for c, atoms in rest[0]})
    return _CLASSES[head](*map(from_json, rest))


def _atom_json(atom: Dim | Floor) -> Any:
    return (
        to_json(atom) if isinstance(atom, Dim) else ["Floor", to_json(atom.numerator), atom.divisor]
    )


def _atom_from(value: Any) -> Dim | Floor:
    if value[0] == "Floor":
        return Floor(from_json(value[1]), value[2])
    dim = from_json(value)
    assert isinstance(dim, Dim)
    return dim


def align(nbytes: int) -> int:
    """``nbytes`` rounded up to the alignment of buffers."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
