"""Cells of forms that no shipped cell has, to show that drivers know phases and not cells.

Importing this module registers them in the table of cells and in the specification.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import reference

from fastgru.kernels.cells import (
    BIAS,
    CELLS,
    INPUT,
    NORM_MEAN,
    NORM_SCALE,
    NORM_SHIFT,
    NORM_VARIANCE,
    RECURRENT,
    UNIT,
    BatchNorm,
    Cell,
    LayerNorm,
    Operand,
    Phase,
    PreActivation,
    StepInput,
    UnitWeight,
    Weight,
)
from fastgru.kernels.cells.initial import ones
from fastgru.kernels.primitives import one_like, sigmoid, tanh, zero_like

# --- two phases; fewer input gates than recurrent ones; parts of a gate used apart ----------------


def _gate_forward(a: Any, state: Any, values: Any) -> Any:
    (u_f,) = a
    return state, (sigmoid(u_f),)


def _gate_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    (f,) = values
    (df,) = dvalues
    return (df * f * (one_like(f) - f),), dstate, ()


def _mix_forward(a: Any, state: Any, values: Any) -> Any:
    x_n, u_n = a
    (h,) = state
    (f,) = values
    n = tanh(x_n + f * u_n)
    return (h + f * (n - h),), (n, u_n)


def _mix_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    f, n, u_n = values
    (dh,) = dstate
    one = one_like(f)
    dn = dh * f * (one - n * n)
    return (dn, dn * f), (dh * (one - f),), (dh * (n - h) + dn * u_n,)


def _gated(h: Any, values: Any) -> Any:
    (f,) = values
    return f * h


def _gated_gradient(h: Any, values: Any, d: Any) -> Any:
    (f,) = values
    return d * f, (d * h,)


def two_phases(x: Any, state: Any, w: Mapping[str, Any]) -> Any:
    (h,) = state
    H = h.shape[1]
    U, b = w["weight_hh"], w.get("bias_hh")
    b_f, b_n = (None, None) if b is None else (b[:H], b[H:])
    f = reference.sigmoid(reference.affine(h, U[:H], b_f))
    x_n = reference.affine(x, w["weight_ih"], w.get("bias_ih"))
    n = np.tanh(x_n + f * reference.affine(f * h, U[H:], b_n))
    return (h + f * (n - h),)


# --- a transformed operand; two members of the state ----------------------------------------------


def _transformed_forward(a: Any, state: Any, values: Any) -> Any:
    a_z, a_c = a
    h, s = state
    z = sigmoid(a_z)
    c = tanh(a_c)
    s_next = z * s + c
    return (z * h + (one_like(z) - z) * c * s_next, s_next), (z, c, s)


def _transformed_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, c, s = values
    dh, ds = dstate
    one = one_like(z)
    s_next = z * s + c
    ds = ds + dh * (one - z) * c
    dz = dh * (h - c * s_next) + ds * s
    dc = dh * (one - z) * s_next + ds
    return (dz * z * (one - z), dc * (one - c * c)), (dh * z, ds * z), ()


def _bump(h: Any, values: Any) -> Any:
    one = one_like(h)
    return one / (one + h * h)


def _bump_gradient(h: Any, values: Any, d: Any) -> Any:
    one = one_like(h)
    bump = one / (one + h * h)
    return zero_like(h) - d * (h + h) * bump * bump, ()


def transformed(x: Any, state: Any, w: Mapping[str, Any]) -> Any:
    h, s = state
    H = h.shape[1]
    a = reference.affine(x, w["weight_ih"], w.get("bias_ih"))
    a = a + reference.affine(1 / (1 + h * h), w["weight_hh"], w.get("bias_hh"))
    z, c = reference.sigmoid(a[:, :H]), np.tanh(a[:, H:])
    s_next = z * s + c
    return (z * h + (1 - z) * c * s_next, s_next)


# --- no recurrent product -------------------------------------------------------------------------


def _scan_forward(a: Any, state: Any, values: Any) -> Any:
    x_z, x_n = a
    (h,) = state
    z = sigmoid(x_z)
    n = tanh(x_n)
    return (h + z * (n - h),), (z, n)


def _scan_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, n = values
    (dh,) = dstate
    one = one_like(z)
    return (dh * (n - h) * z * (one - z), dh * z * (one - n * n)), (dh * (one - z),), ()


def no_product(x: Any, state: Any, w: Mapping[str, Any]) -> Any:
    (h,) = state
    H = h.shape[1]
    a = reference.affine(x, w["weight_ih"], w.get("bias_ih"))
    z, n = reference.sigmoid(a[:, :H]), np.tanh(a[:, H:])
    return (h + z * (n - h),)


# --- input parts normalised over the batch --------------------------------------------------------


def _mixed_forward(a: Any, state: Any, values: Any) -> Any:
    a_z, a_n = a
    (h,) = state
    z = sigmoid(a_z)
    n = tanh(a_n)
    return (n + z * (h - n),), (z, n)


def _mixed_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, n = values
    (dh,) = dstate
    one = one_like(z)
    return (dh * (h - n) * z * (one - z), dh * (one - z) * (one - n * n)), (dh * z,), ()


def _normalised_inputs(x: Any, valid: Any, w: Mapping[str, Any]) -> Any:
    return reference.batch_norm(x @ w["weight_ih"].T, valid, w)


def batch_normed(x: Any, state: Any, w: Mapping[str, Any]) -> Any:
    """x: what `_normalised_inputs` gives."""
    (h,) = state
    H = h.shape[1]
    a = x + reference.affine(h, w["weight_hh"], w.get("bias_hh"))
    z, n = reference.sigmoid(a[:, :H]), np.tanh(a[:, H:])
    return (z * h + (1 - z) * n,)


# --- recurrent sums normalised over a row ---------------------------------------------------------


def _row_normed_forward(a: Any, state: Any, values: Any) -> Any:
    x_z, x_n, u_z, u_n = a
    (h,) = state
    z = sigmoid(x_z + u_z)
    n = tanh(x_n + u_n)
    return (n + z * (h - n),), (z, n)


def _row_normed_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, n = values
    (dh,) = dstate
    one = one_like(z)
    d_z = dh * (h - n) * z * (one - z)
    d_n = dh * (one - z) * (one - n * n)
    return (d_z, d_n, d_z, d_n), (dh * z,), ()


def row_normed(x: Any, state: Any, w: Mapping[str, Any]) -> Any:
    (h,) = state
    H = h.shape[1]
    u = reference.layer_norm(reference.affine(h, w["weight_hh"], w.get("bias_hh")))
    a = reference.affine(x, w["weight_ih"], w.get("bias_ih")) + u
    z, n = reference.sigmoid(a[:, :H]), np.tanh(a[:, H:])
    return (z * h + (1 - z) * n,)


# --- a number for each sample and step ------------------------------------------------------------


def _attentive_forward(a: Any, state: Any, values: Any) -> Any:
    s, a_z, a_n = a
    (h,) = state
    z = sigmoid(a_z)
    n = tanh(a_n)
    return (h + s * z * (n - h),), (s, z, n)


def _attentive_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    s, z, n = values
    (dh,) = dstate
    one = one_like(z)
    d_s = dh * z * (n - h)
    d_z = dh * s * (n - h) * z * (one - z)
    return (d_s, d_z, dh * s * z * (one - n * n)), (dh * (one - s * z),), ()


def attentive(x: Any, state: Any, w: Mapping[str, Any]) -> Any:
    (h,) = state
    H = h.shape[1]
    a = reference.affine(x, w["weight_ih"], w.get("bias_ih"))
    a = a + reference.affine(h, w["weight_hh"], w.get("bias_hh"))
    z, n = reference.sigmoid(a[:, :H]), np.tanh(a[:, H:])
    return (h + w["attention"] * z * (n - h),)


# --- a weight of each unit, in the place of a product; one bias for the gate and its parts --------


def _diagonal_forward(a: Any, state: Any, values: Any) -> Any:
    v_z, v_n, x_z, x_n = a
    (h,) = state
    z = sigmoid(x_z + v_z * h)
    n = tanh(x_n + v_n * h)
    return (n + z * (h - n),), (z, n, v_z, v_n)


def _diagonal_backward(h: Any, values: Any, dstate: Any, dvalues: Any) -> Any:
    z, n, v_z, v_n = values
    (dh,) = dstate
    one = one_like(z)
    d_z = dh * (h - n) * z * (one - z)
    d_n = dh * (one - z) * (one - n * n)
    return (d_z * h, d_n * h, d_z, d_n), (dh * z + d_z * v_z + d_n * v_n,), ()


def diagonal(x: Any, state: Any, w: Mapping[str, Any]) -> Any:
    (h,) = state
    H = h.shape[1]
    a = reference.affine(x, w["weight_ih"], w.get("bias")) + w["diag_hh"] * np.tile(h, 2)
    z, n = reference.sigmoid(a[:, :H]), np.tanh(a[:, H:])
    return (z * h + (1 - z) * n,)


def weights_of(input_gates: tuple[str, ...], recurrent_gates: tuple[str, ...]) -> Any:
    """Weights of PyTorch's form: matrices, and a bias for each."""
    found = [Weight("weight_ih", INPUT, input_gates)]
    if recurrent_gates:
        found.append(Weight("weight_hh", RECURRENT, recurrent_gates))
    found.append(Weight("bias_ih", BIAS, input_gates, part=INPUT))
    if recurrent_gates:
        found.append(Weight("bias_hh", BIAS, recurrent_gates, part=RECURRENT))
    return tuple(found)


TOYS = (
    Cell(
        name="toy_two_phases",
        gates=("f", "n"),
        states=("h",),
        weights=weights_of(("n",), ("f", "n")),
        phases=(
            Phase((PreActivation("f", input=False),), ("f",), _gate_forward, _gate_backward),
            Phase(
                (PreActivation("n", recurrent=False), PreActivation("n", input=False)),
                ("n", "u_n"),
                _mix_forward,
                _mix_backward,
                Operand(_gated, _gated_gradient),
            ),
        ),
        source="made up",
    ),
    Cell(
        name="toy_transformed",
        gates=("z", "c"),
        states=("h", "s"),
        weights=weights_of(("z", "c"), ("z", "c")),
        phases=(
            Phase(
                (PreActivation("z"), PreActivation("c")),
                ("z", "c", "s"),
                _transformed_forward,
                _transformed_backward,
                Operand(_bump, _bump_gradient),
            ),
        ),
        source="made up",
    ),
    Cell(
        name="toy_no_product",
        gates=("z", "n"),
        states=("h",),
        weights=weights_of(("z", "n"), ()),
        phases=(
            Phase(
                (PreActivation("z", recurrent=False), PreActivation("n", recurrent=False)),
                ("z", "n"),
                _scan_forward,
                _scan_backward,
            ),
        ),
        source="made up",
    ),
    Cell(
        name="toy_batch_norm",
        gates=("z", "n"),
        states=("h",),
        weights=(
            Weight("weight_ih", INPUT, ("z", "n")),
            Weight("weight_hh", RECURRENT, ("z", "n")),
            Weight("bias_hh", BIAS, ("z", "n"), part=RECURRENT),
            Weight("norm_weight", NORM_SCALE, ("z", "n"), initial=ones),
            Weight("norm_bias", NORM_SHIFT, ("z", "n")),
            Weight("running_mean", NORM_MEAN, ("z", "n")),
            Weight("running_var", NORM_VARIANCE, ("z", "n"), initial=ones),
        ),
        phases=(
            Phase(
                (PreActivation("z"), PreActivation("n")),
                ("z", "n"),
                _mixed_forward,
                _mixed_backward,
            ),
        ),
        source="made up",
        norm=BatchNorm(),
    ),
    Cell(
        name="toy_layer_norm",
        gates=("z", "n"),
        states=("h",),
        weights=weights_of(("z", "n"), ("z", "n")),
        phases=(
            Phase(
                (
                    PreActivation("z", recurrent=False),
                    PreActivation("n", recurrent=False),
                    PreActivation("z", input=False),
                    PreActivation("n", input=False),
                ),
                ("z", "n"),
                _row_normed_forward,
                _row_normed_backward,
                norm=LayerNorm(),
            ),
        ),
        source="made up",
    ),
    Cell(
        name="toy_step_input",
        gates=("z", "n"),
        states=("h",),
        weights=weights_of(("z", "n"), ("z", "n")),
        phases=(
            Phase(
                (StepInput("attention"), PreActivation("z"), PreActivation("n")),
                ("s", "z", "n"),
                _attentive_forward,
                _attentive_backward,
            ),
        ),
        source="made up",
    ),
    Cell(
        name="toy_unit_weight",
        gates=("z", "n"),
        states=("h",),
        weights=(
            Weight("weight_ih", INPUT, ("z", "n")),
            Weight("diag_hh", UNIT, ("z", "n")),
            Weight("bias", BIAS, ("z", "n")),
        ),
        phases=(
            Phase(
                (
                    UnitWeight("diag_hh", "z"),
                    UnitWeight("diag_hh", "n"),
                    PreActivation("z", recurrent=False),
                    PreActivation("n", recurrent=False),
                ),
                ("z", "n", "v_z", "v_n"),
                _diagonal_forward,
                _diagonal_backward,
            ),
        ),
        source="made up",
    ),
)
_SPECIFICATIONS = (
    (two_phases, reference.as_they_are),
    (transformed, reference.as_they_are),
    (no_product, reference.as_they_are),
    (batch_normed, _normalised_inputs),
    (row_normed, reference.as_they_are),
    (attentive, reference.as_they_are),
    (diagonal, reference.as_they_are),
)

CELLS.update({cell.name: cell for cell in TOYS})
for _cell, (_step, _prepare) in zip(TOYS, _SPECIFICATIONS, strict=True):
    reference.CELLS[_cell.name] = reference.Spec(_step, len(_cell.states), _prepare)
