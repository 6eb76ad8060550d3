"""What a GPU would launch as CUDA graphs, on a CPU: operators that were recorded, run again.

As a graph does, a recording reads and writes where it did.
"""

import copy
import gc
import pickle
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aigtool.conversion import (
    convert,
    forced_decisions,
    gate_policy,
    named_gates,
    recorded_decisions,
)
from aigtool.inference.engines import make_engines
from aigtool.inference.launching import SHAPES, WARM_UP, Desk, Launches
from aigtool.inference.serving import serve
from aigtool.inference.skipping import PARTS, SkippingBlock, launched_counts
from aigtool.models.description import Description, InputSpec, PixelNetwork
from aigtool.models.files import Model
from aigtool.models.zoo import create_network
from tests.inference.test_serving import KEPT, Keeping, Shifted, Watched
from tests.marks import but_slow
from tests.proof import difference, enliven

SIZE = (3, 16, 16)


class Recording(TorchDispatchMode):
    """Operators as they are called, and what they were given and gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.launches = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    @torch.inference_mode()
    def launch(self) -> None:
        self.launches += 1
        for func, args, kwargs, made in self.calls:
            again = func(*args, **kwargs)
            for place, value in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class Recorder:
    """Stands in for ``recorder``, and keeps what was recorded."""

    def __init__(self) -> None:
        self.made: list[Recording] = []

    def __call__(
        self, _device: torch.device
    ) -> Callable[[Callable[[], object]], Callable[[], None]]:
        return self.record

    def record(self, compute: Callable[[], object]) -> Callable[[], None]:
        recording = Recording()
        with recording:
            compute()
        self.made.append(recording)
        return recording.launch

    @property
    def launches(self) -> int:
        """How often one was launched, but for once when each was compared."""
        return sum(recording.launches - 1 for recording in self.made)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    given = {"DEVICES": ("cpu",), "recorder": made}
    with mock.patch.multiple("aigtool.inference.launching", **given), torch.inference_mode():
        yield made


def gated(network: nn.Module, size: tuple[int, int, int] = SIZE) -> nn.Module:
    """Converted, with gates that differ from image to image."""
    converted = convert(enliven(network, size[1]), input_size=size).eval()
    for _, gate in named_gates(converted):
        nn.init.normal_(gate.fc2.weight, std=3.0)
        nn.init.zeros_(gate.fc2.bias)
    return converted


@pytest.fixture(scope="module")
def network_made_once() -> nn.Module:
    torch.manual_seed(0)
    return gated(create_network("cifar_resnet20"))


@pytest.fixture
def network(network_made_once: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return copy.deepcopy(network_made_once)


def tell(network: nn.Module, pattern: Tensor) -> None:
    """Let gates decide as told, ``(N, gates)``."""
    for (_, gate), told in zip(named_gates(network), pattern.unbind(1), strict=True):
        gate.threshold = torch.where(told, -torch.inf, torch.inf)


def test_it_launches_what_it_recorded(recorder: Recorder) -> None:
    """Python runs for each variant to compare and to record, and the recording for all calls."""
    ran = []

    def compute(variant: int, x: Tensor) -> tuple[Tensor, Tensor]:
        ran.append(variant)
        x += 1
        return x, x * variant

    desk = Desk(torch.device("cpu"))
    for number in range(5):
        for images in (3, 5):
            x = torch.full((images,), float(number))
            same, times = desk.run("owner", compute, number % 2 + 1, (1, 2), x)
            assert same.tolist() == [number + 1] * images
            assert times.tolist() == [(number + 1) * (number % 2 + 1)] * images
            assert x[0] == number
    assert ran == 2 * [1, 1, 2, 2]
    assert recorder.launches == 2 * 5


@pytest.mark.usefixtures("recorder")
def test_shapes_that_come_again_are_taken_and_not_too_many() -> None:
    launches = Launches()

    def takes(owner: str, images: int) -> bool:
        return launches.desk(owner, torch.zeros(images, 3)) is not None

    for images in range(1, SHAPES + 3):
        taken = [takes("owner", images) for _ in range(WARM_UP + 2)]
        assert taken == [False] * WARM_UP + [images <= SHAPES] * 2
    assert [takes("other", 1) for _ in range(WARM_UP + 1)][-1]
    assert not [takes("none", 0) for _ in range(WARM_UP + 1)][-1]


@pytest.mark.parametrize("images", [1, 2, 7, 40])
def test_it_equals_the_network_under_every_pattern(
    images: int, network: nn.Module, recorder: Recorder
) -> None:
    served = serve(network, SIZE)
    told = [torch.rand(images, 9) < rate for rate in torch.linspace(0, 1, 12)]
    for pattern in [~torch.eye(9).bool()[:1].expand(images, 9), *told, *told[::-1]]:
        x = torch.randn(images, *SIZE)
        before = x.clone()
        tell(served, pattern)
        tell(network, pattern)
        assert difference(served(x), network(x)) < 1e-5
        assert torch.equal(x, before)
    # A gate's, and a block's of each number of images.
    assert len(recorder.made) == 9 + 9 * len(launched_counts(images))
    assert recorder.launches > 9 * (len(told) + 1)


@pytest.mark.parametrize("images", [1, 5])
def test_its_own_gates_decide_alike(images: int, network: nn.Module, recorder: Recorder) -> None:
    served = serve(network, SIZE)
    kept = []
    for _ in range(WARM_UP + 3):
        x = torch.randn(images, *SIZE)
        with recorded_decisions(network) as expected, recorded_decisions(served) as decided:
            kept.append((served(x), network(x), dict(decided), dict(expected)))
    assert recorder.launches >= 9 * 3
    # What was returned and decided stays what it was.
    for ours, theirs, decided, expected in kept:
        assert difference(ours, theirs) < 1e-5
        for name, decision in decided.items():
            torch.testing.assert_close(decision.logit, expected[name].logit, rtol=1e-4, atol=1e-4)
            assert torch.equal(decision.scale, expected[name].scale)


def test_it_is_asked_in_and_out_of_inference_mode(network: nn.Module, recorder: Recorder) -> None:
    served = serve(network, SIZE)
    for outside in [False] * (WARM_UP + 2) + [True] * 2:
        x = torch.randn(2, *SIZE)
        with torch.inference_mode(not outside), torch.no_grad():
            assert difference(served(x.clone()), network(x.clone())) < 1e-5
    assert recorder.launches >= 9 * 3


@pytest.mark.parametrize("policy", ["open", "closed", "expected"])
def test_it_obeys_the_other_policies(policy: str, network: nn.Module, recorder: Recorder) -> None:
    served = serve(network, SIZE)
    for _ in range(WARM_UP + 2):
        x = torch.randn(3, *SIZE)
        with gate_policy(network, policy), gate_policy(served, policy):
            assert difference(served(x), network(x)) < 1e-5
    assert bool(recorder.launches) == (policy == "open")


def test_it_does_as_it_is_forced_to(network: nn.Module, recorder: Recorder) -> None:
    served = serve(network, SIZE)
    names = [name for name, _ in named_gates(network)]
    for _ in range(WARM_UP + 3):
        x = torch.randn(4, *SIZE)
        pattern = dict(zip(names, torch.rand(9, 4) < 0.5, strict=True))
        with forced_decisions(network, pattern), forced_decisions(served, pattern):
            assert difference(served(x), network(x)) < 1e-5
    assert recorder.launches >= 9 * 3


def _made(kind: str, name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    """A network, and the size of its input."""
    if kind == "keeping":
        return enliven(Keeping(name), 16), SIZE
    if kind == "named":
        return enliven(create_network(name), 32), (3, 32, 32)
    layer = enliven(create_network("cifar_resnet32"), 32).layer1
    return Watched(layer) if name == "watched" else Shifted(layer[:2]), (16, 8, 8)


_SLOW = [("named", name) for name in ("resnet26", "seresnet18", "skresnet18")]
_OTHERS = [
    *(("keeping", way) for way in [*KEPT, "in a layout, and used"]),
    *(("blocks", "watched"), ("blocks", "shifted")),
    *(("named", "resnetv2_18"), ("named", "torchvision:resnet18"), *_SLOW),
]


@pytest.mark.parametrize("made", but_slow(_OTHERS, _SLOW), ids=" ".join)
@pytest.mark.usefixtures("recorder")
def test_others_find_what_they_read(made: tuple[str, str]) -> None:
    """Features that are kept, returned, changed in place, or normalised before a block."""
    torch.manual_seed(0)
    with torch.inference_mode(False):
        network, size = _made(*made)
        convert(network.eval().double(), input_size=size)
        served = serve(network, size)
    gates = len(list(named_gates(network)))
    returned = []
    for number in range(WARM_UP + 4):
        x = torch.randn(3, *size, dtype=torch.float64)
        pattern = torch.rand(3, gates) < number % 3 / 2
        tell(network, pattern)
        tell(served, pattern)
        returned.append((served(x), network(x)))
    for ours, theirs in returned:
        for one, other in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
            assert difference(one, other) < 1e-10


_ASKING: dict[str, Callable[[Tensor], Tensor]] = {
    "a number": lambda x: x * (x.sum().item() < 1e9),
    "whether": lambda x: x if x.isfinite().all() else x.clone(),
    "which": lambda x: x + x[x > 0].mean() - x[x > 0].mean(),
}


class Asking(nn.Module):
    def __init__(self, layer: nn.Module, way: str) -> None:
        super().__init__()
        self.layer, self.way = layer, way

    def forward(self, x: Tensor) -> Tensor:
        return _ASKING[self.way](self.layer(x))


@pytest.mark.parametrize("way", _ASKING)
@pytest.mark.parametrize("images", [3, 6])
def test_what_asks_the_host_is_given_up_before_it_is_tried(
    way: str, images: int, network: nn.Module, recorder: Recorder
) -> None:
    block = network.layer2[1]
    block.conv2 = Asking(block.conv2, way)
    served = serve(network, SIZE)
    with pytest.warns(UserWarning, match="no CUDA graphs can be made .* asks the host") as told:
        for _ in range(WARM_UP + 3):
            x = torch.randn(images, *SIZE)
            assert difference(served(x), network(x)) < 1e-5
    assert len(told) == 1
    before = len(recorder.made)
    served(x)
    assert len(recorder.made) == before


def test_what_fails_while_it_is_recorded_is_told_by_its_own_error(
    network: nn.Module, recorder: Recorder
) -> None:
    """Once, though many are left to be recorded."""

    def fail(_compute: Callable[[], object]) -> Callable[[], None]:
        try:
            raise RuntimeError("CUDA error: not permitted\nCompile with TORCH_USE_CUDA_DSA")
        finally:
            raise RuntimeError("the recording was spoilt")

    served = serve(network, SIZE)
    with (
        mock.patch.object(recorder, "record", fail),
        pytest.warns(UserWarning, match=r"longer: CUDA error: not permitted$") as told,
    ):
        for _ in range(WARM_UP + 3):
            x = torch.randn(6, *SIZE)
            assert difference(served(x), network(x)) < 1e-5
    assert len(told) == 1


def test_a_hook_on_a_layer_within_a_block_is_called(network: nn.Module, recorder: Recorder) -> None:
    served, called = serve(network, SIZE), []
    hook = served.layer2[1].conv1.register_forward_hook(lambda *_: called.append(1))
    for _ in range(WARM_UP + 3):
        served(torch.randn(6, *SIZE))
    assert len(called) == WARM_UP + 3
    hook.remove()
    made = len(recorder.made)
    served(torch.randn(6, *SIZE))
    assert len(recorder.made) > made


def test_what_was_recorded_goes_with_the_network(network: nn.Module, recorder: Recorder) -> None:
    served = serve(network, SIZE)
    for _ in range(WARM_UP + 2):
        served(torch.randn(6, *SIZE))
    gone = weakref.ref(served.layer2[1])
    recorder.made.clear()
    gc.disable()
    try:
        del served
        assert gone() is None
    finally:
        gc.enable()


def test_a_launch_that_computes_something_else_is_given_up_and_told(
    network: nn.Module, recorder: Recorder
) -> None:
    def twice(compute: Callable[[], object]) -> Callable[[], None]:
        def launch() -> None:
            compute()
            compute()

        return launch

    served = serve(network, SIZE)
    with (
        mock.patch.object(recorder, "record", twice),
        pytest.warns(UserWarning, match="computed something else"),
    ):
        for _ in range(WARM_UP + 3):
            x = torch.randn(3, *SIZE)
            assert difference(served(x), network(x)) < 1e-5


def test_weights_that_move_or_are_loaded_are_those_that_run(
    network: nn.Module, recorder: Recorder
) -> None:
    served, x = serve(network, SIZE), torch.randn(3, *SIZE)
    with torch.inference_mode(False):
        other = serve(gated(create_network("cifar_resnet20")), SIZE)
    first, second = network(x), other(x)
    for _ in range(WARM_UP + 2):
        served(x)
    assert difference(served(x), first) < 1e-5
    served.load_state_dict(other.state_dict())
    for _ in range(WARM_UP + 2):
        assert difference(served(x), second) < 1e-5
    for one in (copy.deepcopy(served), pickle.loads(pickle.dumps(served)), served.double()):
        made = len(recorder.made)
        for _ in range(WARM_UP + 2):
            assert difference(one(x.to(next(one.parameters()))), second) < 1e-5
        assert len(recorder.made) > made


def test_threads_do_not_write_over_each_other(network: nn.Module, recorder: Recorder) -> None:
    served = serve(network, SIZE)
    given = [torch.randn(2, *SIZE) for _ in range(4)]
    expected = [network(x) for x in given]
    worst = [0.0] * 4
    gate = threading.Barrier(4)

    @torch.inference_mode()
    def ask(number: int) -> None:
        gate.wait()
        for _ in range(20):
            worst[number] = max(worst[number], difference(served(given[number]), expected[number]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(worst) < 1e-5
    assert recorder.launches > 4 * 9 * 10


def test_neither_a_gradient_nor_autocast_is_recorded(
    network: nn.Module, recorder: Recorder
) -> None:
    x = torch.randn(3, *SIZE)
    with torch.inference_mode(False):
        served = serve(network, SIZE)
    for _ in range(WARM_UP + 2):
        with torch.inference_mode(False), torch.enable_grad():
            image = torch.randn(3, *SIZE).requires_grad_()
            served(image).sum().backward()
            assert image.grad is not None
        with torch.autocast("cpu", torch.bfloat16):
            served(x)
    assert not recorder.made
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert served(torch.empty(0, *SIZE)).shape == (0, 10)


@given(st.integers(1, 1000))
def test_a_batch_is_cut_into_few_parts(images: int) -> None:
    counts = launched_counts(images)
    assert counts == sorted({*counts})
    assert counts[-1] == images
    assert len(counts) <= PARTS
    assert images > PARTS or counts == [*range(1, images + 1)]


@pytest.mark.usefixtures("recorder")
def test_an_engine_launches_the_dense_network_whole(network: nn.Module, recorder: Recorder) -> None:
    model = Model(network, Description("cifar_resnet20", 10, None, InputSpec(size=SIZE)))
    gated, dense = make_engines(model, "skip", torch.device("cpu"), torch.float32, threads=1)
    x, pattern = torch.rand(2, *SIZE), torch.rand(2, 9) < 0.5
    pixelled = PixelNetwork(network, model.description.input).eval()
    for number in range(WARM_UP + 3):
        gated.decide(pattern)
        assert gated.decisions(x).tolist() == pattern.tolist()
        if number == WARM_UP:
            made = len(recorder.made)
        with gate_policy(network, "open"):
            assert difference(dense(x), pixelled(x)) < 1e-5
    assert len(recorder.made) == made + 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("images", [1, 7, 40])
def test_a_gpu_computes_what_a_cpu_does(
    images: int, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without TF32, in graphs that are not given up."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    replay, replayed = torch.cuda.CUDAGraph.replay, []

    def noted(graph: torch.cuda.CUDAGraph) -> None:
        replayed.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", noted)
    served = serve(network, SIZE).to("cuda")
    x = torch.randn(images, *SIZE)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(WARM_UP + 5):
            pattern = torch.rand(images, 9) < 0.5
            tell(network, pattern)
            tell(served, pattern.to("cuda"))
            assert difference(served(x.to("cuda")).cpu(), network(x)) < 1e-4
            x = torch.randn(images, *SIZE)
    assert len(replayed) > 5 * 9


def test_blocks_know_who_reads_what_they_return(network: nn.Module) -> None:
    blocks = [block for block in serve(network, SIZE).modules() if isinstance(block, SkippingBlock)]
    assert [block.is_followed for block in blocks] == [True] * 8 + [False]
