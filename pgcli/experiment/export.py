"""Export a policy as ONNX: observations → distribution and greedy action.

The graph is built node by node and matches `Policy.actor`. A tracer would need onnxscript, take ten seconds, print
deprecation warnings and write local paths into the file. This export always has the same bytes for a checkpoint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pgcli import __version__
from pgcli.errors import UsageError
from pgcli.experiment.load import Agent
from pgcli.policies.activations import ACTIVATION_OF
from pgcli.policies.distributions import (
    Bernoulli,
    Distribution,
    Factorised,
    Gaussian,
    Softmax,
    StateDependentGaussian,
    TanhGaussian,
)
from pgcli.policies.networks import is_plain
from pgcli.policies.normalizers import CLIP, EPSILON, Normalizer
from pgcli.policies.observations import Encoder, Key
from pgcli.policies.policy import FORBIDDEN, Policy
from pgcli.policies.recurrent import RecurrentNetwork
from pgcli.runs.outputs import check_output, write_output
from pgcli.system.packages import require

Array = NDArray[Any]
OPSET, IR_VERSION = 17, 8  # of 2022, which all later runtimes support


def check_extra() -> None:
    """Raise UsageError if the onnx package is not installed."""
    require("onnx", "onnx", "an export")


def export(agent: Agent, path: Path, *, overwrite: bool = False) -> Path:
    """Write the policy of `agent`, including its normaliser, to an ONNX file.

    Raises: UsageError: without the onnx package, or for another suffix. RunDirectoryError: if writing fails.
    """
    check_extra()
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: an export file needs the suffix .onnx")
    check_output(path, inputs=[agent.path], overwrite=overwrite)
    content = to_onnx(agent.policy, _metadata(agent))
    write_output(path, content, inputs=[agent.path], overwrite=overwrite)
    return path


def _metadata(agent: Agent) -> dict[str, str]:
    return {
        "pgcli_version": __version__,
        "name": agent.config.name,
        "env_id": agent.config.env.id,
        "iteration": str(agent.counters["iteration"]),
        "env_steps": str(agent.counters["env_steps"]),
        "distribution": type(agent.policy.distribution).__name__,
        "observation_space": str(agent.policy.observation_space),
    }


def to_onnx(policy: Policy, metadata: dict[str, str]) -> bytes:
    """Return a policy as an ONNX model with `metadata`.

    Inputs, N in front: `observation`, of the space's shape and type, or `observation/KEY` for each part of a Dict or
    Tuple; `memory` of a recurrent policy, zeros at the start of an episode. Outputs: `logits`, or `mean` and
    `standard_deviation`; `action`, the most probable action for the environment; `memory_after`.
    """
    encoder, graph = policy.encoder, _Graph()
    if not is_plain(policy.network):
        raise UsageError(
            "a policy with its own network, LayerNorm or residual layers cannot be exported",
            "export policies with plain layers; torch.onnx can export `pgcli.load(…).policy.network`",
        )
    if not (encoder.size or encoder.images):
        raise UsageError("a policy without observations cannot be exported")
    inputs = dict[tuple[Key, ...], str]()
    for leaf in encoder.layout.leaves:
        name = "/".join(("observation", *map(str, leaf.path)))
        inputs[leaf.path] = graph.value("input", name, leaf.space.dtype, leaf.shape)
    x = _read(graph, policy, inputs)
    if policy.memory is not None:
        shape = (policy.memory.state_size,)
        memory = graph.value("input", "memory", np.float32, shape)
        x, after = _recur(graph, policy.memory, x, memory)
        graph.output("memory_after", after, np.float32, shape)
    *hidden, last = policy.network
    features = _forward(graph, nn.Sequential(*hidden), x)
    outputs = _forward(graph, nn.Sequential(last), features)
    if policy.masked:
        mask = inputs[encoder.mask.path]  # type: ignore[union-attr]  # a masked policy has one
        permitted = graph.cast(graph.rows(mask, policy.distribution.size), np.bool_)
        outputs = graph.op("Where", permitted, outputs, graph.constant(np.float32(FORBIDDEN)))
    _act(graph, policy.distribution, outputs, features)
    return graph.serialize(metadata)


class _Graph:
    """Nodes, constants, inputs and outputs of a graph; each value has a name."""

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._values: dict[str, list[Any]] = {"input": [], "output": []}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add a constant."""
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"constant_{len(self._constants)}"
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        self._constants.append(self._onnx.numpy_helper.from_array(contiguous, name))
        return name

    def value(self, kind: str, name: str, dtype: Any, shape: tuple[int, ...]) -> str:
        """Declare an input or output [N, *shape]."""
        number = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._values[kind].append(self._onnx.helper.make_tensor_value_info(name, number, ["N", *shape]))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: tuple[int, ...]) -> None:
        """Declare `value` an output."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self.value("output", name, dtype, shape)

    def cast(self, x: str, dtype: Any) -> str:
        """Convert x to another type."""
        return self.op("Cast", x, to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def rows(self, x: str, *shape: int) -> str:
        """Reshape x to [N, *shape]."""
        return self.op("Reshape", x, self.constant(np.array([-1, *shape])))

    def slice(self, x: str, start: int, stop: int) -> str:
        """Return columns of x, [N, stop - start]."""
        return self.op("Slice", x, *(self.constant(np.array([number])) for number in (start, stop, 1)))

    def concat(self, parts: list[str]) -> str:
        """Concatenate columns."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)

    def serialize(self, metadata: dict[str, str]) -> bytes:
        """Check the model with ONNX's checker and return its bytes."""
        helper = self._onnx.helper
        graph = helper.make_graph(self._nodes, "policy", self._values["input"], self._values["output"], self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="pgcli", producer_version=__version__
        )
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString(deterministic=True)
        return content


# ------------------------------------------------------------------------------------------------ from observation to x


def _read(graph: _Graph, policy: Policy, inputs: dict[tuple[Key, ...], str]) -> str:
    """Add `Policy.read`: the normalised numbers and the features of the image networks, [N, size]."""
    parts = []
    if policy.encoder.size:
        normal = policy.normalizer
        dtype, origin = (np.float32, None) if normal is None else (np.float64, normal.origin)
        numbers = _numbers(graph, policy.encoder, inputs, dtype, origin)
        parts.append(numbers if normal is None else _normalized(graph, normal, numbers))
    for image, normalizer, network in zip(policy.encoder.images, policy.image_normalizers, policy.images, strict=True):
        x = graph.rows(inputs[image.leaf.path], *image.stored)
        if image.channels_last:
            x = graph.op("Transpose", x, perm=[0, 1, 4, 2, 3])
        dtype = np.float64 if image.is_wide and isinstance(normalizer, Normalizer) else np.float32
        x = graph.cast(graph.rows(x, *image.shape), dtype)
        if set(image.divisors) - {1.0}:
            x = graph.op("Div", x, graph.constant(np.array(image.divisors, dtype)[:, None, None]))
        if isinstance(normalizer, Normalizer):
            x = graph.cast(_normalized_image(graph, normalizer, x, dtype), np.float32)
        assert isinstance(network, nn.Sequential)
        parts.append(_forward(graph, network, x))
    return graph.concat(parts)


def _numbers(
    graph: _Graph, encoder: Encoder, inputs: dict[tuple[Key, ...], str], dtype: Any, origin: Tensor | None
) -> str:
    """Add the numbers of the observation: one-hot for discrete parts, floats for the others."""
    parts = []
    for part in encoder.numbers:
        if not part.size:
            continue
        x = graph.rows(inputs[part.leaf.path], part.leaf.size)
        if part.is_long and origin is not None:
            x = graph.op("Sub", graph.cast(x, np.int64), graph.constant(origin[part.columns]))
        if part.first is None:
            x = graph.cast(x, dtype)
            parts.append(x if part.divisor == 1 else graph.op("Div", x, graph.constant(np.array(part.divisor, dtype))))
            continue
        places = graph.op("Add", graph.cast(x, np.int64), graph.constant(part.first.astype(np.int64)))
        off_on = graph.constant(np.array([0, 1], np.float32))
        each = graph.op("OneHot", places, graph.constant(np.array(part.size)), off_on)
        parts.append(graph.cast(graph.op("ReduceSum", each, graph.constant(np.array([1])), keepdims=0), dtype))
    return graph.concat(parts)


def _normalized(graph: _Graph, normalizer: Normalizer, x: str) -> str:
    """Add (x - mean) / √(variance + ε), clipped; in float64, as in `Normalizer`, cast to float32."""
    deviation = (normalizer.variance + EPSILON).sqrt()
    shifted = graph.op("Sub", x, graph.constant(normalizer.mean))
    scaled = graph.op("Div", shifted, graph.constant(deviation))
    clipped = graph.op("Clip", scaled, graph.constant(np.float64(-CLIP)), graph.constant(np.float64(CLIP)))
    return graph.cast(clipped, np.float32)


def _normalized_image(graph: _Graph, normalizer: Normalizer, x: str, dtype: Any) -> str:
    """Add the same in the type of x, as in `Normalizer.of_images_`."""
    scale = 1 / (normalizer.variance[:, None, None] + EPSILON).sqrt()
    shifted = graph.op("Sub", x, graph.constant(normalizer.mean[:, None, None].numpy().astype(dtype)))
    scaled = graph.op("Mul", shifted, graph.constant(scale.numpy().astype(dtype)))
    return graph.op("Clip", scaled, graph.constant(np.array(-CLIP, dtype)), graph.constant(np.array(CLIP, dtype)))


# ---------------------------------------------------------------------------------------------------- from x to outputs


def _forward(graph: _Graph, network: nn.Sequential, x: str) -> str:
    """Add the layers of a network."""
    for module in network:
        match module:
            case nn.Linear():
                x = graph.op("Gemm", x, graph.constant(module.weight), graph.constant(module.bias), transB=1)
            case nn.Conv2d():
                assert module.bias is not None
                strides = [int(stride) for stride in module.stride]
                x = graph.op("Conv", x, graph.constant(module.weight), graph.constant(module.bias), strides=strides)
            case nn.Flatten():
                x = graph.op("Flatten", x)
            case nn.Identity():
                pass
            case nn.SiLU():  # without operators in all versions of ONNX
                x = graph.op("Mul", x, graph.op("Sigmoid", x))
            case nn.GELU():
                half, root = (graph.constant(np.float32(number)) for number in (0.5, 2**0.5))
                one = graph.constant(np.float32(1))
                share = graph.op("Mul", half, graph.op("Add", one, graph.op("Erf", graph.op("Div", x, root))))
                x = graph.op("Mul", x, share)
            case _:
                x = graph.op(ACTIVATION_OF[type(module)].operator, x)
    return x


def _recur(graph: _Graph, memory: RecurrentNetwork, x: str, before: str) -> tuple[str, str]:
    """Add one step of a GRU or an LSTM; return its output and next state."""
    w, u, b, c = memory.core.parameters()
    size, gates = memory.size, 3 if memory.parts == 1 else 4

    def part(values: str, number: int) -> str:
        return graph.slice(values, number * size, (number + 1) * size)

    def sigmoid_of_sum(a: str, b: str) -> str:
        return graph.op("Sigmoid", graph.op("Add", a, b))

    h = before if memory.parts == 1 else part(before, 0)
    given = graph.op("Gemm", x, graph.constant(w), graph.constant(b), transB=1)
    recalled = graph.op("Gemm", h, graph.constant(u), graph.constant(c), transB=1)
    xs, hs = [part(given, n) for n in range(gates)], [part(recalled, n) for n in range(gates)]
    if memory.parts == 1:
        r, z = sigmoid_of_sum(xs[0], hs[0]), sigmoid_of_sum(xs[1], hs[1])
        n = graph.op("Tanh", graph.op("Add", xs[2], graph.op("Mul", r, hs[2])))
        after = graph.op("Add", n, graph.op("Mul", z, graph.op("Sub", h, n)))
        return after, after
    i, f, o = (sigmoid_of_sum(xs[n], hs[n]) for n in (0, 1, 3))
    g = graph.op("Tanh", graph.op("Add", xs[2], hs[2]))
    cell = graph.op("Add", graph.op("Mul", f, part(before, 1)), graph.op("Mul", i, g))
    output = graph.op("Mul", o, graph.op("Tanh", cell))
    return output, graph.op("Concat", output, cell, axis=1)


# ---------------------------------------------------------------------------------------------- from outputs to actions


def _act(graph: _Graph, distribution: Distribution, outputs: str, features: str) -> None:
    """Declare the distribution's parameters and the most probable action as outputs."""
    graph.output("mean" if isinstance(distribution, Gaussian) else "logits", outputs, np.float32, (distribution.size,))
    shape: tuple[int, ...] = ()
    dtype: Any = np.int64
    match distribution:
        case Softmax():
            action = _most_probable(graph, outputs, distribution, keepdims=0)
        case Factorised():
            shape, entries = distribution.shape, []
            for factor, part in zip(distribution.factors, distribution.slices, strict=True):
                logits = graph.slice(outputs, part.start, part.stop)
                entries.append(_most_probable(graph, logits, factor, keepdims=1))
            action = graph.rows(graph.op("Concat", *entries, axis=1), *shape)
        case Bernoulli():
            shape, dtype = distribution.shape, distribution.dtype
            likely = graph.op("Greater", outputs, graph.constant(np.float32(0)))
            action = graph.rows(graph.cast(likely, dtype), *shape)
        case Gaussian():
            shape, dtype = distribution.shape, distribution.dtype
            deviation = _deviation(graph, distribution, outputs, features)
            graph.output("standard_deviation", deviation, np.float32, (distribution.size,))
            action = graph.cast(graph.rows(_bounded(graph, distribution, outputs), *shape), dtype)
        case _:
            raise AssertionError(distribution)
    graph.output("action", action, dtype, shape)


def _most_probable(graph: _Graph, logits: str, softmax: Softmax, keepdims: int) -> str:
    chosen = graph.op("ArgMax", logits, axis=1, keepdims=keepdims)
    return chosen if not softmax.start else graph.op("Add", chosen, graph.constant(np.array(softmax.start)))


def _deviation(graph: _Graph, distribution: Gaussian, mean: str, features: str) -> str:
    """Add σ [N, entries]; for a tanh_gaussian, like its mean, before squashing."""
    log_deviation = distribution.log_standard_deviation
    if isinstance(distribution, StateDependentGaussian):
        squares = graph.op("Mul", features, features)
        variance = graph.op("MatMul", squares, graph.constant((2 * log_deviation).exp()))
        return graph.op("Sqrt", graph.op("Add", variance, graph.constant(np.float32(1e-6))))
    return graph.op("Expand", graph.constant(log_deviation.exp()), graph.op("Shape", mean))


def _bounded(graph: _Graph, distribution: Gaussian, mean: str) -> str:
    """Clip or squash the mean into the bounds, in float64 as `for_environment` does."""
    low, high, x = distribution.low, distribution.high, graph.cast(mean, np.float64)
    if isinstance(distribution, TanhGaussian):
        share = graph.op("Add", graph.op("Tanh", x), graph.constant(np.float64(1)))
        return graph.op("Add", graph.op("Mul", share, graph.constant((high - low) / 2)), graph.constant(low))
    return graph.op("Min", graph.op("Max", x, graph.constant(low)), graph.constant(high))
