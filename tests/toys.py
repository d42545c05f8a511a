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
    RECURRENT,
    Cell,
    Operand,
    Phase,
    PreActivation,
    Weight,
)
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
)

CELLS.update({cell.name: cell for cell in TOYS})
for _cell, _step in zip(TOYS, (two_phases, transformed, no_product), strict=True):
    reference.CELLS[_cell.name] = reference.Spec(step=_step, states=len(_cell.states))
