"""Graph surgery on small graphs: what moves, what stays, and that it computes the same."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from aigtool.inference.branching import put_branches


def parsed(
    body: str, outputs: str = "float[2] y, float[2] z", **weights: list[float]
) -> ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> small (float[2] x, bool[1] c) => ({outputs}) '
        f"{{ {body} }}"
    )
    for name, values in weights.items():
        tensor = numpy_helper.from_array(np.array(values, dtype=np.float32), name)
        model.graph.initializer.append(tensor)
    return model


def ran(model: ModelProto, name: str = "y") -> list[list[float]]:
    x = np.array([-1.0, 2.0], dtype=np.float32)
    evaluator = ReferenceEvaluator(model)
    return [
        evaluator.run([name], {"x": x, "c": np.array([condition])})[0].tolist()
        for condition in (True, False)
    ]


def branches(model: ModelProto) -> list[list[list[str]]]:
    return [
        [[node.op_type for node in attribute.g.node] for attribute in node.attribute]
        for node in model.graph.node
        if node.op_type == "If"
    ]


CASES = {
    "both branches compute": (
        "a = Neg(x) b = Exp(a) d = Abs(x) z = Where(c, b, d) y = Neg(z)",
        {"else_branch": ["Abs"], "then_branch": ["Neg", "Exp"]},
    ),
    "what both need is in both": (
        "a = Neg(x) b = Exp(a) d = Abs(a) z = Where(c, b, d) y = Neg(z)",
        {"else_branch": ["Neg", "Abs"], "then_branch": ["Neg", "Exp"]},
    ),
    "what something else needs as well stays outside": (
        "a = Neg(x) b = Exp(a) d = Abs(a) z = Where(c, b, d) y = Add(z, a)",
        {"else_branch": ["Abs"], "then_branch": ["Exp"]},
    ),
    "a value from before is passed on": (
        "b = Exp(x) z = Where(c, b, x) y = Neg(z)",
        {"else_branch": ["Identity"], "then_branch": ["Exp"]},
    ),
    "what follows needs a value too": (
        "b = Exp(x) d = Abs(x) z = Where(c, b, d) y = Add(z, b)",
        {"else_branch": ["Abs"], "then_branch": ["Identity"]},
    ),
    "both are one value": (
        "b = Exp(x) z = Where(c, b, b) y = Neg(z)",
        {"else_branch": ["Exp"], "then_branch": ["Exp"]},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_case(name: str) -> None:
    body, expected = CASES[name]
    model = parsed(body)
    before = ran(model)
    put_branches(model, ["z"])
    onnx.checker.check_model(model, full_check=True)
    [node] = [node for node in model.graph.node if node.op_type == "If"]
    found = {a.name: [inner.op_type for inner in a.g.node] for a in node.attribute}
    assert found == expected
    assert [output.name for output in model.graph.output] == ["y"]
    assert ran(model) == before


def test_weights_move_into_the_branch_that_reads_them() -> None:
    body = "a = Add(x, w) b = Mul(a, v) z = Where(c, b, x) y = Add(z, v)"
    model = parsed(body, w=[1, 2], v=[3, 4], unread=[0, 0])
    before = ran(model)
    put_branches(model, ["z"])
    # One that is read outside too is there twice; one that nobody reads is gone.
    assert [tensor.name for tensor in model.graph.initializer] == ["v"]
    [node] = [node for node in model.graph.node if node.op_type == "If"]
    inside = {a.name: [tensor.name for tensor in a.g.initializer] for a in node.attribute}
    assert inside == {"then_branch": ["z/then/w", "z/then/v"], "else_branch": []}
    assert ran(model) == before


def test_one_selection_after_another() -> None:
    body = "a = Exp(x) z = Where(c, a, x) b = Neg(z) u = Where(c, z, b) y = Abs(u)"
    model = parsed(body, "float[2] y, float[2] z, float[2] u")
    before = ran(model)
    put_branches(model, ["z", "u"])
    onnx.checker.check_model(model, full_check=True)
    assert branches(model) == [[["Identity"], ["Exp"]], [["Neg"], ["Identity"]]]
    assert ran(model) == before
