"""The gate that decides, image by image, whether a residual block runs."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.gpu import is_unobserved, suits_kernels
from aigtool.picking import channel_means, pool

Policy = Literal["argmax", "sampled", "open", "closed", "expected"]
POLICIES: tuple[Policy, ...] = get_args(Policy)

OPEN_BIAS = (0.1, 2.0)
"""Of a fresh gate's last layer, for "skip" and "execute"."""

Run = Literal["all", "none", "chosen", "scaled"]
"""How a block obeys a decision: run for every image, for none, only for the images whose scale
is not zero, or for every image with its residual multiplied by the image's scale."""


class Decision(NamedTuple):
    """What a gate decided for a batch.

    Attributes:
        scale: ``(N,)``, the factor on each image's residual: 0 or 1, but for the policy
            ``expected``, where it is the gate's mean execution rate.
        logit: ``(N,)``, the logit difference "execute" minus "skip", in float32. Its sigmoid is
            the probability that the block is executed under sampling. Infinite where the policy
            leaves nothing to decide.
        run: How the block obeys.
    """

    scale: Tensor
    logit: Tensor
    run: Run


class Gate(nn.Module):
    """The gate of Veit and Belongie (ECCV 2018, section 3.1), deterministic at test time.

    Global average pooling, a fully connected layer to ``width`` units, batch norm, ReLU, and a
    fully connected layer to two logits, "skip" and "execute". A fresh gate executes its block on
    about 87 % of the images: the last layer starts at N(0, 0.001) with biases (0.1, 2).

    In training the decision is drawn with straight-through Gumbel noise of strength ``noise`` (1
    in the paper; annealed to 0 it becomes the argmax decision). In evaluation ``policy`` rules:

    - ``argmax``: execute where the logit difference exceeds ``threshold``; deterministic.
    - ``sampled``: execute with the softmax's probability, as the authors' released code.
    - ``open``, ``closed``: always, never. Both hold in training too, and the gate is not computed.
    - ``expected``: every block runs, its residual scaled by ``expected_rate``; the gate is not
      computed.

    Args:
        channels: C of the block's input, shaped ``(N, C, H, W)``.
        width: d, the units of the hidden layer.

    Attributes:
        threshold: Buffer, a logit: what the logit difference must exceed.
        expected_rate: Buffer, the mean execution rate under sampling on the training images.
        noise: Buffer that is not saved, the strength of the noise in training.
        temperature: Buffer that is not saved, of the softmax in the backward pass.
        target: The execution rate that this gate was trained for on its own, if any.

    Example:
        >>> gate = Gate(64).eval()
        >>> with torch.no_grad():
        ...     decision = gate(torch.zeros(2, 64, 8, 8))
        >>> decision.scale
        tensor([1., 1.])
        >>> [round(p, 2) for p in decision.logit.sigmoid().tolist()]
        [0.87, 0.87]
    """

    threshold: Tensor
    expected_rate: Tensor
    noise: Tensor
    temperature: Tensor

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.channels = channels
        self.width = width
        self.fc1 = nn.Linear(channels, width)
        self.norm = nn.BatchNorm1d(width)
        self.fc2 = nn.Linear(width, 2)
        nn.init.normal_(self.fc2.weight, std=0.001)
        with torch.no_grad():
            self.fc2.bias.copy_(torch.tensor(OPEN_BIAS))
        self.register_buffer("threshold", torch.zeros(()))
        self.register_buffer("expected_rate", torch.ones(()))
        self.register_buffer("noise", torch.ones(()), persistent=False)
        self.register_buffer("temperature", torch.ones(()), persistent=False)
        self.policy: Policy = "argmax"
        self.target: float | None = None

    def logit(self, x: Tensor) -> Tensor:
        """Return the logit difference "execute" minus "skip", ``(N,)`` in float32."""
        with no_autocast(x.device.type):
            hidden = self.fc1(pooled(x, self.fc1.weight.dtype))
            skip, execute = self.fc2(F.relu(self._normalized(hidden))).float().unbind(1)
            return cast(Tensor, execute - skip)

    def _normalized(self, hidden: Tensor) -> Tensor:
        if self.training and hidden.shape[0] == 1:
            # One image has no batch statistics: use the running ones and leave them as they are.
            norm = self.norm
            return F.batch_norm(
                hidden, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
        return cast(Tensor, self.norm(hidden))

    def forward(self, x: Tensor) -> Decision:
        """Decide for a batch of block inputs, ``(N, C, H, W)``."""
        if self.policy == "open":
            return _constant(x, 1.0, math.inf, "all")
        if self.policy == "closed":
            return _constant(x, 0.0, -math.inf, "none")
        if self.policy == "expected" and not self.training:
            rate = self.expected_rate
            return Decision(
                rate.to(x.dtype).expand(len(x)), rate.float().logit().expand(len(x)), "scaled"
            )
        if self.training and self._decides_at_once(x):
            return self._decide_at_once(x)
        logit = self.logit(x)
        if self.training:
            margin = logit - self.threshold + self.noise * logistic_noise(logit)
        elif self.policy == "sampled":
            margin = logit + logistic_noise(logit)
        else:
            margin = logit - self.threshold
        if self.training or logit.requires_grad:
            return Decision(straight_through(margin, self.temperature).to(x.dtype), logit, "scaled")
        return Decision((margin > 0).to(x.dtype), logit, "chosen")

    def _decides_at_once(self, x: Tensor) -> bool:
        layers = (self.fc1, self.norm, self.fc2)
        if not (suits_kernels(x) and is_unobserved(*layers)):
            return False
        from aigtool.kernels import fits

        # Others may have been put in their place, or another way to the logit.
        as_made = tuple(map(type, layers)) == (nn.Linear, nn.BatchNorm1d, nn.Linear)
        as_made = as_made and type(self).logit is Gate.logit and self.norm.momentum is not None
        is_single = self.fc1.weight.dtype == torch.float32
        return as_made and is_single and fits(len(x), self.width)

    def _decide_at_once(self, x: Tensor) -> Decision:
        """Decide as in training, in a few kernels of a GPU."""
        from aigtool.kernels import Decide, Decider

        by_batch = self.norm.training and len(x) > 1
        if by_batch and self.norm.num_batches_tracked is not None:
            self.norm.num_batches_tracked.add_(1)
        with no_autocast(x.device.type):
            products = F.linear(pooled(x, torch.float32), self.fc1.weight)
        drawn = products.new_empty(2, len(x)).exponential_()
        layers = (self.fc1.bias, self.norm.weight, self.norm.bias, self.fc2.weight, self.fc2.bias)
        by = Decider(self.norm, by_batch, self.threshold, self.noise, self.temperature)
        scale, logit = Decide.apply(products, *layers, drawn, by)
        return Decision(scale.to(x.dtype), logit, "scaled")

    @property
    def is_fresh(self) -> bool:
        """Whether it lets most images through, as it was made to: it was not trained.

        Example:
            >>> gate = Gate(64)
            >>> was = gate.is_fresh
            >>> _ = gate.threshold.fill_(0.5)
            >>> was, gate.is_fresh
            (True, False)
        """
        as_made = self.fc2.bias.tolist() == torch.tensor(OPEN_BIAS).tolist()
        return as_made and self.threshold.item() == 0

    @torch.no_grad()
    def absorb_threshold(self) -> None:
        """Take the threshold up in the logits, in place, and set it to zero.

        The argmax decisions stay the same but for rounding; sampled ones turn about them.

        Example:
            >>> gate = Gate(64)
            >>> _ = gate.threshold.fill_(0.5)
            >>> gate.absorb_threshold()
            >>> gate.fc2.bias, gate.threshold
            (Parameter containing:
            tensor([0.1000, 1.5000], requires_grad=True), tensor(0.))
        """
        self.fc2.bias[1] -= self.threshold
        self.threshold.zero_()

    def extra_repr(self) -> str:
        """Show what distinguishes this gate."""
        return f"channels={self.channels}, width={self.width}, policy={self.policy!r}"


def pooled(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the mean over positions of features ``(N, C, H, W)``, ``(N, C)``.

    Args:
        x: The features.
        dtype: Of the mean, that of the features if it is not said.

    Example:
        >>> pooled(torch.full((1, 2, 300, 300), 3.0, dtype=torch.float16)).tolist()
        [[3.0, 3.0]]
    """
    means = channel_means(x)
    if means is None and x.requires_grad and suits_kernels(x):
        means = pool(x)
    if means is not None:
        return means.to(dtype or x.dtype)
    # The gradient of a sum, unlike that of a mean, is not written out as large as x.
    total = x.sum(dim=(2, 3), dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / (x.shape[2] * x.shape[3])).to(dtype or x.dtype)


def no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Leave autocast, which the meta device has none of: a gate is small, and turns on little."""
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def _constant(x: Tensor, scale: float, logit: float, run: Run) -> Decision:
    shape = (x.shape[0],)
    return Decision(
        torch.full(shape, scale, dtype=x.dtype, device=x.device),
        torch.full(shape, logit, device=x.device),
        run,
    )


def logistic_noise(like: Tensor) -> Tensor:
    """Draw the difference of two Gumbel variables, which is Logistic(0, 1), shaped as ``like``.

    Adding it to the logit difference and asking for a positive sum is the Gumbel-max draw of
    "execute" against "skip" (Jang et al., ICLR 2017).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> logistic_noise(torch.zeros(100_000)).var().sub(torch.pi ** 2 / 3).abs() < 0.05
        tensor(True)
    """
    skip = torch.empty_like(like).exponential_()
    execute = torch.empty_like(like).exponential_()
    return skip.log() - execute.log()


def straight_through(margin: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """Return exactly 0 or 1, with the gradient of the two-way softmax.

    Args:
        margin: Logit difference "execute" minus "skip", noise included, any shape.
        temperature: Of the softmax in the backward pass.

    Returns:
        1 where ``margin`` is positive, else 0; its gradient is that of
        ``sigmoid(margin / temperature)``, the softmax's probability of "execute" at the same
        noise (Veit and Belongie, ECCV 2018, section 3.2).

    Example:
        >>> margin = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
        >>> z = straight_through(margin)
        >>> z.sum().backward()
        >>> z.tolist(), [round(g, 4) for g in margin.grad.tolist()]
        ([0.0, 0.0, 1.0], [0.1966, 0.25, 0.105])
    """
    soft = torch.sigmoid(margin / temperature)
    # soft - soft is exactly 0, so the value is exactly that of the hard decision.
    return (margin > 0).to(margin.dtype) + (soft - soft.detach())
