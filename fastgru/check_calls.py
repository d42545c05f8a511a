"""What refuses the arguments of `forward`, `forward_train`, `backward` and `step`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .check import (
    cell_named,
    check_dtype,
    check_flag,
    check_shape,
    common_library,
    whole_number,
)
from .params import Params, first_array


def check_sequence(params: Params, x: Any, time_major: Any) -> None:
    """Refuse an x of `forward`, or an order of its axes, that does not fit."""
    _check_same_kind("x", x, params)
    if x.ndim not in (2, 3):
        raise ValueError(
            f"x: expected shape (N, T, {params.input_size}) or (T, {params.input_size}), "
            f"got {x.shape}"
        )
    check_flag("time_major", time_major)
    if x.shape[-1] != params.input_size:
        raise ValueError(
            f"x: expected {params.input_size} features on the last axis (params.input_size), "
            f"got shape {x.shape}"
        )


def check_one_step(params: Params, x_t: Any) -> None:
    """Refuse an x_t of `step` that does not fit, and params that cannot take steps."""
    check_one_direction(params)
    _check_same_kind("x_t", x_t, params)
    if x_t.ndim not in (1, 2) or x_t.shape[-1] != params.input_size:
        I = params.input_size
        raise ValueError(f"x_t: expected shape (N, {I}) or ({I},), got {x_t.shape}")


def check_one_direction(params: Params) -> None:
    """Refuse params that read sequences from their ends, too."""
    if params.bidirectional:
        raise ValueError("params: expected one direction, got bidirectional params")


def check_pushed(params: Params, x: Any, batch_size: int | None) -> None:
    """Refuse an x that is neither a step nor a chunk of a stream with so many samples."""
    _check_same_kind("x", x, params)
    I = params.input_size
    samples = () if batch_size is None else (batch_size,)
    shape, step = tuple(x.shape), (*samples, I)
    if shape != step and (len(shape) != len(step) + 1 or (*shape[:-2], shape[-1]) != step):
        chunk = f"({batch_size}, T, {I})" if samples else f"(T, {I})"
        raise ValueError(
            f"x: expected shape {step} for a step or {chunk} for a chunk, as batch_size is "
            f"{batch_size}, got {shape}; Stream(params, batch_size=N) takes N samples, "
            "batch_size=None one sequence"
        )


def check_out(
    params: Params, out: Any, shape: tuple[int, ...], read: Mapping[str, Any], xp: Any
) -> None:
    """Refuse an array that outputs of this shape cannot be written into while others are read."""
    _check_same_kind("out", out, params)
    check_shape("out", out, shape, "(that of the outputs)")
    if not is_plain(out):
        raise ValueError(
            "out: expected a C-contiguous array that is aligned and writeable, got strides "
            f"{out.strides} and flags\n{out.flags}\nnumpy.empty(shape, dtype) makes one"
        )
    for name, array in read.items():
        if array is not None and xp.shares_memory(out, array):
            raise ValueError(
                f"out: expected memory apart from that of {name}, which is read while outputs are "
                "written; got an array that shares memory with it: pass another one"
            )


def is_plain(array: Any) -> bool:
    """Whether an array is C-contiguous, and can be written where that is not said of all."""
    flags = array.flags
    return bool(flags.carray if hasattr(flags, "carray") else flags.c_contiguous)  # NumPy, CuPy


def check_rows(rows: Any, batch_size: int | None) -> list[int]:
    """`rows` as a list, if they are numbers of samples of a stream."""
    if batch_size is None:
        raise ValueError(
            f"rows: expected None for a stream of one sequence (batch_size=None), got {rows!r}"
        )
    kind = type(rows)
    if kind in (np.ndarray, np.memmap) and rows.dtype == bool:
        check_shape("rows", rows, (batch_size,), "(a mask of the samples)")
        rows = np.flatnonzero(rows)
    if kind in (np.ndarray, np.memmap):
        rows = rows.tolist()
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes | bytearray):
        rows = [rows]
    numbers = [whole_number("rows", row, "whole numbers, or a mask") for row in rows]
    outside = [row for row in numbers if not 0 <= row < batch_size]
    if outside:
        raise ValueError(f"rows: expected numbers from 0 to {batch_size - 1}, got {outside[0]}")
    return numbers


def _check_same_kind(name: str, array: Any, params: Params) -> None:
    """Refuse what is no array of the params' library, and another dtype than theirs."""
    common_library({name: array, "params": first_array(params)})
    if array.dtype != params.dtype:
        check_dtype(name, array.dtype)
        if params.dtype == np.float32:
            other = 'give init_params dtype="float64"'
        else:  # w - rate * g does that to params where the rate is a numpy.float64
            other = 'make params float32 by params.map(lambda w: w.astype("float32"))'
        raise TypeError(
            f"{name}: expected dtype {params.dtype}, as params, got {array.dtype}: nothing is "
            f"promoted; convert it by .astype(params.dtype), or {other}"
        )


def check_precision(precision: Any, known: Sequence[str | None], params: Params) -> None:
    """Refuse a precision that the kernels do not have for params of this library and dtype."""
    if precision not in known:
        raise ValueError(
            f"precision: expected {' or '.join(map(repr, known))} for {params.library} arrays of "
            f"{params.dtype}, got {precision!r}"
        )


def check_lengths(lengths: Any, batched: bool, N: int, T: int) -> Any:
    """`lengths` as an array, if they are N whole numbers from 0 to T, and x has samples."""
    if not batched:
        raise ValueError(f"lengths: expected None for x without samples, got {lengths!r}")
    if hasattr(lengths, "to_numpy"):  # a Series of pandas or polars
        lengths = lengths.to_numpy()
    if type(lengths) in (np.ndarray, np.memmap):
        if lengths.dtype.kind not in "iu":
            raise TypeError(_refused_lengths(lengths, N))
        check_shape("lengths", lengths, (N,), "(one for each sample)")
        numbers, values = lengths, lengths.tolist()  # whose extremes are found sooner
    else:
        if not isinstance(lengths, Sequence) or isinstance(lengths, str | bytes | bytearray):
            kind = type(lengths)  # CuPy's arrays look like NumPy's
            refusal = _refused_lengths(lengths, N)
            raise TypeError(f"{refusal} ({kind.__module__}.{kind.__qualname__})")
        values = [whole_number(f"lengths[{i}]", length) for i, length in enumerate(lengths)]
        if len(values) != N:
            raise ValueError(_refused_lengths(lengths, N))
        numbers = values
    if values and not 0 <= min(values) <= max(values) <= T:
        raise ValueError(
            f"lengths: expected values from 0 to {T}, got {min(values)} to {max(values)}"
        )
    return np.array(numbers, np.intp)  # of 64, an array in 0.5 µs, a list in 3


def _refused_lengths(lengths: Any, N: int) -> str:
    """The message; made only when needed, as showing an array takes longer than a small call."""
    return f"lengths: expected a sequence of {N} whole numbers, got {lengths!r}"


def check_state(name: str, state: Any, params: Params, N: int, batched: bool) -> None:
    """Refuse a state that does not fit."""
    members = _state_members(name, state, params)
    if state is not None and any(member is None for member in members):
        raise TypeError(f"{name}: expected {len(members)} arrays, got None among them")
    _check_members(name, members, params, N, batched)


def check_gradients(
    dy: Any, dh_n: Any, params: Params, y: tuple[int, ...], N: int, batched: bool
) -> None:
    """Refuse gradients of a y of this shape and of h_n that do not fit."""
    members = _state_members("dh_n", dh_n, params)
    if dy is None and all(member is None for member in members):
        raise ValueError("dy, dh_n: expected at least one gradient, got None for both")
    if dy is not None:
        _check_same_kind("dy", dy, params)
        check_shape("dy", dy, y, "(that of y)")
    _check_members("dh_n", members, params, N, batched)


def _state_members(name: str, state: Any, params: Params) -> tuple[Any, ...]:
    """The members of a state argument; None for each if it is None."""
    names = cell_named(params.cell).states
    if state is None:
        return (None,) * len(names)
    if len(names) == 1:
        return (state,)
    if not isinstance(state, tuple | list) or len(state) != len(names):
        raise TypeError(
            f"{name}: expected {len(names)} arrays ({', '.join(names)}) for cell "
            f"{params.cell!r}, got {type(state).__qualname__}"
            + (f" of {len(state)}" if isinstance(state, tuple | list) else "")
            + _unstacking(name, state, len(names))
        )
    return tuple(state)


def _unstacking(name: str, state: Any, members: int) -> str:
    """How to make a tuple of members that are stacked in one array."""
    shape = getattr(state, "shape", ())
    return f"; tuple({name}) makes a tuple of them" if shape[:1] == (members,) else ""


def _check_members(
    name: str, members: tuple[Any, ...], params: Params, N: int, batched: bool
) -> None:
    """Refuse a member of a state, if it is not None, that does not fit."""
    rows = params.num_layers * params.num_directions
    shape = (rows, N, params.hidden_size) if batched else (rows, params.hidden_size)
    meaning = "(layers * directions, N, H)" if batched else "(layers * directions, H)"
    for label, member in zip(cell_named(params.cell).states, members, strict=True):
        label = name if len(members) == 1 else f"{name} ({label})"
        if member is not None:
            _check_same_kind(label, member, params)
            check_shape(label, member, shape, meaning)


def check_attention(attention: Any, params: Params, shape: tuple[int, ...], device_of: Any) -> None:
    """Refuse numbers of each step that do not fit, or that are missing, or not taken."""
    taken = cell_named(params.cell).step_inputs
    if attention is None:
        if taken:
            raise ValueError(
                f"attention: expected an array of shape {shape} for cell {params.cell!r}, got None"
            )
        return
    if not taken:
        raise ValueError(f"attention: expected None for cell {params.cell!r}, which takes none")
    _check_same_kind("attention", attention, params)
    check_shape("attention", attention, shape, "(that of x without features)")
    if device_of is not None:
        check_devices(device_of(first_array(params)), device_of, {"attention": attention})


def check_batch(params: Params, valid_steps: int) -> None:
    """Refuse a batch of one valid step where a batch norm takes its statistics."""
    if valid_steps == 1 and cell_named(params.cell).norm is not None:
        raise ValueError(
            f"x: expected at least two valid steps to train cell {params.cell!r}, whose batch norm "
            "takes its statistics from them; got one"
        )


def check_devices(home: Any, device_of: Callable[[Any], Any], arguments: Mapping[str, Any]) -> None:
    """Refuse arrays, and members of states, that are not on the device of the params."""
    for name, value in arguments.items():
        for array in value if isinstance(value, tuple | list) else (value,):
            if array is not None and device_of(array) != home:
                raise ValueError(
                    f"{name}: expected an array on {home!r}, as params, "
                    f"got one on {device_of(array)!r}"
                )
