"""`import dlc.optim`: another name of `dlc.frontend.optim`, which is the module itself."""

import sys

from dlc.frontend import optim

sys.modules[__name__] = optim
