"""The zoo in plain PyTorch, by the name under which tests import it."""

from dlc.frontend.models.in_torch import *  # noqa: F403
