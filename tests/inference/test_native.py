"""What is written in C computes what the gate does, whoever shares the work."""

import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aigtool.gates import Gate
from aigtool.inference import folding
from aigtool.inference.folding import FoldedGate

needs_native = pytest.mark.skipif(folding.native is None, reason="native.c was not compiled")


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def drawn(channels: int, width: int = 16) -> Gate:
    gate = Gate(channels, width).eval()
    nn.init.normal_(gate.fc2.weight)
    nn.init.uniform_(gate.norm.running_var, 0.5, 2.0)
    return gate


def channels_last(*shape: int) -> Tensor:
    return torch.randn(*shape).to(memory_format=torch.channels_last)


def test_it_was_compiled_where_it_can_be() -> None:
    compiler = (sysconfig.get_config_var("CC") or "none").split()[0]
    header = Path(sysconfig.get_path("include"), "Python.h")
    if sys.platform != "linux" or not (shutil.which(compiler) and header.is_file()):
        pytest.skip("there is no C compiler here, or Python's headers are missing")
    assert folding.native is not None


@needs_native
@given(
    images=st.integers(1, 4),
    channels=st.integers(1, 40),
    width=st.integers(1, 20),
    height=st.integers(1, 24),
    across=st.integers(1, 24),
)
def test_it_computes_the_logit(
    images: int, channels: int, width: int, height: int, across: int
) -> None:
    torch.manual_seed(0)
    gate, x = drawn(channels, width), channels_last(images, channels, height, across)
    folded = FoldedGate(gate)
    assert folded._is_native(x)
    with torch.inference_mode():
        expected = gate.double().logit(x.double())
        found = torch.tensor(folded.few(x)[1])
    # Some hundreds of roundings of numbers of about 1.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@needs_native
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("images", [1, 3])
def test_the_number_of_threads_changes_nothing(images: int) -> None:
    torch.manual_seed(0)
    folded, x = FoldedGate(drawn(64)), channels_last(images, 64, 31, 33)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        with torch.inference_mode():
            found.append(folded.few(x))
    assert found[0] == found[1] == found[2]


@needs_native
def test_features_that_lie_otherwise_are_left_to_pytorch() -> None:
    torch.manual_seed(0)
    folded, batch = FoldedGate(drawn(8)), channels_last(4, 8, 6, 5)
    of_others = batch.contiguous(), batch[::2], batch[..., 1:], batch.double()
    with torch.inference_mode():
        assert folded._is_native(batch[1:3])
        assert folded.few(batch[1:3])[1] == folded.few(batch)[1][1:3]
        for x in of_others[:3]:
            assert not folded._is_native(x)
            expected = folded.few(x.contiguous(memory_format=torch.channels_last))[1]
            assert folded.few(x)[1] == pytest.approx(expected, abs=1e-5)
        assert not folded._is_native(of_others[3])
        assert not FoldedGate(drawn(8).double())._is_native(batch)
        assert not folded._is_native(channels_last(1, 9, 2, 2))
        assert not folded._is_native(batch[:0])


@needs_native
@pytest.mark.parametrize(
    ("positions", "units"),
    [
        (0, np.zeros((2, 10), np.float32)),
        (4, np.zeros((2, 10), np.float64)),
        (4, np.zeros((2, 10), np.int32)),
        (4, np.zeros(20, np.float32)),
        (4, np.zeros((2, 1), np.float32)),
    ],
)
def test_other_weights_are_refused(positions: int, units: np.ndarray) -> None:
    x = channels_last(1, 8, 2, 2)
    with pytest.raises(ValueError, match="expected"):
        folding.native.logits(x.data_ptr(), 1, positions, units, 0.0)
