"""Several devices and streams."""

from typing import Any

import pytest
from gpu_tools import LENGTHS
from problems import Library, assert_same_bits, draw, flatten

import fastgru


@pytest.mark.parametrize("dh_n", ["both", "one", "none"])
def test_results_stay_on_the_device_of_the_arrays(dh_n: str, simulated: Library) -> None:
    from cupy.cuda import Device

    with Device(1):
        problem = simulated.take(draw("lstm", L=2, D=2, lengths=LENGTHS))
    x, params, h0, lengths, dy, dstate, _ = problem
    given: Any = {"both": dstate, "one": (None, dstate[1]), "none": None}[dh_n]
    weights = fastgru.pack(params)
    y, h_n, saved = fastgru.forward_train(x, weights, h0, lengths=lengths)
    gradients = fastgru.backward(saved, dy, given)
    inference = fastgru.forward(x, params, lengths=lengths)
    drawn = fastgru.init_params(2, 3, like=x)
    copies = weights.params
    devices = [a.device for a in flatten(y, h_n, gradients, *inference, drawn, copies)]
    assert devices == [Device(1)] * len(devices) != []
    assert Device() == Device(0)


@pytest.mark.parametrize("argument", ["x", "h0", "x_t", "h", "dy", "dh_n", "params"])
def test_arrays_of_several_devices(argument: str, simulated: Library) -> None:
    from cupy.cuda import Device

    problem = draw("gru")
    x, params, h0, _, dy, *_ = simulated.take(problem)
    with Device(1):
        other_x, other_params, other_h0, _, other_dy, other_dh_n, _ = simulated.take(problem)
    mixed = params.to_dict() | {"bias_hh_l0": other_params.to_dict()["bias_hh_l0"]}
    _, _, saved = fastgru.forward_train(x, params, h0[0])
    calls = {
        "x": lambda: fastgru.forward(other_x, params, h0[0]),
        "h0": lambda: fastgru.forward_train(x, params, other_h0[0]),
        "x_t": lambda: fastgru.step(other_x[:, 0], params),
        "h": lambda: fastgru.step(x[:, 0], params, other_h0[0]),
        "dy": lambda: fastgru.backward(saved, other_dy),
        "dh_n": lambda: fastgru.backward(saved, dy, other_dh_n[0]),
        "params": lambda: fastgru.forward(x, fastgru.Params.from_dict(mixed, cell="gru")),
    }
    message = rf"^{argument}: expected (an array on .*0.*, as params, got one on|all arrays).* .*1"
    with pytest.raises(ValueError, match=message):
        calls[argument]()


def test_streams_have_their_own_copies_of_the_order(
    simulated: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one stream copies may not be there yet for another."""
    import cupy

    x, params, h0, *_ = simulated.take(draw("gru"))
    weights = fastgru.pack(params)
    want = fastgru.forward(x, weights, h0[0])
    (call,) = fastgru.packed.operands_of(weights).architecture.calls.values()
    cupy.cuda.get_current_stream().synchronize()
    for pointer in range(1, 100):
        stream = type("Stream", (), {"ptr": pointer})
        monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda stream=stream: stream)
        assert_same_bits(fastgru.forward(x, weights, h0[0]), want)
        kept = call.stack.recurrences[0].indices_on
        assert any(key[:2] == (0, pointer) for key in kept)  # 2 has one for each thread
        assert len(kept) <= 16
    for pointer in range(200, 216):  # as many as are kept
        stream = type("Stream", (), {"ptr": pointer})
        monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda stream=stream: stream)
        fastgru.forward(x, weights, h0[0])
        copies = call.stack.recurrences[0].indices_on[0, pointer, 0]
        fastgru.forward(x, weights, h0[0])
        assert call.stack.recurrences[0].indices_on[0, pointer, 0] is copies
