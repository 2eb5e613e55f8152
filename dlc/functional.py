"""`import dlc.functional`: another name of `dlc.frontend.functional`, the module itself."""

import sys

from dlc.frontend import functional

sys.modules[__name__] = functional
