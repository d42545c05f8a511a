"""Trees of arrays: what optimisers take, of whatever a model's weights are kept in.

A tree is an array, an object that maps a function over its arrays by ``map(function, *others)`` as
`fastgru.Params` does, or a mapping, list or tuple of trees.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

Tree = Any


def tree_map(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply a function array by array.

    Parameters
    ----------
    function : callable
        Takes an array of each tree.
    tree : tree
    *others : tree
        Of the same structure.

    Returns
    -------
    tree
        Of what the function returns.

    Raises
    ------
    TypeError
        If something in a tree is none of these.
    ValueError
        If the trees differ in structure.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> training.tree_map(lambda w, g: w - 0.5 * g, {"w": np.ones(2)}, {"w": np.ones(2)})
    {'w': array([0.5, 0.5])}
    """
    if hasattr(tree, "map"):
        for other in others:
            _check_same("an object with map", _kind_of(other))
        return tree.map(function, *others)
    if hasattr(tree, "dtype"):
        for other in others:
            _check_same("an array", _kind_of(other))
        return function(tree, *others)
    if isinstance(tree, Mapping):
        for other in others:
            _check_same("a mapping", _kind_of(other))
            _check_same(list(tree), list(other))
        return {key: tree_map(function, tree[key], *(o[key] for o in others)) for key in tree}
    if isinstance(tree, list | tuple):
        for other in others:
            _check_same("a list or tuple", _kind_of(other))
            _check_same(len(tree), len(other))
        made = [tree_map(function, *parts) for parts in zip(tree, *others, strict=True)]
        fields = getattr(tree, "_fields", None)
        return made if isinstance(tree, list) else type(tree)(*made) if fields else tuple(made)
    raise TypeError(
        "expected a tree of arrays (Params, Model, arrays, or mappings, lists and tuples of them), "
        f"got {type(tree).__name__}"
    )


def _kind_of(tree: Tree) -> str:
    """What it is in a tree; for what is none of these, its class."""
    if hasattr(tree, "map"):
        return "an object with map"
    if hasattr(tree, "dtype"):
        return "an array"
    if isinstance(tree, Mapping):
        return "a mapping"
    return "a list or tuple" if isinstance(tree, list | tuple) else type(tree).__name__


def _check_same(have: Any, other: Any) -> None:
    if have != other:
        raise ValueError(f"expected trees of the same structure, got {have} and {other}")


def pairs_of(tree: Tree, gradients: Tree) -> list[tuple[Any, Any]]:
    """Arrays of a tree that have gradients, each with its own, in a fixed order."""
    found: list[tuple[Any, Any]] = []

    def note(array: Any, gradient: Any) -> Any:
        found.append((array, gradient))
        return array

    tree_map(note, tree, gradients)
    return found


def library_of(array: Any) -> Any:
    """The module of an array's library, NumPy or CuPy."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def norm_of(tree: Tree) -> float:
    """Euclidean norm of all arrays of a tree together.

    Parameters
    ----------
    tree : tree

    Returns
    -------
    float
        Summed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> training.norm_of([np.array([3.0]), np.array([[4.0]])])
    5.0
    """
    total = 0.0

    def add(array: Any) -> Any:
        nonlocal total
        flat = array.reshape(-1)
        total += float(library_of(array).einsum("i,i->", flat, flat, dtype="float64"))
        return array

    tree_map(add, tree)
    return float(total**0.5)


def clip_by_norm(tree: Tree, limit: float) -> tuple[Tree, float]:
    """Shorten gradients whose norm, over all their arrays together, is above a limit.

    Parameters
    ----------
    tree : tree
        Gradients.
    limit : float
        Greatest norm to leave.

    Returns
    -------
    tree
        The gradients times one factor; the same where the norm is at most `limit`, or not finite.
    norm : float
        What it was before.

    Raises
    ------
    ValueError
        If the limit is below 0.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> training.clip_by_norm({"w": np.array([3.0, 4.0])}, 1.0)
    ({'w': array([0.6, 0.8])}, 5.0)
    """
    if not limit >= 0:
        raise ValueError(f"limit: expected a number of at least 0, got {limit!r}")
    norm = norm_of(tree)
    if not limit < norm < float("inf"):
        return tree, norm
    factor = limit / norm  # a Python float: float32 stays float32
    return tree_map(lambda g: g * factor, tree), norm
