"""How each library is asked for one recurrent layer: a class for each, listed in `PEERS`.

A class is made once for a number of threads. Its methods are named after the modes that it has,
``forward``, ``train`` (forward and backward), ``step`` and, fastgru alone, ``stream`` (a sequence
step by step); they take a `Problem` and return *ways* to compute it. All ways must give the same
results; a comparison takes the fastest, so that no library loses by how it was called. Peers get
what suits them: weights prepared beforehand, x already in the order of axes that they want.

Libraries are imported inside, so that this module needs fastgru and NumPy only.
"""

import importlib.util
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

import fastgru

from .problems import Array, Problem


class Way(NamedTuple):
    """`run` is what is timed; `read` names its results as arrays, laid out as in `Problem`."""

    run: Callable[[], Any]
    read: Callable[[Any], Mapping[str, Any]]


Ways = dict[str, Way]  # by a word or two on how the library is called


def as_tuple(state: Any) -> tuple[Any, ...]:
    """The members of a state, which for a GRU is an array without a tuple around it."""
    return tuple(state) if isinstance(state, tuple | list) else (state,)


def read_forward(result: Any, time_major: bool) -> dict[str, Any]:
    """What a forward pass gave, y, which may be (T, B, H), and states, by name."""
    y, states = result
    y = np.asarray(y)
    named = {"y": y.transpose(1, 0, 2) if time_major else y}
    for name, state in zip("hc", as_tuple(states), strict=False):
        named[name] = np.asarray(state).reshape(y.shape[1 if time_major else 0], -1)
    return named


def read_states(states: Any) -> dict[str, Any]:
    """Results of a step by name."""
    members = [np.asarray(state) for state in as_tuple(states)]
    return dict(zip("hc", [m.reshape(-1, m.shape[-1]) for m in members], strict=False))


def read_gradients(dx: Any, dstates: Any, dweights: Mapping[str, Any]) -> dict[str, Any]:
    """Gradients by name; dx is (B, T, I)."""
    named = {f"d{name}": value for name, value in read_states(dstates).items()}
    return named | {"dx": dx} | {f"d{name}": np.asarray(dw) for name, dw in dweights.items()}


def stream(advance: Callable[[Any], Any], state: Any) -> Way:
    """A way that feeds the state after each call into the next, as a stream does."""

    def run() -> Any:
        nonlocal state
        state = advance(state)
        return state

    return Way(run, read_states)


class FastGRU:
    """This library: weights packed beforehand for `forward` and `step`, plain ones for training."""

    name = "fastgru"
    needs = ("fastgru",)
    dtypes = ("float32", "float64")

    def __init__(self, threads: int) -> None:
        pass  # NUMBA_NUM_THREADS rules

    @staticmethod
    def _state(p: Problem) -> Any:
        members = tuple(state[None] for state in p.states)
        return members if len(members) > 1 else members[0]

    def forward(self, p: Problem) -> Ways:
        packed, h0 = fastgru.pack(p.params), self._state(p)
        return {
            "packed": Way(
                lambda: fastgru.forward(p.x, packed, h0, **p.step_inputs()),
                lambda r: read_forward(r, False),
            )
        }

    def train(self, p: Problem) -> Ways:
        h0 = self._state(p)

        def run() -> Any:
            y, h_n, saved = fastgru.forward_train(p.x, p.params, h0, **p.step_inputs())
            return y, h_n, fastgru.backward(saved, p.dy)

        def read(result: Any) -> dict[str, Any]:
            y, h_n, (dx, dh0, dparams) = result
            dweights = dict(dparams.layers[0][0].items())
            return read_forward((y, h_n), False) | read_gradients(dx, dh0, dweights)

        return {"plain": Way(run, read)}

    def step(self, p: Problem) -> Ways:
        packed, x_t = fastgru.pack(p.params), p.x[:, 0]
        of_step = p.step_inputs(0)

        def run(h: Any) -> Any:
            return fastgru.step(x_t, packed, h, **of_step)[1]

        return {"packed": stream(run, self._state(p))}

    def stream(self, p: Problem) -> Ways:
        packed, h0 = fastgru.pack(p.params), self._state(p)

        def run() -> Any:
            h = h0
            for t in range(p.x.shape[1]):
                _, h = fastgru.step(p.x[:, t], packed, h, **p.step_inputs(t))
            return h

        return {"packed": Way(run, read_states)}


def onnx_model(p: Problem) -> bytes:
    """The layer as a model of one node with fixed shapes: (T, B, I) and states to y and states."""
    from onnx import TensorProto, helper, numpy_helper

    op, gates = {"gru": ("GRU", (1, 0, 2)), "lstm": ("LSTM", (0, 3, 1, 2))}[p.cell]
    w = {
        name: np.concatenate([np.split(a, len(gates))[g] for g in gates])[None]
        for name, a in p.weights.items()
    }
    constants = {
        "W": w["weight_ih"],
        "R": w["weight_hh"],
        "B": np.concatenate([w["bias_ih"], w["bias_hh"]], axis=1),
    }
    (B, T, I), H = p.x.shape, p.params.hidden_size
    states = "hc"[: len(p.states)]

    def info(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    options: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
    node = helper.make_node(
        op,
        ["x", *constants, "", *(f"{s}0" for s in states)],
        ["y", *(f"{s}_n" for s in states)],
        hidden_size=H,
        **options,
    )
    graph = helper.make_graph(
        [node],
        p.cell,
        [info("x", T, B, I), *(info(f"{s}0", 1, B, H) for s in states)],
        [info("y", T, 1, B, H), *(info(f"{s}_n", 1, B, H) for s in states)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    # Versions that any runtime of the last years reads, whatever the newest that onnx writes.
    opset = helper.make_opsetid("", 14)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_feeds(p: Problem) -> dict[str, Array]:
    """Inputs of `onnx_model`."""
    return {"x": p.x_time_major} | {
        f"{s}0": state[None] for s, state in zip("hc", p.states, strict=False)
    }


def read_onnx(result: Any) -> dict[str, Any]:
    """Outputs of `onnx_model` by name."""
    y, *states = result
    return read_forward((np.asarray(y)[:, 0], states), True)


class OnnxRuntime:
    """onnxruntime: arrays given at each call, or inputs and outputs bound beforehand."""

    name = "onnxruntime"
    needs = ("onnxruntime", "onnx")
    dtypes = ("float32",)  # its float64 kernels are declared, not there

    def __init__(self, threads: int) -> None:
        import onnxruntime

        self.session_type = onnxruntime.InferenceSession
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1

    def _session(self, p: Problem) -> Any:
        return self.session_type(onnx_model(p), self.options, providers=["CPUExecutionProvider"])

    def forward(self, p: Problem) -> Ways:
        session, feeds = self._session(p), onnx_feeds(p)
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for output in session.get_outputs():
            binding.bind_output(output.name)

        def bound() -> Any:
            session.run_with_iobinding(binding)
            return binding

        return {
            "arrays": Way(lambda: session.run(None, feeds), read_onnx),
            "bound": Way(bound, lambda b: read_onnx(b.copy_outputs_to_cpu())),
        }

    def step(self, p: Problem) -> Ways:
        session, (x, *states) = self._session(p), onnx_feeds(p).items()
        names = [name for name, _ in states]
        outputs = [output.name for output in session.get_outputs()][1:]  # y repeats h_n

        def advance(state: Any) -> Any:
            return session.run(outputs, dict([x, *zip(names, state, strict=True)]))

        return {"arrays": stream(advance, [state for _, state in states])}


class OpenVino:
    """OpenVINO on the same model: arrays shared at each call, or tensors set beforehand."""

    name = "OpenVINO"
    needs = ("openvino", "onnx")
    dtypes = ("float32",)  # it computes in float32 at most

    def __init__(self, threads: int) -> None:
        import openvino

        self.ov = openvino
        self.core = openvino.Core()
        # Without the first it may compute in bfloat16.
        self.config = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }

    def _request(self, p: Problem) -> Any:
        model = self.core.read_model(onnx_model(p))
        return self.core.compile_model(model, "CPU", self.config).create_infer_request()

    def forward(self, p: Problem) -> Ways:
        feeds = onnx_feeds(p)
        request, bound_request = self._request(p), self._request(p)
        for name, array in feeds.items():
            bound_request.set_tensor(name, self.ov.Tensor(array, shared_memory=True))

        def arrays() -> Any:
            return request.infer(feeds, share_inputs=True, share_outputs=True).to_tuple()

        def bound() -> Any:
            bound_request.infer(share_outputs=True)
            return [tensor.data for tensor in bound_request.output_tensors]

        return {"arrays": Way(arrays, read_onnx), "bound": Way(bound, read_onnx)}

    def step(self, p: Problem) -> Ways:
        request, (x, *states) = self._request(p), onnx_feeds(p).items()
        names = [name for name, _ in states]

        def advance(state: Any) -> Any:
            feeds = dict([x, *zip(names, state, strict=True)])
            # Outputs are copied: the state must not be read from where it is being written.
            return request.infer(feeds, share_inputs=True).to_tuple()[1:]

        return {"arrays": stream(advance, [state for _, state in states])}


class PyTorch:
    """torch.nn.GRU and LSTM, either order of axes; cells too for `step`."""

    name = "PyTorch"
    needs = ("torch",)
    dtypes = ("float32", "float64")

    def __init__(self, threads: int) -> None:
        import torch

        self.torch = torch
        torch.set_num_threads(threads)

    def _load(self, kind: str, p: Problem, suffix: str, **options: Any) -> Any:
        module = getattr(self.torch.nn, kind)(p.params.input_size, p.params.hidden_size, **options)
        weights = {name + suffix: self.torch.from_numpy(a) for name, a in p.weights.items()}
        module.to(next(iter(weights.values())).dtype).load_state_dict(weights)
        return module

    def _state(self, p: Problem, axes: int) -> Any:
        members = tuple(self.torch.from_numpy(s.copy()) for s in p.states)
        members = tuple(m[None] if axes == 3 else m for m in members)
        return members if len(members) > 1 else members[0]

    def _layer(self, p: Problem, time_major: bool) -> tuple[Any, Any, Any]:
        x = self.torch.from_numpy(p.x_time_major if time_major else p.x.copy())
        layer = self._load(p.cell.upper(), p, "_l0", batch_first=not time_major)
        return layer, x, self._state(p, 3)

    def forward(self, p: Problem) -> Ways:
        def way(time_major: bool) -> Way:
            layer, x, h0 = self._layer(p, time_major)
            run = self.torch.inference_mode()(lambda: layer.eval()(x, h0))
            return Way(run, lambda r: read_forward(r, time_major))

        return {"batch first": way(False), "time major": way(True)}

    def train(self, p: Problem) -> Ways:
        def way(time_major: bool) -> Way:
            layer, x, h0 = self._layer(p, time_major)
            dy = np.ascontiguousarray(p.dy.transpose(1, 0, 2)) if time_major else p.dy
            dy = self.torch.from_numpy(dy)
            weights = dict(layer.named_parameters())
            variables = [x.requires_grad_(), *(s.requires_grad_() for s in as_tuple(h0))]
            variables += weights.values()

            def run() -> Any:
                y, h_n = layer(x, h0)
                return y, h_n, self.torch.autograd.grad(y, variables, dy)

            def read(result: Any) -> dict[str, Any]:
                y, h_n, (dx, *gradients) = result
                y, h_n = y.detach(), [state.detach() for state in as_tuple(h_n)]
                dx = dx.transpose(0, 1) if time_major else dx
                count = len(p.states)
                names = [name.removesuffix("_l0") for name in weights]
                dweights = dict(zip(names, gradients[count:], strict=True))
                named = read_gradients(dx.numpy(), gradients[:count], dweights)
                return read_forward((y, h_n), time_major) | named

            return Way(run, read)

        return {"batch first": way(False), "time major": way(True)}

    def step(self, p: Problem) -> Ways:
        x, x_t = self.torch.from_numpy(p.x), self.torch.from_numpy(p.x[:, 0])
        layer = self._load(p.cell.upper(), p, "_l0", batch_first=True)
        cell = self._load(f"{p.cell.upper()}Cell", p, "")
        no_gradients = self.torch.inference_mode()
        return {
            "layer": stream(no_gradients(lambda h: layer(x, h)[1]), self._state(p, 3)),
            "cell": stream(no_gradients(lambda h: cell(x_t, h)), self._state(p, 2)),
        }


class Jax:
    """JAX: `lax.scan`, jitted, the products with x taken out of the loop; time-major arrays."""

    name = "JAX"
    needs = ("jax",)
    dtypes = ("float32", "float64")

    def __init__(self, threads: int) -> None:
        import jax

        self.jax = jax

    def _advance(self, cell: str, state: Any, gates_x: Any, w: Any) -> Any:
        """One step; `gates_x` holds the products with x and their bias."""
        jnp, sigmoid = self.jax.numpy, self.jax.nn.sigmoid
        gates_h = state[0] @ w["weight_hh"] + w["bias_hh"]
        if cell == "gru":
            x_r, x_z, x_n = jnp.split(gates_x, 3, axis=-1)
            h_r, h_z, h_n = jnp.split(gates_h, 3, axis=-1)
            z = sigmoid(x_z + h_z)
            n = jnp.tanh(x_n + sigmoid(x_r + h_r) * h_n)
            return ((1 - z) * n + z * state[0],)
        i, f, g, o = jnp.split(gates_x + gates_h, 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c

    def _forward(self, cell: str, x: Any, states: Any, w: Any) -> Any:
        def body(state: Any, gates_x: Any) -> Any:
            state = self._advance(cell, state, gates_x, w)
            return state, state[0]

        gates_x = x @ w["weight_ih"] + w["bias_ih"]
        states, y = self.jax.lax.scan(body, states, gates_x)
        return y, states

    def _arguments(self, p: Problem) -> Any:
        """x, states and weights; matrices transposed, which spares the loop doing it."""
        self.jax.config.update("jax_enable_x64", p.x.dtype == np.float64)
        put = self.jax.numpy.asarray
        weights = {name: put(np.ascontiguousarray(a.T)) for name, a in p.weights.items()}
        return put(p.x_time_major), tuple(map(put, p.states)), weights

    def forward(self, p: Problem) -> Ways:
        arguments, ready = self._arguments(p), self.jax.block_until_ready
        run = self.jax.jit(lambda *a: self._forward(p.cell, *a))
        return {"scan": Way(lambda: ready(run(*arguments)), lambda r: read_forward(r, True))}

    def train(self, p: Problem) -> Ways:
        arguments, ready = self._arguments(p), self.jax.block_until_ready
        dy = self.jax.numpy.asarray(p.dy.transpose(1, 0, 2))

        @self.jax.jit
        def run(dy: Any, *arguments: Any) -> Any:
            y, pull, states = self.jax.vjp(
                lambda *a: self._forward(p.cell, *a), *arguments, has_aux=True
            )
            return y, states, pull(dy)

        def read(result: Any) -> dict[str, Any]:
            y, states, (dx, dstates, dweights) = result
            dweights = {name: np.asarray(dw).T for name, dw in dweights.items()}
            named = read_gradients(np.asarray(dx).transpose(1, 0, 2), dstates, dweights)
            return read_forward((y, states), True) | named

        return {"scan": Way(lambda: ready(run(dy, *arguments)), read)}

    def step(self, p: Problem) -> Ways:
        x, states, weights = self._arguments(p)

        @self.jax.jit
        def run(x_t: Any, states: Any, w: Any) -> Any:
            gates_x = x_t @ w["weight_ih"] + w["bias_ih"]
            return self._advance(p.cell, states, gates_x, w)

        x_t, ready = x[0], self.jax.block_until_ready
        return {"jit": stream(lambda states: ready(run(x_t, states, weights)), states)}


PEERS: tuple[Any, ...] = (FastGRU, OnnxRuntime, OpenVino, PyTorch, Jax)


def installed(peer: Any) -> bool:
    """Whether a library and what it needs are there; a mere folder of that name is not."""
    specs = [importlib.util.find_spec(package) for package in peer.needs]
    return all(spec is not None and spec.origin is not None for spec in specs)


def version_of(peer: Any) -> str:
    """A library's version, as far as it is installed under its usual name."""
    if not installed(peer):
        return "absent"
    try:
        return metadata.version(peer.needs[0])
    except metadata.PackageNotFoundError:
        return "of unknown version"


def load(threads: int) -> tuple[list[Any], list[str]]:
    """All libraries that are installed, and what was wrong with those that do not load."""
    libraries, errors = [], []
    for peer in filter(installed, PEERS):
        try:
            libraries.append(peer(threads))
        except Exception as error:  # of any library: the others are still worth measuring
            errors.append(f"{peer.name} does not load: {type(error).__name__}: {error}")
    return libraries, errors
