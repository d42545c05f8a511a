"""Compile kernels for a CPU that this machine need not have; run as a program by test_targets.

Arguments: the triple, the CPU's name and features, then dtypes and cells, by commas. Prints, as
JSON, the assembly of each kernel by name. LLVM resolves what the code calls, so a function that no
process has ends this one.
"""

import json
import sys
from typing import Any

import llvmlite.binding as llvm

triple, cpu, features, dtypes, cells = sys.argv[1:]
llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()


class Features(dict[str, bool]):
    """Stands for what LLVM found of the host."""

    def flatten(self, sort: bool = True) -> str:
        return features


def target_of_triple(*_: Any) -> Any:
    return llvm.Target.from_triple(triple)


# Before Numba is imported, which asks once.
llvm.get_process_triple = lambda: triple
llvm.get_host_cpu_name = lambda: cpu
llvm.get_host_cpu_features = Features
llvm.Target.from_default_triple = target_of_triple  # type: ignore[method-assign,assignment]

import numpy as np  # noqa: E402

from fastgru.kernels.cells import CELLS  # noqa: E402
from fastgru.kernels.cpu import build, simd  # noqa: E402

seen: set[Any] = set()
found: dict[str, Any] = {"vectors": [simd.register_count(), simd.register_bits()]}
for dtype in dtypes.split(","):
    for cell in filter(None, cells.split(",")):
        for name, make in build.kernel_makers(CELLS[cell], np.dtype(dtype)).items():
            dispatcher = make().dispatcher
            if dispatcher in seen:  # the same code serves another cell too
                continue
            seen.add(dispatcher)
            (signature,) = dispatcher.signatures
            found[f"{cell} {dtype} {name}"] = dispatcher.inspect_asm(signature)
json.dump(found, sys.stdout)
