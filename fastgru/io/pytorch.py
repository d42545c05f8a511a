"""`from_torch`, `to_torch`: state dicts of PyTorch's modules, and their safetensors files."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..archive import is_own
from ..check import check_kind, check_type
from ..files import on_host
from ..params import Params
from ..safetensors import File, RefusedError, opened
from .content import check_source, expect
from .convention import bfloat16_to_float32, floating
from .found import Found
from .state_dict import check_cells, layers_of

# Those that PyTorch has modules for.
_MODULES = ("gru", "lstm", "rnn_tanh", "rnn_relu")


def from_torch(
    source: Mapping[str, Any] | str | os.PathLike[str],
    *,
    cell: str | Mapping[str, str] | None = None,
    dtype: Any = None,
) -> Found:
    """Find the GRUs, LSTMs and RNNs in a state dict of PyTorch, or in a safetensors file.

    Parameters
    ----------
    source : mapping of str to array, str or os.PathLike
        A state dict of tensors or of NumPy arrays, of any module that has ``nn.GRU``, ``nn.LSTM``,
        ``nn.RNN``, ``nn.GRUCell``, ``nn.LSTMCell``, ``nn.RNNCell`` in it; or the path of a
        safetensors file of one.
    cell : str or mapping of str to str, optional
        The cell of all modules, or of some by their names, where their weights do not tell it:
        ``"rnn_relu"``. Without it, four gates are `lstm`, three `gru`, one `rnn_tanh`.
    dtype : dtype, optional
        Convert to float32 or float64. Without it nothing is converted, and other dtypes, such as
        float16 and bfloat16, are refused.

    Returns
    -------
    Found
        The modules by their names: ``"encoder.gru"`` for ``encoder.gru.weight_ih_l0``, ``""`` for
        ``weight_ih_l0``. What is no weight of such a module is left out.

    Raises
    ------
    TypeError
        If an argument is not as described, or a mapping's weight is not of a dtype that is read.
    ValueError
        If weights do not fit each other, there is a projection (``proj_size``), or PyTorch computes
        a weight from others (weight norm, pruning); if the file is damaged or no safetensors file.
        Files that torch.save wrote are pickles, and never opened.
    OSError
        If the file cannot be read.

    Notes
    -----
    Gates need no new order, so arrays of a mapping are kept, not copied: training that goes on
    changes them. Where one of two biases is missing, it is zeros.

    Examples
    --------
    >>> import fastgru
    >>> from fastgru import io
    >>> weights = fastgru.init_params(3, 16, cell="lstm", rng=0).to_dict()
    >>> found = io.from_torch({f"encoder.{key}": array for key, array in weights.items()})
    >>> found["encoder"].params.cell
    'lstm'
    """
    kind = None if dtype is None else check_kind(dtype)
    check_cells(cell)
    if isinstance(source, Mapping):
        return _from_mapping(source, cell, kind)
    check_source(source, "safetensors")
    expect(source, "safetensors")
    with opened(source) as file:
        if is_own(file.metadata):
            raise RefusedError("fastgru.save wrote it: fastgru.load and io.read read it")
        stored = _stored(file)
        read = functools.cache(lambda name: _read(file, name, kind))
        try:
            layers, left_out = layers_of(stored, lambda key: read(stored[key]), cell)
        except (TypeError, ValueError) as error:
            raise RefusedError(str(error)) from error
        described = [_described(key, file.entries[stored[key]]) for key in left_out]
    return Found(os.fspath(source), layers, described)


def to_torch(params: Params, prefix: str = "") -> dict[str, Any]:
    """Make tensors that PyTorch's ``load_state_dict`` takes.

    Parameters
    ----------
    params : Params
        Of the cell `gru`, `lstm`, `rnn_tanh` or `rnn_relu`.
    prefix : str
        Name of the module in the one that loads: ``"encoder.gru"``.

    Returns
    -------
    dict of str to torch.Tensor
        Copies, in memory of the CPU, by the names of ``nn.GRU``, ``nn.LSTM``, ``nn.RNN``.

    Raises
    ------
    TypeError
        If `params` are none.
    ValueError
        If PyTorch has no such module.
    ImportError
        If PyTorch is not installed.

    Notes
    -----
    Without PyTorch at hand, `fastgru.save` writes a file with the same names, which
    ``safetensors.torch.load_file`` reads.

    Examples
    --------
    >>> import fastgru
    >>> from fastgru import io
    >>> params = fastgru.init_params(3, 16, rng=0)
    >>> module = torch.nn.GRU(3, 16)  # doctest: +SKIP
    >>> module.load_state_dict(io.to_torch(params))  # doctest: +SKIP
    <All keys matched successfully>
    """
    check_type("params", params, Params)
    check_type("prefix", prefix, str)
    if params.cell not in _MODULES:
        raise ValueError(
            f"params: PyTorch has no module for cell {params.cell!r}: expected one of "
            f"{', '.join(_MODULES)}"
        )
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_torch makes tensors, for which PyTorch is needed: pip install torch; "
            "params.to_dict() are the same arrays by the same names"
        ) from error
    start = f"{prefix}." if prefix and not prefix.endswith(".") else prefix
    return {start + key: torch.tensor(array) for key, array in on_host(params).items()}


# --- mappings and files ---------------------------------------------------------------------------


def _from_mapping(mapping: Mapping[str, Any], cell: Any, dtype: Any) -> Found:
    for key in mapping:
        if not isinstance(key, str):
            raise TypeError(f"mapping: expected keys that are str, got {key!r}")
    layers, left_out = layers_of(mapping, lambda key: as_array(key, mapping[key], dtype), cell)
    nested = [key for key in left_out if isinstance(mapping[key], Mapping)]
    if nested and not layers:
        raise TypeError(
            f"mapping: expected arrays, got a mapping in {nested[0]!r}, and no weights beside it; "
            f"if that is the state dict, give mapping[{nested[0]!r}]"
        )
    return Found("mapping", layers, [_described(key, mapping[key]) for key in left_out])


def _described(key: str, value: Any) -> str:
    """What is left out: with shape and dtype, if it is an array."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        return f"{key} {type(value).__qualname__}"
    return f"{key} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def as_array(key: str, value: Any, dtype: Any) -> Any:
    """A tensor or NumPy array as one of float32 or float64; of `dtype`, if one is asked for.

    Raises
    ------
    TypeError
        If it is neither, or has another dtype and none is asked for.
    """
    if hasattr(value, "detach"):  # PyTorch, which is not imported for that
        is_bfloat16 = str(value.dtype) == "torch.bfloat16"  # which NumPy has not
        if is_bfloat16:
            _check_asked(key, dtype)
        try:
            value = value.detach().cpu()
            value = (value.float() if is_bfloat16 else value).numpy()
        except (TypeError, RuntimeError) as error:
            raise TypeError(
                f"{key}: expected a dense tensor of floating-point numbers, got one that has no "
                f"NumPy array: {error}"
            ) from error
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{key}: expected a tensor or a NumPy array, got {type(value).__qualname__}"
        )
    return floating(key, value, dtype)


def _stored(file: File) -> dict[str, str]:
    """Names of arrays in a file, by all keys of its state dict.

    Of keys that share an array, safetensors.torch.save_model writes one as its name, and says in
    the metadata which name each other one stands for.
    """
    own = {name: name for name in file.entries}
    shared = {key: name for key, name in file.metadata.items() if name in own and key not in own}
    return own | shared


def _read(file: File, key: str, dtype: Any) -> Any:
    """An array of a file likewise."""
    array = file.read(key)
    if file.entries[key].dtype == "BF16":
        _check_asked(key, dtype)
        array = bfloat16_to_float32(array)
    return floating(key, array, dtype)


def _check_asked(key: str, dtype: Any) -> None:
    if dtype is None:
        raise TypeError(
            f"{key}: expected float32 or float64, got bfloat16; dtype='float32' converts it"
        )
