"""Gradients of x and of the weights, as products over the packed rows of some steps.

All read the gradients `d` of the pre-activations that `backward` left. None depends on a cell:
pre-activations are named by number, and operands that are not h are in `d` already. A bias, or a
weight of units, is a weight whose only input is always 1.
"""

from collections.abc import Callable
from typing import NamedTuple

from .calling import call_at, record
from .float_mode import enter_ieee_mode, restore_mode
from .product import Extent, Factors, Panels, Prefetch, Sums, tile_shapes
from .rows import accumulate_row, load_row, prefetch_ahead, previous_h, step_of, time_index
from .simd import inlined, jitable, load_vectors, make_sweeps, pointer
from .transpose import store_square, transposed
from .tuning import (
    BLOCK_ROWS,
    COLUMNS_WORTH_PREFETCHING,
    MOST_GRADIENT_VECTORS,
    NEAR_CACHE,
    ROWS_AT_ONCE,
    ROWS_OF_A_SUM,
)

# Where the rows come from that a weight gradient multiplies `d` with.
FROM_INPUT, FROM_HIDDEN, FROM_OPERAND, FROM_ONE = range(4)


class InputProduct(NamedTuple):
    """A phase's part of the gradient of x; positions are elements."""

    pre: int  # first pre-activation that x feeds, in a row of `d`
    terms: int  # how many x feeds
    weights: int  # where they lie in weights packed by columns
    row: int  # elements of a row of sums
    panels: int  # vectors of columns of x


class WeightProduct(NamedTuple):
    """How the gradient of one phase's weights of one kind is made."""

    source: int  # where its rows come from
    operand: int  # where they lie in a row of `d`, if there
    pre: int  # its first pre-activation in a row of `d`
    first_gate: int  # where its gates are in the list of all products' gates
    gates: int
    vectors: int  # of a strip of units
    product: int  # address of the product with so many gates
    full_columns: int  # of a full tile
    strips: int  # of units, which threads share
    strip_size: int  # elements of a strip's sums, (K in whole vectors, width)
    sums_size: int  # of all strips
    panels: int  # in which columns are taken, of (ROWS_AT_ONCE, panel_row)
    panel_columns: int  # of each; the last one may have fewer
    panel_row: int  # from row to row of a panel; 0 where all are the same
    panel_size: int


def strip_vectors(gates: int) -> int:
    """Vectors of units whose sums a weight-gradient tile holds.

    Three by eight columns fill the registers, as do four by six: what leaves none over with three
    or four gates. Two strips of an LSTM's eight vectors, not three, took 10 % off training at
    (50, 32, 32, 32).
    """
    return 3 if gates % 3 == 0 else MOST_GRADIENT_VECTORS


def full_columns(vectors: int) -> int:
    """Columns of a full tile of a weight gradient with strips of so many vectors."""
    return tile_shapes(vectors)[0][0]


@jitable
def rows_at_once(rows, threads):
    """Packed rows that a worker of the input gradient takes at once: few enough for all threads."""
    share = (rows + threads - 1) // threads
    return max(1, min((share + 7) // 8 * 8, BLOCK_ROWS))


def make_input_gradient(lanes: int) -> Callable[..., None]:
    """Build ``dx += W^T d`` for the pre-activations of one phase."""
    fill_zero = make_sweeps(lanes).fill_zero

    def input_gradient(
        table,  # an InputProduct is there
        at,  # from this index
        multiply,  # address of the product with one gate
        d_in,  # (packed rows of these steps * d_row,) gradients of pre-activations
        d_row,
        unit,  # distance between pre-activations
        H,
        packed_weights,  # flat, packed by columns
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,  # of steps first_step to last_step - 1
        last_step,
        reverse,
        dx_out,  # (N, T, I), any strides; added to where valid
        at_once,  # packed rows taken at once, at most BLOCK_ROWS
        workspace,  # (workers * worker_size,)
        worker_size,
        worker,  # which share of the packed rows to do
        workers,
    ):
        mode = enter_ieee_mode()
        of = record(InputProduct, table, at)
        d, weights = pointer(d_in, 0), pointer(packed_weights, 0)
        sums = pointer(workspace, worker * worker_size)  # (at_once, of.row)
        I = dx_out.shape[2]
        begin, end = offset[first_step], offset[last_step]
        row_size = of.row
        of_rows = Sums(sums, row_size, 0)
        panel = pointer(weights, of.weights)
        for packed in range(begin + worker * at_once, end, workers * at_once):
            rows = min(at_once, end - packed)
            fill_zero(sums, 0, rows * row_size)
            call_at(
                multiply,
                of_rows,
                of_rows,
                Factors(pointer(d, (packed - begin) * d_row + of.pre), d_row, unit, 1),
                Panels(panel, of.terms * H * lanes, lanes),
                Prefetch(panel, panel, 0, 0),
                Extent(of.terms, H, rows, of.panels),
            )
            step = step_of(offset, packed)
            for i in range(rows):
                while packed + i >= offset[step + 1]:
                    step += 1
                row = packed + i - offset[step]
                t = time_index(step, lengths[row], reverse)
                accumulate_row(dx_out, order[row], t, 0, sums, i * row_size, I)
        restore_mode(mode)

    return input_gradient


def make_weight_gradient(lanes: int, itemsize: int) -> Callable[..., None]:
    """Build the gradient of one phase's weights of one kind.

    Packed rows are summed BLOCK_ROWS at a time, then these sums, then, of very many, sums of those:
    one sum over all rows rounded 10 to 20 times worse at 24 576 rows.
    """
    fill_zero, copy, add = make_sweeps(lanes)

    @jitable
    def write(sums, strip, width, gate_rows, unit, H, dweight_out):
        # sums: pointer to (K, width)
        K = dweight_out.shape[1]
        for j in range(0, min(width, len(gate_rows) * unit - strip * width), lanes):
            gate, unit_j = divmod(strip * width + j, unit)
            rows = min(lanes, H - unit_j)
            row = gate_rows[gate] * H + unit_j
            for k in range(0, K, lanes):
                columns = min(lanes, K - k)
                square = load_vectors(sums, j + k * width, width, lanes)
                store_square(dweight_out, row, k, rows, columns, transposed(square))

    @inlined
    def load(of, to, at, source, h0, layer, n, t, step, reverse, d_of_row, column, count):
        # to: pointer; d_of_row: pointer to the packed row of `d`
        if of.source == FROM_INPUT:
            load_row(source, n, t, column, to, at, count)
        elif of.source == FROM_HIDDEN:
            previous_h(source, h0, layer, n, step, t, reverse, column, to, at, count)
        else:
            whole = (count + lanes - 1) // lanes * lanes
            copy(to, at, d_of_row, of.operand + column, whole)

    def weight_gradient(
        table,  # a WeightProduct is there
        at,  # from this index
        source,  # (N, T, K), any strides: x, or y where rows are h before each step
        h0,  # (layers * directions, N, H), any strides: h before the first step
        layer,  # which layer and direction of `h0`
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,  # of steps first_step to last_step - 1
        last_step,
        reverse,
        d_in,  # (packed rows of these steps * d_row + `weight_gradient_overrun`,)
        d_row,
        unit,  # length of a pre-activation: H in whole vectors
        H,
        gate_rows,  # (gates,) which gate of the weights each pre-activation belongs to
        dweight_out,  # (gates * H, K); rows of these gates are written when the last steps are done
        sums_of_all,  # flat; (strips, K, width), the sums so far
        sums_start,  # from this index
        to_totals,  # how much further on their totals are, likewise, where there are any
        is_first,  # whether there are no sums yet
        is_last,  # whether these steps are the last ones
        workspace,  # (workers * worker_size,)
        worker_size,
        worker,  # which share of the strips to do
        workers,
    ):
        mode = enter_ieee_mode()
        of = record(WeightProduct, table, at)
        d, sums = pointer(d_in, 0), pointer(sums_of_all, sums_start)
        # (of.panels, ROWS_AT_ONCE, of.panel_row), then a strip of zeros
        work = pointer(workspace, worker * worker_size)
        K = dweight_out.shape[1]
        begin, end = offset[first_step], offset[last_step]
        width = of.vectors * lanes
        strips, strip_size = of.strips, of.strip_size
        zeros = of.panels * of.panel_size  # (width,)
        fill_zero(work, zeros, width)
        if of.source == FROM_ONE:
            work[0] = 1
        previous = 1 if reverse else -1
        shift = 0 if of.source == FROM_INPUT else previous
        is_gathered = of.source == FROM_INPUT or of.source == FROM_HIDDEN
        near_elements = NEAR_CACHE // itemsize
        # Sums that nothing is added to later use one place in turn, which stays in cache.
        alone = is_first and is_last and end - begin <= ROWS_AT_ONCE and of.panels == 1
        has_totals = needs_totals(offset[-1])
        if has_totals and is_first:
            for strip in range(worker, strips, workers):
                fill_zero(sums, to_totals + strip * strip_size, strip_size)
        for start in range(begin, end, ROWS_AT_ONCE):
            rows = min(ROWS_AT_ONCE, end - start)
            sum_is_full = has_totals and start // ROWS_OF_A_SUM != (start + rows) // ROWS_OF_A_SUM
            step = step_of(offset, start)
            # All rows of `work` are one where each is 1.
            for i in range(0 if of.source == FROM_ONE else rows):
                while start + i >= offset[step + 1]:
                    step += 1
                row = start + i - offset[step]
                t = time_index(step, lengths[row], reverse)
                end_row = offset[step + 1] - offset[step]
                if is_gathered:
                    prefetch_ahead(source, order, lengths, row, end_row, step, reverse, shift, 0, K)
                d_of_row = pointer(d, (start - begin + i) * d_row)
                for number in range(of.panels):
                    column = number * of.panel_columns
                    load(
                        of, work, number * of.panel_size + i * of.panel_row, source, h0, layer,
                        order[row], t, step, reverse, d_of_row, column,
                        min(of.panel_columns, K - column),
                    )  # fmt: skip
            for number in range(of.panels):
                column = number * of.panel_columns
                of_panel = number * of.panel_size
                is_last_panel = number == of.panels - 1
                count = min(of.panel_columns, K - column)
                # Where d is in no near cache, each tile prefetches a line of each row to come.
                tile, round_ = 0, 0
                if count >= COLUMNS_WORTH_PREFETCHING and (end - begin) * d_row > near_elements:
                    tile, round_ = (width * of.full_columns + count - 1) // count, d_row
                for strip in range(worker, strips, workers):
                    so_far = (worker if alone else strip) * strip_size
                    for block in range(0, rows, BLOCK_ROWS):
                        block_rows = min(BLOCK_ROWS, rows - block)
                        before = Sums(pointer(sums, so_far + column * width), width, lanes)
                        if is_first and start + block == begin:
                            before = Sums(pointer(work, zeros), 0, lanes)
                        of_row = (start - begin + block) * d_row + of.pre + strip * width
                        next_strip, next_block = strip, block + BLOCK_ROWS
                        if next_block >= rows:
                            next_strip, next_block = strip + workers, 0
                        next_row = (
                            (start - begin + next_block) * d_row + of.pre + next_strip * width
                        )
                        these = pointer(d, of_row)
                        call_at(
                            of.product,
                            Sums(pointer(sums, so_far + column * width), width, lanes),
                            before,
                            Factors(
                                pointer(work, of_panel + block * of.panel_row), 1, 0, of.panel_row
                            ),
                            Panels(these, 0, d_row),
                            Prefetch(these, pointer(d, next_row), tile, round_),
                            Extent(1, block_rows, count, 1),
                        )  # fmt: skip
                    if is_last_panel and sum_is_full:
                        add(sums, so_far + to_totals, sums, so_far, strip_size)
                        fill_zero(sums, so_far, strip_size)
                    if is_last and start + rows == end and is_last_panel:
                        if has_totals:
                            add(sums, so_far, sums, so_far + to_totals, strip_size)
                        write(pointer(sums, so_far), strip, width, gate_rows, unit, H, dweight_out)
        if begin == end:  # no sample takes these steps, the first ones to come
            for strip in range(worker, strips, workers):
                so_far = strip * strip_size
                fill_zero(sums, so_far, strip_size)
                if is_last:
                    write(pointer(sums, so_far), strip, width, gate_rows, unit, H, dweight_out)
        restore_mode(mode)

    return weight_gradient


@jitable
def needs_totals(rows):
    """Whether the sums of so many packed rows are added to totals."""
    return rows > ROWS_OF_A_SUM
