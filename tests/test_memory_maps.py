"""Memory maps and pickles: arrays out of files, and what goes between processes."""

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import (
    Library,
    Problem,
    assert_same_bits,
    draw,
    each_cell,
    everywhere,
    flatten,
    solve,
)
from programs import run

import fastgru

MODES = ["r", "c", "r+"]  # read-only, copied when written to, writable


def mapped(array: Any, folder: Path, mode: str) -> Any:
    """An array as `numpy.load` maps it from a file."""
    path = folder / f"{len(list(folder.iterdir()))}.npy"
    np.save(path, array)
    found = np.load(path, mmap_mode=mode)
    assert type(found) is np.memmap
    return found


def all_mapped(problem: Problem, folder: Path, mode: str) -> Problem:
    """A problem whose arrays are all mapped from files."""

    lengths = mapped(np.array(problem.lengths), folder, mode)
    return problem.map(lambda array: mapped(array, folder, mode))._replace(lengths=lengths)


@pytest.mark.parametrize("mode", MODES)
@everywhere
def test_memory_maps_are_taken_everywhere(cell: str, dtype: str, mode: str, tmp_path: Path) -> None:
    """By forward, forward_train, backward, step, pack, init_params, map and to_dict."""
    problem = draw(cell, L=2, D=2, lengths=[2, 0, 4], dtype=dtype)
    maps = all_mapped(problem, tmp_path, mode)
    want = solve(problem)
    got = solve(maps)
    assert_same_bits(got, want)
    assert {type(array) for array in flatten(got)} == {np.ndarray}
    packed = fastgru.pack(maps.params)
    assert {type(array) for array in flatten(packed.params)} == {np.ndarray}
    assert_same_bits(maps.forward(packed), problem.forward())
    again = fastgru.Params.from_dict(maps.params.to_dict(), cell=cell)
    assert_same_bits(again.map(np.array), problem.params)
    assert fastgru.init_params(2, 3, cell=cell, like=maps.x).library == "numpy"

    one = draw(cell, dtype=dtype, lengths=[1, 1, 1])
    maps = all_mapped(one, tmp_path, mode)
    assert_same_bits(maps.step(0), one.step(0))


def test_other_subclasses_stay_refused() -> None:
    """A subclass of a memory map too: what it does is not known."""

    class Own(np.memmap):
        pass

    problem = draw("gru")
    with pytest.raises(TypeError, match=r"^x: expected a numpy or cupy ndarray .*Own"):
        fastgru.forward(problem.x.view(Own), problem.params)


# --- pickles --------------------------------------------------------------------------------------

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("lengths", [None, [2, 0, 4]])
@each_cell
def test_saved_survives_a_pickle(cell: str, lengths: Any, way: str) -> None:
    problem = draw(cell, L=2, D=2, lengths=lengths)
    _, _, saved = problem.forward_train()
    want = problem.backward(saved)
    restored = COPIES[way](saved)
    assert_same_bits(problem.backward(restored), want)
    assert_same_bits(restored.params, saved.params)
    assert repr(restored) == repr(saved)


@pytest.mark.parametrize("layout", ["time_major", "unbatched"])
def test_saved_of_other_layouts_survives_a_pickle(layout: str) -> None:
    problem = draw("lstm")
    x = problem.x[0] if layout == "unbatched" else problem.x
    y, _, saved = fastgru.forward_train(x, problem.params, time_major=layout == "time_major")
    restored = pickle.loads(pickle.dumps(saved))
    assert_same_bits(fastgru.backward(restored, y), fastgru.backward(saved, y))


def test_saved_of_a_cpu_with_other_vectors_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = draw("gru")
    _, _, saved = fastgru.forward_train(problem.x, problem.params)
    _, (params, kinds, forms, values) = saved.__reduce__()
    other = [(size, unit + 4) for size, unit in forms]
    restore = saved.__reduce__()[0]
    with pytest.raises(ValueError, match="vectors of another width"):
        restore(params, kinds, other, values)


def test_saved_of_other_libraries_says_why_not(simulated: Library) -> None:
    problem = simulated.take(draw("gru"))
    _, _, saved = fastgru.forward_train(problem.x, problem.params)
    with pytest.raises(TypeError, match=r"^Saved of cupy arrays cannot be pickled, as it holds"):
        pickle.dumps(saved)


def of_process(problem: Problem) -> Any:
    """What a process computes: everything that goes between processes."""
    _, _, saved = problem.forward_train()
    return fastgru.pack(problem.params), saved, problem.backward(saved)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_what_other_processes_make_is_used_here(cell: str) -> None:
    """Params, Packed, Saved and Gradients, through a process started anew, both ways."""
    problem = draw(cell, L=2, D=2, lengths=[2, 0, 4])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        packed, saved, gradients = pool.apply(of_process, (problem,))
    want = of_process(problem)[2]
    assert_same_bits(gradients, want)
    assert_same_bits(problem.backward(saved), want)
    assert_same_bits(problem.forward(packed), problem.forward())


def test_joblib_maps_what_it_sends() -> None:
    """Arrays above 1 MB reach its workers as read-only memory maps, those of Packed too."""
    pytest.importorskip("joblib")
    out = run(
        """
        import os, tempfile
        import joblib

        params = fastgru.init_params(300, 300, num_layers=2, rng=0)
        packed = fastgru.pack(params)
        x = rng.standard_normal((16, 100, 300)).astype("float32")
        y, h_n, saved = fastgru.forward_train(x, params)

        def in_worker(x, params, packed, saved):
            import fastgru
            kinds = {type(x).__name__, type(params.layers[0][0].weight_ih).__name__}
            results = [fastgru.forward(x, p)[0].tobytes() for p in (params, packed)]
            return kinds, results, fastgru.backward(saved, x).x.tobytes()

        task = joblib.delayed(in_worker)(x, params, packed, saved)
        ((kinds, results, dx),) = joblib.Parallel(n_jobs=2, max_nbytes=1e6)([task])
        print(kinds, results == [y.tobytes()] * 2, dx == fastgru.backward(saved, x).x.tobytes())
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "packed")
            joblib.dump([params, packed, saved], path)
            *weights, saved = joblib.load(path, mmap_mode="r")
            for thing in weights:
                print(fastgru.forward(x, thing)[0].tobytes() == y.tobytes())
            print(fastgru.backward(saved, x).x.tobytes() == dx)
        """
    )
    assert out.split() == ["{'memmap'}", *["True"] * 5]
