"""The training loop: epochs of steps, validation, checkpoints, and what to tell meanwhile."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlc.errors import (
    ArgumentError,
    CheckpointError,
    DTypeError,
    NumericsError,
    WeightsError,
    explain,
)
from dlc.frontend import optim, random
from dlc.frontend.data import Batches, as_dataset
from dlc.frontend.module import Module
from dlc.frontend.tree import flatten
from dlc.ir.sizes import shape_text
from dlc.progress import bar
from dlc.runtime import checkpoint
from dlc.runtime.exclusive import uninterrupted
from dlc.training.history import VALIDATION, History
from dlc.training.judge import Evaluation, Prediction, adds_up
from dlc.training.metrics import FALLING, Metric, named
from dlc.training.step import Array, Loss, TrainStep, check_batch, check_numbers, check_parts


class Callback:
    """What a training run tells; a subclass overrides what it wants to hear.

    ``trainer.stop = True`` ends the run behind the present step.
    """

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before the first step of an epoch."""

    def on_step_end(self, trainer: Trainer, figures: Mapping[str, float]) -> None:
        """Behind each step, with its loss and metrics."""

    def on_epoch_end(self, trainer: Trainer, figures: Mapping[str, Any]) -> None:
        """Behind each epoch, with its line of the history."""


@dataclass
class _Best:
    """The best value of the monitored figure so far."""

    value: float | None = None
    epoch: int = 0
    weights: dict[str, Array] = field(default_factory=dict)


class Trainer:
    """Trains a model.

    Parameters
    ----------
    model : Module
    loss : callable
        ``loss(output, target)``, a scalar, such as ``nn.CrossEntropyLoss()``.
    optimizer : Optimizer
    metrics : iterable
        Names ("accuracy", "top5", "mse", "mae") or functions ``(output, target)`` of tensors.
    scheduler : LRScheduler, optional
        Of the optimiser. `OneCycleLR` takes a step behind each batch, the others behind each
        epoch, `ReduceLROnPlateau` by the monitored figure.
    monitor : str, optional
        The figure by which epochs are compared: by default "val_loss" with validation data, else
        "loss". Less is better for losses and errors, more for other metrics.
    clip_grad_norm, clip_grad_value : float, optional
        See `dlc.train_step`.
    threads : int, optional
    memory_budget : int, optional
        Bytes of a step's activations; see `dlc.train_step`.

    Attributes
    ----------
    history : History
    epoch : int
        Epochs that are complete.
    step : int
        Steps that are complete, over all epochs.
    stop : bool
        Set it to end the run behind the present step.
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: optim.Optimizer,
        metrics: Iterable[str | Metric] | Mapping[str, Metric] = (),
        *,
        scheduler: Any = None,
        monitor: str | None = None,
        clip_grad_norm: float | None = None,
        clip_grad_value: float | None = None,
        threads: int | None = None,
        memory_budget: int | None = None,
    ):
        check_parts(model, loss, optimizer)
        check_numbers(threads, clip_grad_norm=clip_grad_norm, clip_grad_value=clip_grad_value)
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.metrics, self.scheduler, self.monitor = named(metrics), scheduler, monitor
        self._clip = {"clip_grad_norm": clip_grad_norm, "clip_grad_value": clip_grad_value}
        self._threads, self._memory_budget = threads, memory_budget
        if scheduler is not None and getattr(scheduler, "optimizer", None) is not optimizer:
            expected, got = "a scheduler of its optimizer", "one of another"
            raise ArgumentError(explain("Trainer", expected, got))
        optimizer.bind(model.named_parameters())
        self.history, self.epoch, self.step, self.stop = History(), 0, 0, False
        self._best = _Best()
        self._sums: dict[str, float] = {}
        self._samples = 0
        self._position: dict[str, Any] | None = None  # in the data, behind the last step
        self._resumed = False
        self._random = random.Buffer(random.state)  # of its own from here on
        self._functions: dict[Any, Any] = {}
        self._progress: bool | None = None

    # Training.

    def fit(
        self,
        train: Any,
        validation: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        *,
        shuffle: bool = True,
        drop_last: bool = False,
        seed: int | None = None,
        callbacks: Iterable[Callback] = (),
        patience: int | None = None,
        restore_best: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        progress: bool | None = None,
    ) -> History:
        """Train until so many epochs are complete, those of earlier calls included.

        An epoch that was left in its midst, by `stop`, an error or Ctrl-C, goes on with the batch
        that was to come; with another batch size, seed or number of samples it begins anew.

        Parameters
        ----------
        train, validation : Dataset, or tuple of arrays
            Inputs and then targets.
        epochs, batch_size : int
        shuffle, drop_last : bool
            See `dlc.data.batches`.
        seed : int, optional
            Of the order, of augmentations and of dropout; by default one that `dlc.seed` decides.
            Nothing else that is drawn in the process changes a run.
        callbacks : iterable of Callback
        patience : int, optional
            End the run when the monitored figure has not improved for so many epochs, those of
            earlier calls included: a run that ended so is over, also when it is resumed.
        restore_best : bool
            At the end take back the weights of the best epoch.
        checkpoint : path, optional
            Save there behind each epoch and where `stop` ends the run (see `save`), and if
            ``checkpoint_every`` is given behind each so many steps.
        progress : bool, optional
            Show a bar, while compiling too; by default on a terminal.

        Returns
        -------
        History
            Of all epochs.

        Raises
        ------
        NumericsError
            The loss became NaN or infinite; the message says at which step, and in which layer
            first. The parameters are those before that step.
        IndexError
            A label is out of range.
        """
        told = _checked(epochs, patience, callbacks)
        self._monitored(self._names(validation is not None))
        keep = _Keeper(self, checkpoint, checkpoint_every)
        batches = self._loader(train, batch_size, shuffle, drop_last, seed)
        self._random.data = random.words(batches.seed, int(self._random.numpy()[1]))
        self.stop, self._progress = self._is_over(patience), progress
        step = self._step(batch_size)
        with bar(f"training {type(self.model).__name__}", progress) as report:
            while self.epoch < epochs and not self.stop:
                self._epoch(batches, step, told, keep, report, epochs)
                if not self.stop:
                    self._finish_epoch(batches, validation, told, patience)
                keep.now()
        if restore_best and self._best.weights:
            self.model.load_state_dict(self._best.weights)
        return self.history

    def _epoch(
        self,
        batches: Batches,
        step: TrainStep,
        told: tuple[Callback, ...],
        keep: _Keeper,
        report: Callable[[str, int, int], None],
        epochs: int,
    ) -> None:
        """The steps of one epoch that are left."""
        self._began = time.perf_counter()
        self.model.train()
        if not self._samples:
            for callback in told:
                callback.on_epoch_start(self)
        with contextlib.closing(iter(batches)) as prepared:
            for number, batch in enumerate(prepared):
                what = f"epoch {self.epoch + 1} of {epochs} {self._running()}"
                report(what, batches.batch - 1, len(batches))
                arrays = check_batch(batch)
                if number == 0:
                    step.executable(*arrays)  # compiles, which Ctrl-C may break off
                with uninterrupted():
                    figures = self._take(step, arrays)
                    self._position = batches.state_dict()
                for callback in told:
                    callback.on_step_end(self, figures)
                keep.step()
                if self.stop:
                    return

    def _take(self, step: TrainStep, batch: tuple[Array, ...]) -> dict[str, float]:
        """One step, and what it adds to the figures of the epoch."""
        try:
            results = step(*batch)
        except NumericsError as error:
            where = f"step {self.step + 1} (epoch {self.epoch + 1})"
            raise NumericsError(f"{where}: {error}") from None
        figures: dict[str, float] = results if isinstance(results, dict) else {"loss": results}
        for name, value in figures.items():
            share = 1 if self._is_sum(name) else len(batch[0])
            self._sums[name] = self._sums.get(name, 0.0) + value * share
        self._samples += len(batch[0])
        self.step += 1
        if isinstance(self.scheduler, optim.lr_scheduler.OneCycleLR):
            self.scheduler.step()
        return figures

    def _finish_epoch(
        self, batches: Batches, validation: Any, told: tuple[Callback, ...], patience: int | None
    ) -> None:
        """The line of an epoch, and what follows from it."""
        figures: dict[str, Any] = {"epoch": self.epoch + 1, **self._so_far()}
        if validation is not None:
            found = self.evaluate(validation, batch_size=batches.batch_size)
            figures |= {VALIDATION + name: value for name, value in found.items()}
        figures["lr"] = self.optimizer.param_groups[0]["lr"]
        figures["seconds"] = time.perf_counter() - self._began
        with uninterrupted():
            self._sums, self._samples, self._position = {}, 0, batches.state_dict()
            self.epoch += 1
            self.history.epochs.append(figures)
            self._compare(figures)
            self._schedule(figures)
        for callback in told:
            callback.on_epoch_end(self, figures)
        self.stop = self.stop or self._is_over(patience)

    def _is_over(self, patience: int | None) -> bool:
        """Whether the monitored figure has not improved for so many epochs."""
        return patience is not None and self.epoch - self._best.epoch >= patience

    def _compare(self, figures: Mapping[str, Any]) -> None:
        """Keep the weights if this epoch is the best."""
        value = figures[self._monitored(figures)]
        if self._best.value is None or self._better(figures, value, self._best.value):
            self._best = _Best(value, self.epoch, self.model.state_dict())
            self.history.best_epoch = self.epoch

    def _better(self, figures: Mapping[str, Any], value: float, best: float) -> bool:
        name = self._monitored(figures).removeprefix(VALIDATION)
        if math.isnan(best):  # which no number is less or greater than
            return not math.isnan(value)
        return value < best if name in FALLING else value > best

    def _names(self, validation: bool) -> dict[str, None]:
        """What the figures of an epoch will be, of those that can be monitored."""
        names = ("loss", *self.metrics)
        judged = [VALIDATION + name for name in names] if validation else []
        return dict.fromkeys([*names, *judged])

    def _monitored(self, figures: Mapping[str, Any]) -> str:
        usual = f"{VALIDATION}loss" if f"{VALIDATION}loss" in figures else "loss"
        name = self.monitor or usual
        if name not in figures:
            expected = f"a figure among {', '.join(figures)}"
            raise ArgumentError(explain("monitor", expected, repr(name)))
        return name

    def _schedule(self, figures: Mapping[str, Any]) -> None:
        if isinstance(self.scheduler, optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(figures[self._monitored(figures)])
        elif not isinstance(self.scheduler, (type(None), optim.lr_scheduler.OneCycleLR)):
            self.scheduler.step()

    def _so_far(self) -> dict[str, float]:
        """The figures of the epoch: means, or a sum where the loss is one."""
        return {
            name: total if self._is_sum(name) else total / self._samples
            for name, total in self._sums.items()
        }

    def _is_sum(self, name: str) -> bool:
        return name == "loss" and adds_up(self.loss)

    def _running(self) -> str:
        """The figures of the epoch so far, in short."""
        return " ".join(f"{name} {value:.4g}" for name, value in self._so_far().items())

    # Using the model.

    def evaluate(self, data: Any, batch_size: int = 256) -> dict[str, float]:
        """The loss and the metrics over a data set, in inference mode.

        The loss is that of the whole set in one batch, so that the size of batches decides rounding
        alone: a sum where the loss has ``reduction="sum"``, for `nn.CrossEntropyLoss` and
        `nn.NLLLoss` a mean over the weights of the labels that count, for any other loss and for
        metrics a mean over samples (a function of your own is taken for one).

        Returns
        -------
        dict of str to float
        """
        with _inference(self.model):
            judge = self._function(Evaluation, batch_size, self.loss, self.metrics)
            figures: dict[str, float] = judge.over(Batches(as_dataset(data), batch_size))
            return figures

    def predict(self, inputs: Any, batch_size: int = 256) -> Any:
        """The model's outputs, in inference mode.

        Parameters
        ----------
        inputs : Dataset, array or tuple of arrays
            What follows the arrays that the model's ``forward`` takes, such as targets, is left.

        Returns
        -------
        array, or a tuple, list or dict of arrays as the model gives it
            (N, ...): a row for each sample.
        """
        if isinstance(inputs, list) and any(isinstance(sample, list) for sample in inputs):
            expected, advice = "a data set or an array", "Make it an array: np.float32(inputs)."
            raise DTypeError(explain("predict", expected, "a list of lists", advice=advice))
        found = []
        with _inference(self.model):
            answer = self._function(Prediction, batch_size)
            for batch in Batches(as_dataset(inputs), batch_size):
                results = answer(*batch[: _takes(self.model)])
                arrays, structure = flatten(results, _is_array, "arrays")
                found.append(arrays)
        return structure.build([np.concatenate(parts) for parts in zip(*found, strict=True)])

    def _function(self, kind: type, batch_size: int, *arguments: Any) -> Any:
        """A compiled function of the model, made once for each size of batches."""
        key = kind, batch_size
        if key not in self._functions:
            self._functions[key] = kind(
                self.model,
                *arguments,
                max_batch=batch_size,
                threads=self._threads,
                progress=self._progress,
                random=self._random,
            )
        return self._functions[key]

    def _step(self, batch_size: int) -> TrainStep:
        key = TrainStep, batch_size
        if key not in self._functions:
            self._functions[key] = TrainStep(
                self.model,
                self.loss,
                self.optimizer,
                metrics=self.metrics,
                max_batch=batch_size,
                threads=self._threads,
                progress=self._progress,
                memory_budget=self._memory_budget,
                random=self._random,
                **self._clip,
            )
        made: TrainStep = self._functions[key]
        return made

    def _loader(
        self, train: Any, batch_size: int, shuffle: bool, drop_last: bool, seed: int | None
    ) -> Batches:
        """Batches from behind the last step, or else from the start of the present epoch."""
        saved = self._position if self._resumed or self._samples else None
        if seed is None:
            seed = saved["seed"] if saved else int(random.generator().integers(2**63))
        options = {"shuffle": shuffle, "drop_last": drop_last, "seed": seed}
        batches = Batches(as_dataset(train), batch_size, **options)
        anew = {**batches.state_dict(), "epoch": self.epoch}
        try:
            batches.load_state_dict(saved or anew)
        except ArgumentError as error:
            if self._resumed:
                message = f"the checkpoint is of a run with other data or options: {error}"
                raise CheckpointError(message) from None
            batches.load_state_dict(anew)
            self._sums, self._samples = {}, 0
        self._resumed = False
        return batches

    # Checkpoints.

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that the run goes on from to one file, whole or not at all.

        These are weights, running statistics, the optimiser's and the schedule's state, the state
        of random numbers, the position in the data, the history, and the weights of the best epoch.

        Raises
        ------
        ExecutionError
            The file cannot be written; an older one is as it was.
        """
        state = self.optimizer.state_dict()
        slots = {f"optimizer.{i}.{n}": a for i, s in state["state"].items() for n, a in s.items()}
        arrays = {f"model.{name}": array for name, array in self.model.state_dict().items()}
        arrays |= {f"best.{name}": array for name, array in self._best.weights.items()}
        arrays |= slots | {"random": self._random.numpy()}
        notes = {
            "model": type(self.model).__name__,
            "optimizer": {"name": type(self.optimizer).__name__, "groups": state["param_groups"]},
            "scheduler": self._schedule_state(),
            "batches": self._position,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self._sums,
            "samples": self._samples,
            "history": self.history.epochs,
            "best": [self._best.value, self._best.epoch],
        }
        checkpoint.write(path, arrays, notes)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Take up a run where a checkpoint left it; `fit` then goes on, bit for bit.

        Raises
        ------
        CheckpointError
            There is none, it is damaged, no checkpoint, or of another model, optimiser or schedule;
            nothing was changed.
        """
        arrays, notes = checkpoint.read(path)
        weights = _under("model.", arrays)
        if differing := _differences(_kinds(self.model.state_dict()), _kinds(weights)):
            expected = f"a checkpoint of this {type(self.model).__name__}"
            got = f"{os.fspath(path)!r}, of a {notes['model']}: {differing}"
            raise CheckpointError(explain("Trainer.resume", expected, got))
        self._check_kinds(os.fspath(path), notes)
        slots: dict[int, dict[str, Array]] = {}
        for name, array in _under("optimizer.", arrays).items():
            number, _, slot = name.partition(".")
            slots.setdefault(int(number), {})[slot] = array
        self._load_states(os.fspath(path), slots, notes)
        self.model.load_state_dict(weights)
        self._random.data = arrays["random"]
        self.epoch, self.step = notes["epoch"], notes["step"]
        self._sums, self._samples = dict(notes["sums"]), notes["samples"]
        self._best = _Best(*notes["best"], _under("best.", arrays))
        self.history = History(list(notes["history"]), notes["best"][1])
        self._position, self._resumed = notes["batches"], notes["batches"] is not None

    def _load_states(self, path: str, slots: dict[int, dict[str, Array]], notes: Any) -> None:
        """Those of optimiser and schedule: both or none."""
        state = {"state": slots, "param_groups": notes["optimizer"]["groups"]}
        before = self._schedule_state()
        try:
            if self.scheduler:
                self.scheduler.load_state_dict(notes["scheduler"]["state"])
            self.optimizer.load_state_dict(state)
        except WeightsError as error:
            if before:
                self.scheduler.load_state_dict(before["state"])
            raise CheckpointError(f"{path!r} is a checkpoint of another run: {error}") from None

    def _schedule_state(self) -> dict[str, Any] | None:
        if self.scheduler is None:
            return None
        return {"name": type(self.scheduler).__name__, "state": self.scheduler.state_dict()}

    def _check_kinds(self, path: str, notes: Mapping[str, Any]) -> None:
        ours = type(self.optimizer).__name__
        if notes["optimizer"]["name"] != ours:
            expected, got = f"a checkpoint of a run with {ours}", notes["optimizer"]["name"]
            raise CheckpointError(explain(repr(path), expected, got))
        schedules = [each and each["name"] for each in (self._schedule_state(), notes["scheduler"])]
        if schedules[0] != schedules[1]:
            ours, theirs = (name or "no schedule" for name in schedules)
            expected = f"a checkpoint of a run with {ours}"
            raise CheckpointError(explain(repr(path), expected, theirs))


class _Keeper:
    """Saves checkpoints when they are due."""

    def __init__(self, trainer: Trainer, path: Any, every: int | None):
        if every is not None and (path is None or not _is_whole(every)):
            expected = "an integer of at least 1, and a path for checkpoint"
            raise ArgumentError(explain("checkpoint_every", expected, repr(every)))
        if path is not None and not os.path.isdir(folder := os.path.dirname(os.path.abspath(path))):
            raise ArgumentError(explain("checkpoint", "a path in a folder", f"no folder {folder}"))
        self._trainer, self._path, self._every = trainer, path, every

    def step(self) -> None:
        if self._every is not None and self._trainer.step % self._every == 0:
            self._trainer.save(self._path)

    def now(self) -> None:
        if self._path is not None:
            self._trainer.save(self._path)


def _checked(epochs: Any, patience: Any, callbacks: Any) -> tuple[Callback, ...]:
    """The callbacks of a run, whose other numbers are checked, too."""
    for name, value in (("epochs", epochs), ("patience", patience)):
        if not _is_whole(value) and not (name == "patience" and value is None):
            raise ArgumentError(explain(name, "an integer of at least 1", repr(value)))
    told = tuple(callbacks) if isinstance(callbacks, Iterable) else (callbacks,)
    if wrong := [each for each in told if not isinstance(each, Callback)]:
        advice = "Derive from dlc.Callback, and pass an instance."
        expected = "instances of dlc.Callback"
        raise ArgumentError(explain("callbacks", expected, repr(wrong[0]), advice=advice))
    return told


def _is_whole(value: Any) -> bool:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and int(value) >= 1


def _takes(model: Module) -> int:
    """How many arrays a model is called with: the arguments of `forward` that have no default."""
    arguments = inspect.signature(model.forward).parameters.values()
    plain = (each for each in arguments if each.kind <= each.POSITIONAL_OR_KEYWORD)
    return max(1, sum(each.default is each.empty for each in plain))


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def _kinds(arrays: Mapping[str, Array]) -> dict[str, str]:
    """Element type and shape of each array, in words."""
    return {name: f"{array.dtype} {shape_text(array.shape)}" for name, array in arrays.items()}


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Where the arrays of a checkpoint are others than those of the model, the first few."""
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    told = [f"{n} is {ours.get(n, 'not')} here and {theirs.get(n, 'not')} there" for n in names[:3]]
    more = [f"and {len(names) - 3} more"] if len(names) > 3 else []
    return "; ".join(told + more)


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}


@contextlib.contextmanager
def _inference(model: Module) -> Iterator[None]:
    """Inference mode for a block; afterwards each module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
