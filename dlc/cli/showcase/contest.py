"""Four ways to read digits, judged on the same splits: two that look things up and two that learn.

The recipe of the networks is one for both, and for all splits; nothing is chosen by test samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from dlc.errors import DependencyError
from dlc.frontend import data, models, nn, optim
from dlc.frontend.data import Dataset
from dlc.frontend.module import Module
from dlc.frontend.random import seed as set_seed
from dlc.training.callbacks import Callback
from dlc.training.history import History
from dlc.training.trainer import Trainer

Array: TypeAlias = "np.ndarray[Any, Any]"

TRAINING_SHARE = 0.8
BATCH, RATE = 64, 4e-3
#: Slightly turned, moved, scaled and slanted: what handwriting does by itself.
AUGMENTATION = data.Affine(degrees=15, translate=(0.1, 0.1), scale=0.15, shear=10)
NETWORKS: Mapping[str, Callable[[], Module]] = {"MLP": models.mlp, "LeNet-5": models.lenet5}
BASELINES = ("k-NN", "SVM")


@dataclass(frozen=True)
class Trained:
    """A network that has learned, how it went, and what it says of the test samples.

    Attributes
    ----------
    model : Module
    history : History
    losses : list of float
        Of each step.
    initial : dict of str to array
        The state dict before the first step.
    trainer : Trainer
    logits : array
        float32 (test samples, 10).
    seconds : float
        Of training, compilation included.
    """

    model: Module
    history: History
    losses: list[float]
    initial: dict[str, Array]
    trainer: Trainer
    logits: Array
    seconds: float


@dataclass
class Contest:
    """What the contest gave.

    Attributes
    ----------
    epochs : int
    accuracies : dict of str to list of float
        By name, one for each split.
    tests : list of Dataset
        The test samples of each split.
    networks : dict of str to list of Trained
        By name, one for each split.
    """

    epochs: int
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    tests: list[Dataset] = field(default_factory=list)
    networks: dict[str, list[Trained]] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """The mean accuracy over the splits."""
        return float(np.mean(self.accuracies[name]))

    @property
    def star(self) -> Trained:
        """LeNet-5 of the first split."""
        return self.networks["LeNet-5"][0]


def contest(
    seeds: int, epochs: int, threads: int, tell: Callable[[str, int, int], None]
) -> Contest:
    """Let all learn and be judged, on so many splits.

    Parameters
    ----------
    seeds : int
        Number of splits; the seed of a split is also that of the networks' first weights.
    epochs : int
    threads : int
    tell : callable
        Called with what comes next, how many parts are done, and of how many.
    """
    digits = data.digits(28)
    found, total = Contest(epochs), seeds * (1 + len(NETWORKS))
    for number in range(seeds):
        train, test = digits.split(TRAINING_SHARE, stratify=True, seed=number)
        found.tests.append(test)
        tell(f"split {number + 1}: k-NN and SVM", len(NETWORKS) * number + number, total)
        for name, accuracy in baselines(train, test).items():
            found.accuracies.setdefault(name, []).append(accuracy)
        for place, (name, make) in enumerate(NETWORKS.items(), 1):
            tell(f"split {number + 1}: {name}", (1 + len(NETWORKS)) * number + place, total)
            trained = learn(make, train, test, epochs, number, threads)
            right = trained.logits.argmax(1) == test.targets
            found.networks.setdefault(name, []).append(trained)
            found.accuracies.setdefault(name, []).append(float(right.mean()))
    return found


def baselines(train: Dataset, test: Dataset) -> dict[str, float]:
    """Test accuracy of the classical methods on the pixels.

    Raises
    ------
    DependencyError
        scikit-learn is not installed.
    """
    try:
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.svm import SVC
    except ImportError:
        raise DependencyError("dlc demo needs scikit-learn: pip install 'dlc[examples]'") from None
    methods = dict(zip(BASELINES, (KNeighborsClassifier(3), SVC(C=10)), strict=True))
    (x, y), (x_test, y_test) = ((a.reshape(len(a), -1), b) for a, b in (train[:], test[:]))
    return {
        name: float(np.mean(method.fit(x, y).predict(x_test) == y_test))
        for name, method in methods.items()
    }


def learn(
    make: Callable[[], Module], train: Dataset, test: Dataset, epochs: int, seed: int, threads: int
) -> Trained:
    """Train a network; test samples are only looked at, for the curves and at the end."""
    set_seed(seed)
    model, optimizer, told = make(), optim.AdamW(lr=RATE), _Losses()
    initial = model.state_dict()
    steps = -(-len(train) // BATCH)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, RATE, epochs=epochs, steps_per_epoch=steps)
    trainer = Trainer(
        model, nn.CrossEntropyLoss(), optimizer, ("accuracy",), scheduler=schedule, threads=threads
    )
    start = time.perf_counter()
    history = trainer.fit(
        train.transform(AUGMENTATION),
        test,
        epochs,
        BATCH,
        seed=seed,
        callbacks=[told],
        progress=False,
    )
    seconds = time.perf_counter() - start
    logits = trainer.predict(test, BATCH)
    model.eval()
    return Trained(model, history, told.losses, initial, trainer, logits, seconds)


class _Losses(Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_step_end(self, trainer: Trainer, figures: Mapping[str, float]) -> None:
        self.losses.append(figures["loss"])
