"""Schedules of the learning rate: by what the optimiser's rate is multiplied, step by step."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from ..check import check_size
from .check import check_number


class Schedule(ABC):
    """What all schedules have.

    Parameters
    ----------
    warmup : float
        Part of the training, from 0 up to 1, in which the rate rises in proportion to the steps.
        The schedule itself has the rest.
    """

    def __init__(self, warmup: float = 0.0) -> None:
        self.warmup = check_number("warmup", warmup, least=0, below=1)

    def factor(self, done: float) -> float:
        """The factor of a step.

        Parameters
        ----------
        done : float
            Part of the training that is done before the step: from 0 up to 1.

        Returns
        -------
        float
        """
        if done < self.warmup:
            return done / self.warmup
        return self._factor((done - self.warmup) / (1 - self.warmup))

    def observe(self, loss: float) -> None:  # noqa: B027 - most schedules do not look at losses
        """Take note of the loss of an epoch: of validation, if there is any.

        Parameters
        ----------
        loss : float
        """

    def state_dict(self) -> dict[str, float]:
        """What a later run needs to go on.

        Returns
        -------
        dict of str to float
            Empty for schedules that look at no loss.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:  # noqa: B027 - as above
        """Take over what `state_dict` gave.

        Parameters
        ----------
        state : mapping of str to float
        """

    @abstractmethod
    def _factor(self, done: float) -> float:
        """The factor after the warm-up."""

    def __repr__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


class Constant(Schedule):
    """The same rate, but for the warm-up.

    Parameters
    ----------
    warmup : float
        As for `Schedule`.

    Examples
    --------
    >>> from fastgru import training
    >>> training.Constant(warmup=0.5).factor(0.25)
    0.5
    """

    def _factor(self, done: float) -> float:
        return 1.0


class Cosine(Schedule):
    """Half a wave of a cosine down to `final` (Loshchilov and Hutter 2017).

    Parameters
    ----------
    final : float
        Factor at the end.
    warmup : float
        As for `Schedule`.

    Examples
    --------
    >>> from fastgru import training
    >>> [round(training.Cosine().factor(done), 2) for done in (0, 0.5, 0.9)]
    [1.0, 0.5, 0.02]
    """

    def __init__(self, final: float = 0.0, *, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.final = check_number("final", final, least=0)

    def _factor(self, done: float) -> float:
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2


class Polynomial(Schedule):
    """Down to 0 as a power of what is left of the training.

    Parameters
    ----------
    power : float
    warmup : float
        As for `Schedule`.

    Examples
    --------
    >>> from fastgru import training
    >>> [training.Polynomial(2.0).factor(done) for done in (0, 0.5, 1)]
    [1.0, 0.25, 0.0]
    """

    def __init__(self, power: float = 1.0, *, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.power = check_number("power", power, least=0)

    def _factor(self, done: float) -> float:
        return float((1 - done) ** self.power)


class Step(Schedule):
    """Multiplies the rate by `gamma` at each of so many equal steps.

    Parameters
    ----------
    count : int
        How often the rate changes.
    gamma : float
    warmup : float
        As for `Schedule`.

    Examples
    --------
    >>> from fastgru import training
    >>> [training.Step(2, 0.1).factor(done) for done in (0, 0.4, 0.9)]
    [1.0, 0.1, 0.010000000000000002]
    """

    def __init__(self, count: int = 2, gamma: float = 0.1, *, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.count, self.gamma = check_size("count", count), check_number("gamma", gamma, least=0)

    def _factor(self, done: float) -> float:
        return float(self.gamma ** int(done * (self.count + 1)))


class OneCycle(Schedule):
    """Up from `start` and down to `final`, each by half a wave of a cosine (Smith 2018).

    Parameters
    ----------
    peak : float
        Part of the training after which the rate is the optimiser's.
    start, final : float
        Factors at the beginning and at the end.

    Examples
    --------
    >>> from fastgru import training
    >>> [round(training.OneCycle().factor(done), 2) for done in (0, 0.3, 1.0)]
    [0.04, 1.0, 0.0]
    """

    def __init__(self, peak: float = 0.3, *, start: float = 0.04, final: float = 4e-6) -> None:
        super().__init__()
        self.peak = check_number("peak", peak, least=0, below=1)
        self.start = check_number("start", start, least=0)
        self.final = check_number("final", final, least=0)

    def _factor(self, done: float) -> float:
        if done < self.peak:
            return 1 + (self.start - 1) * (1 + math.cos(math.pi * done / self.peak)) / 2
        share = (done - self.peak) / (1 - self.peak)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2


class ReduceOnPlateau(Schedule):
    """Lowers the rate when the loss has not fallen for some epochs.

    Parameters
    ----------
    gamma : float
        Factor, each time.
    patience : int
        Epochs without a new least loss.
    warmup : float
        As for `Schedule`.

    Examples
    --------
    >>> from fastgru import training
    >>> schedule = training.ReduceOnPlateau(0.5, patience=1)
    >>> for loss in (1.0, 1.0, 2.0):
    ...     schedule.observe(loss)
    >>> schedule.factor(0.5)
    0.25
    """

    def __init__(self, gamma: float = 0.1, patience: int = 10, *, warmup: float = 0.0) -> None:
        super().__init__(warmup)
        self.gamma = check_number("gamma", gamma, least=0, below=1)
        self.patience = check_size("patience", patience)
        self._least, self._waited, self._reached = math.inf, 0, 1.0

    def state_dict(self) -> dict[str, float]:
        least = {"least": self._least} if self._least < math.inf else {}  # JSON has no infinity
        return least | {"waited": self._waited, "reached": self._reached}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self._least = state.get("least", math.inf)
        self._waited, self._reached = int(state["waited"]), state["reached"]

    def observe(self, loss: float) -> None:
        if loss < self._least:
            self._least, self._waited = loss, 0
            return
        self._waited += 1
        if self._waited >= self.patience:
            self._reached, self._waited = self._reached * self.gamma, 0

    def _factor(self, done: float) -> float:
        return self._reached
