"""Several models of several seeds, trained at once."""

import copy
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ..backends import backend
from ..check import check_callable, check_members, check_size
from .fit import fit
from .history import Fitted, History
from .model import Model
from .tree import library_of


class Ensemble(NamedTuple):
    """Models that were trained alike from different seeds.

    Attributes
    ----------
    models : tuple of Model
    histories : tuple of History
    """

    models: tuple[Model, ...]
    histories: tuple[History, ...]

    def predict(self, x: Any, **options: Any) -> tuple[Any, Any]:
        """Mean of the models' outputs, and how far they lie apart.

        Parameters
        ----------
        x : (N, T, I) array
        **options
            Of `Model.predict`.

        Returns
        -------
        mean, spread : array
            Shaped like the outputs of one model; the spread is their standard deviation.
        """
        outputs = [model.predict(x, **options) for model in self.models]
        stacked = library_of(outputs[0]).concatenate([output[None] for output in outputs])
        return stacked.mean(axis=0), stacked.std(axis=0)


def fit_ensemble(
    make: Callable[[np.random.Generator], Model],
    x: Any,
    y: Any,
    *,
    seeds: Sequence[int],
    workers: int | None = None,
    **options: Any,
) -> Ensemble:
    """Train a model from each of several seeds, side by side in threads.

    Parameters
    ----------
    make : callable
        Makes an initial model, given a generator.
    x, y : array
        As for `fit`.
    seeds : sequence of int
        One for each model: of its initial weights, and of the order of its samples.
    workers : int, optional
        Models that are trained at once; as many as there are cores by default. Where there are
        several, the kernels of each use one thread, so the cores are not asked for twice.
    **options
        Of `fit`, but for `rng` and `checkpoint`. Optimisers and schedules are copied for each
        model.

    Returns
    -------
    Ensemble
        Each model has the bits that `fit` alone gives for its seed.

    Raises
    ------
    TypeError, ValueError
        As for `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> x = np.random.default_rng(0).normal(size=(64, 20, 1)).astype("float32")
    >>> ensemble = training.fit_ensemble(
    ...     lambda rng: training.init_model(1, 8, 1, rng=rng), x, x.mean(axis=1),
    ...     seeds=range(3), epochs=2,
    ... )
    >>> mean, spread = ensemble.predict(x)
    >>> mean.shape, spread.shape
    ((64, 1), (64, 1))
    """
    check_callable("make", make)
    numbers = check_members("seeds", seeds, "whole numbers")
    if not numbers:
        raise ValueError("seeds: expected at least one, got none")
    refused = {"rng", "checkpoint"} & options.keys()
    if refused:
        raise ValueError(f"{', '.join(sorted(refused))}: not for several models at once")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    at_once = min(len(numbers), cores or 1 if workers is None else check_size("workers", workers))

    def one(seed: Any) -> Fitted:
        rng = np.random.default_rng(seed)
        # Optimisers and schedules remember what they saw.
        return fit(make(rng), x, y, rng=rng, **copy.deepcopy(_stateful(options)), **_rest(options))

    if at_once == 1:
        fitted = [one(seed) for seed in numbers]
    else:
        with ThreadPoolExecutor(at_once, initializer=_use_one_thread) as pool:
            fitted = list(pool.map(one, numbers))
    return Ensemble(tuple(f.model for f in fitted), tuple(f.history for f in fitted))


_STATEFUL = "optimizer", "schedule", "loss"


def _stateful(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in _STATEFUL}


def _rest(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _STATEFUL}


def _use_one_thread() -> None:
    """Kernels that this thread calls use one thread."""
    backend("numpy").kernels.use_one_thread()
