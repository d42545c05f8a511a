"""Weights of other libraries, in and out: PyTorch, Keras, ONNX, RTNeural, and plain arrays."""

from .arrays import from_arrays
from .found import Found, Layer

__all__ = ["Found", "Layer", "from_arrays"]
