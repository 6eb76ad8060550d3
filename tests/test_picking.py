from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aigtool.picking import add_executed, add_scaled, add_to_images, fork_images, take_images

SHAPES = st.sampled_from([(5, 3, 4, 6), (5, 1, 2, 2), (5, 4, 1, 1), (5, 7), (5,), (5, 2, 3, 4, 2)])
FORMATS = st.sampled_from([torch.contiguous_format, torch.channels_last])
CHOSEN = st.lists(st.integers(0, 4), unique=True)


def assert_same_gradients(
    joined: torch.Tensor, plain: torch.Tensor, inputs: list[torch.Tensor]
) -> None:
    weights = torch.randn_like(joined)
    for ours, theirs in zip(
        torch.autograd.grad(joined, inputs, weights),
        torch.autograd.grad(plain, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


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


@given(SHAPES, FORMATS, CHOSEN)
def test_a_fork_is_plain_indexing(
    shape: tuple[int, ...], memory_format: torch.memory_format, chosen: list[int]
) -> None:
    x = torch.randn(shape, dtype=torch.double)
    x = x.contiguous(memory_format=memory_format) if x.ndim == 4 else x
    x.requires_grad_()
    index = torch.tensor(chosen, dtype=torch.long)
    whole, taken = fork_images(x, index)
    assert torch.equal(whole, x)
    assert torch.equal(taken, x[index])
    assert taken.stride() == take_images(x, index).stride()
    both = torch.cat([whole.flatten(), taken.flatten()])
    assert_same_gradients(both, torch.cat([x.flatten(), x[index].flatten()]), [x])


@given(
    SHAPES.filter(lambda shape: len(shape) > 1),
    FORMATS,
    FORMATS,
    st.sampled_from([torch.rand, torch.ones]),
)
def test_each_image_by_its_factor_is_plain_arithmetic(
    shape: tuple[int, ...],
    batch_format: torch.memory_format,
    added_format: torch.memory_format,
    factors: Callable[..., torch.Tensor],
) -> None:
    x, added = torch.randn(2, *shape, dtype=torch.double)
    if x.ndim == 4:
        x = x.contiguous(memory_format=batch_format)
        added = added.contiguous(memory_format=added_format)
    inputs = [value.requires_grad_() for value in (x, added, factors(5, dtype=torch.double))]
    joined = add_scaled(*inputs)
    plain = x + inputs[2].view(-1, *[1] * (x.ndim - 1)) * added
    torch.testing.assert_close(joined, plain, rtol=1e-15, atol=1e-15)
    assert joined.stride() == x.stride()
    assert_same_gradients(joined, plain, inputs)


PIECES = pytest.mark.parametrize("cached", [4, 20, 2**19], ids=["one", "some", "all"])


@PIECES
def test_its_gradient_is_right_and_has_a_gradient(
    cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigtool.picking._CACHED", cached)
    inputs = [torch.randn(5, 2, 2, 2, dtype=torch.double, requires_grad=True) for _ in range(2)]
    inputs.append(torch.randn(5, dtype=torch.double, requires_grad=True))
    assert torch.autograd.gradcheck(add_scaled, inputs)
    assert torch.autograd.gradgradcheck(add_scaled, inputs)


@PIECES
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_executed_is_summed_in_pieces(
    cached: int, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aigtool.picking._CACHED", cached)
    whole, left = torch.tensor([4, 0, 1]), torch.tensor([2, 3])
    x, added = (
        torch.randn(5, 2, 2, 2, dtype=torch.double).contiguous(memory_format=memory_format)
        for _ in range(2)
    )
    scale = torch.tensor([1.0, 1, 0, 0, 1], dtype=torch.double)
    inputs = [value.requires_grad_() for value in (x, added, scale)]
    with torch.no_grad():
        skipped = left, take_images(added, left)
    joined = add_executed(x, (whole, take_images(added, whole)), skipped, scale)
    plain = x + scale.view(-1, 1, 1, 1) * added
    assert torch.equal(joined, plain)
    assert_same_gradients(joined, plain, inputs)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_taken_may_be_written_to(memory_format: torch.memory_format) -> None:
    x = torch.randn(5, 2, 3, 4).contiguous(memory_format=memory_format).requires_grad_()
    whole, taken = fork_images(x, torch.tensor([3, 0]))
    (whole.sum() + taken.relu_().sum()).backward()
    expected = torch.ones_like(x)
    expected[[3, 0]] += (x[[3, 0]] > 0).float()
    assert torch.equal(x.grad, expected)


@pytest.mark.parametrize("other", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_promoted_as_in_a_sum(other: torch.dtype) -> None:
    x, added, scale = torch.ones(2, 3), torch.ones(2, 3, dtype=other), torch.tensor([0.0, 1.0])
    assert add_scaled(x, added, scale).dtype == (x + added).dtype
    assert add_scaled(added, x, scale.to(other)).dtype == (x + added).dtype


def test_an_empty_batch_stays_empty() -> None:
    x = torch.zeros(0, 3, 2, 2, requires_grad=True)
    joined = add_scaled(x, x, torch.zeros(0, requires_grad=True))
    joined.sum().backward()
    assert joined.shape == x.shape


@given(SHAPES.filter(lambda shape: len(shape) > 1), FORMATS, FORMATS, CHOSEN)
def test_what_is_skipped_needs_no_graph(
    shape: tuple[int, ...],
    batch_format: torch.memory_format,
    added_format: torch.memory_format,
    chosen: list[int],
) -> None:
    """With factors of 0 and 1, the gradients are those of adding each image by its factor."""
    x, added = torch.randn(2, *shape, dtype=torch.double)
    if x.ndim == 4:
        x = x.contiguous(memory_format=batch_format)
        added = added.contiguous(memory_format=added_format)
    scale = torch.zeros(5, dtype=torch.double)
    scale[chosen] = 1
    inputs = [value.requires_grad_() for value in (x, added, scale)]
    plain = add_scaled(*inputs)
    others, executed = ((scale == factor).nonzero().squeeze(1) for factor in (0, 1))
    with torch.no_grad():
        skipped = others, take_images(added, others)
    joined = add_executed(x, (executed, take_images(added, executed)), skipped, scale)
    assert torch.equal(joined, plain)
    assert joined.stride() == plain.stride()
    assert_same_gradients(joined, plain, inputs)
