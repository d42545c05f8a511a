"""Gradients of x and of the weights, as products over the packed rows of some steps.

Both read the gradients `d` of the pre-activations that `backward` left. Neither depends on a cell's
equations: blocks of `d` are named by index, and only the recurrent operand, where it is not h
itself, is the cell's.
"""

from collections.abc import Callable
from typing import NamedTuple

from numba.extending import register_jitable

from ..cells import Operand
from .float_mode import enter_ieee_mode, restore_mode
from .plan import padded
from .product import product, tile_shapes
from .rows import accumulate_row, fetch_ahead, load_row, previous_h, step_of, time_index
from .simd import NEAR_CACHE, add_group, inlined, load_group, make_sweeps, store_group
from .squares import store_square, transposed

# Most units whose sums a weight-gradient tile holds, in vectors; see `group_vectors`.
_MOST_VECTORS = 4
# Packed rows whose products one accumulator sums: the gradients of a group, 128 by 48 or 64 floats,
# are read for each tile from L1 or nearby. An input gradient takes as many at once.
_BLOCK_ROWS = 128
# Packed rows that are added to a group's sums before the next group's: the sums of all groups are
# too many for a cache. Four blocks instead of two make weight gradients of 512 units 3 % faster.
_ROWS_AT_ONCE = 4 * _BLOCK_ROWS
# Sums of more packed rows than this are added to totals, and begin at zero again, each time that so
# many have been added. In one sum, 70 million equal rows were off by 0.3 %.
_ROWS_OF_A_SUM = 128 * _ROWS_AT_ONCE
# Most columns of x or of the operand that all groups take before the next columns: with these rows,
# 1 MB of float32, which each group reads again. All 1024 at once took 15 % more time. They lie in
# strips of their own: as parts of rows of 1024 they took 6 % more.
_COLUMNS_AT_ONCE = 512
# Columns from which on it pays to ask for the rows of d that come next: backward takes 1 to 4 %
# less time for 512 and 1024 units, but took 1 to 2 % more for 64.
_COLUMNS_WORTH_ASKING = 128


def group_vectors(blocks: int) -> int:
    """Vectors of units whose sums a weight-gradient tile holds.

    Three by eight columns fill the registers, as do four by six: what leaves none over with three
    or four blocks. Two groups of an LSTM's eight vectors, not three, took 10 % off training at
    (50, 32, 32, 32).
    """
    return 3 if blocks % 3 == 0 else _MOST_VECTORS


class _Strips(NamedTuple):
    """How a weight gradient's columns are taken: in strips of (rows, row)."""

    total: int
    columns: int  # of each; the last one may have fewer
    row: int  # elements of a row; at least one more than columns, for those of the bias
    size: int  # elements of a strip


@register_jitable
def _strips_of(columns, lanes):
    """As few strips as may be, of whole vectors, as wide as each other."""
    total = (columns + _COLUMNS_AT_ONCE - 1) // _COLUMNS_AT_ONCE
    width = padded((columns + total - 1) // total, lanes)
    return _Strips(total, width, width + lanes, _ROWS_AT_ONCE * (width + lanes))


@register_jitable
def rows_at_once(rows, threads):
    """Packed rows that a worker of the input gradient takes at once: few enough for all threads."""
    share = (rows + threads - 1) // threads
    return max(1, min((share + 7) // 8 * 8, _BLOCK_ROWS))


def make_input_gradient(lanes: int) -> Callable[..., None]:
    """Build ``dx += W^T d`` for the pre-activations of one phase."""
    fill_zero, _ = make_sweeps(lanes)

    def input_gradient(
        d,  # (packed rows of these steps * d_row,) gradients of pre-activations
        d_row,
        first,  # index, within a row, of the first pre-activation that x feeds
        blocks,  # how many x feeds
        unit,  # distance between them
        H,
        weights,  # flat; (panels, blocks, H, lanes), where a panel is a vector of x's features
        weights_start,  # from this index
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,  # of steps first_step to last_step - 1
        last_step,
        reverse,
        dx_out,  # (N, T, I), any strides; added to where valid
        at_once,  # packed rows taken at once, at most _BLOCK_ROWS
        work,  # (workers * worker_size,)
        worker_size,
        worker,  # which share of the packed rows to do
        workers,
    ):
        mode = enter_ieee_mode()
        I = dx_out.shape[2]
        begin, end = offset[first_step], offset[last_step]
        panels = (I + lanes - 1) // lanes
        row_size = padded(I, lanes) + lanes
        sums = worker * worker_size
        for packed in range(begin + worker * at_once, end, workers * at_once):
            rows = min(at_once, end - packed)
            fill_zero(work, sums, rows * row_size)
            product(
                work, sums, row_size, 0,
                work, sums, row_size, 0,
                d, (packed - begin) * d_row + first, d_row, unit, 1,
                weights, weights_start, blocks * H * lanes, lanes, weights_start, (), blocks, H,
                rows, panels, 1,
            )  # fmt: skip
            step = step_of(offset, packed)
            for i in range(rows):
                while packed + i >= offset[step + 1]:
                    step += 1
                row = packed + i - offset[step]
                t = time_index(step, lengths[row], reverse)
                accumulate_row(dx_out, order[row], t, 0, work, sums + i * row_size, I)
        restore_mode(mode)

    return input_gradient


def input_gradient_worker_size(input_size: int, lanes: int) -> int:
    """Elements of workspace that a worker of the input gradient needs."""
    return _BLOCK_ROWS * (padded(input_size, lanes) + lanes)


def _load_input(
    row_out, at, source, h0, layer, n, t, step, reverse, saved, value, unit, column, count
):  # fmt: skip
    """Part of a row of x."""
    load_row(source, n, t, column, row_out, at, count)


def _make_load_operand(operand: Operand, first_value: int, lanes: int) -> Callable[..., None]:
    """Part of a row of a phase's recurrent operand, made from y and the saved values."""
    operand_value = register_jitable(operand.value)

    def load_operand(
        row_out, at, source, h0, layer, n, t, step, reverse, saved, value, unit, column, count
    ):  # fmt: skip
        previous_h(source, h0, layer, n, step, t, reverse, column, row_out, at, count)
        for j in range(0, count, lanes):
            (h,) = load_group(row_out, at + j, 0, 1)
            values = load_group(saved, value + column + j, unit, first_value)
            store_group(row_out, at + j, 0, (operand_value(h, values),))

    return load_operand


def make_weight_gradient(
    operand: Operand | None, first_value: int, vectors: int, lanes: int
) -> Callable[..., None]:
    """Build the gradient of one phase's input weights (no operand) or recurrent weights.

    Packed rows are summed in blocks, then the blocks, then, of very many, those sums: one sum over
    all rows rounded 10 to 20 times worse at 24 576 rows. Bias gradients are those of one more
    column, which is 1 in each row.
    """
    load = inlined(
        _load_input if operand is None else _make_load_operand(operand, first_value, lanes)
    )
    of_x = operand is None
    width = vectors * lanes
    full_columns = tile_shapes(vectors)[0][0]
    fill_zero, _ = make_sweeps(lanes)

    @register_jitable
    def add(sums, to, start, count):
        # sums flat; whole vectors of it, from two indices
        for at in range(0, count, lanes):
            total = add_group(load_group(sums, to + at, 0, 1), load_group(sums, start + at, 0, 1))
            store_group(sums, to + at, 0, total)

    @register_jitable
    def write(sums, start, group, gate_rows, unit, H, dweight_out, dbias_out):
        # sums flat; (K + 1, width) from `start`
        K = dweight_out.shape[1]
        for j in range(0, min(width, len(gate_rows) * unit - group * width), lanes):
            block, unit_j = divmod(group * width + j, unit)
            rows = min(lanes, H - unit_j)
            row = gate_rows[block] * H + unit_j
            for k in range(0, K, lanes):
                columns = min(lanes, K - k)
                square = load_group(sums, start + j + k * width, width, lanes)
                store_square(dweight_out, row, k, rows, columns, transposed(square))
            if len(dbias_out) > 0:
                for i in range(rows):
                    dbias_out[row + i] = sums[start + j + K * width + i]

    def weight_gradient(
        source,  # (N, T, K), any strides: x, or y where the operand is made from h
        h0,  # (layers * directions, N, H), any strides: h before the first step
        layer,  # which layer and direction of `h0`
        order,  # (N,) sample of each sorted row
        lengths,  # (N,) steps of each sorted row
        offset,  # (T + 1,) packed rows before each step
        first_step,  # of steps first_step to last_step - 1
        last_step,
        reverse,
        saved,  # (packed rows * value_row,)
        value_row,
        d,  # (packed rows of these steps * d_row + `weight_gradient_overrun`,)
        d_row,
        first,  # index, within a row of d, of the first block
        unit,  # length of a block: H in whole vectors
        H,
        gate_rows,  # (blocks,) which gate of the weights each block belongs to
        dweight_out,  # (gates * H, K); rows of these gates are written when the last steps are done
        dbias_out,  # (gates * H,), or empty; likewise
        sums,  # flat; (groups * group size,), the sums so far
        sums_start,  # from this index
        to_totals,  # how much further on their totals are, likewise, where there are any
        is_first,  # whether there are none yet
        is_last,  # whether these steps are the last ones
        work,  # (workers * worker_size,)
        worker_size,
        worker,  # which share of the groups of units to do
        workers,
    ):
        mode = enter_ieee_mode()
        K = dweight_out.shape[1]
        begin, end = offset[first_step], offset[last_step]
        length = len(gate_rows) * unit
        groups = (length + width - 1) // width
        group_size = padded(K + 1, lanes) * width
        strips = _strips_of(K, lanes)
        columns = worker * worker_size  # (strips.total, _ROWS_AT_ONCE, strips.row)
        zeros = columns + strips.total * strips.size  # (width,)
        fill_zero(work, zeros, width)
        previous = 1 if reverse else -1
        shift = 0 if of_x else previous
        near_elements = NEAR_CACHE // d.itemsize
        has_bias = len(dbias_out) > 0
        # The column of the bias comes after the last strip's.
        ones = columns + (strips.total - 1) * (strips.size - strips.columns) + K
        # Sums that nobody adds to later take turns in one place, which stays in cache.
        alone = is_first and is_last and end - begin <= _ROWS_AT_ONCE and strips.total == 1
        has_totals = needs_totals(offset[-1])
        if has_totals and is_first:
            for group in range(worker, groups, workers):
                fill_zero(sums, sums_start + to_totals + group * group_size, group_size)
        for start in range(begin, end, _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, end - start)
            sum_is_full = has_totals and start // _ROWS_OF_A_SUM != (start + rows) // _ROWS_OF_A_SUM
            step = step_of(offset, start)
            for i in range(rows):
                while start + i >= offset[step + 1]:
                    step += 1
                row = start + i - offset[step]
                t = time_index(step, lengths[row], reverse)
                end_row = offset[step + 1] - offset[step]
                fetch_ahead(source, order, lengths, row, end_row, step, reverse, shift, 0, K)
                for number in range(strips.total):
                    column = number * strips.columns
                    load(
                        work, columns + number * strips.size + i * strips.row, source, h0, layer,
                        order[row], t, step, reverse, saved, (start + i) * value_row, unit,
                        column, min(strips.columns, K - column),
                    )  # fmt: skip
                work[ones + i * strips.row] = 1  # after `load`, which writes whole vectors
            for number in range(strips.total):
                column = number * strips.columns
                of_strip = columns + number * strips.size
                is_last_strip = number == strips.total - 1
                count = min(strips.columns, K - column) + (1 if is_last_strip and has_bias else 0)
                # Where d is in no near cache, each tile asks for a line of each row to come.
                n_tile, n_round = 0, 0
                if count >= _COLUMNS_WORTH_ASKING and (end - begin) * d_row > near_elements:
                    n_tile, n_round = (width * full_columns + count - 1) // count, d_row
                for group in range(worker, groups, workers):
                    so_far = sums_start + (worker if alone else group) * group_size
                    for block in range(0, rows, _BLOCK_ROWS):
                        block_rows = min(_BLOCK_ROWS, rows - block)
                        before, at, stride = sums, so_far, width
                        if is_first and start + block == begin:
                            before, at, stride = work, zeros, 0
                        of_row = (start - begin + block) * d_row + first + group * width
                        next_group, next_block = group, block + _BLOCK_ROWS
                        if next_block >= rows:
                            next_group, next_block = group + workers, 0
                        next_row = (start - begin + next_block) * d_row + first + next_group * width
                        product(
                            sums, so_far + column * width, width, lanes,
                            before, at + column * stride, stride, lanes,
                            work, of_strip + block * strips.row, 1, 0, strips.row,
                            d, of_row, 0, d_row, of_row, (d, next_row, n_tile, n_round), 1,
                            block_rows, count, 1, vectors,
                        )  # fmt: skip
                    if is_last_strip and sum_is_full:
                        add(sums, so_far + to_totals, so_far, group_size)
                        fill_zero(sums, so_far, group_size)
                    if is_last and start + rows == end and is_last_strip:
                        if has_totals:
                            add(sums, so_far, so_far + to_totals, group_size)
                        write(sums, so_far, group, gate_rows, unit, H, dweight_out, dbias_out)
        if begin == end:  # no sample takes these steps, the first ones to come
            for group in range(worker, groups, workers):
                so_far = sums_start + group * group_size
                fill_zero(sums, so_far, group_size)
                if is_last:
                    write(sums, so_far, group, gate_rows, unit, H, dweight_out, dbias_out)
        restore_mode(mode)

    return weight_gradient


def weight_gradient_worker_size(columns: int, lanes: int) -> int:
    """Elements of workspace that a worker of a weight gradient needs."""
    strips = _strips_of(columns, lanes)
    return strips.total * strips.size + _MOST_VECTORS * lanes


def weight_gradient_overrun(lanes: int) -> int:
    """Elements after the last row of `d` that a weight gradient's last group may read."""
    return _MOST_VECTORS * lanes


@register_jitable
def needs_totals(rows):
    """Whether the sums of so many packed rows are added to totals."""
    return rows > _ROWS_OF_A_SUM


def weight_gradient_sums(blocks: int, unit: int, columns: int, lanes: int) -> tuple[int, int]:
    """Groups of a weight gradient, and elements of its sums."""
    width = group_vectors(blocks) * lanes
    groups = -(-blocks * unit // width)
    return groups, groups * padded(columns + 1, lanes) * width
