"""Computations that a GPU runs as one CUDA graph."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from aigtool.gpu import unobserved

Computation = Callable[[Tensor, Tensor], Tensor]
WARM_UP = 3
"""Calls before one is recorded: what is allocated or chosen at first is then in place."""


class Captured:
    """A computation that is recorded once, and from then on launched as a whole.

    Many small layers take a GPU less time than Python takes to launch them one by one; a CUDA graph
    (Gray, "Getting Started with CUDA Graphs", 2019) is launched at once. Inputs of each shape have
    a graph of their own, all in one pool of memory; the first calls run as they are.

    Args:
        compute: From two tensors on a GPU it computes one, ``unobserved``. It asks the host for no
            value; what else it reads or writes stays where it lies in memory.
        device: The GPU.
    """

    def __init__(self, compute: Computation, device: torch.device) -> None:
        self.compute, self.device = compute, device
        self._calls: Counter[object] = Counter()
        self._graphs: dict[object, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """Compute; the next call may write over the result."""
        key = first.shape, first.dtype, second.shape, second.dtype
        self._calls[key] += 1
        with torch.cuda.device(self.device), unobserved():
            if self._calls[key] <= WARM_UP:
                return self._as_it_is(first, second)
            if key not in self._graphs:
                self._graphs[key] = _Graph(self, first, second)
            return self._graphs[key](first, second)

    def _as_it_is(self, first: Tensor, second: Tensor) -> Tensor:
        # On the stream that will record: what autograd sets up belongs to a stream.
        here = torch.cuda.current_stream()
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            result = self.compute(first, second)
        here.wait_stream(self._stream)
        return result


class _Graph:
    def __init__(self, of: Captured, first: Tensor, second: Tensor) -> None:
        self._inputs = first.clone(), second.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that reads images, may go on with what they do.
        with torch.cuda.graph(
            self._graph, pool=of._pool, stream=of._stream, capture_error_mode="thread_local"
        ):
            self._result = of.compute(*self._inputs)

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        for place, given in zip(self._inputs, (first, second), strict=True):
            place.copy_(given)
        self._graph.replay()
        return self._result
