"""Several processes that train one network, each on its part of every minibatch."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from aigtool.errors import UserError
from aigtool.launch import place

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long processes wait for one another: the first one validates and writes files alone."""


@dataclass(frozen=True)
class Processes:
    """The processes that train one network; each calls the methods in the same order as the others.

    Gradients are averaged over processes, as ``DistributedDataParallel`` does, which expects one
    backward pass a step where there are two here.

    Attributes:
        rank: Which one this is, from 0.
        count: How many there are.
        device: Where this one trains.

    Example:
        >>> alone = Processes()
        >>> alone.by_first(lambda: 3), alone.any(True, False), alone.gather(torch.ones(2))
        (3, (True, False), tensor([1., 1.]))
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def here(cls, device: torch.device | str = "cpu") -> "Processes":
        """Return those of PyTorch's process group; this one alone where there is none."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls(device=torch.device(device))
        return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))

    @property
    def is_first(self) -> bool:
        """Whether this is the one that validates, and writes files."""
        return self.rank == 0

    def check_batch(self, batch_size: int, repeats: int = 1) -> None:
        """Refuse minibatches that cannot be shared out evenly.

        A norm learns nothing from one image alone, so each process has two at least.

        Raises:
            UserError: A minibatch does not part, or holds too few images.
        """
        images, least = batch_size // repeats, self._least(repeats)
        if self.count > 1 and (images < least or images % self.count):
            raise UserError(
                f"batch size {batch_size} with {self.count} processes: a batch holds {images} "
                f"images, {repeats} times each; expected a batch size that is a multiple of "
                f"{self.count * repeats}, {least * repeats} at least"
            )

    def check_images(self, images: int, repeats: int = 1) -> None:
        """Refuse fewer images than make one minibatch.

        Raises:
            UserError: They are too few.
        """
        if self.count > 1 and images < (least := self._least(repeats)):
            raise UserError(
                f"{images} training images in {self.count} processes: expected {least} at least"
            )

    def _least(self, repeats: int) -> int:
        return self.count * (2 if repeats == 1 else 1)

    def by_first(self, compute: Callable[[], T]) -> T:
        """Let the first process compute something while the others wait; return it to all.

        Raises:
            UserError: In all processes, where computing raised one.
        """
        if self.count == 1:
            return compute()
        told: list[Any] = [None, None]
        if self.is_first:
            try:
                told[0] = compute()
            except UserError as error:
                told[1] = error
        with _reaching_others():
            dist.broadcast_object_list(told, src=0, device=self.device)
        result, problem = told
        if problem is not None:
            raise problem
        return cast(T, result)

    def of_all(self, value: T) -> list[T]:
        """Return what each process has, in their order."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        here = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with _reaching_others(), here:
            dist.all_gather_object(values, value)
        return values

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return of each flag whether it is up in any process."""
        if self.count == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        with _reaching_others():
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return tuple(flag > 0 for flag in raised.tolist())

    @torch.no_grad()
    def spread(self, network: nn.Module) -> None:
        """Give all processes the weights and buffers of the first one."""
        if self.count > 1:
            for tensor in (*network.parameters(), *network.buffers()):
                whole = tensor.detach().contiguous()
                with _reaching_others():
                    dist.broadcast(whole, src=0)
                tensor.copy_(whole)

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, ``(count * N, ...)``, to each.

        The gradient of a process's rows is the sum of what all processes made of them: so averaged
        gradients are those of the mean of what the processes compute.

        Args:
            rows: ``(N, ...)``, as many in each process.
        """
        gathered: Tensor = rows if self.count == 1 else _Gather.apply(rows, self)
        return gathered

    def own(self, rows: Tensor) -> Tensor:
        """Return this process's part of what was gathered."""
        images = len(rows) // self.count
        return rows[self.rank * images : (self.rank + 1) * images]

    @contextmanager
    def sharing(self, norms: Iterable[nn.Module]) -> Iterator[None]:
        """Let batch norms, within, take their statistics from the images of all processes."""
        if self.count == 1:
            yield
            return

        def gather(norm: nn.Module, given: tuple[Tensor]) -> tuple[Tensor] | None:
            return (_untraced(self.gather, given[0]),) if norm.training else None

        def own(norm: nn.Module, _given: tuple[Tensor], rows: Tensor) -> Tensor | None:
            return self.own(rows) if norm.training else None

        handles = []
        for norm in norms:
            handles.append(norm.register_forward_pre_hook(gather))
            handles.append(norm.register_forward_hook(own))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors to their means over processes, in place."""
        if self.count == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _reaching_others():
            dist.all_reduce(flat)
        flat /= self.count
        sizes = [tensor.numel() for tensor in tensors]
        for tensor, mean in zip(tensors, torch.split(flat, sizes), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def average_gradients(self, network: nn.Module) -> None:
        """Average the gradients of a network's weights; where one has none it counts as zero."""
        if self.count == 1:
            return
        weights = list(network.parameters())
        held = self.any(*(weight.grad is not None for weight in weights))
        gradients = []
        for weight, is_held in zip(weights, held, strict=True):
            if is_held and weight.grad is None:
                weight.grad = torch.zeros_like(weight)
            if weight.grad is not None:
                gradients.append(weight.grad)
        self.average(gradients)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, processes: Processes) -> Tensor:
        ctx.processes = processes
        rows = rows.contiguous()
        parts = [torch.empty_like(rows) for _ in range(processes.count)]
        with _reaching_others():
            dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        with _reaching_others():
            dist.all_reduce(total)
        processes: Processes = ctx.processes
        return processes.own(total), None


@contextmanager
def _reaching_others() -> Iterator[None]:
    """Say in one line that another process is gone: it has said why, or was stopped."""
    try:
        yield
    except RuntimeError as error:
        # Gloo's have no type of their own, but name the file that they come from.
        if not (isinstance(error, dist.DistError) or "gloo/transport" in str(error)):
            raise
        raise UserError(
            "another of the processes has ended: mend what it says, and go on with --resume"
        ) from error


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _untraced(compute: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return compute(rows)


ALONE = Processes()
"""The one process that there mostly is."""


@contextmanager
def launched(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` launched, if it did, for as long as the block lasts.

    Args:
        device: Where to train. Of ``cuda`` each process on a machine takes a GPU of its own.

    Raises:
        UserError: The processes cannot train there.
    """
    _, count = place()
    if count == 1 or dist.is_initialized():
        yield Processes.here(device)
        return
    if device.type == "mps" or device.index is not None:
        raise UserError(
            f"device {device} with {count} processes: expected cpu, or cuda, of which each process "
            "takes a GPU of its own"
        )
    if device.type == "cuda":
        number = int(os.environ.get("LOCAL_RANK", "0"))
        if number >= torch.cuda.device_count():
            raise UserError(
                f"device cuda with {count} processes: {torch.cuda.device_count()} GPUs are usable "
                "here; launch as many processes, or use --device cpu"
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    yield Processes.here(device)
    dist.destroy_process_group()  # not after an error: it would wait for what others never send
