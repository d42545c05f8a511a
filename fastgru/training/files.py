"""Models in files, and checkpoints of a training that may be cut off."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..archive import OWN, Content, checked_notes, on_host, read, write
from ..check import check_path, check_size, check_type
from ..files import KEYS, described, description, whole
from ..safetensors import DAMAGED, Allowed, RefusedError, naming
from .check import check_number
from .history import History
from .model import Model
from .tree import library_of

_ALLOWED = Allowed(("F32", "F64"), dimensions=2)
_READOUT = "readout.weight", "readout.bias"


def save_model(
    path: str | os.PathLike[str], model: Model, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a model into a file of the safetensors format.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file; one that is there is replaced, when the new one is complete.
    model : Model
    metadata : mapping of str to str, optional
        Notes to keep with it, such as how data were scaled, for `fastgru.load_metadata`.

    Raises
    ------
    TypeError, ValueError, OSError
        As for `fastgru.save`.

    Examples
    --------
    >>> from fastgru import training
    >>> model = training.init_model(3, 16, 1, rng=0)
    >>> training.save_model("model.safetensors", model, {"scale": "2.5"})  # doctest: +SKIP
    >>> model = training.load_model("model.safetensors")  # doctest: +SKIP
    """
    check_path(path)
    check_type("model", model, Model)
    notes = checked_notes(metadata)
    write(path, _arrays_of(model), _said_of(model) | {"kind": "model"}, notes)


def load_model(path: str | os.PathLike[str]) -> Model:
    """Read a model that `save_model` wrote.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file.

    Returns
    -------
    Model
        Of NumPy arrays in memory of their own.

    Raises
    ------
    TypeError, ValueError, OSError
        As for `fastgru.load`.

    Examples
    --------
    >>> model = training.load_model("model.safetensors")  # doctest: +SKIP
    """
    check_path(path)
    with naming(path):
        content = _content_of(path, "model")
        return _model_of(content.arrays, content.own)


def _arrays_of(model: Model) -> dict[str, Any]:
    """All arrays of a model by name, in NumPy's memory."""
    readout = dict(zip(_READOUT, (model.weight, model.bias), strict=True))
    return whole(model.params) | on_host(readout, model.params.library)


def _said_of(model: Model) -> dict[str, str]:
    return description(model.params) | {"pooling": model.pooling}


def _content_of(path: Any, kind: str) -> Content:
    """The content of a file of this kind."""
    content = read(path, _ALLOWED, KEYS)
    found = content.own.get(f"{OWN}kind", "params")
    if found != kind:
        raise RefusedError(f"expected a {kind}, got {found}")
    return content


def _model_of(arrays: Mapping[str, Any], own: Mapping[str, str]) -> Model:
    """The model of these arrays."""
    rest = dict(arrays)
    try:
        weight, bias = (rest.pop(name) for name in _READOUT)
        return Model(described(rest, own), weight, bias, own[f"{OWN}pooling"])
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"it is no whole model ({error}); {DAMAGED}") from error


class Standing(NamedTuple):
    """Where a training stands after an epoch.

    Attributes
    ----------
    model, best : Model
    history : History
    state : dict
        What else there is, of numbers and texts: of the optimiser, schedule, and generator.
    vectors : dict of str to array
        Of the optimiser.
    """

    model: Model
    best: Model
    history: History
    state: dict[str, Any]
    vectors: dict[str, Any]


@dataclass
class Checkpoint:
    """Where, and how often, `fit` writes down where it stands.

    If the file is there when `fit` begins, training goes on from it, and gives the same bits as a
    training that was not cut off. A run that is killed loses at most what came after the last
    write.

    Parameters
    ----------
    path : str or os.PathLike
        Of the file, which is replaced as a whole. Delete it to begin anew.
    epochs : int
        Write after so many epochs.
    seconds : float
        And not sooner than so many seconds after the last time.

    Examples
    --------
    >>> from fastgru import training
    >>> checkpoint = training.Checkpoint("run.safetensors", epochs=5)
    >>> training.fit(model, x, y, checkpoint=checkpoint)  # doctest: +SKIP
    """

    path: str | os.PathLike[str]
    epochs: int = 1
    seconds: float = 0.0
    _written: float = field(default=0.0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_path(self.path)
        self.epochs = check_size("epochs", self.epochs)
        self.seconds = check_number("seconds", self.seconds, least=0)
        self._written = time.monotonic()

    def is_due(self, epoch: int) -> bool:
        """Whether to write after this epoch, the first being 1."""
        waited = time.monotonic() - self._written
        return epoch % self.epochs == 0 and waited >= self.seconds

    def write(self, standing: Standing, settings: str) -> None:
        """Write down where training stands, and with which settings."""
        library = standing.model.params.library
        vectors = on_host(standing.vectors, library)
        arrays = {
            **{f"model.{name}": array for name, array in _arrays_of(standing.model).items()},
            **{f"best.{name}": array for name, array in _arrays_of(standing.best).items()},
            **{f"optimizer.{name}": array for name, array in vectors.items()},
        }
        state = standing.state | {"history": asdict(standing.history), "settings": settings}
        own = _said_of(standing.model) | {"kind": "checkpoint", "state": json.dumps(state)}
        write(self.path, arrays, own, {})
        self._written = time.monotonic()

    def read(self, like: Model, settings: str) -> Standing | None:
        """Where an earlier run stood; None if there is no file.

        Raises
        ------
        ValueError
            If it was another training.
        """
        if not Path(self.path).exists():
            return None
        with naming(self.path):
            content = _content_of(self.path, "checkpoint")
            state = json.loads(content.own[f"{OWN}state"])
            theirs = state.pop("settings")
            if theirs != settings:
                raise RefusedError(
                    f"it is of another training ({theirs}) than this one ({settings}); delete it "
                    "to begin anew, or give another path"
                )
            parts: dict[str, dict[str, Any]] = {"model": {}, "best": {}, "optimizer": {}}
            for name, array in content.arrays.items():
                part, _, own = name.partition(".")
                parts[part][own] = array
            model, best = (_model_of(parts[part], content.own) for part in ("model", "best"))
        xp = library_of(like.weight)
        history = History(**state.pop("history"))
        vectors = {name: xp.asarray(array) for name, array in parts["optimizer"].items()}
        return Standing(model.map(xp.asarray), best.map(xp.asarray), history, state, vectors)


def generator_state(rng: np.random.Generator) -> Any:
    """The state of a generator, as JSON has it."""
    return json.loads(json.dumps(rng.bit_generator.state, default=lambda array: array.tolist()))
