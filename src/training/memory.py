"""How much memory of a device a training step takes, from the shapes of the network and of its graph.

Nothing is run and no parameter has values: the network, its optimiser and the graph of losses and gradients are built.
What the forward pass leaves for the backward pass are the outputs of operators that the loss depends on and that are
read by operators that it does not depend on.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, replace

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore.graph.api import _cell_graph_executor
from mindspore.nn.utils import no_init_parameters
from mindspore.train.anf_ir_pb2 import DataType, GraphProto, ModelProto, NodeProto, TypeProto

from src.config import TASKS, Config, ConfigError, TrainConfig
from src.data.schema import batch_fields
from src.models import precision
from src.models.build import NETWORKS
from src.objectives.objectives import Objectives
from src.objectives.peers import ALONE
from src.objectives.views import name_tensors
from src.report.tables import table
from src.tasks import registry
from src.training.accumulation import part_size
from src.training.layer_rates import unfrozen
from src.training.muon import build_optimizer
from src.training.optimizer import trained_parameters
from src.training.schedule import learning_rates

BLOCK = re.compile(r"(\w+)-\w+/transformer-Transformer/blocks-CellList/(\d+)-Block")
ALIASES = {"Reshape", "Depend", "Load", "StopGradient", "ExpandDims", "Squeeze"}  # give what they are given
BYTES = {"BOOL": 1, "INT8": 1, "UINT8": 1, "FLOAT16": 2, "BFLOAT16": 2, "INT64": 8, "FLOAT64": 8}  # others: 4
SPREADING = {"Add", "Sub", "Mul", "Div", "RealDiv", "Maximum", "Minimum"}  # elementwise operators of two tensors
GIB = 2**30


@dataclass(frozen=True)
class Activations:
    """Bytes that the forward pass leaves for the backward pass; on a CPU also the index tables of its operators.

    ``kept``: all of them; ``layer``: of these in the largest layer of a Transformer; ``tensor``: the largest one.
    """

    kept: int
    layer: int
    tensor: int


@dataclass(frozen=True)
class Estimate:
    """Bytes of a device.

    ``weights`` and ``state`` stay all the time: parameters; moments, averages and whatever else is kept of them.
    ``parts`` is what the parts of a batch hold together (train.accumulate): the gradients so far, and the tokens of the
    whole batch with theirs. ``fresh`` are gradients as they are made, and their squares, of which the norm is made.
    ``sent``: by a device to its peers.
    """

    parameters: int  # how many
    weights: int
    state: int
    parts: int
    fresh: int
    plain: Activations
    recomputed: Activations
    sent: int

    def activations(self, recompute: bool) -> int:
        """What is alive at most when the backward pass begins: with recompute one layer as it is computed again."""
        if not recompute:
            return self.plain.kept + self.plain.tensor
        return self.recomputed.kept + self.recomputed.tensor + self.plain.layer

    def total(self, recompute: bool) -> int:
        return self.weights + self.state + self.parts + self.fresh + self.activations(recompute)


class _Step(nn.Cell):
    """The total loss and the gradients of a batch, given as single tensors."""

    def __init__(self, objectives: nn.Cell, parameters: ParameterTuple) -> None:
        super().__init__(auto_prefix=False)
        self.objectives = objectives
        self.function = ops.value_and_grad(self.total, None, parameters)

    def total(self, *tensors):
        return self.objectives(name_tensors(self.objectives.fields, tensors))[0]

    def construct(self, *tensors):
        return self.function(*tensors)


def estimate(config: Config, devices: int = 1) -> Estimate:
    """The memory of a training step of a configuration on one of so many devices.

    Raises:
        ConfigError: the task is not trained, or has no weighted objectives.
    """
    if not TASKS[config.task].trained:
        raise ConfigError(f"task={config.task} is measured by eval.py, not trained")
    if not registry.get(config.task).weighs:
        raise ConfigError(f"task={config.task}: only tasks with objectives.weights can be estimated")
    ms.set_context(mode=ms.GRAPH_MODE)
    model = _build(config, False)
    objectives = registry.get(config.task).objectives(model, config, ALONE)
    trained = _trained(config, model, objectives)
    with no_init_parameters():
        optimizer = build_optimizer(trained, config.optimizer, learning_rates(config.optimizer, config.train.steps))
    own = {id(p) for _, p in model.parameters_and_names()}
    held = {id(p): p for p in optimizer.get_parameters() if id(p) not in own}
    gradients = sum(map(_bytes, trained))
    averages = gradients if config.train.ema_decay else 0
    part = replace(config, data=replace(config.data, batch_size=part_size(config)), train=TrainConfig())
    return Estimate(
        parameters=sum(p.size for _, p in model.parameters_and_names()),
        weights=sum(_bytes(p) for _, p in model.parameters_and_names()),
        state=sum(map(_bytes, held.values())) + averages,
        parts=gradients + 2 * _tokens(objectives) if config.train.accumulate > 1 else 0,
        fresh=2 * gradients,
        plain=_activations(part, False),
        recomputed=_activations(part, True),
        sent=_sent(config, gradients, devices),
    )


def _trained(config: Config, model: nn.Cell, objectives: Objectives) -> list[Parameter]:
    return unfrozen(trained_parameters(model, objectives), config.optimizer.freeze)


def _tokens(objectives: Objectives) -> int:
    """Bytes of the three encoders' tokens of a batch; none are held where no loss compares samples."""
    views = objectives.views
    return sum(map(_bytes, (views.no_text, views.no_image, views.no_audio))) if objectives.embeds else 0


def _bytes(parameter: Tensor) -> int:
    return parameter.size * parameter.itemsize


def _build(config: Config, recompute: bool) -> nn.Cell:
    """The network without values, its layers as they are on the configured device."""
    runtime = config.runtime
    with no_init_parameters(), precision.building(runtime.precision, recompute, runtime.device):
        return NETWORKS[config.network](config)


def _sent(config: Config, gradients: int, devices: int) -> int:
    """Bytes that a device sends in a step: a ring reduces the gradients, and gathers and sums the embeddings."""
    share = (devices - 1) / devices
    embeddings = 3 * devices * config.data.batch_size * config.model.embed_dim * 4
    gathered = 3 * embeddings if config.objectives.weights.contrastive else 0  # once forward, twice backward
    return round(share * (2 * gradients + gathered))


def _activations(config: Config, recompute: bool) -> Activations:
    graph = _graph(config, recompute)
    kept = kept_bytes(graph)
    tensor = kept.pop("tensor")
    parts: dict[str, list[int]] = defaultdict(list)
    for place, size in kept.items():
        if place != "rest":
            parts[place[0]].append(size)
    # the mean of a part's layers, which are alike: the compiler books some operators of all on the first one
    layer = max((sum(sizes) // len(sizes) for sizes in parts.values()), default=0)
    tables = sum(table_bytes(graph).values()) if config.runtime.device == "CPU" else 0
    return Activations(sum(kept.values()) + tables, layer, tensor)


def _graph(config: Config, recompute: bool) -> GraphProto:
    """The compiled graph of the loss and its gradients; no kernel is looked for, so that it may be of any device."""
    model = _build(config, recompute)
    objectives = registry.get(config.task).objectives(model, config, ALONE)
    step = _Step(objectives, ParameterTuple(_trained(config, model, objectives)))
    step.set_train()
    size = config.data.batch_size
    shapes = batch_fields(config.model, size, config.objectives.masking.ratio)
    inputs = []
    for name in objectives.fields:
        dtype = Tensor(np.zeros(1, shapes[name].dtype)).dtype
        inputs.append(Tensor(shape=(size, *shapes[name].shape), dtype=dtype))
    number, _ = _cell_graph_executor.compile(step, *inputs, phase="export.memory", do_convert=False)
    model_proto = ModelProto()
    model_proto.ParseFromString(_cell_graph_executor._get_func_graph_proto(step, number, "anf_ir"))
    return model_proto.graph


def kept_bytes(graph: GraphProto) -> dict:
    """Bytes that the operators which the first output depends on leave for the others.

    Returns:
        by (part, layer) those of the Transformers' layers; ``rest``: of other operators; ``tensor``: of the largest.
    """
    nodes = {node.name: node for node in graph.node}
    indices = {constant.key: constant.value for constant in graph.const_vals}

    def sources(name: str) -> list[str]:
        """The operators, or elements of their outputs as ``name:index``, that a value is made of without a copy."""
        stack, found = [name], []
        while stack:
            current = stack.pop()
            node = nodes.get(current)
            if node is None:  # an input, a parameter or a constant
                continue
            if node.op_type == "MakeTuple":
                stack += [edge.name for edge in node.input]
            elif node.op_type == "TupleGetItem":
                owner, index = node.input[0].name, _integer(indices[node.input[1].name])
                while owner in nodes and nodes[owner].op_type in ("Depend", "Load"):
                    owner = nodes[owner].input[0].name
                if owner in nodes and nodes[owner].op_type == "MakeTuple":
                    stack.append(nodes[owner].input[index].name)
                elif owner in nodes:
                    found.append(f"{owner}:{index}")
            elif node.op_type in ALIASES:
                stack.append(node.input[0].name)
            else:
                found.append(current)
        return found

    output = nodes[graph.outputs[0].name]
    while output.op_type == "Depend":
        output = nodes[output.input[0].name]
    forward = _ancestors(nodes, output.input[0].name)
    passing = ALIASES | {"MakeTuple", "TupleGetItem", "UpdateState"}
    kept: dict[str, int] = {}
    for node in graph.node:
        if node.name in forward or node.op_type in passing:
            continue
        for edge in node.input:
            for source in sources(edge.name):
                owner, _, index = source.partition(":")
                if owner in forward:
                    kept[source] = _size(nodes[owner].output_type, index)
    sizes: dict = defaultdict(int, rest=0, tensor=max(kept.values(), default=0))
    for source, size in kept.items():
        sizes[_place(nodes[source.partition(":")[0]])] += size
    return dict(sizes)


def table_bytes(graph: GraphProto) -> dict:
    """Bytes of the tables by which a CPU's operators spread an operand over the other; by place as :func:`kept_bytes`.

    MindSpore keeps two indices of 8 bytes for each element of what such an operator gives (docs/design.md).
    """
    shapes = {node.name: _shape(node.output_type) for node in graph.node}
    shapes |= {parameter.name: _shape(parameter.type) for parameter in graph.parameters}
    sizes: dict = defaultdict(int)
    for node in graph.node:
        given = [shapes.get(edge.name) for edge in node.input[:2]]
        if node.op_type in SPREADING and None not in given and given[0] != given[1] and () not in given:
            sizes[_place(node)] += 16 * int(np.prod(shapes[node.name]))
    return dict(sizes)


def _place(node: NodeProto) -> tuple[str, int] | str:
    """Part and layer of a Transformer's operator; of another ``rest``."""
    found = BLOCK.search(node.full_name)
    return (found[1], int(found[2])) if found else "rest"


def _shape(kind: TypeProto) -> tuple[int, ...] | None:
    if kind.data_type != DataType.DT_TENSOR:
        return None
    return tuple(dim.size for dim in kind.tensor_type.shape.dim)


def _ancestors(nodes: dict[str, NodeProto], name: str) -> set[str]:
    found, stack = set(), [name]
    while stack:
        current = stack.pop()
        if current in nodes and current not in found:
            found.add(current)
            stack += [edge.name for edge in nodes[current].input]
    return found


def _integer(value) -> int:
    return value.int_val or value.uint_val


def _size(kind: TypeProto, index: str = "") -> int:
    """Bytes of a tensor, or of one of several."""
    if kind.data_type == DataType.DT_TUPLE:
        elements = kind.sequence_type.elem_types
        return sum(map(_size, elements)) if not index else _size(elements[int(index)])
    if kind.data_type != DataType.DT_TENSOR:
        return 0
    name = DataType.Name(kind.tensor_type.elem_type).removeprefix("DT_")
    return int(np.prod([dim.size for dim in kind.tensor_type.shape.dim])) * BYTES.get(name, 4)


def report(config: Config, found: Estimate, devices: int) -> str:
    """The estimate as a table."""
    rows = [("weights", found.weights), ("optimizer", found.state), ("held between parts", found.parts)]
    rows.append(("gradients", found.fresh))
    lines = [(name, _gib(size), _gib(size)) for name, size in rows]
    lines.append(("activations", _gib(found.activations(False)), _gib(found.activations(True))))
    lines.append(("together", _gib(found.total(False)), _gib(found.total(True))))
    lines.append(("sent in a step", _gib(found.sent), _gib(found.sent)))
    title = (
        f"{found.parameters / 1e6:.0f} M parameters; {devices} x {config.data.batch_size} samples a step; "
        f"runtime.precision={config.runtime.precision}, runtime.device={config.runtime.device}"
    )
    headers = ("GiB of each device", "runtime.recompute=false", "runtime.recompute=true")
    return f"{title}\n\n{table(lines, headers)}"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}"
