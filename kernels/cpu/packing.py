"""Weights in the order in which the product reads them; pads are 0. See `layout.PackedWeights`."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import prange

from .calling import call_at, record
from .float_mode import enter_ieee_mode, restore_mode
from .rows import units_of
from .transpose import load_square, store_leading, transposed


class PackPart(NamedTuple):
    """The weights of one kind and phase."""

    recurrent: int  # 1 for recurrent weights, 0 for input weights
    first_gate: int  # where its gates are in `gate_rows`
    gates: int
    start: int  # where it goes


_PART = len(PackPart._fields)


def make_pack(lanes: int) -> Callable[..., None]:
    """Build the packing of all weights of one layer and direction."""

    def pack(
        weight_ih,  # (gates * H, I), any strides, or empty
        weight_hh,  # (gates * H, H), any strides, or empty
        vectors,  # for each vector of weights (gates * H,), any strides, or empty
        parts,  # of `PackPart`
        gate_rows,  # flat
        vector_places,  # (3 * rows,): vector of weights, its gate, the pre-activation that it is in
        terms,  # number of pre-activations
        by_columns,  # for products that sum over the rows of a weight
        H,
        packed_out,  # flat; written
        worker,  # which share of the panels to do
        workers,
    ):
        mode = enter_ieee_mode()
        unit = (H + lanes - 1) // lanes * lanes
        if worker == 0:
            packed_out[: terms * unit] = 0
            for i in range(0, len(vector_places), 3):
                vector, gate = vectors[vector_places[i]], vector_places[i + 1]
                if len(vector) > 0:
                    for j in range(H):
                        packed_out[vector_places[i + 2] * unit + j] += vector[gate * H + j]
        for i in range(0, len(parts), _PART):
            part = record(PackPart, parts, i)
            weight = weight_hh if part.recurrent else weight_ih
            first, gates, start = part.first_gate, part.gates, part.start
            K = weight.shape[1]
            if by_columns:
                own = units_of(worker, workers, K, lanes)
                # Along the rows of the weight: down its columns, each cache line was waited for.
                for gate in range(gates):
                    row = gate_rows[first + gate] * H
                    for k in range(0, H, lanes):
                        rows = min(lanes, H - k)
                        for column in range(own.first, own.last, lanes):
                            columns = min(lanes, K - column)
                            square = load_square(weight, row + k, column, rows, columns)
                            at = start + column * gates * H + (gate * H + k) * lanes
                            store_leading(packed_out, at, lanes, rows, square)
            else:
                for panel in range(worker, unit // lanes, workers):
                    rows = min(lanes, H - panel * lanes)
                    for gate in range(gates):
                        row = gate_rows[first + gate] * H + panel * lanes
                        at = start + (panel * K * gates + gate) * lanes
                        for k in range(0, K, lanes):
                            columns = min(lanes, K - k)
                            square = transposed(load_square(weight, row, k, rows, columns))
                            to = at + k * gates * lanes
                            store_leading(packed_out, to, gates * lanes, columns, square)
        restore_mode(mode)

    return pack


def pack_threads(
    address, weight_ih, weight_hh, vectors, parts, gate_rows, vector_places, terms, by_columns, H,
    packed_out, worker, workers,
):  # fmt: skip
    """Run the packing's shares on threads."""
    for number in prange(worker, workers):
        call_at(
            address, weight_ih, weight_hh, vectors, parts, gate_rows, vector_places, terms,
            by_columns, H, packed_out, np.intp(number), workers,
        )  # fmt: skip
