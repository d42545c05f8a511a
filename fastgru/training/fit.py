"""`fit`: training with validation, and the best weights kept."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any
from zlib import crc32

from tqdm import tqdm

from ..check import check_callable, check_members, check_rng, check_size, check_type
from .check import check_number
from .data import Data, checked_data
from .files import Checkpoint, Standing
from .history import Fitted, History
from .losses import Loss, MSELoss
from .model import Model
from .optimizers import Adam, Optimizer
from .schedules import Constant, Schedule
from .trainer import Trainer


@dataclass
class Progress:
    """Where training stands, as callbacks see it after each epoch.

    Attributes
    ----------
    epoch : int
        Number of epochs done.
    model : Model
    optimizer : Optimizer
    history : History
    """

    epoch: int
    model: Model
    optimizer: Optimizer
    history: History


def fit(
    model: Model,
    x: Any,
    y: Any,
    *,
    lengths: Any = None,
    weight: Any = None,
    loss: Loss | None = None,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    epochs: int = 20,
    batch_size: int = 32,
    accumulate: int = 1,
    max_grad_norm: float | None = 1.0,
    truncate: int | None = None,
    validation: Sequence[Any] | None = None,
    validation_fraction: float = 0.0,
    patience: int | None = None,
    rng: Any = None,
    checkpoint: Checkpoint | None = None,
    callbacks: Sequence[Callable[[Progress], bool | None]] = (),
    progress: bool | str = False,
) -> Fitted:
    """Train a model.

    Parameters
    ----------
    model : Model
        With initial weights; it is not changed.
    x : (N, T, I) array
    y : array
        Targets, as the loss takes them: of samples, (N, ...), or of steps, (N, T, ...).
    lengths : (N,) sequence of int, optional
        Valid steps of each sample. Batches are then of samples of similar lengths.
    weight : (N,) array, optional
        How much each sample counts; or, for outputs of steps, (N, T): each of its steps.
    loss : Loss, optional
        `MSELoss` by default.
    optimizer : Optimizer, optional
        `Adam` by default, with a learning rate of 1e-3. It remembers what it saw, as schedules
        do: take new ones for another training.
    schedule : Schedule, optional
        Of the learning rate; constant by default.
    epochs : int
        Passes over the data, at most.
    batch_size : int
        Samples of a batch. The last batch of an epoch may be smaller.
    accumulate : int
        Batches, or pieces of them, whose mean gradient makes one update. The last update of an
        epoch may be of fewer.
    max_grad_norm : float or None
        Gradients of a greater norm, over all weights together, are shortened to it. Recurrent
        networks need it: a single steep batch can undo the training. None leaves them.
    truncate : int, optional
        Truncated backpropagation through time: sequences are cut into pieces of so many steps, an
        update each, with the state carried on. For outputs of steps.
    validation : tuple, optional
        ``(x, y)``, ``(x, y, lengths)`` or ``(x, y, lengths, weight)``, to be watched.
    validation_fraction : float
        Part of the samples to set aside for validation, drawn by `rng`. With a checkpoint, `rng`
        is then needed, so that a later run sets the same aside.
    patience : int, optional
        Stop after so many epochs without a new least loss: of validation, if there is any.
    rng : None, int or numpy.random.Generator
        Decides the order of the samples. The same seed gives the same weights, to the last bit.
    checkpoint : Checkpoint, optional
        Where to write down where training stands. If its file is there, training goes on from it.
    callbacks : sequence of callable
        Called with a `Progress` after each epoch; one that returns True stops the training.
    progress : bool or str
        Whether to show a bar with losses, learning rate and the time left; or a text to show
        before it.

    Returns
    -------
    model : Model
        With the weights of the epoch of the least loss: of validation, if there is any.
    history : History

    Raises
    ------
    TypeError, ValueError
        If an argument is not as described.

    Warns
    -----
    RuntimeWarning
        If a loss or its gradient is not finite: training stops, and the best weights so far are
        returned.

    Notes
    -----
    Ctrl-C stops the training and returns the best weights so far, once an epoch is done.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> x = np.random.default_rng(0).normal(size=(256, 20, 1)).astype("float32")
    >>> y = x.mean(axis=1)
    >>> model = training.init_model(1, 16, 1, rng=0)
    >>> model, history = training.fit(
    ...     model, x, y, optimizer=training.Adam(1e-2), epochs=20, rng=0
    ... )
    >>> bool(history.loss[-1] < 0.05 * y.var())
    True
    """
    check_type("model", model, Model)
    of_steps = model.pooling == "steps"
    data = checked_data("", (x, y, lengths, weight), of_steps)
    watched = None
    if validation is not None:
        if not isinstance(validation, list | tuple) or not 2 <= len(validation) <= 4:
            raise TypeError(
                "validation: expected (x, y), (x, y, lengths) or (x, y, lengths, weight), got "
                f"{type(validation).__name__} of length "
                f"{len(validation) if hasattr(validation, '__len__') else 'unknown'}"
            )
        watched = checked_data("validation ", tuple(validation), of_steps)
    generator = check_rng(rng)
    share = check_number("validation_fraction", validation_fraction, least=0, below=1)
    split = 0
    if share and watched is None:
        if checkpoint is not None and rng is None:
            raise ValueError(
                "rng: expected a seed, as there are a checkpoint and a validation_fraction: later "
                "runs must set the same samples aside"
            )
        order = generator.permutation(len(data.x))
        count = max(1, round(share * len(order)))
        if count >= len(order):
            raise ValueError(
                f"validation_fraction: {share:g} of {len(order)} samples leaves none to train on"
            )
        split = crc32(order[:count].astype("<i8").tobytes())
        watched, data = data.rows(order[:count]), data.rows(order[count:])
    elif share:
        raise ValueError("validation_fraction: validation is given too; take one of them")
    if truncate is not None and not of_steps:
        raise ValueError(f"truncate: expected pooling='steps', got {model.pooling!r}")
    if truncate is not None and model.params.bidirectional:
        raise ValueError("truncate: expected one direction, as states are carried forward in time")
    trainer = Trainer(
        loss=MSELoss() if loss is None else loss,
        optimizer=Adam() if optimizer is None else optimizer,
        schedule=Constant() if schedule is None else schedule,
        epochs=check_size("epochs", epochs),
        batch_size=check_size("batch_size", batch_size),
        accumulate=check_size("accumulate", accumulate),
        limit=(
            None if max_grad_norm is None else check_number("max_grad_norm", max_grad_norm, least=0)
        ),
        truncate=None if truncate is None else check_size("truncate", truncate),
        rng=generator,
    )
    for name, value, kind in (
        ("loss", trainer.loss, Loss),
        ("optimizer", trainer.optimizer, Optimizer),
        ("schedule", trainer.schedule, Schedule),
    ):
        check_type(name, value, kind)
    waits = None if patience is None else check_size("patience", patience)
    if not isinstance(progress, bool | str):
        raise TypeError(f"progress: expected True, False or a text, got {progress!r}")
    if checkpoint is not None:
        check_type("checkpoint", checkpoint, Checkpoint)
    called = check_members("callbacks", callbacks, "callables")
    for number, callback in enumerate(called):
        check_callable(f"callbacks[{number}]", callback)
    run = _Run(trainer, model, data, watched, split, waits, called, checkpoint)
    return run(progress)


@dataclass
class _Run:
    """A training: its parts, and where it stands."""

    trainer: Trainer
    model: Model
    data: Data
    watched: Data | None
    split: int  # of which samples were set aside, a checksum
    patience: int | None
    callbacks: Sequence[Callable[[Progress], bool | None]]
    checkpoint: Checkpoint | None

    def __post_init__(self) -> None:
        self.best, self.history, self.earlier = self.model, History(), 0.0
        if self.checkpoint is None:
            return
        standing = self.checkpoint.read(self.model, self.settings)
        if standing is not None:
            self.model, self.best, self.history = standing.model, standing.best, standing.history
            self.trainer.load_state_dict(standing.state, standing.vectors)
            self.earlier = self.history.seconds[-1]

    @property
    def settings(self) -> str:
        """What must be the same for a training to go on."""
        patience = f", patience={self.patience}" if self.patience else ""
        model = " ".join(repr(self.model).split())
        sizes = f"samples={len(self.data.x)}"
        if self.watched is not None:
            sizes += f", validation={len(self.watched.x)}"
        if self.split:
            sizes += f", split={self.split:08x}"
        return f"{model}, {self.trainer.settings}, {sizes}{patience}"

    def __call__(self, progress: bool | str) -> Fitted:
        """All epochs that are left."""
        history, trainer, start = self.history, self.trainer, time.perf_counter()
        about = progress if isinstance(progress, str) else None
        bar = tqdm(
            total=trainer.epochs, initial=len(history.loss), desc=about, unit="epoch",
            disable=not progress,
        )  # fmt: skip
        try:
            while len(history.loss) < trainer.epochs and not history.stopped:
                if not self._epoch(start):
                    break
                bar.set_postfix(
                    loss=f"{history.loss[-1]:.4g}",
                    watched=f"{history.watched[-1]:.4g}",
                    rate=f"{history.learning_rate[-1]:.2g}",
                )
                bar.update()
        except KeyboardInterrupt:
            if not history.loss:
                raise
            history.stopped = "interrupted"
        finally:
            bar.close()
        return Fitted(self.best, history)

    def _epoch(self, start: float) -> bool:
        """One epoch; whether its loss is finite."""
        history, trainer = self.history, self.trainer
        model, epoch = trainer.epoch(self.model, self.data)
        found = epoch.loss if self.watched is None else trainer.validate(model, self.watched)
        if not math.isfinite(epoch.loss + found):
            history.stopped = trainer.why_not_finite(epoch)
            warnings.warn(history.stopped, RuntimeWarning, stacklevel=4)
            return False
        self.model = model
        history.loss.append(epoch.loss)
        history.learning_rate.append(epoch.rate)
        history.norm.append(median(epoch.norms))
        history.seconds.append(self.earlier + time.perf_counter() - start)
        if self.watched is not None:
            history.validation_loss.append(found)
        trainer.schedule.observe(found)
        if found < min(history.watched[:-1], default=math.inf):
            self.best, history.best_epoch = model, len(history.loss) - 1
        if self.patience and len(history.loss) - 1 - history.best_epoch >= self.patience:
            history.stopped = f"no new least loss for {self.patience} epochs"
        if self.checkpoint is not None and self.checkpoint.is_due(len(history.loss)):
            standing = Standing(model, self.best, history, *trainer.state_dict())
            self.checkpoint.write(standing, self.settings)
        now = Progress(len(history.loss), model, trainer.optimizer, history)
        answers = [callback(now) for callback in self.callbacks]  # every one is called
        if any(answers):
            history.stopped = "a callback asked for it"
        return True
