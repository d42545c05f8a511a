"""Layers and directions: a network's passes over a batch, forward and backward.

The kernels know one layer and direction. Here every sequence is (N, T, features), and every state
a tuple of (layers * directions, N, H) arrays.
"""

import functools
from collections.abc import Callable
from typing import Any

from .check_calls import check_batch
from .kernels.layout import running_statistics
from .packed import Architecture, Layouts, Operands
from .params import Params, Weights, arrays_of, params_like, weights_like

States = tuple[Any, ...]  # an array for each member of the cell's state
Steps = list[Callable[[Any, Any, Any], None]]  # what takes a step, for each layer


def _sequence(make: Any, N: int, T: int, features: int, dtype: Any) -> Any:
    """A new sequence, (N, T, features)."""
    return make((N, T, features), dtype)


def _time_major_sequence(make: Any, N: int, T: int, features: int, dtype: Any) -> Any:
    """A new sequence, (N, T, features), that lies in memory as (T, N, features)."""
    return make((T, N, features), dtype).transpose(1, 0, 2)


class Stack:
    """The layers and directions of an architecture, prepared for batches of one kind.

    Parameters
    ----------
    architecture : Architecture
    N, T : int
        Samples and time steps.
    precision : str, optional
        Of the products, if it is not that of the dtype.
    time_major : bool
        Whether new sequences lie in memory as (T, N, features).

    Attributes
    ----------
    lengths : (N,) array or None
        Valid steps of each sample, where they are not all.
    normalises : bool
        Whether the cell normalises over a batch: then training is `forward_normalised`.
    recurrences : list
        The prepared kernels of each layer.
    """

    def __init__(
        self, architecture: Architecture, N: int, T: int, precision: str | None, time_major: bool
    ) -> None:
        H, D, xp = architecture.hidden_size, architecture.num_directions, architecture.backend.xp
        self._architecture, self._precision, self._time_major = architecture, precision, time_major
        self._N, self._T, self._H, self._D = N, T, H, D
        self._xp, self._dtype = xp, architecture.dtype
        self.lengths: Any = None
        self.recurrences = self._recurrences_for(None)
        state = architecture.num_layers * D, N, H
        self._num_states = len(architecture.cell.states)
        self.normalises = architecture.cell.norm is not None
        self._empty_member = functools.partial(xp.empty, state, self._dtype)
        self._zero_member = functools.partial(xp.zeros, state, self._dtype)
        self._new_y = self._new_y_by(xp.empty)
        # A step of one row and layer: y and the new state are the same numbers in the same shape,
        # and memory for one of them is enough.
        self._final_is_y = T == 1 and state == (N, T, D * H)

    @property
    def forms(self) -> list[Any]:
        """What decides how the kernels lay out the values that they keep, for each layer."""
        return [recurrence.form for recurrence in self.recurrences]

    def with_lengths(self, lengths: Any) -> "Stack":
        """This stack for samples with so many valid steps, (N,)."""
        stack = object.__new__(Stack)
        vars(stack).update(vars(self))
        stack.lengths = lengths
        stack.recurrences = self._recurrences_for(lengths)
        stack._new_y = self._new_y_by(self._xp.zeros)  # padded outputs are 0
        return stack

    def _recurrences_for(self, lengths: Any) -> list[Any]:
        """The prepared kernels of each layer, for these numbers of valid steps."""
        of = self._architecture
        kernels = of.backend.kernels
        ragged = kernels.ragged_rows(lengths, self._N, self._T)
        own, sizes = (of.hidden_size, of.dtype, ragged), of.input_sizes
        options = {} if self._precision is None else {"precision": self._precision}
        prepared = {I: kernels.Recurrence(of.cell, I, *own, **options) for I in set(sizes)}
        return [prepared[I] for I in sizes]

    def _new_y_by(self, make: Any) -> Any:
        """What makes a new y, by the library's `empty` or `zeros`."""
        shape = self._N, self._T, self._D * self._H
        if self._time_major:
            return functools.partial(_time_major_sequence, make, *shape, self._dtype)
        return functools.partial(make, shape, self._dtype)  # `_sequence` with fewer calls

    def zero_state(self) -> States:
        """A new state of zeros."""
        return self._new_state(self._zero_member)

    def _new_state(self, make: Any) -> States:
        """A new state, by what makes a member of it."""
        if self._num_states == 1:
            return (make(),)
        if self._num_states == 2:  # a loop takes 0.2 µs
            return make(), make()
        return tuple([make() for _ in range(self._num_states)])

    def forward(
        self, x: Any, layouts: Layouts, initial: States, attention: Any = None
    ) -> tuple[States, Any]:
        """The final state and the outputs of the last layer."""
        if self._D > 1:
            final, (*_, y), _ = self._run(x, layouts, initial, attention, keep=False)
            return final, y
        # One direction: the same with fewer calls, as small layers feel each of them.
        final = self._new_state(self._empty_member)
        for number, recurrence in enumerate(self.recurrences):
            y = self._new_y()
            recurrence.forward(
                layouts[number][0], x, initial, number, False, y, final, False, attention
            )
            x = y
        return final, x

    def forward_of_all_layers(
        self, x: Any, layouts: Layouts, initial: States, attention: Any = None
    ) -> tuple[States, list[Any]]:
        """The final state and the outputs of every layer."""
        final, (_, *sequences), _ = self._run(x, layouts, initial, attention, keep=False)
        return final, sequences

    def step(self, x: Any, layouts: Layouts, initial: States, attention: Any = None) -> States:
        """The final state of one direction after one time step: `forward`, shorter still."""
        if not self._final_is_y:
            return self.forward(x, layouts, initial, attention)[0]
        if self._num_states == 1:
            final: States = (self._empty_member(),)  # another call takes 0.05 µs
        else:
            final = self._new_state(self._empty_member)
        self.recurrences[0].forward(
            layouts[0][0], x, initial, 0, False, final[0], final, False, attention
        )
        return final

    def forward_into(
        self,
        x: Any,
        layouts: Layouts,
        initial: States,
        attention: Any,
        y_out: Any,
        final_out: States,
    ) -> None:
        """`forward` of one direction, whose results are written into these arrays."""
        last = len(self.recurrences) - 1
        for number, recurrence in enumerate(self.recurrences):
            y = y_out if number == last else self._new_y()
            recurrence.forward(
                layouts[number][0], x, initial, number, False, y, final_out, False, attention
            )
            x = y

    def steps_into(self, layouts: Layouts, initial: States, final_out: States) -> Steps | None:
        """What takes one step of each layer, if the kernels have a short way that one thread runs.

        Each takes x, y and the attention or None, as `Recurrence.bound` describes.
        """
        runs = []
        for number, recurrence in enumerate(self.recurrences):
            bind = getattr(recurrence, "bound", None)  # which a backend need not have
            run = bind and bind(layouts[number][0], initial, number, final_out)
            if run is None:
                return None
            runs.append(run)
        return runs

    def forward_train(
        self, x: Any, layouts: Layouts, initial: States, attention: Any = None
    ) -> tuple[States, list[Any], list[list[Any]]]:
        """Run forward and keep what `backward` needs.

        Parameters
        ----------
        x : (N, T, I) array
        layouts : sequence of sequence
            Packed weights of every layer and direction.
        initial : tuple of (layers * directions, N, H) arrays
        attention : (N, T, 1) array, optional

        Returns
        -------
        final : tuple of (layers * directions, N, H) arrays
        sequences : list of (N, T, features) arrays
            x, then the outputs of every layer.
        values : list of list
            What the kernels kept of every layer and direction.
        """
        return self._run(x, layouts, initial, attention, keep=True)

    def forward_normalised(
        self, x: Any, operands: Operands, initial: States, attention: Any = None
    ) -> tuple[States, list[Any], list[list[Any]], Params]:
        """`forward_train` for cells that normalise over a batch.

        The statistics of a layer's input are taken first, and its weights laid out with them. The
        values kept are pairs of what the kernels kept and of the statistics. Params with the new
        running statistics come last.
        """
        params, cell = operands.params, operands.architecture.cell
        for recurrence in self.recurrences:
            check_batch(params, recurrence.total)
        sequences, values, trained = [x], [], []
        final = self._new_state(self._empty_member)
        H, D = self._H, self._D
        packings = operands.architecture.packings
        for number, (recurrence, packing) in enumerate(
            zip(self.recurrences, packings, strict=True)
        ):
            y = self._new_y()
            of_layer, trained_layer = [], []
            for d, weights in enumerate(params.layers[number]):
                arrays, y_out = arrays_of(weights), y if D == 1 else y[:, :, d * H : (d + 1) * H]
                statistics = recurrence.statistics(arrays, x, d == 1)
                layout = packing.pack(arrays, statistics)
                kept = recurrence.forward(
                    layout, x, initial, number * D + d, d == 1, y_out, final, True, attention
                )
                packing.give_back(layout)
                of_layer.append((kept, statistics))
                running = running_statistics(cell, arrays, statistics)
                trained_layer.append(weights_like(weights, arrays | running))
            x = y
            sequences.append(y)
            values.append(of_layer)
            trained.append(tuple(trained_layer))
        return final, sequences, values, params_like(params, tuple(trained))

    def _run(
        self, x: Any, layouts: Layouts, initial: States, attention: Any, keep: bool
    ) -> tuple[States, list[Any], list[list[Any]]]:
        """All layers and directions, for `forward_train`, or without keeping values."""
        sequences, values = [x], []
        final = self._new_state(self._empty_member)
        H, D = self._H, self._D
        for number, recurrence in enumerate(self.recurrences):
            y = self._new_y()
            of_layer = []
            for d, weights in enumerate(layouts[number]):
                y_out = y if D == 1 else y[:, :, d * H : (d + 1) * H]
                of_layer.append(
                    recurrence.forward(
                        weights, x, initial, number * D + d, d == 1, y_out, final, keep, attention
                    )
                )
            x = y
            sequences.append(y)
            values.append(of_layer)
        return final, sequences, values

    def backward(
        self,
        params: Params,
        initial: States,
        sequences: list[Any],
        values: list[list[Any]],
        dy: Any,
        dfinal: States | None,
        attention: Any = None,
    ) -> tuple[Any, States, Params, Any]:
        """Gradients of everything, from those of y and of the final state.

        Parameters
        ----------
        params : Params
        initial, sequences, values, attention
            What `forward_train` took and gave.
        dy : (N, T, D*H) array or None
            Gradient of the outputs of the last layer.
        dfinal : tuple of (layers * directions, N, H) arrays, or None

        Returns
        -------
        dx : (N, T, I) array
        dinitial : tuple of (layers * directions, N, H) arrays
        dparams : Params
        dattention : (N, T, 1) array, or None
        """
        H, D = self._H, self._D
        dattention = None if attention is None else self._xp.zeros(attention.shape, self._dtype)
        new_sequence = _time_major_sequence if self._time_major else _sequence
        dinitial = self._new_state(self._empty_member)
        dlayers: list[tuple[Weights, ...]] = []
        for number in reversed(range(len(self.recurrences))):
            x, y = sequences[number : number + 2]
            dx = new_sequence(self._xp.zeros, self._N, self._T, x.shape[2], self._dtype)
            directions = []
            for d, weights in enumerate(params.layers[number]):
                own_y, own_dy = y, dy
                if D > 1:
                    units = slice(d * H, (d + 1) * H)
                    own_y, own_dy = y[:, :, units], None if dy is None else dy[:, :, units]
                kept, statistics = values[number][d], None
                if self.normalises:
                    kept, statistics = kept
                gradients = self.recurrences[number].backward(
                    arrays_of(weights), x, initial, number * D + d, d == 1, own_y, kept, own_dy,
                    dfinal, dx, dinitial, statistics, attention, dattention,
                )  # fmt: skip
                directions.append(weights_like(weights, gradients))
            dlayers.append(tuple(directions))
            dy = dx
        return dy, dinitial, params_like(params, tuple(reversed(dlayers))), dattention
