"""Batch norms folded into the layers before them."""

import copy
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import skip_init
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from aigtool.gates import Decision, Gate, no_autocast, pooled
from aigtool.inference.launching import Launches

_problem = ""
try:
    from aigtool.inference import native
except ImportError as error:
    native, _problem = None, str(error)  # type: ignore[assignment]

_HALF = (torch.float16, torch.bfloat16)
"""Types in which a sum over positions is soon too large."""


def fold_norms(network: nn.Module, norms: Mapping[str, str]) -> None:
    """Fold batch norms into convolutions, in place; the network computes the same but for rounding.

    Args:
        network: In evaluation mode.
        norms: By name of a convolution, the batch norm that alone reads what it computes.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)).eval()
        >>> fold_norms(layers, {"0": "1"})
        >>> layers[1]
        Identity()
    """
    for convolution, norm in norms.items():
        before, after = network.get_submodule(convolution), network.get_submodule(norm)
        folded = fuse_conv_bn_eval(cast(nn.Conv2d, before), cast(nn.BatchNorm2d, after))
        network.set_submodule(convolution, folded)
        # timm's norms may have an activation in them.
        network.set_submodule(norm, getattr(after, "act", nn.Identity()))


FEW = 4
"""Most images of whose decisions Python numbers are computed: a tensor operation on so few takes
longer to begin than to do, the more so as convolutions have driven its code out of the cache."""


def why_not_native() -> str | None:
    """Tell why gates are not computed in C, which is compiled when aigtool is installed."""
    return None if native is not None else _problem


class FoldedGate(Gate):
    """A gate of the same logits, but for rounding, in fewer operations.

    Its batch norm lies in its first layer, and its last layer computes one number, the difference
    of the two logits; for few images on a CPU these are computed in one go, where
    ``native.c`` was compiled, else in Python. Weights stay what they are.

    Args:
        gate: In evaluation mode; it is left as it is.
        launches: What its network has recorded for a GPU.

    Example:
        >>> gate, x = Gate(8).eval(), torch.randn(2, 8, 3, 3)
        >>> torch.allclose(FoldedGate(gate).logit(x), gate.logit(x))
        True
    """

    def __init__(self, gate: Gate, launches: Launches | None = None) -> None:
        nn.Module.__init__(self)  # Gate's draws weights, which no copy needs.
        vars(self).update(vars(copy.deepcopy(gate)))
        self.launches = launches or Launches()
        self._owner = object()
        self.fc1 = fuse_linear_bn_eval(gate.fc1, gate.norm)
        self.norm = cast(nn.BatchNorm1d, nn.Identity())
        weight = gate.fc2.weight
        self.fc2 = skip_init(  # type: ignore[no-untyped-call]
            nn.Linear, gate.width, 1, dtype=weight.dtype, device=weight.device
        )
        with torch.no_grad():
            for ours, theirs in zip(self.fc2.parameters(), gate.fc2.parameters(), strict=True):
                ours.copy_(theirs[1:] - theirs[:1])
        self.requires_grad_(False)
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            _remember_loaded
        )
        self._remember()

    def forward(self, x: Tensor) -> Decision:
        """Decide for a batch of block inputs, ``(N, C, H, W)``."""
        if self.policy != "argmax" or torch.is_grad_enabled():
            return super().forward(x)
        if (desk := self.launches.desk_of(x)) is not None:
            threshold = self.threshold.to(x.device)
            scale, logit = desk.run(self._owner, self._decide, 0, (0,), x, threshold)
            if self._forward_hooks:  # Who watches may keep what the next launch writes over.
                scale, logit = scale.clone(), logit.clone()
            return Decision(scale, logit, "chosen")
        if len(x) > FEW:
            return super().forward(x)
        executed, logits = self.few(x)
        return Decision(x.new_tensor(executed), torch.tensor(logits, device=x.device), "chosen")

    def _decide(self, _variant: int, x: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        logit = self.logit(x)
        return (logit > threshold).to(x.dtype), logit

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FoldedGate":
        """Move or convert it, as ``nn.Module`` does."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._remember()
        return self

    def _remember(self) -> None:
        """Keep weights as few images take them; record anew."""
        self.launches.forget()
        units = self.fc1.bias[:, None], self.fc2.weight.t(), self.fc1.weight
        self._units = torch.cat(units, 1).float().numpy(force=True)
        self._dtype = self.fc1.weight.dtype
        self._first_bias: list[float] = self.fc1.bias.tolist()
        self._last_weight: list[float] = self.fc2.weight[0].tolist()
        self._last_bias: float = self.fc2.bias.item()

    def few(self, x: Tensor) -> tuple[list[bool], list[float]]:
        """Return which of a few images execute, and their logits, by the policy ``argmax``."""
        if self._is_native(x):
            positions = x.shape[2] * x.shape[3]
            logits = native.logits(x.data_ptr(), len(x), positions, self._units, self._last_bias)
        else:
            logits = self._python_logits(x)
        thresholds = self.threshold.tolist()
        if not isinstance(thresholds, list):
            thresholds = [thresholds] * len(logits)
        return [logit > least for logit, least in zip(logits, thresholds, strict=True)], logits

    def _is_native(self, x: Tensor) -> bool:
        """Whether ``native.c`` is there, and features lie in memory as it reads them."""
        return (
            native is not None
            and not torch.compiler.is_compiling()
            and x.dtype == self._dtype == torch.float32
            and x.device.type == "cpu"
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.shape[1] == self.channels
            and x.numel() > 0
            and type(x) is Tensor  # Others, of a tracer say, may lie nowhere.
        )

    def _python_logits(self, x: Tensor) -> list[float]:
        if x.dtype in _HALF:
            with no_autocast(x.device.type):
                products = F.linear(pooled(x, self.fc1.weight.dtype), self.fc1.weight)
            share = 1.0
        else:
            # A product of matrices takes longer to begin.
            products = (self.fc1.weight * x.sum(dim=(2, 3)).unsqueeze(1)).sum(2)
            share = 1 / (x.shape[2] * x.shape[3])
        return [self._logit(of_image, share) for of_image in products.tolist()]

    def _logit(self, products: list[float], share: float) -> float:
        logit = self._last_bias
        for product, bias, weight in zip(
            products, self._first_bias, self._last_weight, strict=True
        ):
            unit = product * share + bias
            if not unit <= 0:  # What is not a number stays so.
                logit += unit * weight
        return logit

    def logit(self, x: Tensor) -> Tensor:
        """Return the logit difference "execute" minus "skip", ``(N,)`` in float32."""
        with no_autocast(x.device.type):
            if x.dtype in _HALF:
                hidden = self.fc1(pooled(x, self.fc1.weight.dtype))
            else:
                share = 1 / (x.shape[2] * x.shape[3])
                total, weight = x.sum(dim=(2, 3)), self.fc1.weight.t()
                hidden = torch.addmm(self.fc1.bias, total, weight, alpha=share)
            return F.linear(hidden.relu_(), self.fc2.weight, self.fc2.bias).squeeze(1).float()


def _remember_loaded(gate: FoldedGate, _incompatible: object) -> None:
    gate._remember()
