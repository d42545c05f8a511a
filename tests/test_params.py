"""Weights: what Params, init_params and pack promise."""

import copy
import io
import pickle
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from problems import ALL_CELLS, BARE_CELLS, DTYPES, assert_same_bits, draw, flatten, solve

import fastgru
from fastgru.kernels.cells import CELLS, initial

each_cell = pytest.mark.parametrize("cell", ALL_CELLS)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)

# As in torch.nn.GRU(3, 5, num_layers=2, bidirectional=True).state_dict().
PYTORCH_KEYS = [
    f"{name}_l{layer}{direction}"
    for layer in (0, 1)
    for direction in ("", "_reverse")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
]
GATES = {"gru": 3, "gru_reset_before": 3, "lstm": 4}


# --- immutability ---------------------------------------------------------------------------------


def assert_immutable(thing: Any, names: list[str]) -> None:
    """No attribute, there or not, can be set or deleted."""
    for name in [*names, "something_new"]:
        with pytest.raises(AttributeError):
            setattr(thing, name, None)
        with pytest.raises(AttributeError):
            delattr(thing, name)


def test_params_are_immutable() -> None:
    params = fastgru.init_params(3, 5, num_layers=2)
    before = dict(vars(params))
    assert_immutable(params, ["cell", "layers", "num_layers", "bidirectional", "bias", "dtype"])
    assert vars(params) == before
    assert isinstance(params.layers, tuple)
    assert {type(layer) for layer in params.layers} == {tuple}


def test_weights_are_immutable() -> None:
    weights = fastgru.init_params(3, 5, bias=False).layers[0][0]
    before = dict(vars(weights))
    assert_immutable(weights, ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
    assert vars(weights) == before


def test_params_do_not_follow_the_sequences_they_were_made_from() -> None:
    source = fastgru.init_params(3, 5)
    layers = [list(layer) for layer in source.layers]
    params = fastgru.Params("gru", layers)
    layers[0].clear()
    layers.clear()
    assert_same_bits(params, source)


def test_params_do_not_follow_the_mappings_they_were_made_from() -> None:
    source = fastgru.init_params(3, 5)
    mapping = source.to_dict()
    params = fastgru.Params.from_dict(mapping)
    mapping.clear()
    params.to_dict().clear()
    assert_same_bits(params, source)


# --- names and shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize("cell", GATES)
def test_names_order_and_shapes_are_those_of_pytorch(cell: str) -> None:
    params = fastgru.init_params(3, 5, cell=cell, num_layers=2, bidirectional=True)
    rows = GATES[cell] * 5
    shapes = {key: array.shape for key, array in params.to_dict().items()}
    assert list(shapes) == PYTORCH_KEYS
    for suffix, inputs in (("_l0", 3), ("_l0_reverse", 3), ("_l1", 10), ("_l1_reverse", 10)):
        assert shapes["weight_ih" + suffix] == (rows, inputs)
        assert shapes["weight_hh" + suffix] == (rows, 5)
        assert shapes["bias_ih" + suffix] == shapes["bias_hh" + suffix] == (rows,)


def test_gates_are_ordered_as_in_pytorch() -> None:
    assert CELLS["gru"].gates == CELLS["gru_reset_before"].gates == ("r", "z", "n")
    assert CELLS["lstm"].gates == ("i", "f", "g", "o")


def test_keys_name_the_layer_and_direction_of_each_array() -> None:
    params = fastgru.init_params(3, 5, cell="lstm", num_layers=2, bidirectional=True)
    named = params.to_dict()
    for layer in (0, 1):
        for direction, suffix in enumerate(("", "_reverse")):
            weights = params.layers[layer][direction]
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                assert getattr(weights, name) is named[f"{name}_l{layer}{suffix}"]


@pytest.mark.parametrize("bias", [True, False])
@each_cell
def test_fields_come_from_the_table_and_what_a_cell_lacks_is_none(cell: str, bias: bool) -> None:
    params = fastgru.init_params(3, 5, cell=cell, num_layers=2, bidirectional=True, bias=bias)
    every = {name for c in CELLS.values() for name in c.weight_shapes(1, 1, bias=True)}
    for layer, inputs in zip(params.layers, (3, 10), strict=True):
        for weights in layer:
            shapes = CELLS[cell].weight_shapes(inputs, 5, bias)
            assert {name: a.shape for name, a in weights.items()} == shapes
            for name in every - shapes.keys():
                assert getattr(weights, name) is None
            with pytest.raises(AttributeError):
                _ = weights.weight_xy


def test_number_of_trainable_parameters() -> None:
    """Running statistics are none."""
    options = {"num_layers": 2, "bidirectional": True}
    for cell, gates in GATES.items():
        params = fastgru.init_params(3, 5, cell=cell, **options)  # type: ignore[arg-type]
        assert params.num_parameters == 2 * 5 * gates * ((3 + 5 + 2) + (10 + 5 + 2))
        bare = fastgru.init_params(3, 5, cell=cell, bias=False)
        assert bare.num_parameters == 5 * gates * (3 + 5)
    params = fastgru.init_params(3, 5, cell="toy_batch_norm", **options)  # type: ignore[arg-type]
    assert params.num_parameters == 2 * 10 * ((3 + 5 + 1 + 2) + (10 + 5 + 1 + 2))
    assert sum(a.size for a in flatten(params)) == params.num_parameters + 4 * 2 * 10
    params = fastgru.init_params(3, 5, cell="toy_unit_weight")
    assert params.num_parameters == 10 * (3 + 1 + 1)


# --- to_dict, from_dict ---------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("D", [1, 2])
@each_cell
def test_from_dict_infers_layers_directions_sizes_and_bias(cell: str, D: int, bias: bool) -> None:
    for L in (1, 3):
        drawn = fastgru.init_params(
            3, 5, cell=cell, num_layers=L, bidirectional=D == 2, bias=bias, dtype="float64"
        )
        params = fastgru.Params.from_dict(drawn.to_dict(), cell=cell)
        assert params.cell == cell
        assert (params.input_size, params.hidden_size) == (3, 5)
        assert (params.num_layers, params.num_directions) == (L, D)
        assert (params.bidirectional, params.bias) == (D == 2, bias)
        assert (params.dtype, params.library) == (np.dtype("float64"), "numpy")


@each_cell
def test_from_dict_and_to_dict_copy_no_array(cell: str) -> None:
    named = fastgru.init_params(3, 5, cell=cell, num_layers=2, bidirectional=True).to_dict()
    again = fastgru.Params.from_dict(named, cell=cell).to_dict()
    assert list(again) == list(named)
    for key, array in named.items():
        assert again[key] is array


@each_cell
def test_from_dict_takes_any_mapping_in_any_order(cell: str) -> None:
    named = fastgru.init_params(3, 5, cell=cell, num_layers=11, bidirectional=True).to_dict()
    shuffled = types.MappingProxyType(dict(sorted(named.items(), reverse=True)))
    again = fastgru.Params.from_dict(shuffled, cell=cell).to_dict()
    assert list(again) == list(named)
    assert all(again[key] is array for key, array in named.items())


def test_from_dict_is_for_gru_by_default() -> None:
    named = fastgru.init_params(3, 5).to_dict()
    assert fastgru.Params.from_dict(named).cell == "gru"


@pytest.mark.parametrize("key", PYTORCH_KEYS)
def test_from_dict_refuses_a_missing_key(key: str) -> None:
    named = fastgru.init_params(3, 5, num_layers=2, bidirectional=True).to_dict()
    del named[key]
    with pytest.raises(ValueError, match=r"missing|biases in all layers or in none"):
        fastgru.Params.from_dict(named)


@pytest.mark.parametrize(
    "key",
    [
        *("weight_xy_l0", "weight_hr_l0", "weight_ih", "weight_ih_l2", "weight_ih_l00"),
        *("weight_ih_l0_backward", "weight_ih_l0_reverse_reverse", "rnn.weight_ih_l0"),
        *("WEIGHT_IH_L0", "", 0),
    ],
)
def test_from_dict_refuses_an_unknown_key(key: Any) -> None:
    named = fastgru.init_params(3, 5).to_dict()
    with pytest.raises(ValueError, match=r"key|missing"):
        fastgru.Params.from_dict({**named, key: named["weight_ih_l0"]})


# --- map ------------------------------------------------------------------------------------------


@each_cell
def test_map_applies_a_function_array_by_array(cell: str) -> None:
    params, other, third = (
        fastgru.init_params(3, 5, cell=cell, num_layers=2, bidirectional=True, rng=seed)
        for seed in range(3)
    )
    stepped = params.map(lambda w, m, g: w - 2 * m * g, other, third)
    assert stepped.cell == cell
    m, g = other.to_dict(), third.to_dict()
    want = {key: w - 2 * m[key] * g[key] for key, w in params.to_dict().items()}
    assert list(stepped.to_dict()) == list(want)
    assert_same_bits(tuple(stepped.to_dict().values()), tuple(want.values()))


def test_map_keeps_the_arrays_that_the_function_returns() -> None:
    params = fastgru.init_params(3, 5)
    same = params.map(lambda w: w)
    assert all(same.to_dict()[key] is array for key, array in params.to_dict().items())


@each_cell
def test_map_may_change_the_dtype(cell: str) -> None:
    params = fastgru.init_params(3, 5, cell=cell, dtype="float32")
    wide = params.map(lambda w: w.astype("float64"))
    assert wide.dtype == np.float64
    assert {a.dtype for a in flatten(wide)} == {np.dtype("float64")}
    assert params.dtype == np.float32
    assert_same_bits(wide.map(lambda w: w.astype("float32")), params)


@pytest.mark.parametrize(
    "options",
    [{"cell": "gru_reset_before"}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}],
)
def test_map_refuses_params_of_another_structure(options: dict[str, Any]) -> None:
    params, other = fastgru.init_params(3, 5), fastgru.init_params(3, 5, **options)
    for one, another in ((params, other), (other, params)):
        with pytest.raises(ValueError, match="structure"):
            one.map(np.add, another)


# --- copies ---------------------------------------------------------------------------------------


def _pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda thing: pickle.loads(pickle.dumps(thing, protocol))


def _pickled_one_by_one(thing: Any) -> Any:
    """By a pickler that does not see that two objects are the same, as joblib's for arrays."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.fast = True
    pickler.dump(thing)
    return pickle.loads(buffer.getvalue())


COPIES = {"deepcopy": copy.deepcopy, "pickle one by one": _pickled_one_by_one} | {
    f"pickle {protocol}": _pickled(protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("cell", BARE_CELLS)
def test_copies_and_pickles_compute_the_same_bits(cell: str, way: str) -> None:
    problem = draw(cell, L=2, D=2, bias=False)
    params = COPIES[way](problem.params)
    assert_same_bits(solve(problem._replace(params=params)), solve(problem))
    assert repr(params) == repr(problem.params)
    assert not any(
        np.shares_memory(a, b)
        for a, b in zip(flatten(params), flatten(problem.params), strict=True)
    )
    assert_immutable(params, ["cell"])
    weights = params.layers[0][0]
    assert_immutable(weights, ["weight_ih"])
    assert all(getattr(weights, name) is array for name, array in weights.items())


@pytest.mark.parametrize("way", COPIES)
@each_cell
def test_copies_and_pickles_of_packed_params(cell: str, way: str) -> None:
    """As models that hold them are kept by joblib, or sent to other processes."""
    problem = draw(cell, L=2, D=2)
    packed = COPIES[way](fastgru.pack(problem.params))
    assert isinstance(packed, fastgru.Packed)
    assert_same_bits(problem.forward(packed), problem.forward())


def test_packed_and_saved_show_their_params_alone() -> None:
    """A layout given back while another thread reads it would be written over."""
    x, params = np.ones((1, 2, 3), "float32"), fastgru.init_params(3, 4)
    _, _, saved = fastgru.forward_train(x, params)
    for thing in (fastgru.pack(params), saved):
        assert [name for name in dir(thing) if not name.startswith("_")] == ["params"]


# --- init_params ----------------------------------------------------------------------------------


uniform_cells = pytest.mark.parametrize(
    "cell",
    [c for c in ALL_CELLS if any(w.initial is initial.uniform for w in CELLS[c].weights)],
)


def drawn(params: fastgru.Params) -> list[Any]:
    """The arrays that are drawn uniformly up to one over the root of the hidden size."""
    weights = CELLS[params.cell].weights
    names = {weight.name for weight in weights if weight.initial is initial.uniform}
    return [a for key, a in params.to_dict().items() if key.partition("_l")[0] in names]


@each_dtype
@uniform_cells
def test_initial_weights_are_uniform_within_the_limit(cell: str, dtype: str) -> None:
    params = fastgru.init_params(30, 64, cell=cell, dtype=dtype, num_layers=2, rng=0)
    limit = np.dtype(dtype).type(64**-0.5)
    for array in drawn(params):
        assert array.dtype == dtype
        assert (np.abs(array) <= limit).all()
        assert len(np.unique(array)) > 0.99 * array.size  # drawn one by one
        assert array.min() < -0.9 * limit
        assert array.max() > 0.9 * limit
        # The mean and variance of a uniform distribution, within 5 standard errors.
        error = 5 / array.size**0.5
        assert abs(array.mean()) < limit * error / 3**0.5
        assert abs((array.astype("float64") ** 2).mean() - limit**2 / 3) < limit**2 * error * 0.3


@uniform_cells
def test_initial_weights_are_drawn_anew_for_every_array(cell: str) -> None:
    params = fastgru.init_params(6, 6, cell=cell, num_layers=2, bidirectional=True, rng=0)
    numbers = np.concatenate([a.ravel() for a in drawn(params)])
    assert len(np.unique(numbers)) > 0.99 * numbers.size


def test_initial_weights_of_other_distributions() -> None:
    """What scales begins at 1."""
    params = fastgru.init_params(6, 5, cell="toy_batch_norm", num_layers=2, dtype="float64")
    for layer in params.layers:
        for name in ("norm_weight", "running_var"):
            assert_same_bits(getattr(layer[0], name), np.ones(10))


def test_rng_is_a_seed_or_a_generator_and_reproducible() -> None:
    assert_same_bits(fastgru.init_params(3, 5, rng=7), fastgru.init_params(3, 5, rng=7))
    generators = [np.random.default_rng(7) for _ in range(2)]
    assert_same_bits(*(fastgru.init_params(3, 5, rng=rng) for rng in generators))
    assert_same_bits(
        fastgru.init_params(3, 5, rng=np.random.default_rng(7)), fastgru.init_params(3, 5, rng=7)
    )
    one, other = fastgru.init_params(3, 5, rng=generators[0]), fastgru.init_params(3, 5, rng=7)
    assert not np.isin(flatten(one)[0], flatten(other)[0]).any()  # the generator has moved on


def test_without_rng_every_draw_differs_and_global_state_is_left_alone() -> None:
    before = np.random.get_state(legacy=False)  # noqa: NPY002
    one, other = (fastgru.init_params(3, 5, dtype="float64") for _ in range(2))
    assert not np.isin(flatten(one)[0], flatten(other)[0]).any()
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    assert before["state"]["pos"] == after["state"]["pos"]
    assert (before["state"]["key"] == after["state"]["key"]).all()


def test_defaults_of_init_params() -> None:
    params = fastgru.init_params(3, 5)
    assert (params.cell, params.num_layers, params.bidirectional) == ("gru", 1, False)
    assert (params.bias, params.dtype, params.library) == (True, np.dtype("float32"), "numpy")


@pytest.mark.parametrize("dtype", ["float32", "float64", np.float32, np.float64, np.dtype("f8")])
def test_dtype_of_init_params(dtype: Any) -> None:
    params = fastgru.init_params(3, 5, dtype=dtype)
    assert params.dtype == np.dtype(dtype)
    assert {a.dtype for a in flatten(params)} == {np.dtype(dtype)}


def test_like_gives_the_library_and_not_the_dtype() -> None:
    params = fastgru.init_params(3, 5, rng=0, like=np.zeros(1, np.float64))
    assert {type(a) for a in flatten(params)} == {np.ndarray}
    assert_same_bits(params, fastgru.init_params(3, 5, rng=0))
    with pytest.raises(TypeError, match="like"):
        fastgru.init_params(3, 5, like=[1.0])


def test_cells_are_those_of_the_table() -> None:
    assert list(fastgru.cells()) == list(CELLS)
    assert {"gru", "gru_reset_before", "lstm"} <= set(fastgru.cells())
    with pytest.raises(ValueError, match="gru, gru_reset_before, lstm"):
        fastgru.init_params(3, 5, cell="GRU")


# --- plain and packed -----------------------------------------------------------------------------


@each_cell
def test_plain_params_changed_in_place_are_seen_by_the_next_call(cell: str) -> None:
    problem = draw(cell, L=2)
    changed = problem.params.map(lambda w: 2 * w)
    before = problem.step(0)
    want = solve(problem._replace(params=changed)), problem.step(0, changed)
    for array in flatten(problem.params):
        array *= 2
    assert_same_bits((solve(problem), problem.step(0)), want)
    assert (before[0] != want[1][0]).any()


@each_dtype
@each_cell
def test_packed_params_are_a_snapshot_accepted_wherever_params_are(cell: str, dtype: str) -> None:
    problem = draw(cell, L=2, dtype=dtype)
    params = problem.params

    def results(weights: Any) -> tuple[Any, ...]:
        y, h_n, saved = problem.forward_train(weights)
        return (
            *(y, h_n, problem.backward(saved)),
            problem.forward(weights),
            problem.step(0, weights),
        )

    want, packed = results(params), fastgru.pack(params)
    _, _, saved = problem.forward_train(packed)
    assert_same_bits(results(packed), want)
    for array in flatten(params):
        array[...] = np.nan
    assert_same_bits(results(packed), want)
    assert_same_bits(results(fastgru.pack(packed)), want)
    assert_same_bits(problem.backward(saved), want[2])
