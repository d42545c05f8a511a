"""The simulator itself: what it emulates, and that it tells what a GPU would hang in."""

from collections.abc import Callable

import numpy as np
import pytest
from problems import Library


def test_words_of_all_bits(cuda_tools: None) -> None:
    from simulator.intrinsics import load_tagged, store_tagged

    words = np.zeros((2, 1, 1), np.uint64)
    patterns = np.array([0, 1, 0x7FC00000, 0xFFFFFFFF, 0x7F800000, 0x80000000], np.uint32)
    for number in (1, 2**32 - 1, 2**32 + 5):
        for value in patterns.view(np.float32):
            store_tagged(None, words, 1, 0, 0, number, value)
            found, back = load_tagged(None, words, 1, 0, 0)
            assert found == number & 0xFFFFFFFF
            assert np.float32(back).view(np.uint32) == value.view(np.uint32)


def test_numbers_are_rounded_to_the_nearest(cuda_tools: None) -> None:
    """For each precision the numbers on both sides, and the one that is taken."""
    from simulator.intrinsics import pack_bf16, round_tf32

    random = np.random.default_rng(0)
    values = np.concatenate([random.normal(size=500), [0, 1e-40, -1e30, np.inf, -np.inf]])
    values = np.append(values, [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11]).astype("float32")
    for value in values:
        both = int(pack_bf16(None, value, -value))
        tf32 = int(round_tf32(None, value))
        assert tf32 & 0x1FFF == 0
        for bits, step in ((both << 16 & 0xFFFFFFFF, 1 << 16), (tf32, 1 << 13)):
            near = np.array([bits, bits - step, bits + step], np.int64).astype(np.uint32)
            if np.isinf(value):
                assert near.view(np.float32)[0] == value
                continue
            distances = np.abs(near.view(np.float32).astype("float64") - value)
            assert distances[0] == np.nanmin(distances)  # beside 0 is a NaN
        high = np.array(both & 0xFFFF0000, np.uint32).view(np.float32)
        low = np.array(both << 16 & 0xFFFFFFFF, np.uint32).view(np.float32)
        assert high == -low
    assert [int(pack_bf16(None, v, 0)) for v in values[-3:-1]] == [
        0x3F80,
        0x3F82,
    ]  # halves: to even
    assert int(round_tf32(None, values[-1])) == 0x3F802000  # halves: away from 0
    for number in (
        pack_bf16(None, np.float32(np.nan), 0) << 16,
        round_tf32(None, np.float32(np.nan)),
    ):
        assert np.isnan(np.array(number, np.uint32).view(np.float32))


def test_a_kernel_that_waits_for_ever_is_an_error(simulated: Library) -> None:
    """In the simulator, so that the tests of loops do not hang."""
    import simulator

    cuda = simulator.Cuda((2, 1), (2, 1))

    def deadlock() -> None:
        if cuda.blockIdx.x == 1:
            cuda.syncthreads()
            return
        while True:
            cuda.nanosleep(0)

    def missing() -> None:
        if cuda.threadIdx.x == 1:
            cuda.syncthreads()

    with pytest.raises(RuntimeError, match="2 threads wait for each other"):
        cuda.run(deadlock, waits=True, together=True)
    with pytest.raises(RuntimeError, match="1 threads ended, others wait"):
        cuda.run(missing, waits=True, together=False)


def test_a_cluster_that_does_not_meet_is_an_error(simulated: Library) -> None:
    """In the simulator, so that the tests of loops do not hang or pass by chance."""
    import simulator

    cuda = simulator.Cuda((1, 2), (32, 1), 4)

    def run(kernel: Callable[[], object]) -> None:
        cuda.run(kernel, waits=True, together=False, cluster=2)

    def alone() -> None:
        if cuda.blockIdx.y == 1:
            cuda.cluster_arrive()
            cuda.cluster_wait()

    def too_early() -> None:
        words = cuda.shared.array(0, np.dtype("uint32"))
        cuda.shared_by(words, 1 - cuda.blockIdx.y)[0] = 1

    def twice() -> None:
        cuda.cluster_arrive()
        cuda.cluster_arrive()

    with pytest.raises(RuntimeError, match="wait for each other for ever"):
        run(alone)
    with pytest.raises(AssertionError, match="a block may not have started"):
        run(too_early)
    with pytest.raises(AssertionError, match="arrives twice"):
        run(twice)
    with pytest.raises(AssertionError, match="has not arrived"):
        run(cuda.cluster_wait)
    with pytest.raises(AssertionError, match="ends before its cluster's barrier"):
        run(cuda.cluster_arrive)


def test_every_intrinsic_is_emulated_and_only_while_a_kernel_runs(simulated: Library) -> None:
    from simulator.intrinsics import EMULATIONS

    from fastgru.kernels.cuda.loops import intrinsics, tensor_intrinsics

    kind = type(intrinsics.load_four)
    found = [
        value
        for module in (intrinsics, tensor_intrinsics)
        for value in vars(module).values()
        if isinstance(value, kind)
    ]
    assert {*map(id, found)} == {*map(id, EMULATIONS)}
    with pytest.raises(NotImplementedError, match="load_four"):
        intrinsics.load_four(None, 0, 0, 0)
