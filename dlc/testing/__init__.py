"""Comparing numbers: arrays with arrays, gradients with differences, models with PyTorch's.

close        assert_close
gradients    gradcheck, gradgradcheck
diff         a model beside its PyTorch twin, layer by layer; in processing order:
diff_torch   what PyTorch's layers read and give, in float32 and float64 (loads torch)
diff_dlc     what dlc's compiled layers give when they are fed the same
diff_judge   is a difference rounding or a bug?
diff_hints   what would explain a bug
diff_report  the findings, as text
diff_page    the findings, as a page for a browser

PyTorch is loaded by the diff alone, which is given a PyTorch module anyway.
"""

from dlc.testing.close import NotCloseError, assert_close
from dlc.testing.gradients import GradcheckError, gradcheck, gradgradcheck

__all__ = ["GradcheckError", "NotCloseError", "assert_close", "gradcheck", "gradgradcheck"]
