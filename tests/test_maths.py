"""The elementary functions on vectors: error in units of the last place, and special values."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from problems import DTYPES

from fastgru.kernels import primitives
from fastgru.kernels.cpu import build
from fastgru.kernels.cpu.simd import load_vectors, store_vectors

# The bounds that the library promises, in ulp.
ULP = {"exp": 1.5, "sigmoid": 3.0, "tanh": 3.0}
# More digits than float64 has, to measure float64 against; not so on Windows nor on macOS with Arm.
WIDE = np.longdouble
measurable = pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param(
            "float64",
            marks=pytest.mark.skipif(
                np.finfo(WIDE).eps == np.finfo("float64").eps, reason="longdouble is float64"
            ),
        ),
    ],
)


def vectorised(name: str, dtype: str) -> Callable[[Any, Any], None]:
    """The compiled primitive, applied to arrays of whole vectors."""
    function = getattr(primitives, name)
    lanes = build.lanes(np.dtype(dtype))

    @numba.njit
    def apply(x, out):  # type: ignore[no-untyped-def]
        for i in range(0, len(x), lanes):
            (value,) = load_vectors(x, i, 0, 1)
            store_vectors(out, i, 0, (function(value),))

    return apply


def exact(name: str, x: Any) -> Any:
    """The function in more digits than those of `x`."""
    wide = x.astype(np.float64 if x.dtype == np.float32 else WIDE)
    with np.errstate(over="ignore", under="ignore"):
        if name == "sigmoid":
            e = np.exp(-np.abs(wide))
            return np.where(wide >= 0, 1, e) / (1 + e)
        return getattr(np, name)(wide)


def ulps(got: Any, want: Any) -> Any:
    """Distance in units of the last place of the value wanted."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = want.astype(got.dtype)
        error = np.abs(got - want) / np.spacing(np.abs(rounded)).astype(want.dtype)
    return np.where(got == rounded, 0, error)


def worst_over(name: str, dtype: str, bits: Any) -> float:
    """Largest error over the numbers with these bit patterns; checks NaN and infinities."""
    x = bits.view(dtype)
    x = x[np.isfinite(x)]
    x = x[: len(x) // 16 * 16]  # whole vectors
    got = np.empty_like(x)
    vectorised(name, dtype)(x, got)
    want = exact(name, x)
    return float(ulps(got, want).max())


@measurable
@pytest.mark.parametrize("name", ULP)
def test_ulp_over_samples(name: str, dtype: str) -> None:
    """Bit patterns spread evenly, so that every exponent and both signs come up."""
    width = np.dtype(dtype).itemsize * 8
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**width, 1 << 20, dtype=f"uint{width}", endpoint=False)
    # Below 0.1, tanh doubles the error of what it is made from.
    near = [rng.uniform(-size, size, 1 << 18).astype(dtype).view(bits.dtype) for size in (100, 0.1)]
    assert worst_over(name, dtype, np.concatenate([bits, *near])) <= ULP[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ULP)
def test_ulp_over_every_float32(name: str) -> None:
    for start in range(0, 1 << 32, 1 << 24):
        bits = np.arange(start, start + (1 << 24), dtype=np.uint32)
        assert worst_over(name, "float32", bits) <= ULP[name]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "at_minus_infinity", "at_zero", "at_infinity"),
    [("exp", 0, 1, np.inf), ("sigmoid", 0, 0.5, 1), ("tanh", -1, 0, 1)],
)
def test_special_values(
    name: str, dtype: str, at_minus_infinity: float, at_zero: float, at_infinity: float
) -> None:
    limits = at_minus_infinity, at_infinity
    tiny = float(np.finfo(dtype).smallest_subnormal)
    given = [-np.inf, np.inf, -1e20, 1e20, 0.0, -0.0, np.nan, tiny]
    x = np.array(given * 16, dtype)
    out = np.empty_like(x)
    vectorised(name, dtype)(x, out)
    near_zero = tiny if name == "tanh" else at_zero
    want = np.array([*limits, *limits, at_zero, at_zero, np.nan, near_zero] * 16, dtype)
    np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ULP)
def test_plain_python_agrees(name: str, dtype: str) -> None:
    """Cells run as plain Python give the same equations."""
    x = np.linspace(-30, 30, 1600).astype(dtype)
    out = np.empty_like(x)
    vectorised(name, dtype)(x, out)
    function = getattr(primitives, name)
    plain = np.array([function(value) for value in x], dtype)
    assert ulps(out, plain.astype(WIDE)).max() <= ULP[name] + 2
    assert float(function(x.dtype.type(-1e20))) == (-1.0 if name == "tanh" else 0.0)
