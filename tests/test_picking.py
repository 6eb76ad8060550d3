import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aigtool.picking import add_to_images, take_images

SHAPES = st.sampled_from([(5, 3, 4, 6), (5, 1, 2, 2), (5, 4, 1, 1), (5, 7), (5,), (5, 2, 3, 4, 2)])
FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])
CHOSEN = st.lists(st.integers(0, 4), unique=True)


@given(SHAPES, FORMATS, FORMATS, CHOSEN)
def test_it_is_plain_indexing_in_any_format(
    shape: tuple[int, ...],
    batch_format: torch.memory_format,
    added_format: torch.memory_format,
    chosen: list[int],
) -> None:
    x, added = torch.randn(shape), torch.randn(len(chosen), *shape[1:])
    if x.ndim == 4:
        x = x.contiguous(memory_format=batch_format)
        added = added.contiguous(memory_format=added_format)
    before, index = x.clone(), torch.tensor(chosen, dtype=torch.long)
    assert torch.equal(take_images(x, index), x[index])
    expected = x.clone()
    expected[index] += added
    joined = add_to_images(x, index, added)
    assert torch.equal(joined, expected)
    assert torch.equal(x, before)
    assert joined.stride() == x.stride()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_format_stays(memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 3, 5, 5).contiguous(memory_format=memory_format)
    taken = take_images(x, torch.tensor([3, 1]))
    assert taken.is_contiguous(memory_format=memory_format)
