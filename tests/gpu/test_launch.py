"""What the driver is asked for, and how arguments are laid out."""

import collections
import ctypes
import types
from typing import Any

import numpy as np
import pytest

from fastgru.kernels.cells import CELLS


@pytest.fixture
def asked(cuda_tools: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What the driver, emulated, was asked for: the arguments of each call by its name."""
    from fastgru.kernels.cuda import build, launch

    calls: dict[str, list[Any]] = collections.defaultdict(list)

    def stand_in(name: str, *values: Any) -> None:
        def answer(*given: Any) -> tuple[Any, ...]:
            calls[name].append(given)
            return launch.driver.CUresult.CUDA_SUCCESS, *values

        monkeypatch.setattr(launch.driver, name, answer)

    stand_in("cuModuleLoadData", "module")
    stand_in("cuModuleGetFunction", "function")
    stand_in("cuOccupancyMaxActiveClusters", 7)
    for name in ("FuncSetAttribute", "LaunchKernel", "LaunchKernelEx", "LaunchCooperativeKernel"):
        stand_in(f"cu{name}")
    assembled = build.Assembled("name", b"", "")
    monkeypatch.setattr(launch.Kernel, "assembled", lambda self, capability: assembled)
    return calls


def launched_kernel(grid: tuple[int, int], stream: int, **options: Any) -> Any:
    """A kernel without arrays, launched once in blocks of 96 threads."""
    from fastgru.kernels.cuda import launch

    def nothing(step: int) -> None:
        return

    kernel = launch.Kernel(nothing, np.dtype("float32"), None, 96, **options)
    device = types.SimpleNamespace(id=0, compute_capability="90")
    kernel.bind(device)(grid, (96, 1), stream, 5)
    return kernel, device


def test_launches(asked: dict[str, list[Any]]) -> None:
    """Of blocks on their own, and of blocks that wait for each other."""
    for name, last in (("LaunchKernel", (0,)), ("LaunchCooperativeKernel", ())):
        launched_kernel((5, 2), 3000, cooperative=name == "LaunchCooperativeKernel")
        ((*how, where),) = [call[:10] for call in asked[f"cu{name}"]]
        assert tuple(how) == ("function", 5, 2, 1, 96, 1, 1, 0, 3000)
        assert where > 0
        assert asked[f"cu{name}"][0][10:] == last
    assert not asked["cuFuncSetAttribute"]
    assert not asked["cuLaunchKernelEx"]


@pytest.mark.parametrize(("blocks", "shared", "count"), [(2, 0, 0), (8, 5000, 1), (16, 5000, 2)])
def test_launches_of_clusters(
    blocks: int, shared: int, count: int, asked: dict[str, list[Any]]
) -> None:
    from fastgru.kernels.cuda import launch

    driver = launch.driver
    kernel, device = launched_kernel((5, blocks), 0, cluster=blocks, shared_bytes=shared)
    assert kernel.clusters_at_once(device) == 7
    allowed = {
        driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: shared,
        driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: 1,
    }
    assert len(asked["cuFuncSetAttribute"]) == count
    for function, attribute, value in asked["cuFuncSetAttribute"]:
        assert (function, value) == ("function", allowed[attribute])
    ((config, function, _, _),) = asked["cuLaunchKernelEx"]
    ((same_function, of_one),) = asked["cuOccupancyMaxActiveClusters"]
    assert function == same_function == "function"
    assert int(config.hStream) == launch.LEGACY_STREAM
    for asked_for, width in ((config, 5), (of_one, 1)):
        grid = asked_for.gridDimX, asked_for.gridDimY, asked_for.gridDimZ
        assert grid == (width, blocks, 1)
        assert (asked_for.blockDimX, asked_for.blockDimY, asked_for.blockDimZ) == (96, 1, 1)
        assert asked_for.sharedMemBytes == shared
        (cluster,) = asked_for.attrs
        assert asked_for.numAttrs == 1
        assert cluster.id == driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        shape = cluster.value.clusterDim
        assert (shape.x, shape.y, shape.z) == (1, blocks, 1)


def test_a_device_that_cannot_form_a_cluster(
    asked: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastgru.kernels.cuda import launch

    kernel, device = launched_kernel((5, 16), 0, cluster=16)
    for error, message in (("INVALID_CLUSTER_SIZE", None), ("INVALID_HANDLE", "INVALID_HANDLE")):
        status = getattr(launch.driver.CUresult, f"CUDA_ERROR_{error}")
        monkeypatch.setattr(
            launch.driver, "cuOccupancyMaxActiveClusters", lambda *given, s=status: (s, 0)
        )
        named = (launch.driver.CUresult.CUDA_SUCCESS, error.encode())
        for name in ("cuGetErrorName", "cuGetErrorString"):
            monkeypatch.setattr(launch.driver, name, lambda s, named=named: named)
        if message is None:
            assert kernel.clusters_at_once(device) == 0
        else:
            with pytest.raises(RuntimeError, match=message):
                kernel.clusters_at_once(device)


def test_kernels_take_words_as_they_are_laid_out(
    cuda_tools: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each array two words, size, item size, address, shape and strides; then the numbers."""
    from numba import cuda
    from numba.cuda import dispatcher

    from fastgru.kernels.cuda import build, launch, pointwise, rows

    array = types.SimpleNamespace(
        ndim=3,
        size=24,
        itemsize=4,
        shape=(2, 3, 4),
        strides=(48, 16, 4),
        data=types.SimpleNamespace(ptr=7),
    )
    given: list[int] = []

    def of_one_array(values: Any, step: int, reverse: bool) -> None:
        return

    kernel = launch.Kernel(of_one_array, np.dtype("float32"), None)
    monkeypatch.setattr(kernel, "handle_on", lambda device: None)
    monkeypatch.setattr(kernel, "launch", lambda *how: given.append(how[-1]))

    def launched(pointer: int) -> Any:
        array.data.ptr = pointer
        call = kernel.bind(None, array)
        call((1, 1), (1, 1), 0, 8, True)
        return call

    def words() -> list[int]:
        where = (ctypes.c_void_p * 13).from_address(given[-1])
        return [ctypes.c_int64.from_address(address or 0).value for address in where]

    first, second = launched(7), launched(9)
    assert words() == [0, 0, 24, 4, 9, 2, 3, 4, 48, 16, 4, 8, 1]
    del first  # its memory is used again, that of the second is not
    third = launched(11)
    assert words() == [0, 0, 24, 4, 11, 2, 3, 4, 48, 16, 4, 8, 1]
    assert given[2] == given[0] != given[1]
    fourth = launched(13)
    assert given[3] not in given[:3]
    del fourth
    second((1, 1), (1, 1), 0, 9, False)
    assert words() == [0, 0, 24, 4, 9, 2, 3, 4, 48, 16, 4, 9, 0]
    with pytest.raises(TypeError, match="expected 2 numbers"):
        third((1, 1), (1, 1), 0, 8)
    with pytest.raises(TypeError, match=r"expected arrays of \[3\] dimensions, got \[3, 3\]"):
        kernel.bind(None, launch.PreparedArray.of(array), array)
    fill = launch.Kernel(lambda packed, values: None, np.dtype("float32"), None)
    flat = types.SimpleNamespace(ndim=2)
    with pytest.raises(TypeError, match=r"expected arrays of \[2, 3\] dimensions, got \[3, 2\]"):
        fill.bind(None, array, flat)

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        device = types.SimpleNamespace(compute_capability=(9, 0))
        context.setattr(dispatcher, "get_current_device", lambda: device)
        for function in (
            rows.FUNCTIONS["add_sequence"],
            pointwise.make_backward_phase(CELLS["lstm"], 0),
        ):
            signature = build.signature_of(function, np.dtype("float32"))
            ptx, _ = cuda.compile(function, signature, device=False, abi="numba", cc=(9, 0))
            entry = ptx.partition(".entry")[2].partition(")")[0]
            arrays = [kind.ndim for kind in signature.args if hasattr(kind, "ndim")]
            count = sum(5 + 2 * ndim for ndim in arrays) + len(signature.args) - len(arrays)
            assert entry.count(".param .u64") + entry.count(".param .b64") == count
            assert entry.count(".param") == count
