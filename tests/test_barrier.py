"""Threads that share the units of every step: who takes which, and that nobody waits for ever."""

from programs import run

from fastgru.kernels.cpu import barrier


def test_threads_share_units_of_every_cell() -> None:
    """Few rows, however small: every cell, dtype and number of rows, ragged, against one thread.

    The most rows take several blocks, which the threads share one after another, and backward takes
    several blocks of steps.
    """
    out = run(
        """
        import numba
        import toys
        from problems import assert_same_bits, draw, solve
        tune(layer, GRADIENT_BLOCK_BYTES=1, GRADIENT_BLOCK_ROWS=20)
        compared = 0

        def forget(params):
            fastgru.packed.operands_of(params).architecture.calls.clear()
            layer.layer_for.cache_clear()

        for cell in fastgru.cells():
            for dtype in ("float32", "float64"):
                for N, lengths in ((1, None), (3, (4, 0, 7)), (9, None)):
                    problem = draw(cell, (N, 7, 5, 67), L=2, D=2, lengths=lengths, dtype=dtype)
                    tune(threads, SMALLEST_PARALLEL_WORK=10**9)
                    alone = solve(problem)
                    forget(problem.params)  # what was prepared for one
                    tune(threads, SMALLEST_PARALLEL_WORK=0, SMALLEST_SHARE=1e-9)
                    tune(threads, OWN_ROWS=((10**9, 5),), MORE_RUN_TOGETHER=4)
                    for count in (2, 3):
                        numba.set_num_threads(count)
                        assert_same_bits(solve(problem), alone)
                        compared += 1
        print(compared, *threads.split(3, 9, 9, 5, 1, 1), len(fastgru.cells()))
        """,
        NUMBA_NUM_THREADS="3",
    )
    compared, *split, cells = out.split()
    assert int(compared) == 12 * int(cells) > 12
    assert split == ["3", "3", "True"]


def test_blocks_of_rows_go_round_there_and_back() -> None:
    """The longest rows come first: with a second block each, workers have about the same."""
    shares = [barrier.Share(worker, 3, worker, 0, 1) for worker in range(3)]
    blocks = [
        [barrier.row_block_of(s, turn) for turn in range(barrier.turns(s, 6))] for s in shares
    ]
    assert blocks == [[0, 5], [1, 4], [2, 3]]


def test_nobody_waits_for_threads_that_never_come() -> None:
    """A pool may run the workers one after another: the first one does everything."""
    run(
        """
        import numba
        from fastgru.kernels.cpu import recurrence
        expected = everything()
        numba.set_num_threads(1)
        recurrence.allowed_threads = lambda work: 3
        assert everything() == expected
        """,
        NUMBA_NUM_THREADS="3",
    )
