"""Positions: what lies one after the other, for every cell."""

import itertools

import pytest
from problems import each_cell

from fastgru.kernels.cells import CELLS, INPUT, RECURRENT
from fastgru.kernels.layout import (
    backward_workspace,
    forward_workspace,
    gates_of_terms,
    packed_weights,
    phase_plans,
    rows_of,
    step_input_terms,
    terms_of_vector,
    total_values,
    vector_weights,
)

LANES = (4, 16)


@each_cell
def test_phases_follow_each_other(cell: str) -> None:
    """Pre-activations, values, gates of x and of the operand: each is exactly one phase's."""
    of = CELLS[cell]
    plans = phase_plans(of)
    terms = [n for p in plans for n in range(p.first, p.first + p.terms)]
    assert terms == list(range(len(of.pre_activations)))
    values = [n for p in plans for n in range(p.first_value, p.first_value + p.values)]
    values += [
        n for p in plans for n in range(p.first_norm_value, p.first_norm_value + p.norm_values)
    ]
    assert values == list(range(total_values(of)))
    for kind in (INPUT, RECURRENT):
        gates = [gate for plan in plans for gate in gates_of_terms(of, plan, kind)]
        assert sorted(gates) == list(range(len(of.gates_of(kind))))


@each_cell
def test_parts_of_a_phase_are_those_that_are_fed(cell: str) -> None:
    of = CELLS[cell]
    for plan in phase_plans(of):
        own = range(plan.first, plan.first + plan.terms)
        inputs = range(plan.first_input, plan.first_input + plan.inputs)
        assert [n for n in own if of.pre_activations[n].input] == list(inputs)
        recurrent = range(plan.first_recurrent, plan.first_recurrent + plan.recurrents)
        assert [n for n in own if of.pre_activations[n].recurrent] == list(recurrent)
    taken = [n for n, t in enumerate(of.pre_activations) if getattr(t, "name", None)]
    assert step_input_terms(of) == tuple(taken)


@each_cell
def test_vectors_of_weights_go_to_terms_of_their_gates(cell: str) -> None:
    of = CELLS[cell]
    for weight in vector_weights(of):
        terms = terms_of_vector(of, weight)
        assert [getattr(of.pre_activations[n], "gate", None) for n in terms] == list(weight.gates)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize(("I", "H"), [(3, 5), (17, 33), (1, 1)])
@each_cell
def test_nothing_lies_on_another(cell: str, I: int, H: int, lanes: int) -> None:
    of = CELLS[cell]
    rows = rows_of(of, I, H, lanes)
    assert rows.unit % lanes == 0
    assert H <= rows.unit < H + lanes
    for by_columns in (False, True):
        packed = packed_weights(of, I, H, lanes, by_columns)
        starts = [part.start for part in packed.parts]
        assert starts == sorted(starts)
        padded_I, padded_H = (-(-size // lanes) * lanes for size in (I, H))
        for part, end in zip(packed.parts, [*starts[1:], packed.size], strict=True):
            K, width = (I, padded_I) if part.kind == INPUT else (H, padded_H)
            assert end - part.start == len(part.gates) * (
                width * H if by_columns else rows.unit * K
            )
    for workspace in (forward_workspace(rows, 2, 7, 3), backward_workspace(rows, 2, 7)):
        assert all(a <= b for a, b in itertools.pairwise(workspace))
