"""What training gives: the model, and what happened."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .model import Model


@dataclass
class History:
    """What happened in each epoch.

    Attributes
    ----------
    loss : list of float
        Mean over the batches.
    validation_loss : list of float
        Empty without validation.
    learning_rate : list of float
        At the end of the epoch.
    norm : list of float
        Of the gradients before they were clipped, the median over the updates.
    seconds : list of float
        Since the beginning.
    best_epoch : int
        Index of the epoch whose weights were kept; -1 before the first.
    stopped : str
        Why training ended before the last epoch; empty if it did not.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    best_epoch: int = -1
    stopped: str = ""

    @property
    def watched(self) -> list[float]:
        """The losses that decide which epoch is the best: of validation, if there is any."""
        return self.validation_loss or self.loss

    def plot(self, axes: Any = None) -> Any:
        """Draw the losses; needs matplotlib.

        Parameters
        ----------
        axes : matplotlib.axes.Axes, optional
            To draw on; a new figure's by default.

        Returns
        -------
        matplotlib.axes.Axes
        """
        if axes is None:
            from matplotlib.figure import Figure  # no global state

            axes = Figure(layout="constrained").subplots()
        epochs = range(1, len(self.loss) + 1)
        axes.plot(epochs, self.loss, label="training")
        if self.validation_loss:
            axes.plot(epochs, self.validation_loss, label="validation")
        if self.best_epoch >= 0:
            axes.axvline(self.best_epoch + 1, color="0.6", ls=":", label="kept")
        has_log = all(loss > 0 for loss in (*self.loss, *self.validation_loss))
        axes.set(xlabel="epoch", ylabel="loss", yscale="log" if has_log else "linear")
        axes.legend()
        return axes


class Fitted(NamedTuple):
    """What `fit` returns.

    Attributes
    ----------
    model : Model
        With the best epoch's weights.
    history : History
    """

    model: Model
    history: History
