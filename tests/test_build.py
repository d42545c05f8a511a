"""What is compiled for which cell and dtype."""

import numpy as np
import pytest
from problems import SHIPPED_CELLS, each_cell
from programs import run

from fastgru.kernels.cells import CELLS
from fastgru.kernels.cpu import build
from fastgru.kernels.layout import phase_plans

SINGLE = np.dtype("float32")


@pytest.mark.parametrize("kind", ["packing", "forward", "backward", "gradient of weights"])
def test_cells_share_what_knows_no_cell(kind: str) -> None:
    kernels = [build.kernel_makers(CELLS[cell], SINGLE)[kind]() for cell in SHIPPED_CELLS]
    assert all(kernel is kernels[0] for kernel in kernels)
    other = build.kernel_makers(CELLS["gru"], np.dtype("float64"))[kind]()
    assert other is not kernels[0]


@each_cell
def test_every_kernel_of_a_cell_is_listed(cell: str) -> None:
    """Equations of each phase and pass; products of each number of gates; norms where there are."""
    of = CELLS[cell]
    makers = build.kernel_makers(of, SINGLE)
    equations = [name for name in makers if name.startswith("equations")]
    assert len(equations) == 2 * len(of.phases)
    products = {f"product, {gates} gates" for gates in build.gates_of_products(of)}
    recurrent = {plan.recurrents for plan in phase_plans(of)} - {0}
    products |= {f"product, one row, {gates} gates" for gates in recurrent | {1}}
    assert {name for name in makers if name.startswith("product")} == products
    assert "product, 1 gates" in products  # what gradients of operands and of x are made by
    assert ("statistics" in makers) == ("input norm, backward" in makers) == (of.norm is not None)


def test_a_disabled_compiler_is_an_error_that_says_so() -> None:
    out = run(
        """
        try:
            fastgru.forward(x, params)
        except RuntimeError as error:
            print(error)
        """,
        NUMBA_DISABLE_JIT="1",
    )
    assert out.startswith("NUMBA_DISABLE_JIT is set")
