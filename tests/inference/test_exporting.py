"""An exported network runs without us, decides alike, and computes only what it must."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from aigtool.conversion import convert, named_gates, recorded_decisions
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.inference.answers import Answers, ServedNetwork
from aigtool.inference.checking import compare
from aigtool.inference.exported import ExportedNetwork
from aigtool.inference.exporting import METADATA, export_onnx
from aigtool.models.description import Description, InputSpec, PixelNetwork
from aigtool.models.files import Model
from tests.conftest import close

SIZE = (3, 32, 32)


def model_of(network: nn.Module, source: str, size: int = 32) -> Model:
    spec = InputSpec(size=(3, size, size), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.2))
    return Model(network.eval(), Description(source, 3, ("a", "b", "c"), spec))


def various(count: int) -> Tensor:
    """Noise of various contrast, seeded."""
    generator = torch.Generator().manual_seed(0)
    contrast = torch.rand(count, 3, 1, 1, generator=generator)
    return contrast * torch.rand(count, *SIZE, generator=generator)


def differing(network: nn.Module) -> Model:
    """A model whose gates each execute about half of the images, and others than the next gate."""
    model = model_of(network, "cifar_resnet20")
    pixelled = PixelNetwork(network, model.description.input)
    for name, gate in named_gates(network):
        nn.init.normal_(gate.fc2.weight, std=3.0)
        with torch.inference_mode(), recorded_decisions(network) as decisions:
            pixelled(various(64))
        gate.threshold.copy_(decisions[name].logit.median() + 1e-3)
    return model


@pytest.fixture(scope="module")
def model(lively: Callable[[str, int], nn.Module]) -> Model:
    return differing(convert(lively("cifar_resnet20", 32), input_size=SIZE))


@pytest.fixture(scope="module")
def exported(model: Model) -> onnx.ModelProto:
    return export_onnx(model, count_flops(model.network, SIZE))


@pytest.fixture
def pixels() -> Tensor:
    return various(12)


def test_it_answers_and_decides_as_the_network(
    model: Model, exported: onnx.ModelProto, pixels: Tensor
) -> None:
    ours = ExportedNetwork(exported.SerializeToString())(pixels)
    theirs = ServedNetwork(model)(pixels)
    assert close(ours.logits, theirs.logits)
    assert torch.equal(ours.executed, theirs.executed)
    torch.testing.assert_close(ours.gate_logits, theirs.gate_logits, rtol=1e-4, atol=1e-4)
    assert 0.1 < ours.executed.float().mean() < 0.9


def test_the_file_runs_without_aigtool(
    model: Model, exported: onnx.ModelProto, tmp_path: Path, pixels: Tensor
) -> None:
    path = tmp_path / "network.onnx"
    onnx.checker.check_model(exported, full_check=True)
    onnx.save(exported, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    logits, gate_logits, executed = session.run(None, {"pixels": pixels[:1].numpy()})
    assert logits.shape == (1, 10)
    thresholds = [gate.threshold.item() for _, gate in named_gates(model.network)]
    assert np.array_equal(executed, gate_logits > np.float32([thresholds]))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["class_names"]) == ["a", "b", "c"]
    assert json.loads(metadata["preprocessing"])["size"] == [3, 32, 32]
    assert json.loads(metadata[METADATA])["source"] == "cifar_resnet20"


def test_what_a_block_skips_lies_in_its_branch_with_its_weights(exported: onnx.ModelProto) -> None:
    branches = [node for node in exported.graph.node if node.op_type == "If"]
    assert len(branches) == 9
    for branch in branches:
        graphs = {attribute.name: attribute.g for attribute in branch.attribute}
        executed = [node.op_type for node in graphs["then_branch"].node]
        assert executed.count("Conv") == 2
        assert len(graphs["then_branch"].initializer) >= 4
        assert "Conv" not in [node.op_type for node in graphs["else_branch"].node]
    assert not any(node.op_type == "Where" for node in exported.graph.node)
    outside = [node for node in exported.graph.node if node.op_type == "Conv"]
    assert len(outside) == 1  # the stem


def test_only_an_input_that_is_added_itself_is_copied(exported: onnx.ModelProto) -> None:
    branches = {node.output[0]: node for node in exported.graph.node if node.op_type == "If"}
    for name, branch in branches.items():
        graphs = {attribute.name: attribute.g for attribute in branch.attribute}
        then, otherwise = (
            [node.op_type for node in graphs[f"{way}_branch"].node] for way in ("then", "else")
        )
        downsamples = name.startswith(("layer2.0", "layer3.0"))
        assert then.count("MaxPool") == (0 if downsamples else 1), name
        assert otherwise[-1] == "Relu", name


def test_a_skipped_block_is_not_computed(shallow: nn.Module, tmp_path: Path) -> None:
    """By onnxruntime's own account of the convolutions that it ran."""
    model = differing(convert(shallow, input_size=SIZE))
    flops = count_flops(model.network, SIZE)
    exported = export_onnx(model, flops, thresholds_as_inputs=True).SerializeToString()
    gates = [name for name, _ in named_gates(model.network)]
    for executed in ([False] * 3, [True] * 3, [True, False, True]):
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(exported, options, ["CPUExecutionProvider"])
        told = {
            name: np.array([-np.inf if runs else np.inf], np.float32)
            for name, runs in zip(gates, executed, strict=True)
        }
        session.run(None, {"pixels": np.zeros((1, *SIZE), np.float32), **told})
        events = json.loads(Path(session.end_profiling()).read_text())
        ran = [event for event in events if "Conv" in event.get("args", {}).get("op_name", "")]
        assert len(ran) == 1 + 2 * sum(executed)  # the stem's, and two a block


def test_a_network_without_gates_is_exported_too(shallow: nn.Module) -> None:
    dense = model_of(shallow, "")
    network = ExportedNetwork(
        export_onnx(dense, count_flops(dense.network, SIZE)).SerializeToString()
    )
    pixels = torch.rand(2, *SIZE)
    assert close(network(pixels).logits, ServedNetwork(dense)(pixels).logits)
    assert network(pixels).executed.shape == (2, 0)


def test_a_comparison_tells_ties_from_flips(model: Model, pixels: Tensor) -> None:
    ask = ServedNetwork(model)
    logits = ask(pixels).gate_logits[:, 0]
    other = copy.deepcopy(model)
    gate = dict(named_gates(other.network))["layer1.0"]
    own = [gate.threshold.item() for _, gate in named_gates(model.network)]
    assert compare(ask, ask, [pixels], own) == compare(ask, ask, [pixels[:5], pixels[5:]], own)
    assert compare(ask, ask, [pixels], own).holds
    # One image is within rounding of its threshold: it is a tie, not a flip.
    gate.threshold.fill_(logits[0] - 5e-5)
    thresholds = [gate.threshold.item(), *own[1:]]
    found = compare(ServedNetwork(model), ServedNetwork(other), [pixels[:1]], thresholds)
    assert (found.ties, found.flips) == (1, 0)
    # A threshold far from where it was flips images.
    gate.threshold.fill_(torch.inf)
    found = compare(ask, ServedNetwork(other), [pixels], [torch.inf, *own[1:]])
    assert found.flips == int((logits > own[0]).sum()) > 0
    assert not found.holds


def test_a_comparison_refuses_what_is_not_a_number(model: Model, pixels: Tensor) -> None:
    ask = ServedNetwork(model)
    own = [gate.threshold.item() for _, gate in named_gates(model.network)]

    class Broken(ServedNetwork):
        def __call__(self, pixels: Tensor) -> Answers:
            answers = super().__call__(pixels)
            logits = answers.logits.clone()
            logits[3, 1] = torch.nan
            return replace(answers, logits=logits)

    found = compare(Broken(model), ask, [pixels], own)
    assert (found.difference, found.flips, found.holds) == (float("inf"), 0, False)


def test_ties_that_are_decided_alike_are_compared(model: Model, pixels: Tensor) -> None:
    """A gate next to its threshold on every image leaves the rest of the network to check."""
    ask = ServedNetwork(model)
    thresholds = ask(pixels[:1]).gate_logits[0].tolist()
    found = compare(ask, ask, [pixels[:1]], thresholds)
    assert (found.ties, found.compared, found.flips, found.holds) == (1, 1, 0, True)

    class Wrong(ServedNetwork):
        def __call__(self, pixels: Tensor) -> Answers:
            answers = super().__call__(pixels)
            return replace(answers, logits=answers.logits + 1)

    assert not compare(Wrong(model), ask, [pixels[:1]], thresholds).holds


def test_a_comparison_of_ties_decided_otherwise_does_not_hold(model: Model, pixels: Tensor) -> None:
    ask = ServedNetwork(model)
    thresholds = ask(pixels[:1]).gate_logits[0].tolist()

    class Turned(ServedNetwork):
        def __call__(self, pixels: Tensor) -> Answers:
            answers = super().__call__(pixels)
            return replace(answers, executed=~answers.executed)

    found = compare(Turned(model), ask, [pixels[:1]], thresholds)
    assert (found.ties, found.compared, found.flips, found.holds) == (1, 0, 0, False)


def test_a_difference_is_a_share_of_its_own_images_logits(model: Model, pixels: Tensor) -> None:
    """One image with huge logits does not excuse another."""
    ask = ServedNetwork(model)

    class Scaled(ServedNetwork):
        def __init__(self, error: float) -> None:
            super().__init__(model)
            self.error = error

        def __call__(self, pixels: Tensor) -> Answers:
            answers = super().__call__(pixels)
            logits = torch.zeros(len(pixels), 10)
            logits[0], logits[1, 0] = 1000.0, self.error
            return replace(answers, logits=logits)

    own = [gate.threshold.item() for _, gate in named_gates(model.network)]
    assert not ask(pixels[:2]).gate_logits.sub(torch.tensor(own)).abs().lt(1e-4).any()
    found = compare(Scaled(2e-4), Scaled(0.0), [pixels[:2]], own)
    assert found.difference == pytest.approx(2e-4)
    assert not found.holds


def test_other_policies_are_refused(model: Model) -> None:
    sampled = Model(model.network, Description("cifar_resnet20", 3, policy="sampled"))
    with pytest.raises(UserError, match="decides by argmax alone"):
        export_onnx(sampled, count_flops(model.network, SIZE))


def test_wrong_files_and_images_are_refused(exported: onnx.ModelProto, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        ExportedNetwork(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="cannot be opened"):
        ExportedNetwork(tmp_path / "text.onnx")
    foreign = copy.deepcopy(exported)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(UserError, match="holds no description"):
        ExportedNetwork(tmp_path / "foreign.onnx")
    [about] = [entry for entry in exported.metadata_props if entry.key == METADATA]
    for change in ({"policy": 3}, {"flops": {}}, {"size_of_tomorrow": 1}):
        newer = copy.deepcopy(exported)
        onnx.helper.set_model_props(newer, {METADATA: json.dumps(json.loads(about.value) | change)})
        with pytest.raises(UserError, match="exported file: its description cannot be read"):
            ExportedNetwork(newer.SerializeToString())
    network = ExportedNetwork(exported.SerializeToString())
    with pytest.raises(UserError, match=r"expected \(N, 3, 32, 32\)"):
        network(torch.rand(1, 3, 40, 40))
