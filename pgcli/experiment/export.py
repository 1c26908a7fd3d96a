"""A policy as an ONNX graph: observations in, the distribution's parameters and the greedy action out.

The graph is written node by node, as `Policy.actor` computes: a tracer would need onnxscript, takes ten seconds, warns
of its own future, and leaves the paths of this machine in the file. So the same checkpoint gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
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
from pgcli.policies.normalizers import CLIP, EPSILON, Normalizer
from pgcli.policies.observations import Encoder, Leaf
from pgcli.policies.policy import FORBIDDEN, Policy
from pgcli.policies.recurrent import RecurrentNetwork
from pgcli.runs.files import make_folder, storage, write_whole
from pgcli.system.packages import require

Array = NDArray[Any]
OPSET, IR_VERSION = 17, 8  # of 2022: runtimes of that year and later read it


def check_extra() -> None:
    """Raise UsageError if what writes ONNX is not installed."""
    require("onnx", "onnx", "an export")


def export(agent: Agent, path: Path) -> Path:
    """Write the policy of `agent` as an ONNX file, its normaliser included.

    Raises: UsageError without the extra, or for another suffix; RunDirectoryError if the file cannot be written.
    """
    check_extra()
    if path.suffix.lower() != ".onnx":
        raise UsageError(f"{path}: an export is an .onnx")
    content = to_onnx(agent.policy, _metadata(agent))
    with storage(path):
        make_folder(path.parent)
        write_whole(path, content)
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
    """Write a policy as an ONNX model, and what `metadata` says beside it.

    Inputs, N in front: `observation`, of the space's shape and type, or `observation/KEY` for each part of a Dict or
    Tuple; `memory` of a policy with memory, zeros at the start of an episode. Outputs: `logits`, or `mean` and
    `standard_deviation`; `action`, the most probable one as the environment takes it; `memory_after`.
    """
    encoder, graph = policy.encoder, _Graph()
    if not (encoder.size or encoder.images):
        raise UsageError("the policy observes nothing, so there is no function of an observation to export")
    inputs = {leaf.numbers.start: graph.input(_name(leaf), leaf.space) for leaf in encoder.layout.leaves}
    x = _read(graph, policy, inputs)
    if policy.memory is not None:
        memory = graph.value("input", "memory", np.dtype(np.float32), (policy.memory.state_size,))
        x, after = _remember(graph, policy.memory, x, memory)
        graph.output("memory_after", after, np.dtype(np.float32), (policy.memory.state_size,))
    *hidden, last = policy.network
    features = _forward(graph, nn.Sequential(*hidden), x)
    outputs = _forward(graph, nn.Sequential(last), features)
    if policy.masked:
        mask = inputs[encoder.mask.start]  # type: ignore[union-attr]  # a masked policy has one
        permitted = graph.op("Cast", graph.rows(mask, policy.distribution.size), to=graph.type(np.bool_))
        outputs = graph.op("Where", permitted, outputs, graph.constant(np.float32(FORBIDDEN)))
    _act(graph, policy.distribution, outputs, features)
    return graph.serialize(metadata)


def _name(leaf: Leaf) -> str:
    return "/".join(("observation", *map(str, leaf.path)))


class _Graph:
    """Nodes, constants, inputs and outputs, each value under a name."""

    def __init__(self) -> None:
        import onnx

        self._onnx = onnx
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._values: dict[str, list[Any]] = {"input": [], "output": []}

    def type(self, dtype: Any) -> int:
        """Give ONNX's number of a type."""
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output, and name that."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        """Add a constant."""
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"constant_{len(self._constants)}"
        self._constants.append(
            self._onnx.numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        )
        return name

    def value(self, kind: str, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
        """Declare an input or output [N, *shape]."""
        info = self._onnx.helper.make_tensor_value_info(name, self.type(dtype), ["N", *shape])
        self._values[kind].append(info)
        return name

    def input(self, name: str, space: spaces.Space[Any]) -> str:
        """Declare an input of a space."""
        return self.value("input", name, np.dtype(space.dtype), space.shape or ())

    def output(self, name: str, value: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        """Declare `value` an output."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=name))
        self.value("output", name, dtype, shape)

    def cast(self, x: str, dtype: Any) -> str:
        """Give x in another type."""
        return self.op("Cast", x, to=self.type(dtype))

    def rows(self, x: str, *shape: int) -> str:
        """Give x as [N, *shape]."""
        return self.op("Reshape", x, self.constant(np.array([-1, *shape])))

    def serialize(self, metadata: dict[str, str]) -> bytes:
        """Give the bytes of the model, once ONNX's own checker has passed it."""
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


# --------------------------------------------------------------------------------------------- from what is seen to x


def _read(graph: _Graph, policy: Policy, inputs: dict[int, str]) -> str:
    """Give what the policy reads: its numbers, normalised, beside what its image networks see; [N, size]."""
    parts = []
    if policy.encoder.size:
        numbers = _numbers(graph, policy.encoder, inputs)
        parts.append(numbers if policy.normalizer is None else _normalized(graph, policy.normalizer, numbers))
    for number, picture in enumerate(policy.encoder.image_leaves):
        if not len(policy.images):
            break
        x = graph.rows(inputs[picture.leaf.numbers.start], *picture.stored)
        if picture.channels_last:
            x = graph.op("Transpose", x, perm=[0, 1, 4, 2, 3])
        x = graph.cast(graph.rows(x, *picture.shape), np.float32)
        if picture.divisor != 1:
            x = graph.op("Div", x, graph.constant(np.float32(picture.divisor)))
        if len(policy.image_normalizers):
            x = _normalized_image(graph, policy.image_normalizers[number], x)
        network = policy.images[number]
        assert isinstance(network, nn.Sequential)
        parts.append(_forward(graph, network, x))
    return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)


def _numbers(graph: _Graph, encoder: Encoder, inputs: dict[int, str]) -> str:
    """Give the numbers of the observation: one-hot where they count, floats elsewhere."""
    parts = []
    for part in encoder.numbers:
        if not part.size:
            continue
        x = graph.rows(inputs[part.leaf.numbers.start], part.leaf.numbers.stop - part.leaf.numbers.start)
        if part.first is None:
            x = graph.cast(x, np.float32)
            if part.divisor != 1:
                x = graph.op("Div", x, graph.constant(np.float32(part.divisor)))
        else:
            places = graph.op("Add", graph.cast(x, np.int64), graph.constant(part.first.astype(np.int64)))
            off_on = graph.constant(np.array([0, 1], np.float32))
            each = graph.op("OneHot", places, graph.constant(np.array(part.size)), off_on)
            x = graph.op("ReduceSum", each, graph.constant(np.array([1])), keepdims=0)
        parts.append(x)
    return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)


def _normalized(graph: _Graph, normalizer: Normalizer, x: str) -> str:
    """(x - mean) / √(variance + ε), clipped, in float64 as in `Normalizer`."""
    deviation = (normalizer.variance + EPSILON).sqrt()
    shifted = graph.op("Sub", graph.cast(x, np.float64), graph.constant(normalizer.mean))
    scaled = graph.op("Div", shifted, graph.constant(deviation))
    clipped = graph.op("Clip", scaled, graph.constant(np.float64(-CLIP)), graph.constant(np.float64(CLIP)))
    return graph.cast(clipped, np.float32)


def _normalized_image(graph: _Graph, normalizer: nn.Module, x: str) -> str:
    assert isinstance(normalizer, Normalizer)
    scale = 1 / (normalizer.variance[:, None, None] + EPSILON).sqrt()
    shifted = graph.op("Sub", x, graph.constant(normalizer.mean[:, None, None].float()))
    scaled = graph.op("Mul", shifted, graph.constant(scale.float()))
    return graph.op("Clip", scaled, graph.constant(np.float32(-CLIP)), graph.constant(np.float32(CLIP)))


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
            case _:
                x = graph.op(ACTIVATION_OF[type(module)].operator, x)
    return x


def _remember(graph: _Graph, memory: RecurrentNetwork, x: str, before: str) -> tuple[str, str]:
    """Add one step of a GRU or an LSTM, gate by gate as in `pgcli.policies.memory`: its output, the memory after."""
    w, u, b, c = memory.core.parameters()
    size, gates = memory.size, 3 if memory.parts == 1 else 4

    def part(values: str, number: int) -> str:
        ends = (graph.constant(np.array([k * size])) for k in (number, number + 1))
        return graph.op("Slice", values, *ends, graph.constant(np.array([1])))

    def sigmoid_of_sum(a: str, b: str) -> str:
        return graph.op("Sigmoid", graph.op("Add", a, b))

    h = before if memory.parts == 1 else part(before, 0)
    given = graph.op("Gemm", x, graph.constant(w), graph.constant(b), transB=1)
    recalled = graph.op("Gemm", h, graph.constant(u), graph.constant(c), transB=1)
    xs, hs = [part(given, n) for n in range(gates)], [part(recalled, n) for n in range(gates)]
    if memory.parts == 1:
        r, z = sigmoid_of_sum(xs[0], hs[0]), sigmoid_of_sum(xs[1], hs[1])
        n = graph.op("Tanh", graph.op("Add", xs[2], graph.op("Mul", r, hs[2])))
        kept = graph.op("Mul", z, graph.op("Sub", h, n))
        after = graph.op("Add", n, kept)
        return after, after
    i, f, o = (sigmoid_of_sum(xs[n], hs[n]) for n in (0, 1, 3))
    g = graph.op("Tanh", graph.op("Add", xs[2], hs[2]))
    cell = graph.op("Add", graph.op("Mul", f, part(before, 1)), graph.op("Mul", i, g))
    output = graph.op("Mul", o, graph.op("Tanh", cell))
    return output, graph.op("Concat", output, cell, axis=1)


# ---------------------------------------------------------------------------------------------- from outputs to actions


def _act(graph: _Graph, distribution: Distribution, outputs: str, features: str) -> None:
    """Declare the distribution's parameters, and its most probable action as the environment takes it."""
    number = np.dtype(np.float32)
    match distribution:
        case Softmax():
            graph.output("logits", outputs, number, (distribution.size,))
            graph.output("action", _most_probable(graph, outputs, distribution, keepdims=0), np.dtype(np.int64), ())
        case Factorised():
            graph.output("logits", outputs, number, (distribution.size,))
            entries = []
            for factor, place in zip(distribution.factors, distribution.slices, strict=True):
                ends = (graph.constant(np.array([end])) for end in (place.start, place.stop))
                logits = graph.op("Slice", outputs, *ends, graph.constant(np.array([1])))
                entries.append(_most_probable(graph, logits, factor, keepdims=1))
            action = graph.rows(graph.op("Concat", *entries, axis=1), *distribution.shape)
            graph.output("action", action, np.dtype(np.int64), distribution.shape)
        case Bernoulli():
            graph.output("logits", outputs, number, (distribution.size,))
            likely = graph.op("Greater", outputs, graph.constant(np.float32(0)))
            action = graph.rows(graph.cast(likely, distribution.dtype), *distribution.shape)
            graph.output("action", action, np.dtype(distribution.dtype), distribution.shape)
        case Gaussian():
            graph.output("mean", outputs, number, (distribution.size,))
            deviation = _deviation(graph, distribution, outputs, features)
            graph.output("standard_deviation", deviation, number, (distribution.size,))
            action = graph.rows(_bounded(graph, distribution, outputs), *distribution.shape)
            graph.output("action", graph.cast(action, distribution.dtype), distribution.dtype, distribution.shape)
        case _:
            raise AssertionError(distribution)


def _most_probable(graph: _Graph, logits: str, softmax: Softmax, keepdims: int) -> str:
    chosen = graph.op("ArgMax", logits, axis=1, keepdims=keepdims)
    return chosen if not softmax.start else graph.op("Add", chosen, graph.constant(np.array(softmax.start)))


def _deviation(graph: _Graph, distribution: Gaussian, mean: str, features: str) -> str:
    """Give σ [N, entries]; of a tanh_gaussian, that before it is squashed, as is its mean."""
    log_deviation = distribution.log_standard_deviation
    if isinstance(distribution, StateDependentGaussian):
        squares = graph.op("Mul", features, features)
        variance = graph.op("MatMul", squares, graph.constant((2 * log_deviation).exp()))
        return graph.op("Sqrt", graph.op("Add", variance, graph.constant(np.float32(1e-6))))
    return graph.op("Expand", graph.constant(log_deviation.exp()), graph.op("Shape", mean))


def _bounded(graph: _Graph, distribution: Gaussian, mean: str) -> str:
    """Clip the mean to the bounds, or squash it into them, in float64 as `for_environment` does."""
    low, high, x = distribution.low, distribution.high, graph.cast(mean, np.float64)
    if isinstance(distribution, TanhGaussian):
        share = graph.op("Add", graph.op("Tanh", x), graph.constant(np.float64(1)))
        return graph.op("Add", graph.op("Mul", share, graph.constant((high - low) / 2)), graph.constant(low))
    return graph.op("Min", graph.op("Max", x, graph.constant(low)), graph.constant(high))
