"""What a training step minimises."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aigtool.budget import Budget
from aigtool.flops import NetworkFlops
from aigtool.gates import Decision, Gate
from aigtool.gpu import aside, reads_here, rejoin
from aigtool.losses import (
    ClassProbabilities,
    RunningRates,
    decision_entropy,
    information_loss,
    network_rate_loss,
    per_layer_rate_loss,
    rate_band_loss,
)
from aigtool.training.config import FinetuneConfig, noise_at
from aigtool.training.hints import hint_loss, recorded_features
from aigtool.training.processes import ALONE, Processes

CARRIED = 8
"""Rate windows over which what rates miss their target by is asked for once more."""
MOST_EXCESS = 0.1
"""What new images are believed to execute more at most: early in a run gates still change much."""
MOST_CARRIED = 0.25
"""What is carried at most: a gate that cannot move is not pushed ever harder."""

_GATE_TERMS = ("gate_loss", "rate_loss", "execution_rate", "argmax_rate")
_MEANS = ("execution", "argmax", "probability", "uncertainty")
"""Of each gate over the latest images."""


class Objective(nn.Module):
    """Cross entropy, distillation from a teacher, and the losses that hold rates to a target.

    The target falls from 1 to what is asked over ``target_ramp`` of the run. What the losses pull
    against each other would settle a little above it; so by how much rates have missed it is
    carried along and asked for as well, as a Lagrange multiplier is (Platt and Barr, NIPS 1987).
    Gates are more certain of images that they were trained on: by how much more blocks new images
    execute (``land``), the target is less.

    ``(1 - distill) * cross entropy + distill * T^2 * KL(teacher || network) + hints * hint loss +
    rate_weight * target-rate loss + band * band loss + information * information loss +
    certainty * (1 - noise) * mean decision entropy``; distillation is that of Hinton, Vinyals and
    Dean (2015), with T ``distill_temperature``. Its state is the running means, what is carried and
    by how much new images differ.

    Args:
        config: Options.
        gates: The network's gates by name; none for a network that just trains.
        flops: What ``count_flops`` counted for the network.
        teacher: Takes pixels; frozen. None where nothing is learnt from one.
        images: What the run will see in all, each as often as it is seen: rates are averaged over
            a 50th of that at most, lest they lag behind the gates in a short run.
        classes: Outputs of the network.
        places: Names of modules, of the teacher and of what is trained, for hints.
        processes: Those that train the network together: rates are those over the minibatch of all.
    """

    weights: Tensor
    targets: Tensor
    aimed: Tensor
    certainty: Tensor
    carried: Tensor
    excess: Tensor

    def __init__(
        self,
        config: FinetuneConfig,
        gates: Mapping[str, Gate],
        flops: NetworkFlops,
        teacher: nn.Module | None,
        images: int,
        *,
        classes: int,
        places: Sequence[str] = (),
        processes: Processes = ALONE,
    ) -> None:
        super().__init__()
        self.config = config
        self.processes = processes
        self.gates = dict(gates)
        self.distill = 0.0 if teacher is None else config.distill or 0.0
        self.hints = 0.0 if teacher is None else config.hints or 0.0
        self.places = list(places) if self.hints else []
        self._features: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}
        self._teacher = (teacher,)  # in a tuple, lest its weights count as the objective's state
        window = min(config.rate_window, images / 50)
        self.running = RunningRates(len(_MEANS) * len(gates), window)
        about_class = bool(config.information) and config.information_about == "class"
        self.known = ClassProbabilities(len(gates), classes, window) if about_class else None
        self.register_buffer("certainty", torch.zeros(()), persistent=False)
        if gates:
            weights = torch.tensor(config.budget.weights(flops), dtype=torch.float32)
            wanted = self.layer_targets if config.is_per_layer else config.budget.mean_rate(flops)
            self.register_buffer("weights", weights, persistent=False)
            self.register_buffer("targets", torch.tensor(wanted), persistent=False)
            self.register_buffer("aimed", torch.ones_like(self.targets), persistent=False)
            self.register_buffer("carried", torch.zeros_like(self.targets))
            self.register_buffer("excess", torch.zeros_like(self.targets))

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Record the features for hints of what is trained, and those of the teacher."""
        (teacher,) = self._teacher
        if teacher is None:
            yield
            return
        with (
            recorded_features(network, self.places) as self._features,
            recorded_features(teacher, self.places) as self._wanted,
        ):
            yield

    @property
    def layer_targets(self) -> list[float]:
        """Each gate's target: its own, where it has one."""
        own = (gate.target for gate in self.gates.values())
        return [self.config.budget.share if target is None else target for target in own]

    @property
    def budget(self) -> Budget | None:
        """What to spend in all; None without gates, or where their own targets leave it all."""
        if not self.gates:
            return None
        if not self.config.is_per_layer:
            return self.config.budget
        mean = fmean(self.layer_targets)
        return Budget(mean) if mean < 1 else None

    def advance(self, progress: float) -> None:
        """Say how much of the run is done, 0..1: what is asked for depends on it."""
        if self.gates:
            noise = noise_at(progress, self.config.noise_hold, self.config.noise_end)
            self.certainty.fill_(self.config.certainty * (1 - noise))
            self.aimed.copy_(self._targets(progress))

    def forward(
        self,
        pixels: Tensor,
        labels: Tensor,
        logits: Tensor,
        decisions: Mapping[str, Decision],
    ) -> dict[str, Tensor]:
        """Return ``loss``, ``rate_loss`` and, of the minibatch, ``correct`` and execution rates.

        What gates add to the loss is computed ``aside``: on a GPU, ``backward`` or ``rejoin`` comes
        before any of it is read.

        Args:
            pixels: ``(N, C, H, W)``, for the teacher.
            labels: ``(N,)``, or ``(N, classes)``, shares of mixed images.
            logits: ``(N, classes)``, the network's.
            decisions: By name of a gate, from ``recorded_decisions``; of gates whose thresholds
                are zero (``Gate.absorb_threshold``).
        """
        hard = labels if labels.ndim == 1 else labels.argmax(1)
        loss = self.task_loss(pixels, labels, logits)
        terms = {
            "loss": loss,
            "task_loss": loss,
            "correct": (logits.argmax(1) == hard).sum(),
            "rate_loss": torch.zeros_like(loss),
            "execution_rate": torch.ones_like(loss),
            "argmax_rate": torch.ones_like(loss),
        }
        if self.gates:
            made = [decisions[name] for name in self.gates]
            terms.update(aside(loss.device, self._terms_of_gates, made, hard, loss))
        return terms

    def backward(self, terms: Mapping[str, Tensor], factor: Tensor) -> None:
        """Add the gradient of the loss times a factor to those of weights, and rejoin.

        Both parts go backwards for themselves, so that on a GPU neither waits for the other.
        """
        parts = [terms[name] for name in ("task_loss", "gate_loss") if name in terms]
        wanted = [part for part in parts if part.requires_grad]
        torch.autograd.backward(wanted, [factor] * len(wanted))
        if "gate_loss" in terms:
            rejoin(factor.device)
        self._features.clear()  # They hold the graph, and with it the streams that it ran on.
        self._wanted.clear()

    def _terms_of_gates(
        self, made: Sequence[Decision], hard: Tensor, task_loss: Tensor
    ) -> dict[str, Tensor]:
        reads_here(hard)
        scales = torch.stack([decision.scale for decision in made]).float()
        gate_logits = torch.stack([decision.logit for decision in made])
        if self.processes.count > 1:
            both = self.processes.gather(torch.stack([scales, gate_logits]).permute(2, 0, 1))
            scales, gate_logits = both.permute(1, 2, 0)
            hard = self.processes.gather(hard)
        terms = dict(zip(_GATE_TERMS, self.gate_terms(scales, gate_logits, hard), strict=True))
        return {**terms, "loss": task_loss + terms["gate_loss"]}

    def gate_terms(
        self, scales: Tensor, gate_logits: Tensor, hard: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what gates add to the loss, the rate loss, and the minibatch's two mean rates.

        Args:
            scales: ``(gates, N)``, whether each image executes a block.
            gate_logits: ``(gates, N)``.
            hard: ``(N,)``, labels.
        """
        config, images = self.config, len(hard)
        rates, argmax_rates = scales.mean(1), (gate_logits > 0).float().mean(1)
        probabilities = gate_logits.sigmoid()
        uncertainty = untold = decision_entropy(probabilities)
        if self.known is not None:
            untold = decision_entropy(self.known(probabilities, hard))
        means = torch.cat([rates, argmax_rates, probabilities.mean(1), untold])
        running = self.running(means, images).view(len(_MEANS), -1)
        running_rates, _, running_probabilities, untold = running.unbind()
        rate_loss = self.rate_loss(running_rates, self.aimed).detach()
        aimed = self.aimed - self.carried
        loss = config.rate_weight * self.rate_loss(running_rates, aimed)
        self._carry(running_rates.detach() - self.aimed, images)
        if config.band:
            band = rate_band_loss(running_rates, config.band_low, config.band_high)
            loss = loss + config.band * band
        if config.information:
            information = information_loss(
                running_probabilities.clamp(0, 1),
                untold,
                config.least_information,
                config.informed_share,
            )
            loss = loss + config.information * information
        if config.certainty:
            loss = loss + self.certainty * uncertainty.mean()
        return loss, rate_loss, rates.mean(), argmax_rates.mean()

    def task_loss(self, pixels: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Return cross entropy, distillation and hints, weighted."""
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self.config.smoothing)
        (teacher,) = self._teacher
        if teacher is None or not (self.distill or self.hints):
            return loss
        temperature = self.config.distill_temperature
        with torch.no_grad():
            wanted = (teacher(pixels).float() / temperature).log_softmax(1)
        given = (logits / temperature).log_softmax(1)
        divergence = F.kl_div(given, wanted, log_target=True, reduction="batchmean")
        loss = (1 - self.distill) * loss + self.distill * temperature**2 * divergence
        return loss + self.hints * hint_loss(self._features, self._wanted) if self.places else loss

    def rate_loss(self, rates: Tensor, targets: Tensor) -> Tensor:
        """Return the target-rate loss of each gate's rate, ``(gates,)``."""
        if self.config.is_per_layer:
            return per_layer_rate_loss(rates, targets)
        return network_rate_loss(rates, targets, self.weights)

    def _targets(self, progress: float) -> Tensor:
        ramp = self.config.target_ramp or 0.0
        targets = self.targets - self.excess
        return 1 - (1 - targets) * (min(1.0, progress / ramp) if ramp else 1.0)

    def _carry(self, missed: Tensor, images: int) -> None:
        """Add what each gate's rate missed a target by."""
        share = min(1.0, images / self.running.window) / CARRIED
        self.carried.add_(share * self._held(missed)).clamp_(-MOST_CARRIED, MOST_CARRIED)

    def land(self, rates: Sequence[float]) -> None:
        """Take up by how much more new images execute than those of training do, without noise.

        Args:
            rates: Each gate's execution rate over validation images, with thresholds as in
                training.
        """
        known = self.running.mean.view(len(_MEANS), -1)[_MEANS.index("argmax")]
        more = torch.tensor(rates).to(self.weights) - known
        self.excess.copy_(self._held(more).clamp(-MOST_EXCESS, MOST_EXCESS))

    def _held(self, rates: Tensor) -> Tensor:
        """Return what is held to a target: each gate's rate, or that of the network."""
        return rates if self.config.is_per_layer else (rates * self.weights).sum()
