"""Epochs: batches, their gradients, and the updates that these make."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .data import Data
from .files import generator_state
from .losses import Loss
from .model import Model, forward_pass, gradients_of, with_statistics
from .optimizers import Optimizer
from .schedules import Schedule
from .tree import clip_by_norm, tree_map

# Samples that are sorted by length together: enough for batches of similar lengths, and few enough
# that batches still differ from epoch to epoch.
_SORTED_BATCHES = 50


@dataclass
class Epoch:
    """What happened in an epoch."""

    loss: float
    rate: float
    norms: list[float]


@dataclass
class Trainer:
    """How a model is trained; see `fit`."""

    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    epochs: int
    batch_size: int
    accumulate: int
    limit: float | None
    truncate: int | None
    rng: np.random.Generator
    done: float = 0.0  # epochs, with their part that is done

    @property
    def settings(self) -> str:
        """What decides the result, beside the data."""
        kinds = self.loss, self.optimizer, self.schedule
        sizes = ("epochs", "batch_size", "accumulate", "limit", "truncate")
        numbers = ", ".join(f"{name}={getattr(self, name)}" for name in sizes)
        return f"{', '.join(map(repr, kinds))}, {numbers}"

    def state_dict(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a later run needs to go on: numbers and texts, and the optimiser's vectors."""
        vectors = self.optimizer.state_dict()
        state = {
            "steps": vectors.pop("steps"),
            "done": self.done,
            "schedule": self.schedule.state_dict(),
            "generator": generator_state(self.rng),
        }
        return state, vectors

    def load_state_dict(self, state: Mapping[str, Any], vectors: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.optimizer.load_state_dict({"steps": state["steps"], **vectors})
        self.done = state["done"]
        self.schedule.load_state_dict(state["schedule"])
        self.rng.bit_generator.state = state["generator"]

    def epoch(self, model: Model, data: Data) -> tuple[Model, Epoch]:
        """One pass over the data."""
        total = count = 0.0
        norms: list[float] = []
        rate, begun, gathered, waiting = 0.0, self.done, None, 0
        batches = list(self._batches(data))
        for number, rows in enumerate(batches):
            state = None
            for piece in self._pieces(data.rows(rows)):
                if not piece.counts:
                    if self.truncate is not None:  # later pieces may count
                        made = forward_pass(model, piece.x, state, lengths=piece.lengths)
                        model, state = with_statistics(model, made), made.h_n
                    continue
                value, gradients, model, state = self._gradients(model, piece, state)
                if not math.isfinite(value):
                    return model, Epoch(value, rate, norms or [math.nan])
                total, count = total + value * len(rows), count + len(rows)
                if gathered is not None:
                    gradients = tree_map(lambda a, b: a + b, gradients, gathered)
                gathered, waiting = gradients, waiting + 1
                if waiting == self.accumulate:
                    model, rate = self._update(model, gathered, waiting, norms)
                    gathered, waiting = None, 0
                    if not math.isfinite(norms[-1]):
                        return model, Epoch(math.nan, rate, norms)
            if gathered is not None and number + 1 == len(batches):
                model, rate = self._update(model, gathered, waiting, norms)
                if not math.isfinite(norms[-1]):
                    return model, Epoch(math.nan, rate, norms)
            self.done = begun + (number + 1) / len(batches)
        if not count:
            raise ValueError("weight, lengths: expected at least one step that counts, got none")
        return model, Epoch(total / count, rate, norms)

    def _update(
        self, model: Model, gradients: Model, count: int, norms: list[float]
    ) -> tuple[Model, float]:
        """A step by the mean of so many gradients, whose norm is noted, and its rate."""
        factor = float(self.schedule.factor(self.done / self.epochs))  # NumPy's, of a user's own
        rate = self.optimizer.learning_rate * factor
        if count > 1:
            gradients = tree_map(lambda g: g / count, gradients)
        limit = math.inf if self.limit is None else self.limit
        gradients, norm = clip_by_norm(gradients, limit)
        norms.append(norm)
        if math.isfinite(norm):
            model = self.optimizer.step(model, gradients, learning_rate=rate)
        return model, rate

    def _pieces(self, batch: Data) -> Iterator[Data]:
        """A batch, or its pieces in the order of time; those without a valid step are left out."""
        steps = batch.x.shape[1]
        size = self.truncate or max(1, steps)
        for first in range(0, max(1, steps), size):
            if batch.lengths is None and self.truncate is None:
                yield batch
                return
            lengths = batch.lengths
            if lengths is not None:
                lengths = np.clip(lengths - first, 0, size)
                if not lengths.any():
                    return
            yield batch.steps(first, first + size)._replace(lengths=lengths)

    def _gradients(self, model: Model, piece: Data, state: Any) -> tuple[float, Model, Model, Any]:
        """Loss, gradients, the model with new statistics, and the state to carry on."""
        made = forward_pass(model, piece.x, state, lengths=piece.lengths)
        counted = piece.lengths if model.pooling == "steps" else None
        value, slope = self.loss(made.output, piece.y, weight=piece.weight, lengths=counted)
        return (
            float(value),
            gradients_of(model, made, slope),
            with_statistics(model, made),
            made.h_n,
        )

    def _batches(self, data: Data) -> Iterator[Any]:
        """Rows of each batch, in an order that the generator decides."""
        order = self.rng.permutation(len(data.x))
        size = self.batch_size
        if data.lengths is None:
            yield from (order[first : first + size] for first in range(0, len(order), size))
            return
        batches = []
        for first in range(0, len(order), size * _SORTED_BATCHES):
            some = order[first : first + size * _SORTED_BATCHES]
            some = some[np.argsort(data.lengths[some], kind="stable")]
            batches += [some[k : k + size] for k in range(0, len(some), size)]
        for number in self.rng.permutation(len(batches)):
            yield batches[number]

    def validate(self, model: Model, data: Data) -> float:
        """The loss of data that is not trained on."""
        output = model.predict(data.x, lengths=data.lengths, batch_size=max(256, self.batch_size))
        counted = data.lengths if model.pooling == "steps" else None
        return float(self.loss(output, data.y, weight=data.weight, lengths=counted)[0])

    def why_not_finite(self, epoch: Epoch) -> str:
        """What to tell the user."""
        return (
            f"the loss or its gradient is not finite after {self.optimizer.steps} updates (last "
            f"norm of a gradient: {epoch.norms[-1]:.3g}); the best weights so far are returned. "
            f"Lower the learning rate ({self.optimizer.learning_rate:g}) or max_grad_norm "
            f"({self.limit}), and look for values in x and y that are not finite or very large"
        )
