"""Random problems for any cell, and the specification's answers to them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
import toys

import fastgru
from fastgru.kernels.cells import CELLS

TOY_CELLS = tuple(cell.name for cell in toys.TOYS)
ALL_CELLS = tuple(CELLS)
SHIPPED_CELLS = tuple(name for name in ALL_CELLS if name not in TOY_CELLS)
# Cells whose rows do not depend on each other in training either.
ROW_CELLS = tuple(name for name in ALL_CELLS if CELLS[name].norm is None)
DTYPES = ("float32", "float64")

each_cell = pytest.mark.parametrize("cell", ALL_CELLS)
everywhere = pytest.mark.parametrize(
    ("cell", "dtype"), [(cell, dtype) for cell in ALL_CELLS for dtype in DTYPES]
)


class Problem(NamedTuple):
    """Arguments of forward_train and backward, states as tuples."""

    x: Any
    params: fastgru.Params
    h0: tuple[Any, ...]
    lengths: Any
    dy: Any
    dh_n: tuple[Any, ...]
    attention: Any = None  # (N, T), for cells that take a number for each sample and step

    @property
    def layers(self) -> Any:
        """The weights as the specification takes them."""
        return [[dict(w.items()) for w in layer] for layer in self.params.layers]

    def astype(self, dtype: str) -> "Problem":
        """The same problem in another precision."""
        return Problem(
            self.x.astype(dtype),
            self.params.map(lambda w: w.astype(dtype)),
            tuple(h.astype(dtype) for h in self.h0),
            self.lengths,
            self.dy.astype(dtype),
            tuple(h.astype(dtype) for h in self.dh_n),
            None if self.attention is None else self.attention.astype(dtype),
        )

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of forward by keyword."""
        return {"lengths": self.lengths, "attention": self.attention}


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


class Library(NamedTuple):
    """An array library whose arrays are computed on, reached from NumPy arrays and back."""

    name: str
    asarray: Callable[[Any], Any]
    asnumpy: Callable[[Any], Any]

    def take(self, problem: Problem) -> Problem:
        """A problem in arrays of this library."""
        to = self.asarray
        h0, dh_n = (tuple(map(to, state)) for state in (problem.h0, problem.dh_n))
        x, dy = to(problem.x), to(problem.dy)
        attention = None if problem.attention is None else to(problem.attention)
        return Problem(x, problem.params.map(to), h0, problem.lengths, dy, dh_n, attention)

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
    x, params, h0, _, dy, dh_n, _ = given
    y, h_n, saved = fastgru.forward_train(x, params, as_state(h0), **given.options)
    gradients = fastgru.backward(saved, dy, as_state(dh_n))
    return tuple(library.give(result) for result in (y, h_n, gradients))  # type: ignore[return-value]


def specified(problem: Problem) -> tuple[Any, Any]:
    """y and h_n from the specification."""
    x, params, h0, lengths, _, _, attention = problem
    return reference.forward(x, problem.layers, params.cell, h0, lengths, attention)


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


def assert_close(got: Any, want: Any, tolerance: float) -> None:
    """Finite, of the same shape, and within `tolerance`, relative where more than 1 is wanted."""
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert (np.abs(got - want) <= tolerance * np.maximum(1, np.abs(want))).all()


def by_row(problem: Problem) -> tuple[Any, ...]:
    """y, h_n, dx, dh0: all results that belong to one row of the batch."""
    y, h_n, gradients = solve(problem)
    return y, as_members(h_n), gradients.x, as_members(gradients.h0)


def take(results: tuple[Any, ...], rows: Any) -> tuple[Any, ...]:
    """Some rows of what `by_row` gives."""
    y, h_n, dx, dh0 = results
    return y[rows], tuple(h[:, rows] for h in h_n), dx[rows], tuple(d[:, rows] for d in dh0)


def join(parts: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """What `by_row` gives, put together from disjoint rows."""
    y, h_n, dx, dh0 = zip(*parts, strict=True)

    def joined(states: Any) -> tuple[Any, ...]:
        return tuple(np.concatenate(members, axis=1) for members in zip(*states, strict=True))

    return np.concatenate(y), joined(h_n), np.concatenate(dx), joined(dh0)


def rows_of(problem: Problem, rows: Any) -> Problem:
    """A problem with some rows of the batch, in the order given."""
    x, params, h0, lengths, dy, dh_n, attention = problem
    if lengths is not None:
        lengths = np.asarray(lengths, np.intp)[rows]
    return Problem(
        x[rows], params, tuple(h[:, rows] for h in h0), lengths,
        dy[rows], tuple(d[:, rows] for d in dh_n), None if attention is None else attention[rows],
    )  # fmt: skip
