"""Computations of a served network that a GPU runs as one CUDA graph each."""

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

DEVICES = ("cuda",)
"""Where it takes longer to launch small layers one by one than to compute them."""
WARM_UP = 2
"""Inputs of a shape before one is recorded: a shape that is seen once is not worth it."""
SHAPES = 8
"""Most shapes of an owner's inputs that are recorded, since each takes memory."""
_ROUNDING = 1e-2
"""What a launch may differ by, of the largest number, from what it was recorded of."""

Results = tuple[Tensor, ...]
Computation = Callable[..., Results]


class Launches:
    """What a network's blocks and gates have recorded, for each thread and stream its own.

    To launch many small layers one by one takes longer than to compute them; a CUDA graph (Gray,
    "Getting Started with CUDA Graphs", 2019) is launched at once. It reads and writes where it did
    when it was recorded. So what blocks take and give lies in *places*, which are kept; nothing
    else outlives a graph, and all of them share one pool of memory.

    Example:
        >>> Launches().takes("owner", torch.zeros(1, 3, 4, 4))
        False
    """

    def __init__(self) -> None:
        self.forget()

    def __reduce__(self) -> tuple[type["Launches"], tuple[()]]:
        """A copy has recorded nothing: its weights are others."""
        return Launches, ()

    def forget(self) -> None:
        """Record anew, since weights lie elsewhere."""
        self._mine = _Mine()

    def takes(self, owner: object, x: Tensor) -> bool:
        """Whether to ``run`` what an owner computes of an input; asked once for each.

        It is if the input lies on a GPU, like some before it, and nobody wants a gradient.
        """
        kind = x.device.type
        if kind not in DEVICES or len(x) == 0 or torch.is_grad_enabled():
            return False
        if torch.is_autocast_enabled(kind) or torch.compiler.is_compiling():
            return False
        return self._desk(x.device).takes(owner, x)

    def settled(self, owner: object, x: Tensor) -> Tensor:
        """Return an input in a place: the one that it lies in, or else its owner's."""
        return self._desk(x.device).settled((owner, 0), x)

    def holds(self, x: Tensor) -> bool:
        """Whether a tensor lies in a place."""
        return x.device.type in DEVICES and self._desk(x.device).known(x) is not None

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
        return self._desk(given[0].device).run(owner, compute, variant, among, given)

    def _desk(self, device: torch.device) -> "_Desk":
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        desks = self._mine.desks
        if (device, stream) not in desks:
            desks[device, stream] = _Desk(device)
        return desks[device, stream]


class _Mine(threading.local):
    """A thread's own."""

    def __init__(self) -> None:
        self.desks: dict[object, _Desk] = {}


class _Desk:
    """Where one thread works on one stream."""

    def __init__(self, device: torch.device) -> None:
        self.is_given_up = False
        self._record = recorder(device)
        self._places: dict[object, Tensor] = {}
        self._known: dict[int, Tensor] = {}
        self._seen: Counter[object] = Counter()
        self._shapes: Counter[object] = Counter()
        self._graphs: dict[object, Callable[[], None]] = {}
        self._results: dict[object, Results] = {}

    def takes(self, owner: object, x: Tensor) -> bool:
        if self.is_given_up:
            return False
        key = owner, _looks(x)
        if self._seen[key] < WARM_UP:
            self._seen[key] += 1
            return False
        if self._seen[key] == WARM_UP and self._shapes[owner] < SHAPES:
            self._seen[key] += 1
            self._shapes[owner] += 1
        return self._seen[key] > WARM_UP

    def known(self, x: Tensor) -> Tensor | None:
        place = self._known.get(x.data_ptr())
        return place if place is not None and _looks(place) == _looks(x) else None

    def settled(self, key: object, x: Tensor) -> Tensor:
        if (known := self.known(x)) is not None:
            return known
        place = self._places.get((key, _looks(x)))
        if place is None:
            with torch.inference_mode(False):  # may be written outside of it, too
                place = self._places[key, _looks(x)] = torch.empty_like(x)
            self._known[place.data_ptr()] = place
        return place.copy_(x)

    def run(
        self,
        owner: object,
        compute: Computation,
        variant: int,
        among: Sequence[int],
        given: Sequence[Tensor],
    ) -> Results:
        inputs = [self.settled((owner, number), value) for number, value in enumerate(given)]
        key = (owner, *map(id, inputs))

        def settle(variant: int) -> Results:
            made = enumerate(compute(variant, *inputs), len(inputs))
            return tuple(self.settled((owner, number), value) for number, value in made)

        if variant in among and key not in self._results:
            self._record_all(key, settle, among, inputs)
        if variant not in among or self.is_given_up:
            return settle(variant)
        self._graphs[key, variant]()
        return self._results[key]

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
                results = settle(variant)
                expected = [value.clone() for value in results]
                restore()
                launch = self._record(partial(settle, variant))
                restore()
                launch()
                if not all(map(_agree, results, expected)):
                    raise RuntimeError("a launch computed something else")
                restore()
                self._graphs[key, variant], self._results[key] = launch, results
        # What stops a recording depends on the layer, and none is said to.
        except RuntimeError as error:
            self.is_given_up = True
            problem = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            warnings.warn(
                f"no CUDA graphs can be made of this network, so small layers take longer: "
                f"{problem[0]}",
                stacklevel=2,
            )
            restore()


def recorder(device: torch.device) -> Callable[[Callable[[], object]], Callable[[], None]]:
    """Return what records a computation on a GPU, which returns what launches it."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    pool = torch.cuda.graph_pool_handle()

    def record(compute: Callable[[], object]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device):
            here = torch.cuda.current_stream()
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                # Other threads may go on with what they do.
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    compute()
                finally:
                    graph.capture_end()
            here.wait_stream(stream)
        return graph.replay

    return record


def _looks(x: Tensor) -> tuple[object, ...]:
    return x.shape, x.stride(), x.dtype


def _agree(made: Tensor, expected: Tensor) -> bool:
    made, expected = made.float(), expected.float()
    bound = _ROUNDING * float(expected.abs().nan_to_num().max())
    return torch.allclose(made, expected, rtol=0, atol=bound, equal_nan=True)
