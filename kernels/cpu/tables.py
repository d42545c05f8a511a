"""The tables that the generic kernels are told a layer by: positions of `layout`, and addresses."""

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..cells import INPUT, RECURRENT, Cell
from ..layout import (
    BackwardWorkspace,
    ColumnPanels,
    ForwardWorkspace,
    PhasePlan,
    backward_workspace,
    column_panels,
    gates_of_terms,
    packed_weights,
    padded,
    part_of,
    phase_plans,
    step_input_terms,
)
from . import build
from .backward import BackwardPhase, BackwardPlan, LoopPlan
from .backward_pass import PassPlan
from .forward import ForwardPhase, ForwardPlan
from .gradients import (
    FROM_HIDDEN,
    FROM_INPUT,
    FROM_ONE,
    FROM_OPERAND,
    InputProduct,
    WeightProduct,
    full_columns,
    strip_vectors,
)
from .normalise import NormPhase, NormPlan, word_of
from .packed import Array, flat
from .product import tile_counts
from .tuning import BLOCK_ROWS, COLUMNS_AT_ONCE, MOST_GRADIENT_VECTORS, ROWS_AT_ONCE

if TYPE_CHECKING:
    from .layer import Layer


class Kernels(NamedTuple):
    """Compiled kernels by phase, and products by their number of gates."""

    equations: tuple[build.Kernel, ...]
    operands: tuple[build.Kernel | None, ...]  # forward: the first one's alone; backward: gradients
    products: dict[int, build.Kernel]
    row_products: dict[int, build.Kernel]

    def product(self, gates: int) -> int:
        """Address of the product with so many gates; 0 without gates."""
        return self.products[gates].address if gates else 0

    def row_product(self, gates: int) -> int:
        """Address of the product of one row with so many gates; 0 without gates."""
        return self.row_products[gates].address if gates else 0


def _address(kernel: build.Kernel | None) -> int:
    return 0 if kernel is None else kernel.address


def forward_kernels(cell: Cell, dtype: np.dtype[Any]) -> Kernels:
    """Those that the forward loop calls."""
    plans = phase_plans(cell)
    recurrents = {plan.recurrents for plan in plans} - {0}
    gates = recurrents | {plan.inputs for plan in plans} - {0}
    return Kernels(
        tuple(build.forward_equations(cell, plan.number, dtype) for plan in plans),
        (build.first_operand(cell, dtype),),
        {n: build.product_kernel(n, dtype) for n in sorted(gates)},
        {n: build.row_product_kernel(n, dtype) for n in sorted(recurrents)},
    )


def backward_kernels(cell: Cell, dtype: np.dtype[Any]) -> Kernels:
    """Those that a backward pass calls."""
    plans = phase_plans(cell)
    return Kernels(
        tuple(build.backward_equations(cell, plan.number, dtype) for plan in plans),
        tuple(build.operand_gradient(cell, plan.number, dtype) for plan in plans),
        {n: build.product_kernel(n, dtype) for n in sorted(build.gates_of_products(cell))},
        {1: build.row_product_kernel(1, dtype)},
    )


def forward_table(
    of: "Layer", kernels: Kernels, workspace: ForwardWorkspace, block_rows: int, steps: int
) -> Array:
    """A ForwardPlan, and a ForwardPhase for each phase."""
    cell, rows = of.cell, of.rows
    plans = phase_plans(cell)
    packed = packed_weights(cell, of.I, of.H, of.lanes, by_columns=False)
    of_step = step_input_terms(cell)
    plan = ForwardPlan(
        len(plans), len(cell.states), any(p.recurrents for p in plans),
        _address(kernels.operands[0]), workspace.size, block_rows, steps, rows.unit, rows.x,
        rows.pre, rows.value, rows.h, *workspace[:-1],
    )  # fmt: skip

    def phase(p: PhasePlan) -> ForwardPhase:
        unit, norm = rows.unit, cell.phases[p.number].norm
        own_step = [t for t in of_step if p.first <= t < p.first + p.terms]
        tiles = tile_counts(max(1, p.recurrents))
        return ForwardPhase(
            equations=kernels.equations[p.number].address,
            first=p.first * unit,
            step_input=own_step[0] * unit if own_step else -1,
            constants_end=p.first_input * unit,
            inputs=p.inputs,
            input_product=kernels.product(p.inputs),
            input_weights=packed.start_of(p, INPUT),
            inputs_end=(p.first_input + p.inputs) * unit,
            end=(p.first + p.terms) * unit,
            recurrent=p.first_recurrent * unit,
            recurrents=p.recurrents,
            product=kernels.product(p.recurrents),
            row_product=kernels.row_product(p.recurrents),
            weights=packed.start_of(p, RECURRENT),
            full_rows=tiles.full_rows,
            full_panels=tiles.full_panels,
            pairs=tiles.pairs,
            norm_values=p.first_norm_value * unit if norm else -1,
            norm_eps=word_of(norm.eps) if norm else 0,
        )

    return flat([plan, *map(phase, plans)])


def backward_table(of: "Layer", kernels: Kernels, loop: LoopPlan, block_rows: int) -> Array:
    """A LoopPlan, a BackwardPlan, and a BackwardPhase for each phase, the last one first."""
    cell, rows = of.cell, of.rows
    plans = phase_plans(cell)
    workspace: BackwardWorkspace = backward_workspace(rows, len(cell.states), block_rows)
    packed = packed_weights(cell, of.I, of.H, of.lanes, by_columns=True)
    plan = BackwardPlan(
        len(plans), len(cell.states), block_rows, rows.unit, rows.value, rows.d, rows.h,
        *workspace[:-1],
    )  # fmt: skip
    tiles, terms = tile_counts(1), len(cell.pre_activations)

    def phase(p: PhasePlan) -> BackwardPhase:
        return BackwardPhase(
            equations=kernels.equations[p.number].address,
            first=p.first * rows.unit,
            recurrent=p.first_recurrent * rows.unit,
            recurrents=p.recurrents,
            product=kernels.product(1),
            row_product=kernels.row_product(1),
            weights=packed.start_of(p, RECURRENT),
            operand_gradient=_address(kernels.operands[p.number]),
            operand=(terms + max(0, p.packed_operand)) * rows.unit,
            full_rows=tiles.full_rows,
            full_panels=tiles.full_panels,
            pairs=tiles.pairs,
            norm_values=p.first_norm_value * rows.unit if cell.phases[p.number].norm else -1,
        )

    return flat([loop, plan, *map(phase, reversed(plans))])


def _column_panels(columns: int, lanes: int) -> ColumnPanels:
    return column_panels(columns, lanes, COLUMNS_AT_ONCE, ROWS_AT_ONCE)


def gradients_worker_size(of: "Layer") -> int:
    """Elements of workspace that a worker of the gradients of x or of weights needs."""
    panels = _column_panels(max(of.I, of.H), of.lanes)
    of_weights = panels.total * panels.size + MOST_GRADIENT_VECTORS * of.lanes
    return max(BLOCK_ROWS * of.rows.x, of_weights)


def overrun(lanes: int) -> int:
    """Elements after the last row of `d` that a weight gradient's last strip may read."""
    return MOST_GRADIENT_VECTORS * lanes


class PassTable(NamedTuple):
    """What a backward pass is told of a layer."""

    table: Array  # a PassPlan, its InputProducts and its WeightProducts
    gate_rows: Array
    sums_size: int


def pass_table(of: "Layer", kernels: Kernels, has_constants: bool) -> PassTable:
    """For a layer that has biases or weights of units, or neither."""
    cell, rows = of.cell, of.rows
    plans, terms = phase_plans(cell), len(cell.pre_activations)
    packed = packed_weights(cell, of.I, of.H, of.lanes, by_columns=True)
    inputs = [
        InputProduct(
            p.first_input * rows.unit,
            p.inputs,
            packed.start_of(p, INPUT),
            rows.x,
            padded(of.I, of.lanes) // of.lanes,
        )
        for p in plans
        if p.inputs
    ]
    products: list[WeightProduct] = []
    gates: list[int] = []

    def add(
        source: int, operand: int, first: int, of_weight: tuple[int, ...], columns: int
    ) -> None:
        count = len(of_weight)
        vectors = strip_vectors(count)
        width = vectors * of.lanes
        strips, strip_size = -(-count * rows.unit // width), padded(columns, of.lanes) * width
        panels = _column_panels(columns, of.lanes)
        if source == FROM_ONE:
            panels = panels._replace(row=0)
        products.append(
            WeightProduct(
                source, operand, first * rows.unit, len(gates), count, vectors,
                kernels.product(vectors), full_columns(vectors), strips, strip_size,
                strips * strip_size, *panels,
            )
        )  # fmt: skip
        gates.extend(of_weight)

    if has_constants:
        add(FROM_ONE, 0, 0, tuple(range(terms)), 1)
    for kind, p in itertools.product((RECURRENT, INPUT), plans):
        first, count = part_of(p, kind)
        if not count:
            continue
        source, operand = FROM_INPUT, 0
        if kind == RECURRENT:
            is_packed = p.packed_operand >= 0
            source = FROM_OPERAND if is_packed else FROM_HIDDEN
            operand = (terms + p.packed_operand) * rows.unit
        columns = of.I if kind == INPUT else of.H
        add(source, operand, first, gates_of_terms(cell, p, kind), columns)
    of_step = step_input_terms(cell)
    plan = PassPlan(
        backward=build.backward_kernel(of.states, of.dtype).address,
        input_gradient=build.input_gradient_kernel(of.dtype).address,
        weight_gradient=build.weight_gradient_kernel(of.dtype).address,
        input_norm=build.input_norm_kernel(of.dtype).address if cell.norm else 0,
        product=kernels.product(1),
        H=of.H,
        unit=rows.unit,
        d_row=rows.d,
        inputs=len(inputs),
        products=len(products),
        step_input=of_step[0] * rows.unit if of_step else -1,
        terms=terms,
    )
    size = sum(product.sums_size for product in products)
    return PassTable(flat([plan, *inputs, *products]), np.array(gates, np.intp), size)


def norm_table(of: "Layer", kernels: Kernels) -> Array:
    """A NormPlan, a NormPhase for each phase, and gates of input parts."""
    cell, rows = of.cell, of.rows
    plans = phase_plans(cell)
    packed = packed_weights(cell, of.I, of.H, of.lanes, by_columns=False)
    phases: list[NormPhase] = []
    gates: list[int] = []
    before = len(NormPlan._fields) + len(plans) * len(NormPhase._fields)
    for p in plans:
        phases.append(
            NormPhase(
                p.first_input * rows.unit, p.inputs, kernels.product(p.inputs),
                packed.start_of(p, INPUT), before + len(gates),
            )
        )  # fmt: skip
        gates += gates_of_terms(cell, p, INPUT)
    plan = NormPlan(len(plans), rows.H, rows.unit, rows.x, rows.pre, rows.d)
    return flat([plan, *phases, gates])
