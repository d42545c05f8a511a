"""The table of cells: what functions may use, that they run as plain Python, what is refused."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import SHIPPED_CELLS, Problem, assert_close, draw, each_cell, specified

from fastgru.kernels import cells
from fastgru.kernels.cells import (
    BIAS,
    CELLS,
    INPUT,
    NORM_SCALE,
    RECURRENT,
    UNIT,
    Cell,
    LayerNorm,
    Phase,
    PreActivation,
    StepInput,
    UnitWeight,
    Weight,
)


def test_equations_hold_no_number() -> None:
    """A literal would turn float32 arithmetic into float64 on a GPU."""
    folder = Path(cells.__file__).parent
    phases = [phase for name in SHIPPED_CELLS for phase in CELLS[name].phases]
    equations = {f for phase in phases for f in (phase.forward, phase.backward)}
    equations |= {f for p in phases for f in (p.operand.value, p.operand.gradient)}
    looked_at = set()
    for path in {Path(str(sys.modules[f.__module__].__file__)) for f in equations}:
        assert path.parent == folder
        for node in ast.parse(path.read_text("utf-8")).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            looked_at.add(node.name)
            numbers = [
                part.value
                for part in ast.walk(node)
                if isinstance(part, ast.Constant) and isinstance(part.value, int | float | complex)
            ]
            # `base` holds more than equations, among it the one that h is.
            if node.name in {f.__name__ for f in equations}:
                assert not numbers, f"{node.name} holds {numbers}"
    assert {f.__name__ for f in equations} <= looked_at


def run_in_python(problem: Problem) -> Any:
    """h_n of one layer in training: the table's functions, with NumPy arrays of units and samples.

    A driver of its own, as plain as the table allows.
    """
    x, params, h0, _, _, _, attention = problem
    cell, H = CELLS[params.cell], params.hidden_size
    weights = dict(params.layers[0][0].items())

    def of_gate(weight: Weight, gate: str) -> Any:
        place = weight.gates.index(gate)
        return weights[weight.name][place * H : (place + 1) * H]

    def bias(pre: PreActivation) -> Any:
        """Those of the part that they name; of the only one, where a gate has no such part."""
        parts = [p for p in cell.sums if p.gate == pre.gate]
        total: Any = 0.0
        for weight in cell.weights:
            if weight.kind == BIAS and pre.gate in weight.gates:
                named = [p for p in parts if getattr(p, weight.part)]
                total = total + (of_gate(weight, pre.gate) if (named or parts)[0] is pre else 0.0)
        return total

    def input_part(pre: PreActivation, t: int) -> Any:
        of_x = cell.weight_of(INPUT)
        assert of_x is not None
        sums = x @ of_gate(of_x, pre.gate).T
        if cell.norm is not None:
            scale, shift = (cell.weight_of(kind) for kind in (NORM_SCALE, "norm shift"))
            assert scale is not None
            assert shift is not None
            deviation = np.sqrt(sums.var(axis=(0, 1)) + cell.norm.eps)
            sums = (sums - sums.mean(axis=(0, 1))) / deviation
            sums = of_gate(scale, pre.gate) * sums + of_gate(shift, pre.gate)
        return sums[:, t]

    def recurrent_parts(phase: Phase, operand: Any) -> dict[Any, Any]:
        of_h = cell.weight_of(RECURRENT)
        fed = [pre for pre in phase.pre_activations if pre.recurrent]
        sums = {pre: operand @ of_gate(of_h, pre.gate).T for pre in fed}  # type: ignore[arg-type]
        if phase.norm is not None:
            biased = {pre: part + bias(pre) for pre, part in sums.items()}  # type: ignore[arg-type]
            together = np.concatenate(list(biased.values()), axis=1)
            mean = together.mean(axis=1, keepdims=True)
            over = 1 / np.sqrt(together.var(axis=1, keepdims=True) + phase.norm.eps)
            sums = {pre: (part - mean) * over for pre, part in biased.items()}
        return sums

    state = tuple(member[0] for member in h0 or ())
    for t in range(x.shape[1]):
        values: tuple[Any, ...] = ()
        for phase in cell.phases:
            of_operand = recurrent_parts(phase, phase.operand.value(state[0], values))
            a: list[Any] = []
            for pre in phase.pre_activations:
                if isinstance(pre, StepInput):
                    a.append(np.broadcast_to(attention[:, t, None], state[0].shape))
                elif isinstance(pre, UnitWeight):
                    (weight,) = (w for w in cell.weights if w.name == pre.weight)
                    a.append(np.broadcast_to(of_gate(weight, pre.gate), state[0].shape))
                else:
                    total = input_part(pre, t) if pre.input else np.zeros_like(state[0])
                    total = total + of_operand.get(pre, 0.0)
                    if not (phase.norm and pre.recurrent):
                        total = total + bias(pre)
                    a.append(total)
            state, new = phase.forward(tuple(a), state, values)
            assert len(new) == len(phase.values)
            values += new
    return state


@each_cell
def test_cells_run_as_plain_python(cell: str) -> None:
    problem = draw(cell)
    _, want = specified(problem)
    for got, member in zip(run_in_python(problem), want, strict=True):
        assert_close(got, member[0], 1e-13)


def test_the_table_is_read_without_numba() -> None:
    code = "import sys, fastgru.kernels.cells, fastgru; fastgru.init_params(2, 3); fastgru.cells()"
    code += "; assert not {'numba', 'llvmlite'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    "pre",
    [
        (PreActivation("a"), PreActivation("b", recurrent=False)),
        (PreActivation("a", input=False), PreActivation("b")),
        (PreActivation("b", recurrent=False), PreActivation("a", input=False, recurrent=False)),
        (PreActivation("a"), StepInput("attention")),
        (PreActivation("a", recurrent=False), UnitWeight("diag", "a")),
    ],
)
def test_a_phase_refuses_pre_activations_out_of_order(pre: tuple[Any, ...]) -> None:
    message = "expected weights of units, then others without products, then input parts"
    with pytest.raises(ValueError, match=message):
        Phase(pre, (), np.add, np.add)


def test_a_phase_refuses_to_normalise_sums_of_both_parts() -> None:
    with pytest.raises(ValueError, match="expected recurrent parts apart from input parts"):
        Phase((PreActivation("a"),), (), np.add, np.add, norm=LayerNorm())


def cell_of(
    pre: tuple[Any, ...], weights: tuple[Weight, ...], gates: tuple[str, ...] = ("a", "b")
) -> Cell:
    """A cell of one phase."""
    return Cell("made_up", gates, ("h",), weights, (Phase(pre, (), np.add, np.add),), "")


W, U = Weight("weight_ih", INPUT, ("a", "b")), Weight("weight_hh", RECURRENT, ("a", "b"))
A, B = PreActivation("a"), PreActivation("b")


@pytest.mark.parametrize(
    ("pre", "weights", "message"),
    [
        ((A,), (W, U), "one input part for each gate"),
        ((A, A), (W, U), "one input part for each gate"),
        ((A, B, B), (W, U), "one input part for each gate"),
        ((A, PreActivation("b", input=False)), (W, U), "one input part for each gate"),
        ((PreActivation("b", recurrent=False), A), (W, U), "one recurrent part for each gate"),
        ((B, A), (W, U), "recurrent parts in the order of"),
        ((A, B), (W, U, Weight("bias", BIAS, ("a", "c"))), "bias: expected gates of"),
        ((A, B), (W, Weight("w2", INPUT, ("a", "b")), U), "one weight at most of every kind"),
        ((A, B), (U, W), "weights in the order of their kinds"),
    ],
)
def test_a_cell_refuses_what_does_not_fit(
    pre: tuple[Any, ...], weights: tuple[Weight, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cell_of(pre, weights)


def test_a_cell_refuses_several_step_inputs() -> None:
    with pytest.raises(ValueError, match="at most one step input"):
        cell_of((StepInput("s"), StepInput("t"), A, B), (W, U))


def test_what_cells_say_of_themselves() -> None:
    cell = cell_of((UnitWeight("d", "a"), StepInput("s"), A, B), (W, U, Weight("d", UNIT, ("a",))))
    assert cell.step_inputs == ("s",)
    assert cell.sums == (A, B)
    assert (cell.input_gates, cell.recurrent_gates) == (("a", "b"), ("a", "b"))
    assert cell.weight_of(NORM_SCALE) is None
    assert cell.can_lack_biases


@pytest.mark.parametrize("bias", [True, False])
def test_shapes_of_weights(bias: bool) -> None:
    """In the order of the table; bias=False leaves out biases and what shifts."""
    shapes = {name: CELLS[name].weight_shapes(3, 5, bias) for name in CELLS}
    matrices = {"weight_ih": (15, 3), "weight_hh": (15, 5)}
    biases = {"bias_ih": (15,), "bias_hh": (15,)} if bias else {}
    assert list(shapes["gru"].items()) == [*matrices.items(), *biases.items()]
    assert shapes["gru_reset_before"] == shapes["gru"]
    assert shapes["lstm"]["weight_ih"] == (20, 3)
    norm = {"norm_weight": (10,)} | ({"norm_bias": (10,)} if bias else {})
    statistics = {"running_mean": (10,), "running_var": (10,)}
    matrices = {"weight_ih": (10, 3), "weight_hh": (10, 5)}
    biases = {"bias_hh": (10,)} if bias else {}
    assert [*shapes["toy_batch_norm"].items()] == [*(matrices | biases | norm | statistics).items()]
    biases = {"bias": (10,)} if bias else {}
    want = {"weight_ih": (10, 3), "diag_hh": (10,)} | biases
    assert [*shapes["toy_unit_weight"].items()] == [*want.items()]
    biases = {"bias_ih": (5,), "bias_hh": (10,)} if bias else {}
    want = {"weight_ih": (5, 3), "weight_hh": (10, 5)} | biases
    assert [*shapes["toy_two_phases"].items()] == [*want.items()]
