"""Every operator, a family a file; importing this package fills the op table.

One scan, one table: a record is added by writing it at module level in a family's file, it is
refused when its name is taken, and after the scan the table is frozen.

common       type rules, axes, broadcasting, samples, twins
window       sliding windows: how many there are, their taps, padding
leaf         inputs, parameters, constants, sizes
identity     what gradients and memory see differently, and numbers do not
elementwise  arithmetic, comparisons, logic, bounds, choice, casts
elementary   exp, log, sqrt, sin, tanh, erf and the like; rounding
activation   activation functions
reduce       sums, maxima, argmax, variance, logsumexp
softmax      softmax and its logarithm
move         reshape, transpose, expand, slice, pad, concat, flip
gather       take, gather, scatter_add: positions that are values
linalg       matrix products
conv         convolutions and their gradients
pool         pooling and its gradients
adaptive     average pooling to a given size
norm         batch and layer norm
loss         cross entropy and its relatives
random       uniform numbers from a key and a counter
packed       forms of contractions that kernels compute, and the packing of weights
across       weight gradients and products of a transposed matrix
phases       gradients of strided convolutions, phase by phase
winograd     3x3 convolution with fewer multiplications
"""

from __future__ import annotations

from importlib import import_module

from dlc.ir.op import OPS, OpDef

FAMILIES = (
    "leaf",
    "identity",
    "elementwise",
    "elementary",
    "activation",
    "reduce",
    "softmax",
    "move",
    "gather",
    "linalg",
    "conv",
    "pool",
    "adaptive",
    "norm",
    "loss",
    "random",
    "packed",
    "across",
    "phases",
    "winograd",
)


def _scan() -> None:
    for family in FAMILIES:
        for value in vars(import_module(f"{__name__}.{family}")).values():
            if isinstance(value, OpDef):
                OPS.add(value)
    OPS.freeze()


_scan()
