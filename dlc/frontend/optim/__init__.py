"""Optimisers, schedules and clipping with PyTorch's names, arguments and numbers: ``dlc.optim``.

group         the parameters that share options, and the options: values that a step reads
optimizer     what optimisers share: groups, slots, the step inside a trace, state dicts
sgd           SGD
adaptive      Adagrad, Adadelta, RMSprop
adam          Adam, AdamW
clip          gradients clipped by norm or by value
lr_scheduler  how the learning rate changes from step to step
"""

from dlc.frontend.absent import explained
from dlc.frontend.optim import lr_scheduler
from dlc.frontend.optim.adam import Adam, AdamW
from dlc.frontend.optim.adaptive import Adadelta, Adagrad, RMSprop
from dlc.frontend.optim.clip import clip_grad_norm, clip_grad_value
from dlc.frontend.optim.group import Group
from dlc.frontend.optim.optimizer import Optimizer
from dlc.frontend.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Group",
    "Optimizer",
    "RMSprop",
    "clip_grad_norm",
    "clip_grad_value",
    "lr_scheduler",
]

__getattr__ = explained("dlc.optim", __all__)
