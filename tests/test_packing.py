"""Weights as the products read them: each where `layout` says, and zeros between them."""

from typing import Any

import numpy as np
import pytest
from problems import DTYPES, each_cell

import fastgru
from fastgru.kernels.cells import CELLS, INPUT, Cell
from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.packed import Packing
from fastgru.kernels.layout import packed_weights, padded, terms_of_vector, vector_weights

SIZES = [(3, 5), (17, 33), (1, 1), (40, 16)]


def plainly(cell: Cell, I: int, H: int, lanes: int, weights: Any, by_columns: bool) -> Any:
    """What the kernel should write, element by element."""
    places, unit = packed_weights(cell, I, H, lanes, by_columns), padded(H, lanes)
    packed = np.zeros(places.size)
    constants = packed[: len(cell.pre_activations) * unit].reshape(-1, unit)
    for weight in vector_weights(cell):
        if weight.name in weights:
            gates = weights[weight.name].reshape(-1, H)
            for gate, term in zip(gates, terms_of_vector(cell, weight), strict=True):
                constants[term, :H] += gate
    for part in places.parts:
        weight, K = cell.weight_of(part.kind), I if part.kind == INPUT else H
        assert weight is not None
        gates = weights[weight.name].reshape(-1, H, K)[list(part.gates)]
        if by_columns:  # (panels of columns, gates, H, lanes)
            width = padded(K, lanes)
            full = np.zeros((len(gates), H, width))
            full[:, :, :K] = gates
            laid = full.reshape(len(gates), H, -1, lanes).transpose(2, 0, 1, 3)
        else:  # (panels of units, K, gates, lanes)
            full = np.zeros((len(gates), unit, K))
            full[:, :H] = gates
            laid = full.reshape(len(gates), -1, lanes, K).transpose(1, 3, 0, 2)
        packed[part.start : part.start + laid.size] = laid.ravel()
    return packed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@each_cell
def test_weights_lie_where_the_layout_says(
    cell: str, bias: bool, by_columns: bool, dtype: str
) -> None:
    """Whatever was in the memory, and by however many workers."""
    kind, of = np.dtype(dtype), CELLS[cell]
    lanes = build.lanes(kind)
    for I, H in SIZES:
        # Numbers that are exact, all different, and no zeros.
        params = fastgru.init_params(I, H, cell=cell, bias=bias, dtype=dtype)
        start = iter(range(1, 1 << 30))
        weights = {
            name: np.array([next(start) for _ in range(array.size)], kind).reshape(array.shape)
            for name, array in params.layers[0][0].items()
        }
        packing = Packing(of, I, H, kind, by_columns)
        size = packed_weights(of, I, H, lanes, by_columns).size
        if of.norm is None or by_columns:
            want = plainly(of, I, H, lanes, weights, by_columns)
            got = packing.pack(weights)
            np.testing.assert_array_equal(got[:size], want)
            got.fill(np.nan)
            packing.give_back(got)
            np.testing.assert_array_equal(packing.pack(weights)[:size], want)
        matrices = {name: array for name, array in weights.items() if array.ndim == 2}
        want = plainly(of, I, H, lanes, matrices, by_columns)
        np.testing.assert_array_equal(packing.pack_plain(weights)[:size], want)


@pytest.mark.parametrize("by_columns", [False, True])
def test_workers_share_the_panels(by_columns: bool) -> None:
    """Each writes its own, and together they write all."""
    kind, (I, H) = np.dtype("float32"), (40, 70)
    params = fastgru.init_params(I, H, rng=0)
    weights = dict(params.layers[0][0].items())
    packing = Packing(CELLS["gru"], I, H, kind, by_columns)
    want = packing.pack(weights)
    kernel = build.packing_kernel(build.vectors_passed(2), kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "on", lambda workers: call_in_turn(kernel.call, 3))
        got = packing.pack(weights)
    size = packed_weights(CELLS["gru"], I, H, build.lanes(kind), by_columns).size
    np.testing.assert_array_equal(got[:size], want[:size])


def call_in_turn(call: Any, workers: int) -> Any:
    """What runs so many workers one after another, into memory that held something else."""

    def run(*args: Any) -> None:
        *given, packed, _, _ = args
        packed.fill(np.nan)
        for worker in reversed(range(workers)):
            call(*given, packed, worker, workers)

    return run
