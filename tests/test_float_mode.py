"""The floating-point mode: kernels run in IEEE 754's, and the thread keeps its own."""

import platform

import pytest
from programs import run

# The modes in which subnormal numbers are flushed to zero.
FLUSHING = {"x86_64": 0x9FC0, "amd64": 0x9FC0, "aarch64": 1 << 24, "arm64": 1 << 24}

# Forms of loops; the equations have no part in it.
CELLS = ("gru", "gru_reset_before", "lstm", "ugrnn")


def test_the_mode_of_the_calling_thread_has_no_effect_and_stays() -> None:
    """The same bits with one thread and two, in both modes, with subnormal numbers among them."""
    machine = platform.machine().lower()
    if machine not in FLUSHING:
        pytest.skip(f"no mode is known for {machine}")
    out = run(
        f"""
        import numba
        from fastgru.kernels.cpu.float_mode import enter_ieee_mode, restore_mode

        @numba.njit
        def set_mode(mode):
            restore_mode(mode)

        @numba.njit
        def take_mode():
            return enter_ieee_mode()

        def tiny(cell):
            # Made here, in the usual mode: NumPy flushes too.
            params = fastgru.init_params(32, 64, rng=0, cell=cell)
            x, dy = (rng.standard_normal((64, 30, size)).astype("f4") for size in (32, 64))
            small = params.map(lambda w: w * np.float32(1e-4 if w.ndim == 2 else 1e-38))
            return small, x * 1e-37, dy * 1e-36

        cases = [tiny(cell) for cell in {CELLS}]

        def solved():
            arrays = []
            for params, x, dy in cases:
                y, h_n, saved = fastgru.forward_train(x, params)
                gradients = fastgru.backward(saved, dy)
                arrays += [y, gradients.x, *gradients.params.to_dict().values()]
            return arrays

        def in_flushing_mode():
            set_mode({FLUSHING[machine]})
            arrays = solved()
            # Flags of what happened, below the mode on x86, are not part of it.
            assert take_mode() & ~0x3F == {FLUSHING[machine]}
            return arrays

        found = []
        for count in (1, 2):
            numba.set_num_threads(count)
            found += [solved(), in_flushing_mode()]
        tiniest = np.finfo("float32").tiny
        for y, *_ in found:
            assert ((y != 0) & (abs(y) < tiniest)).any()
        first, *others = [b"".join(a.tobytes() for a in arrays) for arrays in found]
        print(*(other == first for other in others))
        """,
        NUMBA_NUM_THREADS="2",
    )
    assert out.split() == ["True"] * 3
