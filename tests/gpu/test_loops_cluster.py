"""The loop of clusters of blocks and their tensor cores."""

from typing import Any

import numpy as np
import pytest
from gpu_tools import EPS, Tune, UseLoops, chosen, forget_choices
from problems import (
    Library,
    Problem,
    as_state,
    assert_close,
    assert_same_bits,
    draw,
    flatten,
    solve,
)

import fastgru
from fastgru.kernels.cells import CELLS


@pytest.fixture
def clusters(use_loops: UseLoops, tune: Tune, cupy: Library) -> Library:
    """CuPy, with the loop of `cluster` where it suits; few units of a block in the simulator."""
    use_loops("cluster")
    if cupy.name != "cupy":
        tune(CLUSTER_UNITS=16)
    elif int(cupy.asarray(np.zeros(1)).device.compute_capability) < 90:
        pytest.skip("clusters need a GPU of compute capability 9.0")
    return cupy


# In the simulator: a block alone, two, and three.
CLUSTERED = {"simulated cupy": (13, 24, 40), "cupy": (32, 200, 512)}


def solve_roughly(problem: Problem, library: Library, precision: str) -> tuple[Any, ...]:
    """All results and gradients in reduced precision."""
    given = library.take(problem)
    x, params, h0, _, dy, dh_n, _ = given
    y, h_n, saved = fastgru.forward_train(
        x, params, as_state(h0), precision=precision, **given.options
    )
    gradients = fastgru.backward(saved, dy, as_state(dh_n))
    return tuple(flatten(*library.give((y, h_n, gradients))))


def assert_clusters_are_right(problem: Problem, library: Library, precision: str) -> None:
    """As the loop of `steps`, which rounds the same numbers before it multiplies them."""
    from fastgru.kernels.cuda import loops

    assert chosen(problem, library, precision) == "cluster"
    found = solve_roughly(problem, library, precision)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(loops.VARIABLE)
        forget_choices()
        want = solve_roughly(problem, library, precision)
    forget_choices()
    exact = flatten(*solve(problem.astype("float64")))
    rounding = 2.0 ** -{"bf16": 8, "tf32": 11}[precision]
    close = []
    for a, b, c in zip(found, want, exact, strict=True):
        assert_close(a, b, 4 * rounding)
        assert_close(a, c, 16 * rounding)
        close.append((np.abs(a - b) <= 64 * EPS * np.maximum(1, np.abs(b))).ravel())
    if library.name != "cupy":  # cuBLAS may round otherwise
        # Where a number lies between two, another order of the sums before can turn its rounding.
        assert np.mean(np.concatenate(close)) > 0.9


@pytest.mark.parametrize("lengths", [None, [2, 3, 0, 1, 3, 3, 2, 1, 3]])
@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters(cell: str, precision: str, size: int, lengths: Any, clusters: Library) -> None:
    """Two tiles of rows, the second of one row."""
    problem = draw(
        cell, (9, 3, 3, CLUSTERED[clusters.name][size]), lengths=lengths, dtype="float32"
    )
    assert_clusters_are_right(problem, clusters, precision)


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters_with_little_room(
    cell: str, precision: str, clusters: Library, tune: Tune
) -> None:
    """Weights beside the registers, one buffer for the vectors; launches that go on with others."""
    from fastgru.kernels.cuda import tuning
    from fastgru.kernels.cuda.loops import cluster

    # Products of one pair, and of two; how many have their weights in registers.
    H, units, pairs, held = {"bf16": (24, 16, 1, 2), "tf32": (104, 48, 2, 2)}[precision]
    if clusters.name == "cupy":
        H = 512
    else:
        tune(CLUSTER_UNITS=units, CLUSTER_WEIGHT_REGISTERS=8 * held)
        roomy = cluster.tiles_for(CELLS[cell], H, np.dtype("float32"), precision)
        assert roomy is not None
        enough = 4 * (roomy.backward.words + int(np.prod(roomy.backward.sums)))
        tune(MOST_SHARED_BYTES=enough - 1)
        tiles = cluster.tiles_for(CELLS[cell], H, np.dtype("float32"), precision)
        assert tiles is not None
        assert (tiles.forward.buffers, tiles.backward.buffers) == (2, 1)
        assert {(tile.pairs, tile.in_registers) for tile in tiles} == {(pairs, held)}
    problem = draw(cell, (2, 4, 3, H), lengths=[4, 3], dtype="float32")
    for size in (tuning.WORKSPACE_BYTES, 7000):
        tune(WORKSPACE_BYTES=size)
        assert_clusters_are_right(problem, clusters, precision)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters_give_the_same_bits_each_time(cell: str, clusters: Library) -> None:
    """Whatever the order in which blocks and threads get on; in both directions."""
    shape = (9, 4, 3, CLUSTERED[clusters.name][1])
    problem = draw(cell, shape, D=2, lengths=[4, 4, 3, 0, 3, 1, 2, 4, 4], dtype="float32")
    want = solve_roughly(problem, clusters, "bf16")
    for _ in range(200 if clusters.name == "cupy" else 3):
        assert_same_bits(solve_roughly(problem, clusters, "bf16"), want)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_clusters_keep_rows_apart(value: float, clusters: Library) -> None:
    clean = draw("gru", (5, 4, 3, CLUSTERED[clusters.name][1]), dtype="float32")
    spoilt = clean._replace(x=clean.x.copy())
    spoilt.x[2] = value
    found, want = (solve_roughly(p, clusters, "bf16")[0] for p in (spoilt, clean))
    others = [0, 1, 3, 4]
    np.testing.assert_array_equal(found[others], want[others])
    assert np.isnan(found[2]).any() or abs(value) == np.inf


def test_what_clusters_do_not_suit(clusters: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw("gru", (1, 1, 1, 24), dtype="float32")
    if clusters.name != "cupy":
        kind = type(clusters.asarray(np.zeros(1)).device)
        fits = 2, 232_448, "90"
        for has in (fits, (1, 232_448, "90"), (2, 16_000, "90"), (2, 232_448, "89"), fits):
            count, shared, capability = has
            room = {"MultiProcessorCount": count, "MaxSharedMemoryPerBlockOptin": shared}
            monkeypatch.setattr(kind, "attributes", room)
            monkeypatch.setattr(kind, "compute_capability", capability)
            assert chosen(problem, clusters, "bf16") == ("cluster" if has == fits else "steps")
    assert chosen(problem, clusters) == "steps"
    assert chosen(draw("gru_reset_before", (1, 1, 1, 24)).astype("float32"), clusters, "bf16") == (
        "steps"
    )
    assert chosen(draw("gru", (1, 1, 1, 600), dtype="float32"), clusters, "bf16") == "steps"


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters_are_for_all_sizes_up_to_512(cell: str, precision: str, cuda_tools: None) -> None:
    from fastgru.kernels.cuda.loops.cluster import tiles_for

    gates = len(CELLS[cell].recurrent_gates)
    for H in (1, 16, 100, 300, 512):
        tiles = tiles_for(CELLS[cell], H, np.dtype("float32"), precision)
        assert tiles is not None
        for tile in tiles:
            assert tile.blocks * tile.units >= H
            assert tile.threads <= 256
            words = gates * tile.units * 4 * 16 * tile.pairs  # in four parts, padded
            assert tile.first_vector == words - 8 * tile.in_registers * tile.threads
    assert tiles_for(CELLS[cell], 513, np.dtype("float32"), precision) is None
