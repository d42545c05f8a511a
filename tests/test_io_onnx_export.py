"""`to_onnx`: models that onnxruntime runs to the same numbers, and that `from_onnx` reads back."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from problems import SHIPPED_CELLS, Library, as_members, assert_same_bits, draw

import fastgru
from fastgru.io.onnx import from_onnx
from fastgru.io.onnx_export import to_onnx

CELLS = ("gru", "gru_reset_before", "lstm", "lstm_peephole", "cifg", "rnn_tanh", "rnn_relu")
EPS32 = float(np.finfo(np.float32).eps)
# In units of eps (sqrt(I + H) + max |a|) a layer, what both sides may round together: the worst of
# 600 random problems was 0.35.
K = 1.0


def run(model: Any, **feeds: Any) -> list[Any]:
    """What onnxruntime makes of it, in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def bound(x: Any, params: fastgru.Params) -> float:
    """eps (sqrt(I + H) + max |a|), with the largest sums of absolute values that a can be."""
    inputs = max(params.input_size, params.hidden_size * params.num_directions)
    largest = max(
        float(np.abs(array).sum(axis=-1).max()) * max(1.0, float(np.abs(x).max()))
        for array in params.to_dict().values()
        if array.ndim == 2
    )
    layers = params.num_layers
    return K * EPS32 * layers * (float(np.sqrt(inputs + params.hidden_size)) + largest)


@pytest.mark.parametrize("given", ["nothing", "lengths", "states", "both"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize(("L", "D"), [(1, 1), (1, 2), (3, 1), (2, 2)])
@pytest.mark.parametrize("cell", CELLS)
def test_onnxruntime_gets_the_same(cell: str, L: int, D: int, bias: bool, given: str) -> None:
    has_lengths, has_states = given in ("lengths", "both"), given in ("states", "both")
    problem = draw(
        cell, (3, 6, 4, 5), L=L, D=D, bias=bias, dtype="float32", lengths=[6, 1, 4], seed=L + D
    )
    model = to_onnx(problem.params, lengths=has_lengths, states=has_states)
    onnx.checker.check_model(model, full_check=True)
    feeds = {"x": problem.x}
    if has_lengths:
        feeds["lengths"] = np.array(problem.lengths, np.int32)
    if has_states:
        feeds |= {f"{m}0": h for m, h in zip("hc", problem.h0 or (), strict=False)}
    y, h_n = fastgru.forward(
        problem.x,
        problem.params,
        problem.state if has_states else None,
        lengths=problem.lengths if has_lengths else None,
    )
    want_y, *want_h = run(model, **feeds)
    tolerance = bound(problem.x, problem.params)
    assert np.abs(y - want_y).max() <= tolerance
    for got, want in zip(as_members(h_n), want_h, strict=True):
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= tolerance * max(1, np.abs(want).max())
    assert_same_bits(from_onnx(model, merge=True).only, problem.params)


def test_batches_and_lengths_are_free() -> None:
    params = draw("gru", (1, 1, 3, 4), L=2, D=2, dtype="float32").params
    model = to_onnx(params)
    for N, T in ((1, 1), (5, 2), (2, 30)):
        x = np.random.default_rng(N).standard_normal((N, T, 3)).astype(np.float32)
        y, h_n = fastgru.forward(x, params)
        want_y, want_h = run(model, x=x)
        assert np.abs(y - want_y).max() <= bound(x, params)
        assert np.abs(h_n - want_h).max() <= bound(x, params)


@pytest.mark.parametrize("opset", [14, 17, 21, 22])
def test_versions_of_the_operators(opset: int) -> None:
    if opset > onnx.defs.onnx_opset_version():
        pytest.skip("the package onnx is older")
    model = to_onnx(draw("lstm", dtype="float32").params, opset=opset)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)


def test_a_file_is_written_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = draw("gru", dtype="float32").params
    path = tmp_path / "weights.onnx"
    model = to_onnx(params, path)
    assert path.read_bytes() == model.SerializeToString()
    assert_same_bits(from_onnx(path).only, params)
    to_onnx(draw("lstm", dtype="float32").params, path)
    assert from_onnx(path).only.cell == "lstm"

    def fail(*args: Any) -> Any:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="no"):
            to_onnx(params, path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.onnx"]
    assert from_onnx(path).only.cell == "lstm"


def test_arrays_of_other_libraries(library: Library) -> None:
    params = draw("lstm_peephole", dtype="float32").params
    model = to_onnx(params.map(library.asarray))
    assert model.SerializeToString() == to_onnx(params).SerializeToString()


@pytest.mark.parametrize("cell", [cell for cell in SHIPPED_CELLS if cell not in CELLS])
def test_cells_that_onnx_does_not_have(cell: str) -> None:
    with pytest.raises(ValueError, match=f"params: ONNX has no cell '{cell}', only gru, "):
        to_onnx(draw(cell, dtype="float32").params)


def test_refused_arguments() -> None:
    params = draw("gru", dtype="float32").params
    with pytest.raises(TypeError, match="params: expected Params, got dict"):
        to_onnx(params.to_dict())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"params: expected float32, got float64.*astype"):
        to_onnx(draw("gru").params)
    with pytest.raises(TypeError, match="lengths: expected True or False"):
        to_onnx(params, lengths=[3])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="states: expected True or False"):
        to_onnx(params, states=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path: expected a str"):
        to_onnx(params, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="opset: expected a whole number"):
        to_onnx(params, opset=17.0)  # type: ignore[arg-type]
    for opset in (13, 1000):
        with pytest.raises(ValueError, match=f"opset: expected 14 to [0-9]+, got {opset}"):
            to_onnx(params, opset=opset)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fastgru\[onnx\]"'):
        to_onnx(draw("gru", dtype="float32").params)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "fastgru\[onnx\]"'):
        from_onnx(b"")
