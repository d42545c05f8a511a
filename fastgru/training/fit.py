"""`fit`: training with validation, and the best weights kept."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tqdm import tqdm

from ..check import check_rng, check_size, check_type
from .check import check_number
from .data import Data, checked_data
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
        How much each sample counts.
    loss : Loss, optional
        `MSELoss` by default.
    optimizer : Optimizer, optional
        `Adam` by default, with a learning rate of 1e-3.
    schedule : Schedule, optional
        Of the learning rate; constant by default.
    epochs : int
        Passes over the data, at most.
    batch_size : int
        Samples of a batch. The last batch of an epoch may be smaller.
    accumulate : int
        Batches whose gradients are added up for one update.
    max_grad_norm : float or None
        Gradients of a greater norm, over all weights together, are shortened to it. Recurrent
        networks need it: a single steep batch can undo the training. None leaves them.
    truncate : int, optional
        Truncated backpropagation through time: sequences are cut into pieces of so many steps, an
        update each, with the state carried on. For outputs of steps.
    validation : tuple, optional
        ``(x, y)``, ``(x, y, lengths)`` or ``(x, y, lengths, weight)``, to be watched.
    validation_fraction : float
        Part of the samples to set aside for validation, drawn by `rng`.
    patience : int, optional
        Stop after so many epochs without a new least loss: of validation, if there is any.
    rng : None, int or numpy.random.Generator
        Decides the order of the samples. The same seed gives the same weights, to the last bit.
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
        If a loss is not finite: training stops, and the best weights so far are returned.

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
    watched = None if validation is None else checked_data("validation ", validation, of_steps)
    generator = check_rng(rng)
    share = check_number("validation_fraction", validation_fraction, least=0, below=1)
    if share and watched is None:
        order = generator.permutation(len(data.x))
        count = max(1, round(share * len(order)))
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
        limit=None if max_grad_norm is None else check_number("max_grad_norm", max_grad_norm),
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
    return _run(trainer, model, data, watched, waits, callbacks, progress)


def _run(
    trainer: Trainer,
    model: Model,
    data: Data,
    watched: Data | None,
    patience: int | None,
    callbacks: Sequence[Callable[[Progress], bool | None]],
    progress: bool | str,
) -> Fitted:
    """All epochs."""
    history, best, start = History(), model, time.perf_counter()
    about = progress if isinstance(progress, str) else None
    bar = tqdm(total=trainer.epochs, desc=about, unit="epoch", disable=not progress)
    try:
        for _ in range(trainer.epochs):
            model, epoch = trainer.epoch(model, data)
            found = epoch.loss if watched is None else trainer.validate(model, watched)
            if not math.isfinite(epoch.loss + found):
                history.stopped = trainer.why_not_finite(epoch)
                warnings.warn(history.stopped, RuntimeWarning, stacklevel=3)
                break
            history.loss.append(epoch.loss)
            history.learning_rate.append(epoch.rate)
            history.norm.append(median(epoch.norms))
            history.seconds.append(time.perf_counter() - start)
            if watched is not None:
                history.validation_loss.append(found)
            trainer.schedule.observe(found)
            if found < min(history.watched[:-1], default=math.inf):
                best, history.best_epoch = model, len(history.loss) - 1
            bar.set_postfix(
                loss=f"{epoch.loss:.4g}", watched=f"{found:.4g}", rate=f"{epoch.rate:.2g}"
            )
            bar.update()
            now = Progress(len(history.loss), model, trainer.optimizer, history)
            answers = [callback(now) for callback in callbacks]  # every one is called
            if any(answers):
                history.stopped = "a callback asked for it"
                break
            if patience is not None and len(history.loss) - 1 - history.best_epoch >= patience:
                history.stopped = f"no new least loss for {patience} epochs"
                break
    except KeyboardInterrupt:
        if not history.loss:
            raise
        history.stopped = "interrupted"
    finally:
        bar.close()
    return Fitted(best, history)
