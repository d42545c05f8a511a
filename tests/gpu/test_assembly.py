"""The machine code of the kernels for GPUs: registers, spills, and what must not be in it.

Compiled and linked as a launch does it, without a GPU.
"""

import importlib
import importlib.metadata
import re
import subprocess
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import DTYPES, SHIPPED_CELLS

from fastgru.kernels.cells import CELLS
from fastgru.kernels.layout import phase_plans

pytestmark = pytest.mark.usefixtures("cuda_tools")

CAPABILITIES = [(8, 0), (9, 0)]
# A multiprocessor has 65 536 registers for at most 2048 threads: with these, more than half fit.
MOST_REGISTERS = {"float32": 40, "float64": 48}
# Of cells with many pre-activations a unit; still more than half of the threads fit.
MORE_REGISTERS = {"lstm_peephole": 8}

MAKERS = ("make_forward_phase", "make_backward_phase", "make_operand", "make_operand_gradient")
KERNELS = [
    (cell, number, maker)
    for cell in SHIPPED_CELLS
    for number in range(len(CELLS[cell].phases))
    for maker in MAKERS
    if maker != "make_operand_gradient" or phase_plans(CELLS[cell])[number].recurrents
]
ROWS = ("gather_sequence", "add_sequence", "gather_before", "gather_state", "scatter_state")


def assembled(
    patch: pytest.MonkeyPatch,
    function: Callable[..., None],
    dtype: str,
    capability: tuple[int, int],
    threads: int | None = None,
) -> Any:
    from numba.cuda import dispatcher

    from fastgru.kernels.cuda import build

    # Functions called by a kernel are compiled for the current device, and there is none.
    device = types.SimpleNamespace(compute_capability=capability)
    patch.setattr(dispatcher, "get_current_device", lambda: device)
    real_link = build.link

    def link(ptx: str, capability: tuple[int, int]) -> tuple[bytes, str]:
        # Arrays may have more than 2^31 elements: no index is a product of 32 bits.
        assert re.search(r"\b(mul|mad)\.\w+\.[su]64\b|\bmul\.wide\.[su]32\b", ptx)
        assert not re.search(r"\b(mul|mad)\.lo\.[su]32\b", ptx)
        return real_link(ptx, capability)

    patch.setattr(build, "link", link)
    return build.assemble(function, np.dtype(dtype), capability, threads)


def instructions(code: bytes, folder: Path) -> list[str]:
    """The instructions of a kernel, with their modifiers."""
    path = folder / "kernel.cubin"
    path.write_bytes(code)
    files = importlib.metadata.files("nvidia-cuda-nvdisasm") or []
    (program,) = [file for file in files if file.stem == "nvdisasm"]
    command = [str(program.locate()), "-c", str(path)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", listing)


def check(kernel: Any, dtype: str, most_registers: int, folder: Path) -> list[str]:
    """Neither spills nor a stack, few registers, and float64 only where the data is.

    Returns the instructions.
    """
    (registers,) = re.findall(r"Used (\d+) registers", kernel.log)
    assert int(registers) <= most_registers
    stack = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", kernel.log)
    assert len(stack) == 3
    assert set(stack) == {"0"}
    names = instructions(kernel.code, folder)
    assert "EXIT" in names
    assert not [name for name in names if name.startswith(("LDL", "STL"))]
    if dtype == "float32":
        double = ("DADD", "DMUL", "DFMA", "DSETP", "MUFU.RCP64H", "F2F.F64", "I2F.F64")
        assert not [name for name in names if name.startswith(double)]
    return names


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cell", "number", "maker"), KERNELS)
def test_equations(
    cell: str,
    number: int,
    maker: str,
    dtype: str,
    capability: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from fastgru.kernels.cuda import pointwise

    function = getattr(pointwise, maker)(CELLS[cell], number)
    kernel = assembled(monkeypatch, function, dtype, capability)
    most = MOST_REGISTERS[dtype] + MORE_REGISTERS.get(cell, 0)
    check(kernel, dtype, most, tmp_path)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("maker", ["make_forward_units", "make_backward_units"])
@pytest.mark.parametrize(
    "cell", [name for name in SHIPPED_CELLS if not CELLS[name].recurrent_gates]
)
def test_cells_without_a_recurrent_product(
    cell: str,
    maker: str,
    dtype: str,
    capability: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from fastgru.kernels.cuda.loops import units

    kernel = assembled(monkeypatch, getattr(units, maker)(CELLS[cell]), dtype, capability)
    # They are few, as each goes through all steps: half of the threads need not fit.
    check(kernel, dtype, 2 * MOST_REGISTERS[dtype], tmp_path)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("module", "maker", "cell"),
    [
        ("normalise", "make_normalise", "toy_layer_norm"),
        ("normalise", "make_normalise_backward", "toy_layer_norm"),
        ("step_input", "make_step_gradient", "toy_step_input"),
    ],
)
def test_sums_over_units(
    module: str,
    maker: str,
    cell: str,
    dtype: str,
    capability: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Sums are of the dtype, by a tree whose order is fixed: no atomic additions."""
    made = getattr(importlib.import_module(f"fastgru.kernels.cuda.{module}"), maker)
    arguments = (CELLS[cell], 0) if module == "normalise" else (CELLS[cell],)
    function = made(*arguments, np.dtype(dtype))
    kernel = assembled(monkeypatch, function, dtype, capability)
    names = check(kernel, dtype, 64, tmp_path)  # half of the threads fit
    assert not [name for name in names if name.startswith(("ATOM", "RED"))]
    assert [name for name in names if name.startswith("BAR.SYNC")]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_rows(
    name: str,
    dtype: str,
    capability: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from fastgru.kernels.cuda import rows

    assert set(rows.FUNCTIONS) == set(ROWS)
    function = rows.FUNCTIONS[name]
    kernel = assembled(monkeypatch, function, dtype, capability)
    check(kernel, dtype, MOST_REGISTERS[dtype], tmp_path)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("H", [24, 64, 96])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_resident_weights(
    cell: str,
    H: int,
    direction: str,
    capability: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Weights in registers, loads of four from shared memory, a multiply-add for each weight."""
    from fastgru.kernels.cuda.loops import resident, resident_kernels

    tile = resident.tile_for(CELLS[cell], H, np.dtype("float32"))
    if tile is None:
        assert (cell, H) == ("lstm", 96)
        return
    function = getattr(resident_kernels, f"make_resident_{direction}")(CELLS[cell], tile)
    kernel = assembled(monkeypatch, function, "float32", capability, tile.threads)
    warps = -(-tile.threads // 128) * 4
    names = check(kernel, "float32", min(255, 65_536 // (32 * warps)), tmp_path)
    weights = len(CELLS[cell].recurrent_gates) * tile.length
    products = [name for name in names if name.startswith("FFMA")]
    assert weights <= len(products) <= weights + 80
    loads = tile.length if direction == "forward" else weights
    assert names.count("LDS.128") == loads // 4
    barriers = [name for name in names if name.startswith("BAR.SYNC")]
    assert len(barriers) == (3 if direction == "forward" else 2)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("H", [128, 300, 512, 1024])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_exchange(
    cell: str,
    H: int,
    direction: str,
    capability: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """As above; and words are exchanged at the level of the device, 64 bits at once."""
    from fastgru.kernels.cuda.loops import exchange, exchange_kernels

    tiles = exchange.tiles_for(CELLS[cell], H, np.dtype("float32"))
    assert tiles is not None
    tile = getattr(tiles, direction)
    assert tile.slices <= 132
    function = getattr(exchange_kernels, f"make_exchange_{direction}")(CELLS[cell], tile)
    kernel = assembled(monkeypatch, function, "float32", capability, tile.threads)
    names = check(kernel, "float32", 255, tmp_path)
    gates = len(CELLS[cell].recurrent_gates)
    weights = gates * tile.length
    assert weights <= len([n for n in names if n.startswith("FFMA")]) <= weights + 80
    loads = tile.length if direction == "forward" else weights
    assert names.count("LDS.128") == loads // 4
    assert len([n for n in names if n.startswith("ST.E.64.STRONG.GPU")]) == (
        1 if direction == "forward" else gates
    )
    assert [n for n in names if n.startswith("LD.E.64.STRONG.GPU")]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(("precision", "H"), [("bf16", 24), ("bf16", 512), ("tf32", 512)])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_clusters(
    cell: str,
    precision: str,
    H: int,
    direction: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Products by tensor cores, of weights in registers; h goes to other blocks' shared memory."""
    from fastgru.kernels.cuda.loops import cluster, cluster_kernels

    tiles = cluster.tiles_for(CELLS[cell], H, np.dtype("float32"), precision)
    assert tiles is not None
    tile = getattr(tiles, direction)
    function = getattr(cluster_kernels, f"make_cluster_{direction}")(CELLS[cell], tile)
    kernel = assembled(monkeypatch, function, "float32", (9, 0), tile.threads)
    names = check(kernel, "float32", 255, tmp_path)
    product = {"bf16": "HMMA.16816.F32.BF16", "tf32": "HMMA.1688.F32.TF32"}[precision]
    products = [name for name in names if name.startswith("HMMA")]
    # Two for each eight words of weights, which from shared memory are loaded as two times four;
    # those of whole pairs may be in a loop.
    whole = -(-tile.in_registers // tile.gates)
    assert set(products) == {product}
    assert whole * tile.gates * 2 <= len(products) <= tile.pairs * tile.gates * 2
    held = tile.in_registers
    words = products.count(product) - 2 * held  # twice four of weights; and of vectors:
    vectors = len(products) // 2 // (tile.gates if direction == "forward" else 1)
    assert vectors <= names.count("LDS.128") - words <= vectors + whole * tile.gates - held
    sent = [name for name in names if re.fullmatch(r"ST\.E(\.U16)?", name)]
    assert len(sent) >= tile.blocks * tile.vectors
    assert {"UCGABAR_ARV", "UCGABAR_WAIT"} <= set(names)


def test_code_is_kept_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second process loads what the first has compiled; a torn file is compiled again."""
    import numba

    from fastgru.kernels.cuda import launch, rows

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    made = []
    real = launch.assemble
    monkeypatch.setattr(launch, "assemble", lambda *a: made.append(a) or real(*a))
    assembled(
        monkeypatch, rows.FUNCTIONS["gather_state"], "float32", (9, 0)
    )  # stands for the device
    made.clear()

    def kernel(key: str | None, dtype: str = "float32") -> Any:
        return launch.Kernel(rows.FUNCTIONS["gather_state"], np.dtype(dtype), key).assembled((9, 0))

    first = kernel("a")
    (file,) = (tmp_path / "fastgru").iterdir()
    again = kernel("a")
    assert (again.name, again.code) == (first.name, first.code)
    assert len(made) == 1
    kernel("b")
    kernel("a", "float64")
    kernel(None)
    assert len(made) == 4
    assert len(list((tmp_path / "fastgru").iterdir())) == 3
    file.write_bytes(file.read_bytes()[:-1])
    assert kernel("a").code
    assert len(made) == 5
