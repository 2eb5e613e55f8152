"""`import dlc.nn`: another name of `dlc.frontend.nn`, which is the module itself."""

import sys

from dlc.frontend import nn

sys.modules[__name__] = nn
