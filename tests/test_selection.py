import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aigtool.blocks import split
from aigtool.errors import UserError
from aigtool.rehearsal import ResidualBlock
from aigtool.selection import parse_targets, ungated_blocks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


PARTS = split(Block())
BLOCKS = {
    f"layer{stage}.{index}": ResidualBlock(PARTS, (4, 8, 8), reshapes=index == 0 and stage > 1)
    for stage in (1, 2, 3)
    for index in (0, 1)
}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("first", ["layer1.0"]),
        ("first:3", ["layer1.0", "layer1.1", "layer2.0"]),
        ("last", ["layer3.1"]),
        ("last:2", ["layer3.0", "layer3.1"]),
        ("downsample", ["layer2.0", "layer3.0"]),
        ("layer1.*", ["layer1.0", "layer1.1"]),
        ("layer1", ["layer1.0", "layer1.1"]),
        ("layer[13]", ["layer1.0", "layer1.1", "layer3.0", "layer3.1"]),
        ("*.1", ["layer1.1", "layer2.1", "layer3.1"]),
    ],
)
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert sorted(ungated_blocks([pattern], BLOCKS)) == expected


@given(st.integers(1, 6), st.integers(1, 6))
def test_positions_count_from_both_ends(first: int, last: int) -> None:
    found = ungated_blocks([f"first:{first}", f"last:{last}"], BLOCKS)
    assert len(found) == min(first + last, 6)


@pytest.mark.parametrize(
    "pattern", ["first:0", "first:7", "last:x", "last:-1", "first:", "layer9.*", "", "layer"]
)
def test_a_pattern_that_matches_no_block_is_told(pattern: str) -> None:
    with pytest.raises(UserError, match="expected"):
        ungated_blocks([pattern], BLOCKS)


def test_the_papers_schedules() -> None:
    """As in the authors' notes, for the 16 blocks of ResNet-50 and the 33 of ResNet-101."""
    t = 0.4
    expected = [1, 1, 0.8, 1, t, t, t, 1, t, t, t, t, t, 1, 0.7, 1]
    assert parse_targets("resnet50-eccv:0.4") == expected
    assert parse_targets("resnet101-eccv:.3") == [1] * 8 + [0.3] * 25
    assert parse_targets("resnet101-eccv")[-1] == 0.5


@given(st.lists(st.floats(0.001, 1), min_size=1))
def test_a_list_reads_back(targets: list[float]) -> None:
    assert parse_targets(",".join(map(repr, targets))) == targets


@pytest.mark.parametrize("text", ["0", "1.1", "-1", "nan", "a", "", "1,,1", "resnet50-eccv:2"])
def test_what_is_no_rate_is_told(text: str) -> None:
    with pytest.raises(UserError, match=r"target .*expected"):
        parse_targets(text)
