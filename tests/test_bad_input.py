"""Wrong arguments give a TypeError or ValueError that names the argument, the wanted and the got.

First a table of every mistake we could think of, then random mixtures of valid arguments and junk.
The table is long because it is a table; one place shows what is refused, and how.
"""

import operator
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from problems import BARE_CELLS, DTYPES, ROW_CELLS, SHIPPED_CELLS, as_members, as_state, flatten

import fastgru
from fastgru import Packed, Params, Weights
from fastgru.kernels.cells import CELLS

N, T, I, H = 2, 5, 3, 4
GRU = fastgru.init_params(I, H, rng=0)
LSTM = fastgru.init_params(I, H, rng=0, cell="lstm")
DEEP = fastgru.init_params(I, H, rng=0, num_layers=2, bidirectional=True)
NAMED = GRU.to_dict()
WEIGHTS = GRU.layers[0][0]
X = np.ones((N, T, I), np.float32)
X_T = np.ones((N, I), np.float32)
STATE = np.ones((1, N, H), np.float32)
Y = np.ones((N, T, H), np.float32)


class FakeCupy:
    """What the library sees of a CuPy array, under its name; there need not be a GPU."""

    def __init__(self, array: Any) -> None:
        self.dtype, self.shape, self.ndim = array.dtype, array.shape, array.ndim

    def copy(self) -> Any:
        return self

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __repr__(self) -> str:
        return "array([1, 2])"


FakeCupy.__name__ = FakeCupy.__qualname__ = "ndarray"
FakeCupy.__module__ = "cupy._core.core"
ON_GPU = GRU.map(FakeCupy)


class Tensor:
    """An array of a library that is not known here."""

    dtype, shape, ndim = np.dtype("float32"), (N, T, I), 3


Tensor.__module__ = "torch"


class Subclass(np.ndarray):
    """Refused for what it might do, though it does nothing."""


# --- the table ------------------------------------------------------------------------------------

Errors = type[Exception] | tuple[type[Exception], ...]


class Case(NamedTuple):
    id: str
    error: Errors
    message: str  # regular expression
    call: Callable[[], Any]


CASES: list[Case] = []


def add(
    id: str, error: Errors, message: str, function: Callable[..., Any], *args: Any, **options: Any
) -> None:
    CASES.append(Case(id, error, message, partial(function, *args, **options)))


@cache
def saved(params: Params, layout: str) -> Any:
    """Of N samples and T steps in this layout: "batched", "time_major" or "unbatched"."""
    time_major = layout == "time_major"
    x = X[0] if layout == "unbatched" else X.transpose(1, 0, 2) if time_major else X
    return fastgru.forward_train(x, params, time_major=time_major)[2]


def backward(
    dy: Any = None, dh_n: Any = None, params: Params = GRU, layout: str = "batched"
) -> Any:
    """Nothing is compiled while tests are collected."""
    return fastgru.backward(saved(params, layout), dy, dh_n)


def with_weight(name: str, value: Any) -> Params:
    return Params.from_dict(NAMED | {name: value})


def with_weights(**changes: Any) -> Params:
    return Params("gru", [[Weights(**(dict(WEIGHTS.items()) | changes))]])


class Argument(NamedTuple):
    """One that takes an array."""

    id: str
    name: str  # in messages, as a regular expression
    valid: Any
    call: Callable[[Any], Any]
    partner: str = "params"  # what another library's array is said to be mixed with


ARGUMENTS = [
    Argument("forward x", "x", X, lambda a: fastgru.forward(a, GRU)),
    Argument("forward_train x", "x", X, lambda a: fastgru.forward_train(a, GRU)),
    Argument("step x_t", "x_t", X_T, lambda a: fastgru.step(a, GRU)),
    Argument("forward h0", "h0", STATE, lambda a: fastgru.forward(X, GRU, a)),
    Argument("forward_train h0", "h0", STATE, lambda a: fastgru.forward_train(X, GRU, a)),
    Argument("LSTM's h0[0]", r"h0 \(h\)", STATE, lambda a: fastgru.forward(X, LSTM, (a, STATE))),
    Argument("LSTM's h0[1]", r"h0 \(c\)", STATE, lambda a: fastgru.forward(X, LSTM, (STATE, a))),
    Argument("step h", "h", STATE, lambda a: fastgru.step(X_T, GRU, a)),
    Argument("LSTM's h[1]", r"h \(c\)", STATE, lambda a: fastgru.step(X_T, LSTM, (STATE, a))),
    Argument("backward dy", "dy", Y, lambda a: backward(a)),
    Argument("backward dh_n", "dh_n", STATE, lambda a: backward(None, a)),
    Argument("LSTM's dh_n[1]", r"dh_n \(c\)", STATE, lambda a: backward(None, (None, a), LSTM)),
    Argument(
        "from_dict",
        "bias_hh_l0",
        NAMED["bias_hh_l0"],
        lambda a: with_weight("bias_hh_l0", a),
        "weight_ih_l0|weight_hh_l0|bias_ih_l0",
    ),
    Argument(
        "Weights",
        "weight_hh(_l0)?",  # the type is refused at once, the rest in Params
        NAMED["weight_hh_l0"],
        lambda a: with_weights(weight_hh=a),
        "weight_ih_l0|bias_ih_l0|bias_hh_l0",
    ),
]

# No arrays of a known library: made from a valid one, and how a message calls them.
NO_ARRAYS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "list": (lambda a: a.tolist(), "list"),
    "tuple of arrays": (lambda a: (a,), "tuple"),
    "number": (lambda a: 1.5, "float"),
    "NumPy number": (lambda a: np.float32(1), r"numpy\.float32"),
    "text": (lambda a: "abc", "str"),
    "masked array": (np.ma.array, "MaskedArray"),
    "matrix": (lambda a: a.reshape(len(a), -1).view(np.matrix), r"numpy\.matrix"),
    "subclass": (lambda a: a.view(Subclass), "Subclass"),
    "unknown library": (lambda a: Tensor(), r"torch\.Tensor"),
}

# Other dtypes than the float32 of the params, and how a message calls them.
WRONG_DTYPES = {
    "float16": "float16",
    "float64": "float64",
    "longdouble": np.dtype("longdouble").name,
    "int32": "int32",
    "bool": "bool",
    "complex64": "complex64",
    "object": "(object|'O')",
    "big-endian": "[<>]f4",
}


def as_dtype(a: Any, dtype: str) -> Any:
    return a.astype(a.dtype.newbyteorder() if dtype == "big-endian" else dtype)


for argument in ARGUMENTS:
    name = argument.name
    for kind, (make, got) in NO_ARRAYS.items():
        message = rf"^{name}: expected a numpy or cupy ndarray .*, got \S*{got}(; .*)?$"
        add(f"{argument.id}: {kind}", TypeError, message, argument.call, make(argument.valid))
    for kind, got in WRONG_DTYPES.items():
        message = rf"^{name}: expected dtype float32.*, got (dtype\()?'?{got}"
        value = as_dtype(argument.valid, kind)
        add(f"{argument.id}: {kind}", TypeError, message, argument.call, value)
    message = (
        rf"expected arrays of one library, got (?=.*cupy \({name}\)).*numpy \({argument.partner}"
    )
    add(f"{argument.id}: cupy", TypeError, message, argument.call, FakeCupy(argument.valid))

# x and x_t

for run in (fastgru.forward, fastgru.forward_train):
    label = run.__name__
    add(f"{label} x: None", TypeError, r"^x: expected .*, got \S*NoneType", run, None, GRU)
    for shape in [(), (3,), (1, 2, 5, 3)]:
        message = rf"^x: expected shape \(N, T, 3\) or \(T, 3\), got {re.escape(str(shape))}"
        add(f"{label} x: {shape}", ValueError, message, run, np.ones(shape, "f4"), GRU)
    for shape in [(2, 5, 2), (2, 5, 4), (5, 0), (0, 0, 0)]:
        message = rf"^x: expected 3 features .*, got shape {re.escape(str(shape))}"
        add(f"{label} x: {shape}", ValueError, message, run, np.ones(shape, "f4"), GRU)
add("step x_t: None", TypeError, r"^x_t: expected .*, got \S*NoneType", fastgru.step, None, GRU)
for shape in [(), (4,), (2, 2), (2, 1, 3), (2, 0)]:
    message = rf"^x_t: expected shape \(N, 3\) or \(3,\), got {re.escape(str(shape))}"
    add(f"step x_t: {shape}", ValueError, message, fastgru.step, np.ones(shape, "f4"), GRU)

# States and gradients

for argument in ARGUMENTS:
    if argument.valid is not STATE:
        continue
    for shape in [(), (4,), (2, 4), (1, 2, 3), (1, 3, 4), (2, 2, 4), (1, 1, 4), (1, 1, 2, 4)]:
        message = rf"^{argument.name}: expected shape \(1, 2, 4\) .*, got {re.escape(str(shape))}"
        value = np.ones(shape, "f4")
        add(f"{argument.id}: {shape}", ValueError, message, argument.call, value)
message = r"^h0: expected shape \(4, 2, 4\) .*, got \(1, 2, 4\)"
add("h0 of one layer for two", ValueError, message, fastgru.forward, X, DEEP, STATE)
message = r"^h0: expected shape \(1, 4\) .*, got \(1, 2, 4\)"
add("h0 with samples, x without", ValueError, message, fastgru.forward, X[0], GRU, STATE)
message = r"^dh_n: expected shape \(1, 4\) .*, got \(1, 2, 4\)"
add("dh_n with samples, x without", ValueError, message, backward, None, STATE, layout="unbatched")

STATE_CALLS: dict[str, Callable[[Any], Any]] = {
    "h0": lambda state: fastgru.forward(X, LSTM, state),
    "h": lambda state: fastgru.step(X_T, LSTM, state),
    "dh_n": lambda state: backward(None, state, LSTM),
}
for name, call in STATE_CALLS.items():
    for value, got in [
        (STATE, "ndarray"),
        ((), "tuple of 0"),
        ((STATE,), "tuple of 1"),
        ([STATE, STATE, STATE], "list of 3"),
        ("hc", "str"),
        ({"h": STATE, "c": STATE}, "dict"),
    ]:
        message = rf"^{name}: expected 2 arrays \(h, c\) .*, got {got}"
        add(f"LSTM's {name}: {got}", TypeError, message, call, value)
    if name == "dh_n":
        continue
    for label, value in [("h", (None, STATE)), ("c", [STATE, None]), ("both", (None, None))]:
        message = rf"^{name}: expected 2 arrays, got None among them"
        add(f"LSTM's {name}: {label} missing", TypeError, message, call, value)

message = "^dy, dh_n: expected at least one gradient, got None for both"
add("no gradient", ValueError, message, backward)
add("no member of a gradient", ValueError, message, backward, None, (None, None), LSTM)
for layout, want, shapes in [
    ("batched", (2, 5, 4), [(), (5, 4), (2, 5, 3), (5, 2, 4), (2, 4, 4), (0, 5, 4), (1, 2, 5, 4)]),
    ("time_major", (5, 2, 4), [(2, 5, 4), (5, 4)]),
    ("unbatched", (5, 4), [(1, 5, 4), (4, 4), (4,)]),
]:
    for shape in shapes:
        message = rf"^dy: expected shape {re.escape(str(want))} .*, got {re.escape(str(shape))}"
        value = np.ones(shape, "f4")
        add(f"{layout} dy: {shape}", ValueError, message, backward, value, layout=layout)
for value, got in [(None, "NoneType"), (Y, "ndarray"), (GRU, "Params"), ((Y, STATE), "tuple")]:
    add(
        f"saved: {got}", TypeError, f"^saved: expected Saved, got {got}", fastgru.backward, value, Y
    )

# lengths

for label, lengths, got in [
    ("bools", [True, True], r"\[0\]: .*, got True"),
    ("a bool", (1, True), r"\[1\]: .*, got True"),
    ("a NumPy bool", [1, np.True_], r"\[1\]: .*, got .*True"),
    ("an array of one bool", [np.array(True), 1], r"\[0\]: .*, got array\(True\)"),
    ("floats", [1.0, 2.0], r"\[0\]: .*, got 1\.0"),
    ("complex", [1, 1j], r"\[1\]: .*, got 1j"),
    ("NaN", [float("nan"), 2], r"\[0\]: .*, got nan"),
    ("texts", ["1", "2"], r"\[0\]: .*, got '1'"),
    ("None", [1, None], r"\[1\]: .*, got None"),
    ("row", [[1, 2]], r"\[0\]: .*, got \[1, 2\]"),
    ("ragged", [[1], [1, 2]], r"\[0\]: .*, got \[1\]"),
    ("a number", 3, ": .*, got 3"),
    ("text", "ab", ": .*, got 'ab'"),
    ("bytes", b"ab", ": .*, got b'ab'"),
    ("set", {1, 2}, r": .*, got \{1, 2\}"),
    ("mapping", {0: 1}, r": .*, got \{0: 1\}"),
    ("generator", (n for n in (1, 2)), ": .*, got <generator"),
    ("bool array", np.ones(N, bool), r": .*, got array\(\[ True"),
    ("float array", np.ones(N), r": .*, got array\(\[1\., 1\.\]\)"),
    ("timedeltas", np.ones(N, "m8[s]"), r": .*, got array\(.*timedelta64"),
    ("object array", np.array([1, 2], object), ": .*, got array.*object"),
    ("masked array", np.ma.array([1, 2], mask=[0, 1]), ": .*, got .*masked_array"),
    ("cupy", FakeCupy(np.ones(N, int)), r": .*, got array.* \(cupy\..*ndarray\)$"),
]:
    # Some reprs have several lines.
    message = rf"(?s)^lengths(?=(\[\d\])?: expected .*whole number){got}"
    for run in (fastgru.forward, fastgru.forward_train):
        add(f"{run.__name__} lengths: {label}", TypeError, message, run, X, GRU, lengths=lengths)
for label, lengths, message in [
    ("too long", [2, T + 1], "values from 0 to 5, got 2 to 6"),
    ("negative", [-1, 2], "values from 0 to 5, got -1 to 2"),
    ("least int64", [-(2**63), 1], f"values from 0 to 5, got {-(2**63)} to 1"),
    ("greatest uint64", np.array([1, 2**64 - 1], "u8"), f"values from 0 .*, got 1 to {2**64 - 1}"),
    ("past int64", [2**63, 1], f"values from 0 to 5, got 1 to {2**63}"),
    ("past 64 bits", [2**70, 1], f"values from 0 to 5, got 1 to {2**70}"),
    ("-1 in 8 bits", np.array([1, 255], "u1"), "values from 0 to 5, got 1 to 255"),
    ("too few", [1], r"a sequence of 2 whole numbers, got \[1\]"),
    ("too many", range(3), r"a sequence of 2 whole numbers, got range\(0, 3\)"),
    ("none", [], r"a sequence of 2 whole numbers, got \[\]"),
    ("array of no dimension", np.array(3), r"shape \(2,\) .*, got \(\)"),
    ("array of one", np.array([3]), r"shape \(2,\) .*, got \(1,\)"),
    ("column", np.ones((N, 1), int), r"shape \(2,\) .*, got \(2, 1\)"),
]:
    message = f"^lengths: expected {message}"
    for run in (fastgru.forward, fastgru.forward_train):
        add(f"{run.__name__} lengths: {label}", ValueError, message, run, X, GRU, lengths=lengths)
message = r"^lengths: expected None for x without samples, got \[3\]"
add("lengths without samples", ValueError, message, fastgru.forward, X[0], GRU, lengths=[3])
message = r"^lengths: expected a sequence of 5 whole numbers, got \[1, 2\]"
add(
    "lengths, time_major", ValueError, message,
    fastgru.forward, X, GRU, lengths=[1, 2], time_major=True,
)  # fmt: skip

# Remedies: the commonest mistakes are told what helps


class Frame:
    """What the library sees of a DataFrame or Series."""

    def __init__(self, values: Any) -> None:
        self._values = np.array(values)

    def to_numpy(self, dtype: Any = None) -> Any:
        return self._values.astype(dtype)


def from_dict(named: dict[str, Any], cell: str) -> Params:
    return Params.from_dict(named, cell=cell)


X_64, GRU_64 = X.astype("float64"), GRU.map(lambda w: w.astype("float64"))
ONE_BIAS = {key: array for key, array in NAMED.items() if key != "bias_hh_l0"}
remedies: dict[str, tuple[type[Exception], str, Callable[..., Any], tuple[Any, ...]]] = {
    "float64 x": (
        TypeError, r'by \.astype\(params\.dtype\), or give init_params dtype="float64"$',
        fastgru.forward, (X_64, GRU),
    ),
    "params that an update made float64": (
        TypeError, r'params float32 by params\.map\(lambda w: w\.astype\("float32"\)\)$',
        fastgru.forward, (X, GRU.map(lambda w: w - np.full(1, 0.1) * w)),
    ),
    "float64 state": (
        TypeError, r"^h0: .*by \.astype\(params\.dtype\)",
        fastgru.forward, (X, GRU, STATE.astype("float64")),
    ),
    "DataFrame": (
        TypeError, r'^x: .*its \.to_numpy\(dtype="float32"\) is one$',
        fastgru.forward, (Frame(X), GRU),
    ),
    "list": (TypeError, r"numpy\.array\(", fastgru.forward, (X.tolist(), GRU)),
    "masked array": (TypeError, r"its \.filled\(", fastgru.forward, (np.ma.array(X), GRU)),
    "matrix": (
        TypeError, r"numpy\.asarray makes", fastgru.step, (X_T.view(np.matrix), GRU),
    ),
    "stacked state": (
        TypeError, r"tuple\(h0\)", fastgru.forward, (X, LSTM, np.stack([STATE, STATE])),
    ),
    "one bias missing": (
        ValueError, r"^bias_hh_l0: missing .*zeros of shape \(12,\) stand for none",
        from_dict, (ONE_BIAS, "gru"),
    ),
    "an LSTM's weights for a GRU": (
        ValueError, r"these are shapes of cell 'lstm'$", from_dict, (LSTM.to_dict(), "gru"),
    ),
    "an LSTM's weights for a GRU, with rows for both": (
        ValueError, r"these are shapes of cell 'lstm'$",
        from_dict, (fastgru.init_params(3, 6, cell="lstm").to_dict(), "gru"),
    ),
    "a GRU's weights for an LSTM": (
        ValueError, r"these are shapes of cell 'gru' or 'gru_reset_before' or 'cifg'$",
        from_dict, (NAMED, "lstm"),
    ),
}  # fmt: skip
for label, (error, message, call, values) in remedies.items():
    add(f"remedy: {label}", error, message, call, *values)

# Flags

for value in [1, 0, None, "no", [], 1.0, np.array(True), np.array([True, False])]:
    for name, call in [
        ("time_major", partial(fastgru.forward, X, GRU)),
        ("time_major", partial(fastgru.forward_train, X[0], GRU)),
        ("all_layers", partial(fastgru.forward, X, GRU)),
        ("bidirectional", partial(fastgru.init_params, 2, 2)),
        ("bias", partial(fastgru.init_params, 2, 2)),
    ]:
        message = f"^{name}: expected True or False, got {re.escape(repr(value))}"
        add(f"{call.func.__name__} {name}: {value!r}", TypeError, message, call, **{name: value})

# params

PARAMS_CALLS: dict[str, Callable[[Any], Any]] = {
    "forward": partial(fastgru.forward, X),
    "forward_train": partial(fastgru.forward_train, X),
    "step": partial(fastgru.step, X_T),
    "pack": fastgru.pack,
}
# One of two is missing where these tests run: numba-cuda, which is looked for first, or CuPy.
NO_GPU = "^CuPy arrays need numba-cuda|^No module named 'cupy'$"
for label, call in PARAMS_CALLS.items():
    for value, got in [
        (None, "NoneType"),
        (NAMED, "dict"),
        ([GRU], "list"),
        ("gru", "str"),
        (WEIGHTS, "Weights"),
        (X, "ndarray"),
        (Params, "type"),
    ]:
        message = f"^params: expected Params or Packed, got {got}"
        add(f"{label} params: {got}", TypeError, message, call, value)
    add(f"{label} params: cupy", ModuleNotFoundError, NO_GPU, call, ON_GPU)
add("all cupy", ModuleNotFoundError, NO_GPU, fastgru.forward, FakeCupy(X), ON_GPU)
add("like: cupy", ModuleNotFoundError, NO_GPU, fastgru.init_params, 2, 2, like=FakeCupy(X))
message = "^params: expected one direction, got bidirectional params"
add("step params: bidirectional", ValueError, message, fastgru.step, X_T, DEEP)
add(
    "step packed: bidirectional", ValueError, message,
    lambda: fastgru.step(X_T, fastgru.pack(DEEP)),
)  # fmt: skip

# init_params

for name in ("input_size", "hidden_size", "num_layers"):
    sizes = {"input_size": 2, "hidden_size": 2}
    for value in [0, -3]:
        message = f"^{name}: expected at least 1, got {value}"
        add(f"{name}: {value}", ValueError, message, fastgru.init_params, **sizes | {name: value})
    for value in [
        2.0, np.float32(2), True, np.True_, "2", None, [2], np.array([2, 3]), np.array([2]),
        np.array(True), np.array(2.0), int,
    ]:  # fmt: skip
        message = f"^{name}: expected a whole number, got {re.escape(repr(value))}"
        add(f"{name}: {value!r}", TypeError, message, fastgru.init_params, **sizes | {name: value})
    # So many layers would be drawn one by one. The second size is beyond a float.
    for power in [] if name == "num_layers" else [70, 2000]:
        message = f"^{name}: expected .*, got .*{2**power}"
        options = sizes | {name: 2**power}
        add(f"{name}: 2**{power}", ValueError, message, fastgru.init_params, **options)
for value, got in [
    ("float16", "float16"), ("int64", "int64"), ("complex64", "complex64"), (object, "'O'"),
    (np.dtype("float32").newbyteorder(), "[<>]f4"), ("f4,f4", "f0"), (("f4", 2), r"\(2,\)"),
    ("nonsense", "'nonsense'"), (3, "3"), ([], r"\[\]"),
    (None, "None"),  # to NumPy it means float64
]:  # fmt: skip
    message = f"^dtype: expected .*float32 or float64.*, got .*{got}"
    add(f"dtype: {got}", TypeError, message, fastgru.init_params, 2, 2, dtype=value)
for value, error in [
    ("seed", TypeError), (1.5, TypeError), ({}, TypeError), (b"0", TypeError), ([1.5], TypeError),
    ([None], TypeError), (np.array([1.5]), TypeError), (-1, ValueError), ([1], TypeError),
    (True, TypeError), (np.bool_(True), TypeError),
]:  # fmt: skip
    message = f"^rng: expected .*, got {re.escape(repr(value))}"
    add(f"rng: {value!r}", error, message, fastgru.init_params, 2, 2, rng=value)
for kind, (make, got) in NO_ARRAYS.items():
    message = rf"^like: expected a numpy or cupy ndarray .*, got \S*{got}(; .*)?$"
    add(f"like: {kind}", TypeError, message, fastgru.init_params, 2, 2, like=make(X))

# cell

CELL_CALLS: dict[str, Callable[[Any], Any]] = {
    "init_params": lambda cell: fastgru.init_params(2, 2, cell=cell),
    "Params": lambda cell: Params(cell, GRU.layers),
    "from_dict": lambda cell: Params.from_dict(NAMED, cell=cell),
}
for label, call in CELL_CALLS.items():
    for value in ["GRU", "", None, 3, [], b"gru", ("gru",)]:
        message = f"^cell: expected one of gru, .*lstm.*, got {re.escape(repr(value))}"
        add(f"{label} cell: {value!r}", ValueError, message, call, value)

# Params and Weights

for value, got in [
    (None, "None"), ("abc", "'abc'"), (GRU, "Params"), (WEIGHTS, "Weights"), (3, "3"),
    (np.array(3), r"array\(3\)"),
]:  # fmt: skip
    message = f"^layers: expected a sequence of sequences of Weights, got {got}"
    add(f"Params layers: {got}", TypeError, message, Params, "gru", value)
    message = rf"^layers\[1\]: expected a sequence of Weights, got {got}"
    add(f"Params layers[1]: {got}", TypeError, message, Params, "gru", [[WEIGHTS], value])
message = r"^layers: expected a sequence of sequences of Weights, got \{"
add("Params layers: mapping", TypeError, message, Params, "gru", NAMED)
message = r"^layers\[0\]: expected a sequence of Weights, got \{"
add("Params layers[0]: mapping", TypeError, message, Params, "gru", [NAMED])
for value, got in [(None, "NoneType"), (NAMED, "dict"), (X, "ndarray"), ("abc", "str")]:
    message = rf"^layers\[1\]: expected Weights, got {got}"
    add(f"Params direction: {got}", TypeError, message, Params, "gru", [[WEIGHTS], [value]])
message = "^layers: expected at least one, got none"
add("Params layers: none", ValueError, message, Params, "gru", [])
for counts in [[0], [3], [2, 1], [1, 2], [1, 0]]:
    message = f"^layers: expected 1 or 2 directions, .*, got {re.escape(str(counts))}"
    layers = [[WEIGHTS] * count for count in counts]
    add(f"Params directions: {counts}", ValueError, message, Params, "gru", layers)
message = r"^weight_ih_l1: expected shape \(12, 4\) .*, got \(12, 3\)"
add("Params second layer", ValueError, message, Params, "gru", [[WEIGHTS], [WEIGHTS]])
message = "^weight_hh_l0: expected shape .*'lstm', got"
add("Params of another cell", ValueError, message, Params, "lstm", GRU.layers)
add("empty Weights", ValueError, "^weight_ih_l0: missing .*'gru'", Params, "gru", [[Weights()]])
add("Weights by position", TypeError, "positional", Weights, WEIGHTS.weight_ih)
for name in ["peephole", "items"]:  # the second is a method's name
    message = f"^{name}.*: expected .*weight_ih"
    error = (TypeError, ValueError)
    add(f"Weights {name}", error, message, with_weights, **{name: WEIGHTS.bias_hh})

for name in NAMED:
    message = f"^{name}: missing .*'gru'"
    others = {key: array for key, array in NAMED.items() if key != name}
    add(f"from_dict: no {name}", ValueError, message, Params.from_dict, others)
    absent = {name.removesuffix("_l0"): None}
    add(f"Weights: no {name}", ValueError, message, with_weights, **absent)
    message = rf"^{name}: expected .*, got \S*NoneType"
    add(f"from_dict {name}: None", TypeError, message, with_weight, name, None)
for name, want, shapes in [
    ("weight_ih_l0", r"3\*H, I", [(), (12,), (11, 3), (4, 12), (0, 3), (12, 0), (1, 12, 3)]),
    ("weight_hh_l0", "12, 4", [(), (12,), (12, 3), (9, 4), (4, 12), (0, 4), (12, 0), (1, 12, 4)]),
    ("bias_ih_l0", "12,", [(), (11,), (4,), (0,), (1, 12), (12, 1)]),
    ("bias_hh_l0", "12,", [(), (11,), (4,), (0,), (1, 12), (12, 1)]),
]:
    for shape in shapes:
        message = rf"^{name}: expected shape \({want}\) .*'gru', got {re.escape(str(shape))}"
        add(f"{name}: {shape}", ValueError, message, with_weight, name, np.ones(shape, "f4"))

for value, got in [
    (None, "None"), ([1], r"\[1\]"), (GRU, "Params"), ("abc", "'abc'"), ([*NAMED.items()], r"\[\("),
]:  # fmt: skip
    message = f"^mapping: expected a mapping of names to arrays, got {got}"
    add(f"from_dict: {got}", TypeError, message, Params.from_dict, value)
for key in [
    "weight", "weight_ih", "weight_ih_l", "weight_ih_l00", "weight_ih_l-1", "weight_ih_l0_forward",
    "weight_ih_l0\n", "weight_ih_l\N{ARABIC-INDIC DIGIT ONE}", "WEIGHT_IH_L0", "weight_hr_l0", "",
    0, None, ("weight_ih_l0",),
]:  # fmt: skip
    message = f"^mapping: expected keys like weight_ih_l0, .*, got {re.escape(repr(key))}"
    add(f"from_dict key {key!r}", ValueError, message, with_weight, key, WEIGHTS.weight_ih)


def renamed(suffix: str) -> dict[str, Any]:
    return {name.replace("_l0", suffix): array for name, array in NAMED.items()}


for label, mapping, missing in [
    ("empty", {}, "_l0"),
    ("only layer 1", renamed("_l1"), "_l0"),
    ("only reverse", renamed("_l0_reverse"), "_l0"),
    ("layers 0 and 2", NAMED | renamed("_l2"), "_l1"),
    ("layer 1 in one direction", NAMED | renamed("_l0_reverse") | renamed("_l1"), "_l1_reverse"),
    ("far layer", NAMED | {"weight_ih_l999999999": WEIGHTS.weight_ih}, "_l1"),
]:
    message = f"^mapping: weights are missing for {missing}$"
    add(f"from_dict: {label}", ValueError, message, Params.from_dict, mapping)

# Params.map

for value, got in [(None, "None"), ("abs", "'abs'"), (GRU, "Params")]:
    message = f"^function: expected a callable, got {got}"
    add(f"map function: {got}", TypeError, message, GRU.map, value)
for value, got in [(None, "NoneType"), (NAMED, "dict"), (1.0, "float"), (X, "ndarray")]:
    message = f"^others: expected Params, got {got}"
    add(f"map others: {got}", TypeError, message, GRU.map, lambda a, b: a, value)
for label, other in [
    ("cell", LSTM),
    ("layers", fastgru.init_params(I, H, num_layers=2)),
    ("directions", fastgru.init_params(I, H, bidirectional=True)),
    ("bias", fastgru.init_params(I, H, bias=False)),
]:
    message = r"^others: expected the structure of Params\(.*\), got Params\("
    add(f"map others: {label}", ValueError, message, GRU.map, lambda a, b: a, other)
for kind, (make, got) in NO_ARRAYS.items():
    message = rf"^result of function for weight_ih_l0: expected .*, got \S*{got}(; .*)?$"
    add(f"map to {kind}", TypeError, message, GRU.map, make)
message = r"^result of function for weight_ih_l0: expected .*, got \S*NoneType$"
add("map to None", TypeError, message, GRU.map, lambda a: None)
message = r"^result of function for weight_ih_l0: expected shape \(12, 3\) .*, got \(3, 12\)"
add("map to another shape", ValueError, message, GRU.map, np.transpose)
for kind in ["float16", "int32", "big-endian"]:
    message = f"^weight_ih_l0: expected dtype .*native.*, got dtype.*{WRONG_DTYPES[kind]}"
    add(f"map to {kind}", TypeError, message, GRU.map, partial(as_dtype, dtype=kind))
message = "^bias_ih_l0: expected dtype float64, .*, got float32"
add(
    "map to two dtypes", TypeError, message,
    GRU.map, lambda a: a if a.ndim == 1 else a.astype("float64"),
)  # fmt: skip
message = "expected arrays of one library, got .*cupy .*numpy"
add(
    "map to two libraries", TypeError, message,
    GRU.map, lambda a: a if a.ndim == 1 else FakeCupy(a),
)  # fmt: skip

# Options that do not exist: Python's own error

for label, call in [
    ("cells", fastgru.cells),
    ("show_config", fastgru.show_config),
    ("init_params", partial(fastgru.init_params, 2, 2)),
    ("forward", partial(fastgru.forward, X, GRU)),
    ("forward_train", partial(fastgru.forward_train, X, GRU)),
    ("step", partial(fastgru.step, X_T, GRU)),
    ("backward", lambda **options: fastgru.backward(saved(GRU, "batched"), Y, **options)),
    ("pack", partial(fastgru.pack, GRU)),
    ("Params", partial(Params, "gru", GRU.layers)),
    ("from_dict", partial(Params.from_dict, NAMED)),
    ("map", partial(GRU.map, np.copy)),
]:
    add(f"{label}: unknown option", TypeError, "keyword argument", call, no_such_option=1)


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_message_names_the_argument_the_expected_and_the_got(case: Case) -> None:
    with pytest.raises(case.error, match=case.message):
        case.call()


@pytest.mark.parametrize("argument", ARGUMENTS, ids=[argument.id for argument in ARGUMENTS])
def test_calls_of_the_table_take_what_is_valid(argument: Argument) -> None:
    """Else a row could pass because of something else that is wrong with its call."""
    argument.call(argument.valid)


# --- junk -----------------------------------------------------------------------------------------

# The same examples at every run: a failure here should come from the change at hand.
fuzz = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 6),
    st.sampled_from([2**31, 2**63, 2**64 - 1, 2**70, -(2**63), -(2**70)]),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([np.True_, np.int8(1), np.uint64(2**64 - 1), np.float32(1), np.complex64(1j)]),
    st.sampled_from([np.str_("a"), np.bytes_(b"a"), np.datetime64("NaT"), np.timedelta64(1, "s")]),
)
arrays = st.builds(
    np.zeros,
    st.lists(st.integers(0, 3), max_size=4).map(tuple),
    st.sampled_from(["f2", "f4", "f8", ">f4", "i8", "u1", "?", "c8", "O", "U2", "S1", "m8[s]"]),
)
junk = st.one_of(
    scalars,
    arrays,
    arrays.map(FakeCupy),
    arrays.map(np.ma.array),
    arrays.map(lambda a: a.view(Subclass)),
    st.lists(scalars | arrays, max_size=3),
    st.lists(scalars | arrays, max_size=3).map(tuple),
    st.lists(st.lists(scalars, max_size=2), max_size=3),
    st.dictionaries(st.text(max_size=2), scalars, max_size=2),
    st.sampled_from([object(), int, {1, 2}, Tensor(), WEIGHTS, GRU, DEEP, LSTM, ON_GPU, NAMED]),
)


# Cells that need no attention, no biases, and no second step to be trained. Those that can grow
# without bound may overflow, and say so.
PLAIN_CELLS = tuple(
    name
    for name in SHIPPED_CELLS
    if name in BARE_CELLS and name in ROW_CELLS and not CELLS[name].step_inputs
)


@cache
def drawn_params(*key: Any) -> Params:
    cell, dtype, I, H, L, D, bias = key
    return fastgru.init_params(
        I, H, cell=cell, dtype=dtype, num_layers=L, bidirectional=D == 2, bias=bias, rng=0
    )


@st.composite
def valid_arguments(draw: st.DrawFn) -> dict[str, Any]:
    """By name, of all functions that compute; shapes fit each other."""
    cell, dtype = draw(st.sampled_from(PLAIN_CELLS)), draw(st.sampled_from(DTYPES))
    I, H, L, D = (draw(st.integers(1, most)) for most in (3, 3, 2, 2))
    N, T = draw(st.integers(0, 3)), draw(st.integers(0, 4))
    time_major, batched = draw(st.booleans()), draw(st.sampled_from([True, True, False]))
    params = drawn_params(cell, dtype, I, H, L, D, draw(st.booleans()))
    rng = np.random.default_rng(0)

    def array(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(dtype)

    def sequence(features: int) -> Any:
        shape = (T,) if not batched else (T, N) if time_major else (N, T)
        return array(*shape, features)

    def state(*shape: int) -> Any:
        return as_state(tuple(array(*shape, H) for _ in CELLS[cell].states))

    rows = (L * D, N) if batched else (L * D,)
    lengths = draw(st.none() | st.lists(st.integers(0, T), min_size=N, max_size=N))
    return {
        "x": sequence(I),
        "x_t": array(N, I),
        "params": draw(st.sampled_from([params, fastgru.pack(params)])),
        "h0": state(*rows) if draw(st.booleans()) else None,
        "h": state(L, N) if draw(st.booleans()) else None,
        "lengths": lengths if batched else None,
        "time_major": time_major,
        "dy": sequence(D * H),
        "dh_n": state(*rows) if draw(st.booleans()) else None,
    }


@st.composite
def arguments(draw: st.DrawFn, *names: str) -> tuple[dict[str, Any], bool]:
    """Valid arguments of which up to two are replaced by junk or by those of another call; and
    whether none is."""
    valid = draw(valid_arguments())
    spoilt = draw(st.just(set()) | st.sets(st.sampled_from(names), min_size=1, max_size=2))
    other = draw(valid_arguments()) if spoilt else {}
    return valid | {n: draw(junk | st.just(other[n])) for n in sorted(spoilt)}, not spoilt


def attempt(names: str, call: Callable[[], Any], valid: bool = False) -> Any:
    """What a call gives; None if it raises what it may, with one of the names first."""
    try:
        return call()
    except (TypeError, ValueError, ModuleNotFoundError) as error:
        message = str(error)
    assert not valid, f"refused, although all is valid: {message}"
    named = rf"({names})(, dh_n)?(\[\d+\]| \([hc]\))?: "
    assert re.match(rf"{named}|expected arrays of one library, got |{NO_GPU}", message)
    return None


def assert_arrays(found: Any, shapes: list[tuple[int, ...]], dtype: Any) -> None:
    """Arrays of these shapes and this dtype, finite."""
    assert [array.shape for array in found] == shapes
    for array in found:
        assert array.dtype == dtype
        assert np.isfinite(array).all()


def shapes_of(params: Params, batch: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes of the members of a state."""
    rows = params.num_layers * params.num_directions
    return [(rows, *batch, params.hidden_size)] * len(CELLS[params.cell].states)


def plain(params: Params | Packed) -> Params:
    return params.params if isinstance(params, Packed) else params


@fuzz
@given(
    st.sampled_from([fastgru.forward, fastgru.forward_train]),
    arguments("x", "params", "h0", "lengths", "time_major"),
)
def test_forward_with_junk(run: Any, drawn: tuple[dict[str, Any], bool]) -> None:
    values, valid = drawn
    x, time_major = values["x"], values["time_major"]
    result = attempt(
        "x|params|h0|lengths|time_major",
        lambda: run(
            x, values["params"], values["h0"], lengths=values["lengths"], time_major=time_major
        ),
        valid,
    )
    if result is not None:
        params = plain(values["params"])
        outputs = params.num_directions * params.hidden_size
        assert_arrays([result[0]], [(*x.shape[:-1], outputs)], params.dtype)
        batch = () if x.ndim == 2 else (x.shape[int(time_major)],)
        assert_arrays(as_members(result[1]), shapes_of(params, batch), params.dtype)


@fuzz
@given(arguments("x_t", "params", "h"))
def test_step_with_junk(drawn: tuple[dict[str, Any], bool]) -> None:
    values, valid = drawn
    x_t, params = values["x_t"], values["params"]
    valid = valid and not plain(params).bidirectional
    result = attempt("x_t|params|h", lambda: fastgru.step(x_t, params, values["h"]), valid)
    if result is not None:
        params = plain(params)
        assert not params.bidirectional
        assert_arrays([result[0]], [(len(x_t), params.hidden_size)], params.dtype)
        assert_arrays(as_members(result[1]), shapes_of(params, (len(x_t),)), params.dtype)


@fuzz
@given(arguments("dy", "dh_n"))
def test_backward_with_junk(drawn: tuple[dict[str, Any], bool]) -> None:
    values, valid = drawn
    _, h_n, kept = fastgru.forward_train(
        values["x"],
        values["params"],
        values["h0"],
        lengths=values["lengths"],
        time_major=values["time_major"],
    )
    call = partial(fastgru.backward, kept, values["dy"], values["dh_n"])
    result = attempt("dy|dh_n", call, valid)
    if result is not None:
        params = plain(values["params"])
        states = [member.shape for member in as_members(h_n)]
        weights = [array.shape for array in params.to_dict().values()]
        assert list(result.params.to_dict()) == list(params.to_dict())
        assert_arrays(flatten(*result), [values["x"].shape, *states, *weights], params.dtype)


@fuzz
@given(junk, junk, junk)
def test_functions_of_junk_alone(a: Any, b: Any, c: Any) -> None:
    attempt("x|params|h0", lambda: fastgru.forward(a, b, c))
    attempt("x|params|h0", lambda: fastgru.forward_train(a, b, c))
    attempt("x_t|params|h", lambda: fastgru.step(a, b, c))
    attempt("saved", lambda: fastgru.backward(a, b, c))
    packed = attempt("params", lambda: fastgru.pack(a))
    assert packed is None or packed.params.to_dict().keys() == a.to_dict().keys()


def is_small(value: Any) -> bool:
    """Whether it is no size of which params would fill the memory."""
    if isinstance(value, np.bool_):  # NumPy 1.26 warns where it is taken for an index
        return True
    try:
        return operator.index(value) < 4
    except TypeError:
        return True


sizes = st.integers(-1, 3) | junk.filter(is_small)


@fuzz
@given(
    st.fixed_dictionaries(
        {"input_size": st.integers(1, 3) | sizes, "hidden_size": st.integers(1, 3) | sizes},
        optional={
            "cell": st.sampled_from(SHIPPED_CELLS) | junk,
            "num_layers": st.integers(1, 3) | sizes,
            "bidirectional": st.booleans() | junk,
            "bias": st.booleans() | junk,
            "dtype": st.sampled_from(DTYPES) | junk,
            "rng": st.integers(0) | junk,
            "like": st.none() | arrays | junk,
        },
    )
)
def test_init_params_with_junk(values: dict[str, Any]) -> None:
    params = attempt("|".join(values), lambda: fastgru.init_params(**values))
    if params is not None:
        again = Params.from_dict(params.to_dict(), cell=values.get("cell", "gru"))
        assert repr(again) == repr(params)
        assert params.input_size == values["input_size"]
        assert params.hidden_size == values["hidden_size"]
        assert params.num_layers == values.get("num_layers", 1)
        assert params.bidirectional == values.get("bidirectional", False)
        assert params.bias == values.get("bias", True)
        assert params.dtype == np.dtype(values.get("dtype", "float32"))
        limit = params.hidden_size**-0.5
        assert all((np.abs(array) <= limit).all() for array in params.to_dict().values())


WEIGHT_NAMES = [name for name, _ in WEIGHTS.items()]
KEY = rf"({'|'.join(WEIGHT_NAMES)})(_l\d+(_reverse)?)?"
# Small changes of what is valid, and any junk.
keys = st.builds(
    "{}_l{}{}".format,
    st.sampled_from(WEIGHT_NAMES),
    st.integers(0, 2),
    st.sampled_from(["", "_reverse"]),
)
weights = st.sampled_from(list(NAMED.values())) | junk


@fuzz
@given(
    st.sampled_from(["gru", "gru_reset_before"]) | junk,
    st.sampled_from([NAMED, DEEP.to_dict()]),
    st.dictionaries(keys | scalars, weights, max_size=2),
    st.sets(keys, max_size=2),
)
def test_from_dict_with_junk(
    cell: Any, valid: dict[str, Any], changes: dict[Any, Any], dropped: set[str]
) -> None:
    mapping = {k: v for k, v in (valid | changes).items() if k not in dropped}
    unchanged = not changes and dropped.isdisjoint(valid)
    params = attempt(
        f"mapping|cell|{KEY}",
        lambda: Params.from_dict(mapping, cell=cell),
        unchanged and isinstance(cell, str) and cell in SHIPPED_CELLS,
    )
    if params is not None:
        assert params.to_dict().keys() == mapping.keys()
        assert all(array is mapping[key] for key, array in params.to_dict().items())


@fuzz
@given(
    st.sampled_from(SHIPPED_CELLS) | junk,
    st.lists(st.lists(st.just(WEIGHTS) | junk, max_size=3) | junk, max_size=3) | junk,
)
def test_params_with_junk(cell: Any, layers: Any) -> None:
    params = attempt(rf"cell|layers|{KEY}", lambda: Params(cell, layers))
    assert params is None or params.to_dict().keys() <= DEEP.to_dict().keys()


@fuzz
@given(st.dictionaries(st.sampled_from([*WEIGHT_NAMES, "peephole", "items"]), weights, max_size=4))
def test_weights_with_junk(members: dict[str, Any]) -> None:
    def build() -> Params:
        weights = Weights(**members)
        assert repr(weights).startswith("Weights(")
        return Params("gru", [[weights]])

    params = attempt(f"(peephole|items)(_l0)?|{KEY}", build)
    assert params is None or all(array is members[k[:-3]] for k, array in params.to_dict().items())


@fuzz
@given(
    st.sampled_from([np.copy, np.transpose, np.mean, list])
    | junk.filter(lambda f: not callable(f)),
    st.lists(st.sampled_from([GRU, DEEP, LSTM]) | junk, max_size=1),
    junk,
)
def test_map_with_junk(function: Any, others: list[Any], result: Any) -> None:
    names = rf"function|others|result of function for {KEY}"
    of_first = (lambda a, *_: function(a)) if callable(function) else function
    mapped = attempt(names, lambda: GRU.map(of_first, *others))
    assert (mapped is not None) == (function is np.copy and all(o is GRU for o in others))
    assert attempt(names, lambda: GRU.map(lambda *_: result, *others)) is None
