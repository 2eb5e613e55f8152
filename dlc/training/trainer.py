"""The training loop: epochs of steps, validation, checkpoints, and what to tell meanwhile."""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dlc.errors import (
    ArgumentError,
    CheckpointError,
    DTypeError,
    ExecutionError,
    IndexError,
    NumericsError,
    WeightsError,
    explain,
)
from dlc.frontend import optim, random
from dlc.frontend.data import Batches, as_dataset
from dlc.frontend.module import Module
from dlc.frontend.numeric import check_whole
from dlc.progress import bar
from dlc.runtime import checkpoint
from dlc.runtime.exclusive import uninterrupted
from dlc.training.callbacks import Callback, checked
from dlc.training.checks import (
    Array,
    check_batch,
    check_inputs,
    check_notes,
    check_numbers,
    check_parts,
)
from dlc.training.history import VALIDATION, History
from dlc.training.judge import Evaluation, Prediction, adds_up, inference
from dlc.training.keeper import Keeper, differences, under
from dlc.training.metrics import FALLING, Metric, named
from dlc.training.step import Loss, TrainStep


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
    notes : dict
        What you want to know of the run later, as JSON has it: checkpoints keep it, and `resume`
        brings it back.
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
        self.notes: dict[str, Any] = {}
        self._files: set[str] = set()  # real paths of checkpoints of this run
        self._training = threading.Lock()
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
        that was to come; with another batch size, seed or number of samples it begins anew. Behind
        `resume`, others are an error, unless that was told to expect them.

        Parameters
        ----------
        train, validation : Dataset, or tuple of arrays
            Inputs and then targets.
        epochs, batch_size : int
        shuffle, drop_last : bool
            See `dlc.data.batches`.
        seed : int, optional
            Of the order, of augmentations and of dropout; by default the run's own, which
            `dlc.seed` decides at its beginning. Nothing else that is drawn changes a run.
        callbacks : iterable of Callback
        patience : int, optional
            End the run when the monitored figure has not improved for so many epochs, those of
            earlier calls included: a run that ended so is over, also when it is resumed.
        restore_best : bool
            At the end take back the weights of the best epoch.
        checkpoint : path, optional
            Save there behind each epoch and where `stop` ends the run (see `save`), and if
            ``checkpoint_every`` is given behind each so many steps. No file may be there but a
            checkpoint that this trainer wrote or resumed from.
        progress : bool, optional
            Show a bar, while compiling too; by default on a terminal.

        Returns
        -------
        History
            Of all epochs.

        Raises
        ------
        NumericsError
            The loss became NaN or infinite, or that of the validation data NaN; the message says at
            which step, and in which layer first. The parameters are those before that step.
        IndexError
            A label is out of range; the message says which sample's, where it can.
        ArgumentError
            An option is outside its domain, or `checkpoint` is a file of something else.
        ExecutionError
            It is running already, in another thread or around a callback.
        """
        with self._alone():
            check_whole("epochs", epochs)
            if patience is not None:
                check_whole("patience", patience)
            told = checked(callbacks)
            self._check_validation(validation)
            if checkpoint:
                check_notes(self.notes)
            keep = Keeper(self.save, self._files, checkpoint, checkpoint_every)
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

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Two runs of one model would mix their steps."""
        if not self._training.acquire(blocking=False):
            expected, got = "a trainer that is at rest", "one that is running `fit` already"
            advice = "Make a model and a trainer for each run."
            raise ExecutionError(explain("Trainer.fit", expected, got, advice=advice))
        try:
            yield
        finally:
            self._training.release()

    def _check_validation(self, validation: Any) -> None:
        """Refuse now what would be refused behind the first epoch."""
        self._monitored(self._names(validation is not None))
        if validation is not None:
            check_inputs(self.model, len(as_dataset(validation)[:1]) - 1, "validation")

    def _epoch(
        self,
        batches: Batches,
        step: TrainStep,
        told: tuple[Callback, ...],
        keep: Keeper,
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
                    figures = self._take(step, arrays, batches)
                    self._position = batches.state_dict()
                for callback in told:
                    callback.on_step_end(self, figures)
                keep.step(self.step)
                if self.stop:
                    return

    def _take(
        self, step: TrainStep, batch: tuple[Array, ...], batches: Batches
    ) -> dict[str, float]:
        """One step, and what it adds to the figures of the epoch."""
        where = f"step {self.step + 1} (epoch {self.epoch + 1})"
        try:
            results = step(*batch)
        except NumericsError as error:
            raise NumericsError(f"{where}: {error}") from None
        except IndexError as error:
            sample = _sample(error, batches, "training data")
            raise IndexError(f"{where}: {error}{sample}") from None
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
            found = self._validate(validation, batches.batch_size)
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

    def _validate(self, data: Any, batch_size: int) -> dict[str, float]:
        """The figures of the validation data, of which the loss must be a number."""
        found = self._evaluate(data, batch_size, "validation data")
        if math.isnan(found["loss"]):
            with inference(self.model):
                judge = self._function(Evaluation, batch_size, self.loss, self.metrics)
                why = judge.why_nan(Batches(as_dataset(data), batch_size))
            where = f"epoch {self.epoch + 1}"
            raise NumericsError(f"{where}: the loss of the validation data is nan: {why}")
        return found

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
        return self._evaluate(data, batch_size, "data")

    def _evaluate(self, data: Any, batch_size: int, whose: str) -> dict[str, float]:
        batches = Batches(as_dataset(data), batch_size)
        with inference(self.model):
            judge = self._function(Evaluation, batch_size, self.loss, self.metrics)
            try:
                figures: dict[str, float] = judge.over(batches)
            except IndexError as error:
                raise IndexError(f"{error}{_sample(error, batches, whose)}") from None
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
        batches = Batches(as_dataset(inputs), batch_size)
        with inference(self.model):
            return self._function(Prediction, batch_size).over(batches)

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
        saved = self._position
        if seed is None:
            seed = saved["seed"] if saved else int(random.generator().integers(2**63))
        options = {"shuffle": shuffle, "drop_last": drop_last, "seed": seed}
        batches = Batches(as_dataset(train), batch_size, **options)
        anew = {**batches.state_dict(), "epoch": self.epoch}
        other = [] if saved is None else [n for n in batches.identity() if saved[n] != anew[n]]
        if other and self._resumed:
            raise _other_batches(anew, {name: saved[name] for name in other})
        if other or not self._samples:
            self._sums, self._samples, saved = {}, 0, None
        batches.load_state_dict(saved or anew)
        self._resumed = False
        return batches

    # Checkpoints.

    def __reduce__(self) -> NoReturn:
        raise ExecutionError(
            "a Trainer holds native code of this process, so it is neither copied nor pickled; "
            "save(path) writes the run to a file, and resume(path) takes it up in another trainer"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that the run goes on from to one file, whole or not at all.

        These are weights, running statistics, the optimiser's and the schedule's state, the state
        of random numbers, the position in the data, the history, and the weights of the best epoch.

        Raises
        ------
        ArgumentError
            `notes` hold what JSON does not.
        ExecutionError
            The file cannot be written; an older one is as it was.
        """
        check_notes(self.notes)
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
            "notes": self.notes,
        }
        checkpoint.write(path, arrays, notes)
        self._files.add(os.path.realpath(path))

    def resume(self, path: str | os.PathLike[str], *, same_batches: bool = True) -> None:
        """Take up a run where a checkpoint left it; `fit` then goes on, bit for bit.

        Parameters
        ----------
        path : path
        same_batches : bool
            Have `fit` refuse another batch size, seed or number of samples than the run's. If
            False, it takes them; an epoch that was left in its midst then begins anew.

        Raises
        ------
        CheckpointError
            There is none, it is damaged, no checkpoint, or of another model, optimiser or schedule;
            nothing was changed.
        """
        arrays, notes = checkpoint.read(path)
        weights = under("model.", arrays)
        if differing := differences(self.model.state_dict(), weights):
            expected = f"a checkpoint of this {type(self.model).__name__}"
            got = f"{os.fspath(path)!r}, of a {notes['model']}: {differing}"
            raise CheckpointError(explain("Trainer.resume", expected, got))
        self._check_kinds(os.fspath(path), notes)
        slots: dict[int, dict[str, Array]] = {}
        for name, array in under("optimizer.", arrays).items():
            number, _, slot = name.partition(".")
            slots.setdefault(int(number), {})[slot] = array
        self._load_states(os.fspath(path), slots, notes)
        self.model.load_state_dict(weights)
        self._random.data = arrays["random"]
        self.epoch, self.step = notes["epoch"], notes["step"]
        self._sums, self._samples = dict(notes["sums"]), notes["samples"]
        self._best = _Best(*notes["best"], under("best.", arrays))
        self.history = History(list(notes["history"]), notes["best"][1])
        self.notes, self._position = dict(notes.get("notes", {})), notes["batches"]
        self._resumed = same_batches and self._position is not None
        self._files.add(os.path.realpath(path))

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
        optimizers = (type(self.optimizer).__name__, notes["optimizer"]["name"])
        states = (self._schedule_state(), notes["scheduler"])
        schedules = tuple(state["name"] if state else "no schedule" for state in states)
        for ours, theirs in (optimizers, schedules):
            if ours != theirs:
                expected = f"a checkpoint of a run with {ours}"
                got = f"{path!r}, of one with {theirs}"
                raise CheckpointError(explain("Trainer.resume", expected, got))


def _sample(error: IndexError, batches: Batches, whose: str) -> str:
    """Which sample of the data has the number that is out of range, where that is clear: where a
    row of the latest batch holds it.
    """
    numbers = batches.latest()
    row = error.place[0] if error.place else len(numbers)
    if row >= len(numbers):
        return ""
    arrays = batches.dataset[numbers[row : row + 1]]
    whole = [array for array in arrays if array.dtype.kind in "iu"]
    if not any((array == error.value).any() for array in whole):
        return ""
    return f", in sample {numbers[row]} of the {whose}"


def _other_batches(given: Mapping[str, Any], saved: Mapping[str, Any]) -> CheckpointError:
    """What to say where `fit` is to go on from a checkpoint with other batches."""
    expected = ", ".join(f"{name}={value}" for name, value in saved.items())
    got = ", ".join(f"{name}={given[name]}" for name in saved)
    advice = "Trainer.resume(path, same_batches=False) goes on with others."
    message = explain("fit", expected, got, advice=advice)
    return CheckpointError(f"the checkpoint is of a run with other data or options: {message}")
