"""Which loop takes a layer through its time steps: the one table."""

from collections.abc import Callable
from typing import NamedTuple

from . import cluster, exchange, graph, resident, steps
from .context import BackwardArrays, Context, ForwardArrays, Layer, Loop


class Choice(NamedTuple):
    """A loop, for what it is, and why."""

    name: str
    suits: Callable[[Layer], bool]
    forward: Callable[[Context, ForwardArrays], Loop]
    backward: Callable[[Context, BackwardArrays], Loop]
    why: str


RESIDENT = Choice(
    "resident",
    resident.suits,
    resident.forward,
    resident.backward,
    "all recurrent weights stay in the registers of a block: one launch for many steps",
)

EXCHANGE = Choice(
    "exchange",
    exchange.suits,
    exchange.forward,
    exchange.backward,
    "all recurrent weights stay in the registers of many blocks, which exchange h at every step",
)

CLUSTER = Choice(
    "cluster",
    cluster.suits,
    cluster.forward,
    cluster.backward,
    "tensor cores: recurrent weights stay on chip, blocks of a cluster write h to each other",
)

GRAPH = Choice(
    "graph",
    graph.suits,
    graph.forward,
    graph.backward,
    "many short steps of a shape that comes again: one launch of a CUDA graph for all of them",
)

STEPS = Choice(
    "steps",
    lambda layer: True,
    steps.forward,
    steps.backward,
    "any cell and size; every product at the speed of cuBLAS, two or three launches a step",
)

LOOPS = RESIDENT, EXCHANGE, CLUSTER, GRAPH, STEPS

# The first that suits is taken. The others stay out until they have run on a GPU: what has never
# done so could hang one.
CHOICES: tuple[Choice, ...] = (STEPS,)


def choose(layer: Layer) -> Choice:
    """The first of the table that suits."""
    return next(choice for choice in CHOICES if choice.suits(layer))
