"""Weights of other libraries, in and out: PyTorch, Keras, ONNX, RTNeural, and plain arrays."""

from .arrays import from_arrays
from .found import Found, Layer
from .keras import from_keras, to_keras
from .onnx import from_onnx
from .onnx_export import to_onnx
from .pytorch import from_torch, to_torch
from .read import read
from .reversal import reverse_steps
from .rtneural import from_rtneural, to_rtneural
from .stacking import stack_layers

__all__ = [
    "Found",
    "Layer",
    "from_arrays",
    "from_keras",
    "from_onnx",
    "from_rtneural",
    "from_torch",
    "read",
    "reverse_steps",
    "stack_layers",
    "to_keras",
    "to_onnx",
    "to_rtneural",
    "to_torch",
]
