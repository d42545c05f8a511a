"""The table of cells: what its functions may use, and that they run as plain Python."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import SHIPPED_CELLS, Problem, assert_close, draw, each_cell, specified

from fastgru.kernels import cells
from fastgru.kernels.cells import CELLS, Cell, Phase, PreActivation


def test_equations_hold_no_number() -> None:
    """A literal would turn float32 arithmetic into float64 on a GPU."""
    tree = ast.parse(Path(cells.__file__).read_text("utf-8"))
    functions = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_")
    ]
    phases = [phase for name in SHIPPED_CELLS for phase in CELLS[name].phases]
    equations = {f.__name__ for phase in phases for f in (phase.forward, phase.backward)}
    assert equations <= {function.name for function in functions}
    for function in functions:
        numbers = [
            node.value
            for node in ast.walk(function)
            if isinstance(node, ast.Constant) and isinstance(node.value, int | float | complex)
        ]
        assert not numbers, f"{function.name} holds {numbers}"


def run_in_python(problem: Problem) -> Any:
    """h_n of one layer: the table's functions with NumPy arrays for units and samples."""
    x, params, h0, _, _, _ = problem
    cell, H = CELLS[params.cell], params.hidden_size
    weights = params.layers[0][0]

    def part(pre: PreActivation, kind: str, suffix: str, operand: Any) -> Any:
        if not getattr(pre, kind):
            return 0.0
        gates = cell.input_gates if kind == "input" else cell.recurrent_gates
        rows = slice(gates.index(pre.gate) * H, (gates.index(pre.gate) + 1) * H)
        bias = getattr(weights, f"bias_{suffix}")[rows]
        return operand @ getattr(weights, f"weight_{suffix}")[rows].T + bias

    state = tuple(member[0] for member in h0)
    for t in range(x.shape[1]):
        values: tuple[Any, ...] = ()
        for phase in cell.phases:
            operand = phase.operand.value(state[0], values)
            a = tuple(
                part(pre, "input", "ih", x[:, t]) + part(pre, "recurrent", "hh", operand)
                for pre in phase.pre_activations
            )
            state, new = phase.forward(a, state, values)
            assert len(new) == len(phase.values)
            values += new
    return state


@each_cell
def test_cells_run_as_plain_python(cell: str) -> None:
    problem = draw(cell)
    _, want = specified(problem)
    for got, member in zip(run_in_python(problem), want, strict=True):
        assert_close(got, member[0], 1e-14)


def test_the_table_is_read_without_numba() -> None:
    code = "import sys, fastgru.kernels.cells, fastgru; fastgru.init_params(2, 3); fastgru.cells()"
    code += "; assert not {'numba', 'llvmlite'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    "pre",
    [
        (PreActivation("a"), PreActivation("b", recurrent=False)),
        (PreActivation("a", input=False), PreActivation("b")),
        (PreActivation("a", input=False, recurrent=False),),
    ],
)
def test_a_phase_refuses_pre_activations_out_of_order(pre: tuple[PreActivation, ...]) -> None:
    with pytest.raises(ValueError, match="expected input parts, then sums, then recurrent parts"):
        Phase(pre, (), np.add, np.add)


@pytest.mark.parametrize("gates", [("a",), ("b", "b")])
def test_a_cell_refuses_gates_that_are_not_its_own(gates: tuple[str, ...]) -> None:
    phase = Phase(tuple(PreActivation(gate) for gate in gates), (), np.add, np.add)
    with pytest.raises(ValueError, match="at most one input part"):
        Cell("made_up", ("b",), ("h",), (phase,), "")
