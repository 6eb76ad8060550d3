"""Selections in an ONNX graph, made into branches of which one is run."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper


def put_branches(model: ModelProto, selected: Sequence[str]) -> None:
    """Turn each selection between two values into an ``If``, in place.

    What only the two values need moves into their branches, weights included, and into both what
    both need: onnxruntime lays out and packs only those weights ahead of time that lie in the graph
    which uses them, and fuses only nodes of one graph.

    Args:
        model: Its nodes are in an order of execution.
        selected: Values that ``Where`` selects, by a condition of one element. They are outputs of
            the graph, and are not thereafter.

    Example:
        >>> from onnx import parser
        >>> model = parser.parse_model('''<ir_version: 8, opset_import: ["" : 18]>
        ... small (float[2] x, bool[1] c) => (float[2] y, float[2] z)
        ... {
        ...    a = Relu(x)
        ...    b = Neg(a)
        ...    z = Where(c, b, x)
        ...    y = Exp(z)
        ... }''')
        >>> put_branches(model, ["z"])
        >>> [node.op_type for node in model.graph.node]
        ['If', 'Exp']
        >>> branches = {branch.name: branch.g for branch in model.graph.node[0].attribute}
        >>> [node.op_type for node in branches["then_branch"].node]
        ['Relu', 'Neg']
    """
    graph = model.graph
    kinds = {output.name: output for output in graph.output if output.name in selected}
    _replace(graph.output, [output for output in graph.output if output.name not in kinds])
    nodes = list(graph.node)
    place = {output: number for number, node in enumerate(nodes) for output in node.output}
    branches = _Branches(nodes, {output.name for output in graph.output} | {*selected})
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inside: dict[int, list[set[int]]] = {}
    for name in selected:
        where = place[name]
        inside[where] = branches.of(where)
    within = {number for parts in inside.values() for part in parts for number in part}
    left: list[NodeProto] = []
    for number, node in enumerate(nodes):
        if number in inside:
            left.append(_branched(node, kinds[node.output[0]], nodes, inside[number], weights))
        elif number not in within:
            left.append(node)
    _replace(graph.node, left)
    read = {name for node in left for name in node.input}
    _replace(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in read])
    del graph.value_info[:]


class _Branches:
    """Who uses which value, and which values stay outside."""

    def __init__(self, nodes: list[NodeProto], outside: set[str]) -> None:
        self.nodes, self.outside = nodes, outside
        self.users: dict[str, set[int]] = defaultdict(set)
        for number, node in enumerate(nodes):
            for value in node.input:
                self.users[value].add(number)

    def of(self, where: int) -> list[set[int]]:
        """Return the nodes for each value of a selection that nothing else needs."""
        assert self.nodes[where].op_type == "Where", self.nodes[where].op_type
        condition, *values = self.nodes[where].input
        apart: set[int] = set()
        for number in reversed(range(where)):
            outputs = self.nodes[number].output
            users = {user for output in outputs for user in self.users[output]}
            is_apart = self.outside.isdisjoint(outputs) and condition not in outputs
            if users and users <= apart | {where} and is_apart:
                apart.add(number)
        return [self._behind(value, apart) for value in values]

    def _behind(self, value: str, among: set[int]) -> set[int]:
        """Return those of some nodes that a value is computed from."""
        wanted, found = {value}, set()
        for number in sorted(among, reverse=True):
            if not wanted.isdisjoint(self.nodes[number].output):
                found.add(number)
                wanted.update(self.nodes[number].input)
        return found


def _branched(
    where: NodeProto,
    kind: ValueInfoProto,
    nodes: list[NodeProto],
    inside: list[set[int]],
    weights: dict[str, TensorProto],
) -> NodeProto:
    condition, *values = where.input
    graphs = []
    for branch, value, numbers in zip(("then", "else"), values, inside, strict=True):
        own = _own([nodes[number] for number in sorted(numbers)], weights, f"{kind.name}/{branch}")
        graphs.append(_graph(value, kind, *own))
    return helper.make_node(
        "If",
        [condition],
        where.output,
        name=where.name,
        then_branch=graphs[0],
        else_branch=graphs[1],
    )


def _own(
    nodes: Sequence[NodeProto], weights: dict[str, TensorProto], branch: str
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Return copies of nodes that read weights of their own, and these weights."""
    owned: dict[str, TensorProto] = {}
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        for number, name in enumerate(node.input):
            if name in weights:
                if name not in owned:
                    owned[name] = TensorProto()
                    owned[name].CopyFrom(weights[name])
                    owned[name].name = f"{branch}/{name}"
                copy.input[number] = owned[name].name
        copies.append(copy)
    return copies, list(owned.values())


def _graph(
    value: str, kind: ValueInfoProto, nodes: list[NodeProto], weights: list[TensorProto]
) -> GraphProto:
    if not any(value in node.output for node in nodes):
        copied = f"{kind.name}/{value}"
        nodes, value = [*nodes, helper.make_node("Identity", [value], [copied])], copied
    output = ValueInfoProto()
    output.CopyFrom(kind)
    output.name = value
    return helper.make_graph(nodes, "branch", [], [output], weights)


def _replace(field: Any, values: Sequence[Any]) -> None:
    kept = list(values)
    del field[:]
    field.extend(kept)
