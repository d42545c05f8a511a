"""Random problems for any cell, and the specification's answers to them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
import toys

import fastgru
from fastgru.kernels.cells import CELLS, NORM_MEAN, NORM_VARIANCE

TOY_CELLS = tuple(cell.name for cell in toys.TOYS)
ALL_CELLS = tuple(CELLS)
SHIPPED_CELLS = tuple(name for name in ALL_CELLS if name not in TOY_CELLS)
# Cells whose rows do not depend on each other in training either.
ROW_CELLS = tuple(name for name in ALL_CELLS if CELLS[name].norm is None)
# Cells that may be without biases.
BARE_CELLS = tuple(name for name in ALL_CELLS if CELLS[name].can_lack_biases)
DTYPES = ("float32", "float64")
# At most that, of the sums of a row that tests normalise.
ONE_OVER_DEVIATION = 8.0
# In units of the last place, what the elementary functions may be off by.
ELEMENTARY = 3.0

each_cell = pytest.mark.parametrize("cell", ALL_CELLS)
everywhere = pytest.mark.parametrize(
    ("cell", "dtype"), [(cell, dtype) for cell in ALL_CELLS for dtype in DTYPES]
)


class Problem(NamedTuple):
    """Arguments of forward_train and backward, states as tuples."""

    x: Any
    params: fastgru.Params
    h0: tuple[Any, ...] | None
    lengths: Any
    dy: Any
    dh_n: tuple[Any, ...]
    attention: Any = None  # (N, T), for cells that take a number for each sample and step

    @property
    def layers(self) -> Any:
        """The weights as the specification takes them."""
        return [[dict(w.items()) for w in layer] for layer in self.params.layers]

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of forward by keyword."""
        return {"lengths": self.lengths, "attention": self.attention}

    @property
    def state(self) -> Any:
        """The initial state as the public functions take it."""
        return None if self.h0 is None else as_state(self.h0)

    def map(self, function: Callable[[Any], Any]) -> "Problem":
        """The problem with a function applied to every array but lengths."""
        return self._replace(
            x=function(self.x),
            params=self.params.map(function),
            h0=None if self.h0 is None else tuple(map(function, self.h0)),
            dy=function(self.dy),
            dh_n=tuple(map(function, self.dh_n)),
            attention=None if self.attention is None else function(self.attention),
        )

    def astype(self, dtype: str) -> "Problem":
        """The same problem in another precision."""
        return self.map(lambda a: a.astype(dtype))

    def rows(self, rows: Any) -> "Problem":
        """Some rows of the batch, in the order given."""
        x, params, h0, lengths, dy, dh_n, attention = self
        if lengths is not None:
            lengths = np.asarray(lengths, np.intp)[rows]
        return Problem(
            x[rows], params, None if h0 is None else tuple(h[:, rows] for h in h0), lengths,
            dy[rows], tuple(d[:, rows] for d in dh_n),
            None if attention is None else attention[rows],
        )  # fmt: skip

    def steps(self, steps: slice) -> "Problem":
        """Some steps, all of them valid."""
        attention = None if self.attention is None else self.attention[:, steps]
        return self._replace(
            x=self.x[:, steps], lengths=None, dy=self.dy[:, steps], attention=attention
        )

    def forward(self, weights: Any = None) -> tuple[Any, Any]:
        """`fastgru.forward` of this problem, with its params or with other weights."""
        weights = self.params if weights is None else weights
        return fastgru.forward(self.x, weights, self.state, **self.options)

    def forward_train(self, weights: Any = None) -> tuple[Any, Any, fastgru.Saved]:
        """`fastgru.forward_train` likewise."""
        weights = self.params if weights is None else weights
        return fastgru.forward_train(self.x, weights, self.state, **self.options)

    def step(self, t: int, weights: Any = None, state: Any = None) -> tuple[Any, Any]:
        """`fastgru.step` at one time, from the initial state or from another one."""
        weights = self.params if weights is None else weights
        state = self.state if state is None else state
        attention = None if self.attention is None else self.attention[:, t]
        return fastgru.step(self.x[:, t], weights, state, attention=attention)

    def backward(self, saved: fastgru.Saved) -> fastgru.Gradients:
        """`fastgru.backward` with the gradients of this problem."""
        return fastgru.backward(saved, self.dy, as_state(self.dh_n))


def as_state(members: tuple[Any, ...]) -> Any:
    """A tuple of members as the public functions take and give it."""
    return members if len(members) > 1 else members[0]


def as_members(state: Any) -> tuple[Any, ...]:
    """What the public functions take and give as a tuple of members."""
    return state if isinstance(state, tuple) else (state,)


def draw(
    cell: str,
    sizes: tuple[int, int, int, int] = (3, 4, 3, 5),
    *,
    L: int = 1,
    D: int = 1,
    bias: bool = True,
    lengths: Any = None,
    dtype: str = "float64",
    seed: int = 0,
) -> Problem:
    """A problem with sizes (N, T, I, H); values are exact in float32."""
    N, T, I, H = sizes
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape).astype("float32").astype(dtype)

    def initial(*shape: int) -> Any:
        if reference.CELLS[cell].probabilities:
            return rng.uniform(0.05, 0.95, shape).astype("float32").astype(dtype)
        return normal(*shape)

    params = fastgru.init_params(
        I, H, cell=cell, num_layers=L, bidirectional=D == 2, bias=bias, rng=rng
    ).map(lambda w: w.astype(dtype))
    takes_attention = bool(CELLS[cell].step_inputs)
    members = range(len(CELLS[cell].states))
    return Problem(
        normal(N, T, I),
        params,
        tuple(initial(L * D, N, H) for _ in members),
        lengths,
        normal(N, T, D * H),
        tuple(normal(L * D, N, H) for _ in members),
        rng.random((N, T)).astype("float32").astype(dtype) if takes_attention else None,
    )


def with_statistics(problem: Problem, seed: int = 1) -> Problem:
    """A problem with other running statistics than the initial ones, where there are any."""
    rng, kinds = np.random.default_rng(seed), (NORM_MEAN, NORM_VARIANCE)
    names = {w.name for w in CELLS[problem.params.cell].weights if w.kind in kinds}
    arrays = problem.params.to_dict()
    for key, array in arrays.items():
        if key.partition("_l")[0] in names:
            arrays[key] = (0.5 + rng.random(array.shape)).astype(array.dtype)
    return problem._replace(params=fastgru.Params.from_dict(arrays, cell=problem.params.cell))


class Library(NamedTuple):
    """An array library whose arrays are computed on, reached from NumPy arrays and back."""

    name: str
    asarray: Callable[[Any], Any]
    asnumpy: Callable[[Any], Any]

    def take(self, problem: Problem) -> Problem:
        """A problem in arrays of this library."""
        return problem.map(self.asarray)

    def give(self, result: Any) -> Any:
        """Results in NumPy arrays: arrays, states, Gradients, Params."""
        if isinstance(result, fastgru.Params):
            return result.map(self.asnumpy)
        if isinstance(result, fastgru.Gradients):
            attention = None if result.attention is None else self.asnumpy(result.attention)
            return fastgru.Gradients(*(self.give(part) for part in result), attention)
        if isinstance(result, tuple):
            parts = [self.give(part) for part in result]
            return type(result)(*parts) if hasattr(result, "_fields") else tuple(parts)
        return self.asnumpy(result)


NUMPY = Library("numpy", np.asarray, np.asarray)


def solve(problem: Problem, library: Library = NUMPY) -> tuple[Any, Any, fastgru.Gradients]:
    """y, h_n and gradients from the library, computed on arrays of some array library."""
    given = library.take(problem)
    y, h_n, saved = given.forward_train()
    gradients = given.backward(saved)
    return tuple(library.give(result) for result in (y, h_n, gradients))  # type: ignore[return-value]


def specified(problem: Problem, training: bool = True) -> tuple[Any, Any]:
    """y and h_n from the specification."""
    x, params, h0, lengths, _, _, attention = problem
    return reference.forward(x, problem.layers, params.cell, h0, lengths, attention, training)


def flatten(*results: Any) -> list[Any]:
    """All arrays in results: arrays, tuples, Gradients, Params."""
    arrays: list[Any] = []
    for result in results:
        if isinstance(result, fastgru.Params):
            arrays += result.to_dict().values()
        elif isinstance(result, fastgru.Gradients):
            arrays += flatten(*result, result.attention)
        elif isinstance(result, tuple):
            arrays += flatten(*result)
        elif result is not None:
            arrays.append(result)
    return arrays


def assert_same_bits(got: Any, want: Any) -> None:
    """All arrays in two results are equal to the bit, NaN included."""
    ours, theirs = flatten(got), flatten(want)
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


def assert_own_memory(results: Any, *arguments: Any) -> None:
    """Results can be written, and share no memory with arguments nor with each other."""
    ours, theirs = flatten(results), flatten(arguments)
    for number, array in enumerate(ours):
        assert array.flags.writeable
        for other in (*ours[:number], *theirs):
            assert not np.shares_memory(array, other)


def assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Finite, of the same shape, and within `tolerance`, relative where more than 1 is wanted."""
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert (np.abs(got - want) <= tolerance * np.maximum(1, np.abs(want))).all()


def rounding(problem: Problem, k: float) -> float:
    """eps (k sqrt(I + H) + 3), for the widest layer: what a step's sums and functions may round.

    Sums that are divided by their deviation round by as much more as that is less than 1.
    """
    params = problem.params
    if any(phase.norm for phase in CELLS[params.cell].phases):
        k *= ONE_OVER_DEVIATION
    inputs = max(params.input_size, params.hidden_size * params.num_directions)
    eps = float(np.finfo(params.dtype).eps)
    return eps * (k * float(np.sqrt(inputs + params.hidden_size)) + ELEMENTARY)


def by_row(problem: Problem) -> tuple[Any, ...]:
    """y, h_n, dx, dh0, dattention: all results that belong to one row of the batch.

    Of a cell whose rows depend on each other in training, those of forward: y and h_n.
    """
    if problem.params.cell not in ROW_CELLS:
        y, h_n = problem.forward()
        return y, as_members(h_n), None, None, None
    y, h_n, gradients = solve(problem)
    return y, as_members(h_n), gradients.x, as_members(gradients.h0), gradients.attention


def take(results: tuple[Any, ...], rows: Any) -> tuple[Any, ...]:
    """Some rows of what `by_row` gives."""

    def part(result: Any) -> Any:
        if isinstance(result, tuple):
            return tuple(member[:, rows] for member in result)
        return None if result is None else result[rows]

    return tuple(map(part, results))


def join(parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """What `by_row` gives, put together from disjoint rows."""

    def joined(results: Any) -> Any:
        if isinstance(results[0], tuple):
            return tuple(np.concatenate(m, axis=1) for m in zip(*results, strict=True))
        return None if results[0] is None else np.concatenate(results)

    return tuple(map(joined, zip(*parts, strict=True)))
