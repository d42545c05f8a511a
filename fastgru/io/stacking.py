"""`stack_layers`: layers that a file keeps one by one, as one stack."""

import itertools
from collections.abc import Iterable

from ..check import check_members, check_type
from ..params import Params
from .found import Found


def stack_layers(found: Found, names: Iterable[str] | None = None) -> Params:
    """Make one stack of layers that follow each other.

    Keras and ONNX have one layer, or node, for each layer of a stack. One call of `forward` runs
    the stack, where nothing stands between the layers: no other layer, no dropout that is in use.
    Files do not always say so; the caller does, by the names.

    Parameters
    ----------
    found : Found
        What a reader gave.
    names : sequence of str, optional
        Names of the layers, the lowest first; all of them, in the order of the file, by default.

    Returns
    -------
    Params
        The arrays are those of the layers, uncopied.

    Raises
    ------
    TypeError
        If an argument is not as described, or the layers differ in dtype.
    KeyError
        If there is no layer of a name.
    ValueError
        If the layers cannot be one stack: they must have one cell, one hidden size, as many
        directions, and biases in all or in none; each must read what the one below gives. Also if
        a layer has an initial state, which params do not hold.

    Examples
    --------
    >>> from fastgru import io
    >>> found = io.from_keras("model.keras")  # doctest: +SKIP
    >>> params = io.stack_layers(found, ["gru", "gru_1"])  # doctest: +SKIP
    """
    check_type("found", found, Found)
    chosen = tuple(found) if names is None else check_members("names", names, "names of layers")
    if not chosen:
        raise ValueError(f"names: expected at least one layer of {found.origin}, got none")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"names: expected each layer once, got {', '.join(map(repr, chosen))}")
    layers = [found[name] for name in chosen]
    for layer in layers:
        if layer.initial:
            raise ValueError(
                f"{layer.name!r}: has an initial state, which params do not hold; run this layer "
                "by a call of its own, with h0=layer.initial_state(batch_size)"
            )
    first = layers[0].params
    for below, layer in itertools.pairwise(layers):
        params, reads = layer.params, below.params.hidden_size * below.params.num_directions
        for what, expected, got in (
            ("cell", first.cell, params.cell),
            ("hidden_size", first.hidden_size, params.hidden_size),
            ("bidirectional", first.bidirectional, params.bidirectional),
            ("bias", first.bias, params.bias),
            (f"input_size, as {below.name!r} gives", reads, params.input_size),
        ):
            if got != expected:
                raise ValueError(
                    f"{layer.name!r}: expected {what} {expected!r}, got {got!r}; layers that "
                    "differ are run by one call of forward each"
                )
    return Params(first.cell, [weights for layer in layers for weights in layer.params.layers])
