"""Sequences backward in time, for layers that run so alone."""

from typing import Any

import numpy as np

from ..check import check_flag


def reverse_steps(x: Any, lengths: Any = None, *, time_major: bool = False) -> Any:
    """Reverse the valid steps of each sequence; padding stays where it is.

    A layer that runs backward in time, such as an ONNX node of ``direction="reverse"``, is
    ``reverse_steps(forward(reverse_steps(x, lengths), params, lengths=lengths)[0], lengths)``.

    Parameters
    ----------
    x : (N, T, F) array
        (T, N, F) if `time_major`.
    lengths : (N,) array of int, optional
        How many steps of each sequence are valid; all by default.
    time_major : bool
        Whether steps come before samples.

    Returns
    -------
    array
        A copy, shaped as x.

    Raises
    ------
    ValueError
        If x has another number of axes, or the lengths are not those of its samples.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru.io import reverse_steps
    >>> x = np.array([[1, 2, 3], [4, 5, 0]])[:, :, None]
    >>> reverse_steps(x, [3, 2])[:, :, 0]
    array([[3, 2, 1],
           [5, 4, 0]])
    """
    turned = np.swapaxes(x, 0, 1) if check_flag("time_major", time_major) else np.asarray(x)
    if turned.ndim != 3:
        raise ValueError(f"x: expected 3 axes, samples, steps and features, got {turned.ndim}")
    N, T, _ = turned.shape
    ends = np.full(N, T) if lengths is None else np.asarray(lengths)
    if ends.shape != (N,) or ends.dtype.kind not in "iu" or (ends > T).any() or (ends < 0).any():
        raise ValueError(f"lengths: expected {N} whole numbers from 0 to {T}, got {lengths!r}")
    steps = np.arange(T)
    places = np.where(steps < ends[:, None], ends[:, None] - 1 - steps, steps)
    result = np.take_along_axis(turned, places[:, :, None], axis=1)
    return np.ascontiguousarray(np.swapaxes(result, 0, 1)) if time_major else result
