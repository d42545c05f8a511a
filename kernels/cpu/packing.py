"""Weights in the order in which the tile reads them; pads are 0."""

from collections.abc import Callable

import numpy as np
from numba import prange

from .float_mode import enter_ieee_mode, restore_mode
from .launch import call_at
from .plan import units_of
from .squares import load_square, store_leading, transposed


def make_pack(lanes: int) -> Callable[..., None]:
    """Build the packing of all weights of one layer and direction."""

    def pack(
        weight_ih,  # (gates * H, I), any strides
        weight_hh,  # (gates * H, H), any strides, or empty
        bias_ih,  # (gates * H,), any strides, or empty
        bias_hh,  # (gates * H,), any strides, or empty
        parts,  # (4 * parts,): 0 or 1 for the weight; its gates in `gate_rows`, first and number of
        #         them; where it goes in `packed_out`
        gate_rows,  # flat
        bias_rows,  # (2 * pre-activations,): gate of bias_ih that each adds, or -1; then of bias_hh
        by_columns,  # for products that sum over the rows of a weight
        H,
        packed_out,  # flat; the biases, then (panels, K, gates, lanes) for each part, where a panel
        #              is a vector of units; by columns (panels, gates, H, lanes), where it is a
        #              vector of columns
        worker,  # which share of the panels to do
        workers,
    ):
        mode = enter_ieee_mode()
        num_pre, unit = len(bias_rows) // 2, (H + lanes - 1) // lanes * lanes
        if worker == 0 and not by_columns:
            packed_out[: num_pre * unit] = 0
            for pre in range(num_pre):
                for bias, gate in (
                    (bias_ih, bias_rows[pre]),
                    (bias_hh, bias_rows[num_pre + pre]),
                ):
                    if len(bias) > 0 and gate >= 0:
                        for j in range(H):
                            packed_out[pre * unit + j] += bias[gate * H + j]
        for part in range(0, len(parts), 4):
            weight = weight_ih if parts[part] == 0 else weight_hh
            first, gates, start = parts[part + 1], parts[part + 2], parts[part + 3]
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
    address, weight_ih, weight_hh, bias_ih, bias_hh, parts, gate_rows, bias_rows, by_columns, H,
    packed_out, worker, workers,
):  # fmt: skip
    """Run the packing's shares on threads."""
    for number in prange(worker, workers):
        call_at(
            address, weight_ih, weight_hh, bias_ih, bias_hh, parts, gate_rows, bias_rows,
            by_columns, H, packed_out, np.intp(number), workers,
        )  # fmt: skip
