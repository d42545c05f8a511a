"""Optimisers, with PyTorch's names, defaults and arithmetic, over any tree of arrays.

All arrays of a tree are updated together, as one vector: so a step is a handful of operations of
the array library, however many arrays there are.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ..check import check_members
from .check import check_choice, check_number
from .tree import Tree, library_of, pairs_of, tree_map


class Optimizer(ABC):
    """What all optimisers have; see `Adam` for an example.

    Parameters
    ----------
    learning_rate : float
        Of a step that is not told another one.
    weight_decay : float
        What that means is the optimiser's.

    Attributes
    ----------
    steps : int
        How many were taken.
    """

    _slots: tuple[str, ...] = ()  # names of the vectors that it keeps

    def __init__(self, learning_rate: float, weight_decay: float) -> None:
        self.learning_rate = check_number("learning_rate", learning_rate, least=0)
        self.weight_decay = check_number("weight_decay", weight_decay, least=0)
        self.steps = 0
        self._kept: dict[str, Any] = {}  # vectors, by name
        self._work: list[Any] = []  # memory for what is thrown away

    def step(self, tree: Tree, gradients: Tree, *, learning_rate: float | None = None) -> Tree:
        """Take a step.

        Parameters
        ----------
        tree : tree
            Weights, which are not changed.
        gradients : tree
            Of the same structure. Where params have no gradients, as running statistics have none,
            they stay.
        learning_rate : float, optional
            Of this step alone, as schedules give it.

        Returns
        -------
        tree
            The new weights.

        Raises
        ------
        TypeError
            If the arrays are not of one dtype and library.
        ValueError
            If structure or shapes differ, or the size from that of earlier steps.
        """
        rate = self.learning_rate
        if learning_rate is not None:
            rate = check_number("learning_rate", learning_rate, least=0)
        pairs = pairs_of(tree, gradients)
        if not pairs:
            return tree
        xp = library_of(pairs[0][0])
        kinds = {(library_of(array).__name__, array.dtype) for pair in pairs for array in pair}
        if len(kinds) > 1:
            names = sorted(f"{library} {dtype}" for library, dtype in kinds)
            raise TypeError(f"expected arrays of one library and dtype, got {', '.join(names)}")
        for array, gradient in pairs:
            if array.shape != gradient.shape:
                raise ValueError(
                    f"expected gradients shaped like the weights, {array.shape}, got "
                    f"{gradient.shape}"
                )
        weights = xp.concatenate([array.reshape(-1) for array, _ in pairs])
        slopes = xp.concatenate([gradient.reshape(-1) for _, gradient in pairs])
        self._prepare(xp, weights)
        self.steps += 1
        self._update(xp, weights, slopes, rate)
        first = 0

        def part(array: Any, gradient: Any) -> Any:
            nonlocal first
            first += array.size
            return weights[first - array.size : first].reshape(array.shape)

        return tree_map(part, tree, gradients)

    def _prepare(self, xp: Any, weights: Any) -> None:
        """The vectors for weights of this size, zeros at first."""
        like = weights.shape, weights.dtype
        if not self._work or (self._work[0].shape, self._work[0].dtype) != like:
            self._work = [xp.empty_like(weights), xp.empty_like(weights)]
        for name in self._slots:
            kept = self._kept.setdefault(name, None)
            if kept is None:
                self._kept[name] = xp.zeros_like(weights)
            elif kept.shape != weights.shape or kept.dtype != weights.dtype:
                raise ValueError(
                    f"expected {kept.size} weights of {kept.dtype}, as in earlier steps, "
                    f"got {weights.size} of {weights.dtype}; take another optimiser"
                )

    @abstractmethod
    def _update(self, xp: Any, w: Any, g: Any, rate: float) -> None:
        """Change the weights in place; the gradient may be changed too."""

    def state_dict(self) -> dict[str, Any]:
        """What a later run needs to go on.

        Returns
        -------
        dict
            ``steps``, and vectors by name.
        """
        return {"steps": self.steps} | {k: a.copy() for k, a in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Parameters
        ----------
        state : mapping

        Raises
        ------
        ValueError
            If it is of another kind of optimiser.
        """
        vectors = {name: array for name, array in state.items() if name != "steps"}
        needed = set(self._slots) if state.get("steps") else set()
        if "steps" not in state or not needed <= vectors.keys() <= set(self._slots):
            raise ValueError(
                f"expected the state of {type(self).__name__}: steps and {', '.join(self._slots)}; "
                f"got {', '.join(state)}"
            )
        self.steps = int(state["steps"])
        self._kept = {name: array.copy() for name, array in vectors.items()}

    def __repr__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if not k.startswith("_") and k != "steps"}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if wanted.

    Parameters
    ----------
    learning_rate : float
    momentum : float
        How much of the last step's direction stays, less than 1.
    nesterov : bool
        Look ahead by the momentum (Nesterov 1983).
    weight_decay : float
        Adds so many times the weights to their gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> optimizer = training.SGD(0.1, momentum=0.9)
    >>> optimizer.step({"w": np.array([1.0])}, {"w": np.array([2.0])})
    {'w': array([0.8])}
    """

    def __init__(
        self,
        learning_rate: float = 1e-2,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.momentum = check_number("momentum", momentum, least=0, below=1)
        self.nesterov = check_choice("nesterov", nesterov, (False, True))
        if nesterov and not momentum:
            raise ValueError("nesterov: expected a momentum above 0, got 0")
        self._slots = ("velocity",) if momentum else ()

    def _update(self, xp: Any, w: Any, g: Any, rate: float) -> None:
        if self.weight_decay:
            g += self.weight_decay * w
        if self.momentum:
            velocity = self._kept["velocity"]
            velocity *= self.momentum
            velocity += g
            if self.nesterov:
                g += xp.multiply(velocity, self.momentum, out=self._work[0])
            else:
                g = velocity
        w -= xp.multiply(g, rate, out=self._work[0])


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980).

    Parameters
    ----------
    learning_rate : float
    betas : tuple of float
        How much of the running means of gradients and of their squares stays in a step.
    eps : float
        Added to the root of the mean square.
    weight_decay : float
        Adds so many times the weights to their gradients.

    Examples
    --------
    >>> import numpy as np, fastgru
    >>> from fastgru import training
    >>> params = fastgru.init_params(3, 16, rng=0)
    >>> optimizer = training.Adam(1e-3)
    >>> y, h_n, saved = fastgru.forward_train(np.ones((8, 50, 3), np.float32), params)
    >>> params = optimizer.step(params, fastgru.backward(saved, dy=y).params)
    """

    _slots = "mean", "square"

    def __init__(
        self,
        learning_rate: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        pair = check_members("betas", betas, "two numbers")
        if len(pair) != 2:
            raise ValueError(f"betas: expected two numbers, got {betas!r}")
        first, second = pair
        self.betas = (
            check_number("betas[0]", first, least=0, below=1),
            check_number("betas[1]", second, least=0, below=1),
        )
        self.eps = check_number("eps", eps, least=0)

    def _update(self, xp: Any, w: Any, g: Any, rate: float) -> None:
        if self.weight_decay:
            self._decay(xp, w, g, rate)
        mean, square = self._kept["mean"], self._kept["square"]
        work, (first, second) = self._work[0], self.betas
        mean *= first
        mean += xp.multiply(g, 1 - first, out=work)
        xp.multiply(g, g, out=work)
        work *= 1 - second
        square *= second
        square += work
        xp.sqrt(square, out=work)
        # The corrections of both running means, taken into the rate and eps: two passes less.
        root = math.sqrt(1 - second**self.steps)
        work += self.eps * root
        xp.divide(mean, work, out=work)
        work *= rate * root / (1 - first**self.steps)
        w -= work

    def _decay(self, xp: Any, w: Any, g: Any, rate: float) -> None:
        g += xp.multiply(w, self.weight_decay, out=self._work[0])


class AdamW(Adam):
    """Adam whose weight decay is not part of the gradient (Loshchilov and Hutter 2019).

    Parameters
    ----------
    learning_rate : float
        As for `Adam`, like the next two.
    betas : tuple of float
    eps : float
    weight_decay : float
        A step makes weights smaller by so many times the learning rate.

    Examples
    --------
    >>> from fastgru import training
    >>> training.AdamW(1e-3, weight_decay=0.1)
    AdamW(learning_rate=0.001, weight_decay=0.1, betas=(0.9, 0.999), eps=1e-08)
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(learning_rate, betas=betas, eps=eps, weight_decay=weight_decay)

    def _decay(self, xp: Any, w: Any, g: Any, rate: float) -> None:
        w *= 1 - rate * self.weight_decay


class RMSprop(Optimizer):
    """Gradients divided by the root of their running mean square (Hinton 2012, as in PyTorch).

    Parameters
    ----------
    learning_rate : float
    alpha : float
        How much of the running mean stays in a step.
    eps : float
        Added to the root.
    momentum : float
        How much of the last step's direction stays.
    centered : bool
        Divide by the root of the variance, not of the mean square.
    weight_decay : float
        Adds so many times the weights to their gradients.

    Examples
    --------
    >>> import numpy as np
    >>> from fastgru import training
    >>> training.RMSprop(0.01).step(np.array([1.0]), np.array([5.0]))
    array([0.9])
    """

    def __init__(
        self,
        learning_rate: float = 1e-2,
        *,
        alpha: float = 0.99,
        eps: float = 1e-8,
        momentum: float = 0.0,
        centered: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate, weight_decay)
        self.alpha = check_number("alpha", alpha, least=0, below=1)
        self.eps = check_number("eps", eps, least=0)
        self.momentum = check_number("momentum", momentum, least=0, below=1)
        self.centered = check_choice("centered", centered, (False, True))
        self._slots = (
            "square",
            *(["mean"] if centered else []),
            *(["velocity"] if momentum else []),
        )

    def _update(self, xp: Any, w: Any, g: Any, rate: float) -> None:
        work, more = self._work
        if self.weight_decay:
            g += xp.multiply(w, self.weight_decay, out=work)
        square = self._kept["square"]
        square *= self.alpha
        xp.multiply(g, g, out=work)
        work *= 1 - self.alpha
        square += work
        if self.centered:
            mean = self._kept["mean"]
            mean *= self.alpha
            mean += xp.multiply(g, 1 - self.alpha, out=work)
            xp.subtract(square, xp.multiply(mean, mean, out=more), out=work)
            xp.sqrt(work, out=work)
        else:
            xp.sqrt(square, out=work)
        work += self.eps
        xp.divide(g, work, out=work)
        if self.momentum:
            velocity = self._kept["velocity"]
            velocity *= self.momentum
            velocity += work
            xp.multiply(velocity, rate, out=work)
        else:
            work *= rate
        w -= work
