"""Which passes run at each level of optimisation, in order: one readable tuple a level."""

from __future__ import annotations

from dlc.ir.manager import Pass
from dlc.passes.canonicalise import Canonicalise
from dlc.passes.decompose import Decompose
from dlc.passes.fold_bn import FoldBatchNorm
from dlc.passes.fold_constants import FoldConstants
from dlc.passes.layout import AssignLayouts
from dlc.passes.select import SelectAlgorithms
from dlc.passes.simplify import Simplify
from dlc.passes.sink_reshapes import SinkReshapes

#: What gives a graph without composite ops the ops that kernels compute, and then the layouts.
ALGORITHMS: tuple[Pass, ...] = (SelectAlgorithms(), SinkReshapes())
LAYOUTS: tuple[Pass, ...] = (AssignLayouts(),)
FORMS = (*ALGORITHMS, *LAYOUTS)

#: The graph as it was traced, in ops that backends lower.
O0: tuple[Pass, ...] = (Decompose(),)

#: What changes no bit of a result (constants are computed by NumPy).
O1: tuple[Pass, ...] = (
    Simplify(),
    FoldConstants(),
    Canonicalise(),
    Decompose(),
    Simplify(),
    Canonicalise(),
    FoldConstants(),
)

#: What changes results within the bounds of rounding, too.
O2: tuple[Pass, ...] = (
    Simplify(),
    FoldConstants(),
    Canonicalise(),
    FoldBatchNorm(),
    Decompose(),
    Simplify(),
    Canonicalise(),
    FoldConstants(),
)

LEVELS = {"O0": O0, "O1": O1, "O2": O2}
