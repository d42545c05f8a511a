"""The README's examples run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_examples_run_in_order() -> None:
    names: dict[str, object] = {}
    for block in BLOCKS:
        if "torch" not in block:
            exec(block, names)
    y, y_t = names["y"], names["y_t"]
    assert isinstance(y, np.ndarray)
    assert isinstance(y_t, np.ndarray)
    assert y.shape == (32, 100, 64)
    assert y_t.shape == (32, 64)


def test_pytorch_example() -> None:
    torch = pytest.importorskip("torch")
    import fastgru

    torch_gru = torch.nn.GRU(3, 8, num_layers=2, batch_first=True, bidirectional=True)
    (block,) = (b for b in BLOCKS if "torch" in b)
    names: dict[str, object] = {"fastgru": fastgru, "torch_gru": torch_gru}
    exec(block, names)
    x = np.random.default_rng(0).standard_normal((4, 9, 3)).astype("float32")
    params = names["params"]
    assert isinstance(params, fastgru.Params)
    y, _ = fastgru.forward(x, params)
    with torch.no_grad():
        want, _ = torch_gru(torch.from_numpy(x))
    np.testing.assert_allclose(y, want.numpy(), rtol=0, atol=1e-6)
