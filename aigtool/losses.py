"""Target-rate losses: they hold execution rates, not images, to a budget."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from aigtool.errors import UserError
from aigtool.gates import Decision


def execution_rates(decisions: Iterable[Decision]) -> Tensor:
    """Return each gate's execution rate over a minibatch, ``(gates,)``, with its gradient.

    Raises:
        UserError: There are no decisions.

    Example:
        >>> scale = torch.tensor([1.0, 0.0, 1.0, 1.0])
        >>> execution_rates([Decision(scale, scale, "scaled")])
        tensor([0.7500])
    """
    scales = [decision.scale for decision in decisions]
    if not scales:
        raise UserError(
            "no decisions to take rates of: run the network, converted, within recorded_decisions; "
            "one compiled with torch.compile must run there first"
        )
    return torch.stack(scales).float().mean(1)


def per_layer_rate_loss(rates: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over gates of (rate - target)^2.

    Veit and Belongie, ECCV 2018, equation 5.

    Args:
        rates: ``(gates,)``, execution rates over a minibatch.
        targets: ``(gates,)``, or a scalar for all gates.

    Example:
        >>> per_layer_rate_loss(torch.tensor([0.5, 1.0]), torch.tensor(0.6))
        tensor(0.0850)
    """
    return (rates - targets).square().mean()


def network_rate_loss(
    rates: Tensor, target: float | Tensor, weights: Tensor | None = None
) -> Tensor:
    """Return (mean over gates of the rate - target)^2: the network chooses which blocks it keeps.

    Args:
        rates: ``(gates,)``, execution rates over a minibatch.
        target: The wanted mean over gates.
        weights: ``(gates,)``, what each gate counts in the mean; they add up to 1. By default all
            count alike.

    Example:
        >>> network_rate_loss(torch.tensor([0.5, 1.0]), 0.65)
        tensor(0.0100)
        >>> network_rate_loss(torch.tensor([0.5, 1.0]), 0.5, torch.tensor([0.8, 0.2]))
        tensor(0.0100)
    """
    mean = rates.mean() if weights is None else (rates * weights).sum()
    return (mean - target).square()


def rate_band_loss(rates: Tensor, low: float, high: float) -> Tensor:
    """Return the mean over gates of the squared distance from a band of rates.

    It keeps gates off the rails: a gate inside the band is free, one outside is drawn back.

    Args:
        rates: ``(gates,)``, execution rates over a minibatch.
        low: The band's lower end.
        high: Its upper end.

    Example:
        >>> rate_band_loss(torch.tensor([0.1, 0.5, 1.0]), 0.2, 0.9)
        tensor(0.0067)
    """
    return ((low - rates).relu() + (rates - high).relu()).square().mean()


def information_loss(
    means: Tensor, uncertainty: Tensor, least: float = math.log(2), share: float = 1.0
) -> Tensor:
    """Return the mean over gates of how much less than ``least`` a decision tells of the image.

    The mutual information of a gate's decision and the image, H(mean p) - mean H(p), is zero for
    a gate that answers every image alike, with certainty or by chance, and ln 2 for one that is
    certain of every image, on for half of them. So it keeps gates both adaptive and
    deterministic, which a band of rates alone does not: a gate that executes at random has a rate
    inside the band. It is the objective of Krause, Perona and Gomes (NIPS 2010) for clustering,
    but that a gate which tells enough is free to be on for few images or for many: one that is
    certain of each, and on for a tenth of them or for all but a tenth, tells 0.33 nats. Some
    blocks are worth running for every image: with a ``share`` below 1 the loss is zero already
    when so many of the gates tell enough and the others nothing, whichever they are.

    Args:
        means: ``(gates,)``, probabilities of executing, over images.
        uncertainty: ``(gates,)``, of ``decision_entropy``, over images.
        least: In nats, at most ln 2.
        share: Of the gates, 0..1.

    Example:
        >>> certain = torch.tensor([[0.0, 1.0], [1.0, 1.0]])
        >>> information_loss(certain.mean(1), decision_entropy(certain)) / math.log(2)
        tensor(0.5000)
        >>> information_loss(certain.mean(1), decision_entropy(certain), least=0.3)
        tensor(0.1500)
        >>> information_loss(certain.mean(1), decision_entropy(certain), least=0.3, share=0.5)
        tensor(0.)
    """
    missing = (least - (_entropy(means) - uncertainty)).relu().mean()
    return (missing - (1 - share) * least).relu()


def decision_entropy(probabilities: Tensor) -> Tensor:
    """Return the mean entropy of each gate's decisions, in nats: zero for a certain gate.

    Args:
        probabilities: ``(gates, N)``, of executing each image of a minibatch.

    Returns:
        ``(gates,)``.

    Example:
        >>> bits = decision_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])) / math.log(2)
        >>> bits.round(decimals=3)
        tensor([1., 0.])
    """
    return _entropy(probabilities).mean(1)


def _entropy(probability: Tensor) -> Tensor:
    edge = torch.finfo(probability.dtype).eps  # whose logarithm still has a gradient
    on = probability.clamp(edge, 1 - edge)
    return -(on * on.log() + (1 - on) * (1 - on).log())


class ClassProbabilities(nn.Module):
    """Each class's mean probability of executing a block, over its latest images.

    It takes the place of an image's own probability where decisions are asked what they tell of
    the class: H(mean p) less the mean entropy of these is their mutual information with it. A
    mean over few images tells as much of these images as of their class; so where classes are
    many, it goes back further than other running means do.

    Args:
        gates: Number of gates.
        classes: Number of classes.
        window: Images of all classes after which one counts 1/e of what it did; at least
            ``LEAST_IMAGES`` of each class.

    Example:
        >>> known = ClassProbabilities(gates=1, classes=2, window=128)
        >>> probabilities = torch.tensor([[1.0, 0.0, 0.3, 0.3]])
        >>> known(probabilities, torch.tensor([0, 0, 1, 1]))
        tensor([[0.5000, 0.5000, 0.3000, 0.3000]])
    """

    LEAST_IMAGES = 32
    total: Tensor
    weight: Tensor

    def __init__(self, gates: int, classes: int, window: float = 1024) -> None:
        super().__init__()
        self.window = max(window / classes, self.LEAST_IMAGES)
        self.register_buffer("total", torch.zeros(classes, gates))
        self.register_buffer("weight", torch.zeros(classes))

    def forward(self, probabilities: Tensor, labels: Tensor) -> Tensor:
        """Take in a minibatch and return, in each image's place, the mean of its class.

        Args:
            probabilities: ``(gates, N)``, of executing; their gradient is handed on as if the
                means were theirs.
            labels: ``(N,)``.

        Returns:
            ``(gates, N)``.
        """
        ones = torch.ones_like(labels, dtype=self.weight.dtype)
        images = torch.zeros_like(self.weight).index_add_(0, labels, ones)
        sums = torch.zeros_like(self.total).index_add_(0, labels, probabilities.detach().T)
        kept = torch.exp(-images / self.window)
        entering = (1 - kept) / images.clamp(min=1)
        self.total.mul_(kept[:, None]).add_(entering[:, None] * sums)
        self.weight.mul_(kept).add_(1 - kept)
        means = (self.total[labels] / self.weight[labels, None]).T
        return means.clamp(0, 1) + (probabilities - probabilities.detach())


class RunningRates(nn.Module):
    """Execution rates, or other means, over the latest images, however small the minibatches.

    The rate over a few images is noise: squared, it adds its variance to a loss, whose gradient
    then drives gates to 0 or 1. So the value is an average over images that forgets
    exponentially, without the bias of its start, and the gradient is that of the minibatch.

    Args:
        gates: Number of gates.
        window: Images after which a minibatch counts 1/e of what it did.

    Example:
        >>> running = RunningRates(gates=1, window=64)
        >>> rates = torch.tensor([1.0], requires_grad=True)
        >>> running(rates, images=8).tolist()
        [1.0]
        >>> (value,) = running(torch.zeros(1, requires_grad=True), images=8).tolist()
        >>> round(value, 3)
        0.469
    """

    total: Tensor
    weight: Tensor

    def __init__(self, gates: int, window: float = 1024) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("total", torch.zeros(gates))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, rates: Tensor, images: int) -> Tensor:
        """Take in a minibatch's rates, ``(gates,)``, and return the running ones."""
        kept = math.exp(-images / self.window)
        self.total.mul_(kept).add_((1 - kept) * rates.detach())
        self.weight.mul_(kept).add_(1 - kept)
        return self.mean + (rates - rates.detach())

    @property
    def mean(self) -> Tensor:
        """The running rates, ``(gates,)``."""
        return self.total / self.weight
