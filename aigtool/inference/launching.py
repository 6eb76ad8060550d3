"""Computations of a served network that a GPU runs as one CUDA graph each."""

import gc
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICES = ("cuda",)
"""Where it takes longer to launch small layers one by one than to compute them."""
WARM_UP = 2
"""Inputs of a shape before one is recorded: a shape that is seen once is not worth it."""
SHAPES = 8
"""Most shapes of an owner's inputs that are recorded, since each takes memory."""
_ROUNDING = 1e-2
"""What a launch may differ by, of the largest number, from what it was recorded of."""

_ALONE = threading.Lock()
"""Held to record a graph, and to launch one: older versions of PyTorch refuse both at a time."""

Results = tuple[Tensor, ...]
Computation = Callable[..., Results]


class Launches:
    """What a network's blocks and gates have recorded, for each thread and stream its own.

    To launch many small layers one by one takes longer than to compute them; a CUDA graph (Gray,
    "Getting Started with CUDA Graphs", 2019) is launched at once. It reads and writes where it did
    when it was recorded. So what blocks take and give lies in *places*, which are kept; nothing
    else outlives a graph, and all of them share one pool of memory.

    While one thread records, no other should draw random numbers on the GPU: PyTorch may refuse.

    Example:
        >>> Launches().desk("owner", torch.zeros(1, 3, 4, 4)) is None
        True
    """

    def __init__(self) -> None:
        self.is_off = False
        self.forget()

    def __reduce__(self) -> tuple[type["Launches"], tuple[()]]:
        """A copy has recorded nothing: its weights are others."""
        return Launches, ()

    def forget(self) -> None:
        """Record anew, since weights lie elsewhere."""
        self._mine = _Mine()

    def desk(self, owner: object, x: Tensor) -> "Desk | None":
        """Return where to run what an owner computes of an input; asked once for each.

        None where it should be computed as it is: the input does not lie on a GPU, is of a new
        shape, or somebody wants its gradient.
        """
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
            return None
        desk = self._desk(x)
        return desk if desk is not None and desk.takes(owner, x) else None

    def desk_of(self, place: Tensor) -> "Desk | None":
        """Return the desk that a tensor has its place at, if any."""
        desk = self._desk(place)
        return desk if desk is not None and desk.holds(place) else None

    def _desk(self, x: Tensor) -> "Desk | None":
        device = x.device
        if self.is_off or device.type not in DEVICES or torch.compiler.is_compiling():
            return None
        on_cuda = device.type == "cuda"
        key = device, torch.cuda.current_stream(device).cuda_stream if on_cuda else 0
        desk = self._mine.desks.get(key)
        if desk is None:
            desk = self._mine.desks[key] = Desk(device)
        return None if desk.is_given_up else desk


class _Mine(threading.local):
    """A thread's own."""

    def __init__(self) -> None:
        self.desks: dict[object, Desk] = {}


class Desk:
    """Where one thread works on one stream.

    Args:
        device: Of all tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self.is_given_up = False
        self._record = recorder(device)
        self._places: dict[object, Tensor] = {}
        self._known: dict[int, Tensor] = {}
        self._seen: Counter[object] = Counter()
        self._shapes: Counter[object] = Counter()
        self._graphs: dict[object, tuple[Callable[[], None], Results]] = {}

    def takes(self, owner: object, x: Tensor) -> bool:
        """Count an input, and tell whether it is one to record or to launch for."""
        key = owner, _looks(x)
        seen = self._seen[key]
        if seen > WARM_UP:
            return True
        if len(x) == 0 or self._shapes[owner] == SHAPES:
            return False
        self._seen[key] += 1
        self._shapes[owner] += seen == WARM_UP
        return seen == WARM_UP

    def holds(self, x: Tensor) -> bool:
        """Whether a tensor is one of the places."""
        return self._place(x) is not None

    def settled(self, key: object, x: Tensor) -> Tensor:
        """Return a tensor in a place: the one that it lies in, or else that of a key."""
        if (place := self._place(x)) is not None:
            return place
        key = key, _looks(x)
        place = self._places.get(key)
        if place is None:
            with torch.inference_mode(False):  # may be written outside of it, too
                place = self._places[key] = torch.empty_like(x)
            self._known[place.data_ptr()] = place
        return place.copy_(x)

    def _place(self, x: Tensor) -> Tensor | None:
        place = self._known.get(x.data_ptr())
        return place if place is not None and _looks(place) == _looks(x) else None

    def run(
        self,
        owner: object,
        compute: Computation,
        variant: int,
        among: Sequence[int],
        *given: Tensor,
    ) -> Results:
        """Launch what was recorded, which the first call does.

        Args:
            owner: Whose computation it is.
            compute: From a variant and the inputs it computes tensors. It asks the host for no
                number, and may write over its inputs.
            variant: What to do.
            among: The variants that are recorded, all at once lest one be slow later; another is
                computed as it is.
            given: The inputs.

        Returns:
            The results, which the next run of any variant writes over.
        """
        inputs = [self.settled((owner, number), value) for number, value in enumerate(given)]
        key = (owner, *map(id, inputs))
        if (found := self._graphs.get((key, variant))) is not None:
            launch, results = found
            launch()
            return results

        def settle(variant: int) -> Results:
            made = enumerate(compute(variant, *inputs), len(inputs))
            return tuple(self.settled((owner, number), value) for number, value in made)

        if variant not in among or self.is_given_up:
            return settle(variant)
        self._record_all(key, settle, among, inputs)
        return self.run(owner, compute, variant, among, *inputs)

    def _record_all(
        self,
        key: object,
        settle: Callable[[int], Results],
        among: Sequence[int],
        inputs: Sequence[Tensor],
    ) -> None:
        """Record all variants; give it up where one cannot be, or computes something else."""
        kept = [value.clone() for value in inputs]

        def restore() -> None:
            for value, before in zip(inputs, kept, strict=True):
                value.copy_(before)

        try:
            for variant in among:
                with _Recordable():  # type: ignore[no-untyped-call]
                    results = settle(variant)
                expected = [value.clone() for value in results]
                restore()
                launch = self._record(partial(settle, variant))
                restore()
                launch()
                if not all(map(_agree, results, expected)):
                    raise RuntimeError("a launch computed something else")
                restore()
                self._graphs[key, variant] = launch, results
        # What stops a recording depends on the layer, and none is said to.
        except RuntimeError as error:
            self.is_given_up = True
            self._graphs.clear()
            problem = str(error.__context__ or error).strip().splitlines()[:1]
            warnings.warn(
                "no CUDA graphs can be made of this network, so small layers take longer: "
                f"{(problem or [type(error).__name__])[0]}",
                stacklevel=2,
            )
            restore()


def recorder(device: torch.device) -> Callable[[Callable[[], object]], Callable[[], None]]:
    """Return what records a computation on a GPU, which returns what launches it."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    pool = torch.cuda.graph_pool_handle()
    torch.cuda.empty_cache()  # Nothing is given back while a graph is recorded.

    def record(compute: Callable[[], object]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), _ALONE, _kept_garbage():
            here = torch.cuda.current_stream()
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    compute()
                finally:
                    graph.capture_end()
            here.wait_stream(stream)

        def launch() -> None:
            with _ALONE:
                graph.replay()

        return launch

    return record


@contextmanager
def _kept_garbage() -> Iterator[None]:
    """Collect no garbage: a graph that is destroyed while another is recorded spoils that one."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Recordable(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what a graph cannot record, since a GPU is not always well after it was tried."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        given, made = _devices((args, kwargs)), _devices(result)
        moves = bool(given) and not made <= given
        moves |= func is torch.ops.aten.copy_.default and len(given) > 1
        if moves or func in _ASKING or not _ANSWERS.isdisjoint(_tags(func, args)):
            raise RuntimeError(f"{func} asks the host")
        return result


_ASKING = {torch.ops.aten.item.default, torch.ops.aten.is_nonzero.default}
_ANSWERS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Tags of operators that return what depends on numbers: one of them, or as many."""


def _tags(func: Any, args: Any) -> set[torch.Tag]:
    is_index = func is torch.ops.aten.index.Tensor
    counts = not is_index or any(leaf.dtype == torch.bool for leaf in _tensors(args[1]))
    return {*func.tags} if counts else set()


def _devices(values: object) -> set[torch.device]:
    return {tensor.device for tensor in _tensors(values)}


def _tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _looks(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.stride(), x.dtype


def _agree(made: Tensor, expected: Tensor) -> bool:
    made, expected = made.float(), expected.float()
    bound = _ROUNDING * float(expected.abs().nan_to_num().max())
    return torch.allclose(made, expected, rtol=0, atol=bound, equal_nan=True)
