"""Several threads share one network and get what one alone gets."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from aigtool.conversion import convert, recorded_decisions
from aigtool.errors import UserError
from aigtool.flops import count_flops
from aigtool.inference.answers import Answering, Answers, ServedNetwork
from aigtool.inference.exported import ExportedNetwork
from aigtool.inference.exporting import export_onnx
from aigtool.models.description import PixelNetwork
from aigtool.models.files import Model
from tests.conftest import close
from tests.inference.test_exporting import SIZE, differing, various


@pytest.fixture(scope="module")
def model(lively: Callable[[str, int], nn.Module]) -> Model:
    return differing(convert(lively("cifar_resnet20", 32), input_size=SIZE))


def same(ours: Answers, theirs: Answers) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True)
    )


def test_it_answers_as_the_network(model: Model) -> None:
    pixels = various(7)
    network = PixelNetwork(model.network, model.description.input).eval()
    with torch.inference_mode(), recorded_decisions(network) as decisions:
        logits = network(pixels)
    answers = ServedNetwork(model)(pixels)
    assert close(answers.logits, logits)
    executed = torch.stack([decision.scale > 0 for decision in decisions.values()], dim=1)
    assert torch.equal(answers.executed, executed)


def exported(model: Model) -> Answering:
    graph = export_onnx(model, count_flops(model.network, SIZE))
    return ExportedNetwork(graph.SerializeToString(), threads=1)


@pytest.mark.parametrize("prepared", [ServedNetwork, exported])
def test_four_threads_get_what_one_gets(
    model: Model, prepared: Callable[[Model], Answering]
) -> None:
    network = prepared(model)
    images = various(192)
    batches = [images[3 * number :][: 1 + number % 5] for number in range(64)]
    alone = [network(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(network, batches))
    assert all(map(same, together, alone))
    rates = torch.cat([answers.executed for answers in alone]).float().mean(0)
    assert ((rates > 0) & (rates < 1)).sum() > 4  # so that a mix-up of threads would show


def test_images_of_another_size_are_refused(model: Model) -> None:
    with pytest.raises(UserError, match=r"shape \(1, 3, 40, 40\): expected \(N, 3, 32, 32\)"):
        ServedNetwork(model)(torch.rand(1, 3, 40, 40))
