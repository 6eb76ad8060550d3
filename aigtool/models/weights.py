"""Weights from checkpoint files, which cannot run code, into a network."""

import argparse
import pickle
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from aigtool.errors import UserError

_PLAIN = ("state_dict", "model")
_EMA = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_AVERAGES = "n_averaged"
"""The key by which the state dict of torch's ``AveragedModel`` is known."""
_COUNTER = "num_batches_tracked"
"""Of norms; checkpoints from before PyTorch 0.4.1 lack it."""


@dataclass(frozen=True)
class LoadedWeights:
    """Where a network's weights came from.

    Attributes:
        origin: The file's name, ``"published"`` or ``"random"``.
        entry: The entry of the file that they were in; empty for a bare state dict.
        other: The entry with other weights, averaged (EMA) or not, if the file has both.
        fresh: The classifier's name, if it was left as it was built.
    """

    origin: str
    entry: str = ""
    other: str | None = None
    fresh: str | None = None

    def remarks(self) -> list[str]:
        """Say, a sentence each, what a person may not expect."""
        remarks = []
        if self.other is not None:
            remarks.append(
                f"took the weights under {self.entry!r}, not those under {self.other!r}: "
                "--use-ema takes averaged ones"
            )
        elif self.entry in _EMA:
            remarks.append(f"took the averaged weights under {self.entry!r}, the only ones in it")
        if self.fresh is not None:
            remarks.append(f"the classifier {self.fresh!r} is new and untrained")
        return remarks


def load_weights(
    network: nn.Module, path: str | Path, *, use_ema: bool = False, new_classes: bool = False
) -> LoadedWeights:
    """Load a checkpoint into a network, every key of it.

    Args:
        network: The architecture that the weights belong to.
        path: ``.safetensors``, or what ``torch.save`` wrote, read with ``weights_only=True``: a
            state dict, or a dict with one under ``state_dict`` or ``model``, or, averaged, under
            ``state_dict_ema``, ``model_ema``, ``ema_state_dict`` or ``ema``. A prefix that all its
            keys have and the network's have not, such as ``module.``, is taken off.
        use_ema: Whether to take the averaged weights where the checkpoint has both.
        new_classes: Whether the network is for other classes than the checkpoint: a classifier of
            another size is then left as it was built.

    Returns:
        What was taken.

    Raises:
        UserError: The file is missing, empty or no checkpoint, would run code, has numbers that
            are not finite, or its keys or shapes are not the network's.
    """
    path = Path(path)
    own = network.state_dict()
    entry, other, wrapped = _entry(path, _read(path), use_ema)
    state = _unwrapped(wrapped, own)
    missing = [key for key in own if key not in state and not key.endswith(_COUNTER)]
    unexpected = [key for key in state if key not in own and not key.endswith(_COUNTER)]
    misshapen = [key for key in own if key in state and state[key].shape != own[key].shape]
    classifier = classifier_name(network)
    is_head = all(
        key.startswith(f"{classifier}.") for key in (*missing, *unexpected, *misshapen)
    ) and bool(missing or misshapen)
    if (missing or unexpected or misshapen) and not (is_head and new_classes):
        if is_head and misshapen:
            given, expected = state[misshapen[0]].shape[0], own[misshapen[0]].shape[0]
            raise UserError(
                f"weights {path} are for {given} classes, the network for {expected}: pass "
                f"--num-classes {given} to keep their classifier, or --num-classes with another "
                "number for a new one"
            )
        if is_head:
            raise UserError(
                f"weights {path} have no classifier ({missing[0]} is missing): pass --num-classes "
                "for a new one"
            )
        if any(".gate.fc1." in key for key in unexpected):
            raise UserError(
                f"weights {path} hold gates: they are a model file; `aigtool convert {path} "
                "--strip` takes the gates out"
            )
        shapes = [
            f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
            for key in misshapen
        ]
        problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        shown = "; ".join(f"{what}: {_some(keys)}" for what, keys in problems.items() if keys)
        raise UserError(
            f"weights {path} are of another architecture: {shown}; choose the network they were "
            "trained as"
        )
    _check_finite(path, state)
    kept = {key: value for key, value in state.items() if key in own and key not in misshapen}
    network.load_state_dict({**own, **kept})
    return LoadedWeights(path.name, entry, other, classifier if is_head else None)


def classifier_name(network: nn.Module) -> str:
    """Return the name of a network's classifier: timm's answer, or its last linear layer.

    Raises:
        UserError: Neither is there.

    Example:
        >>> import torchvision
        >>> classifier_name(torchvision.models.resnet18())
        'fc'
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    if isinstance(classifier := config.get("classifier"), str):
        return classifier
    layers = network.named_modules()
    linear: list[str] = [name for name, layer in layers if isinstance(layer, nn.Linear)]
    if not linear:
        raise UserError(f"{type(network).__name__} has no linear layer for a classifier")
    return linear[-1]


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"weights {path}: the file is empty; fetch it again")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals([argparse.Namespace]),  # timm's checkpoints hold one
        ):
            warnings.simplefilter("ignore", UserWarning)  # the error below says it
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights {path} cannot be read safely: they are no checkpoint, or hold more than "
            "tensors and plain values, and reading that could run code; save the state dict alone"
        ) from error
    # What torch.load raises on a file of another kind depends on the file's first bytes.
    except Exception as error:
        raise UserError(
            f"weights {path}: not a checkpoint, or cut short; expected .safetensors, or a state "
            "dict that torch.save wrote"
        ) from error


def _entry(path: Path, loaded: Any, use_ema: bool) -> tuple[str, str | None, dict[str, Tensor]]:
    """Choose among a checkpoint's state dicts; also name the one not chosen."""
    entries = loaded if isinstance(loaded, Mapping) else {}
    plain, averaged = (
        [name for name in names if isinstance(entries.get(name), Mapping)]
        for names in (_PLAIN, _EMA)
    )
    if use_ema and not averaged and _AVERAGES not in entries:
        raise UserError(
            f"weights {path} hold no averaged weights: expected one of {', '.join(_EMA)}; leave "
            "--use-ema out"
        )
    wanted, others = (averaged, plain) if use_ema or not plain else (plain, averaged)
    chosen = entries[wanted[0]] if wanted else entries
    state = {str(key): value for key, value in chosen.items() if key != _AVERAGES}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights {path}: no state dict in it; expected names with tensors")
    return wanted[0] if wanted else "", others[0] if others else None, state


def _unwrapped(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the prefix that wrappers of a network put before every key."""
    prefix = _shared_prefix(state).removesuffix(_shared_prefix(own))
    bare = {key.removeprefix(prefix): value for key, value in state.items()}
    return state if own.keys().isdisjoint(bare) else bare


def _shared_prefix(keys: Iterable[str]) -> str:
    steps = zip(*(key.split(".")[:-1] for key in keys), strict=False)
    return "".join(f"{names[0]}." for names in takewhile(lambda names: len(set(names)) == 1, steps))


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    bad = [key for key, value in state.items() if not value.isfinite().all()]
    if bad:
        raise UserError(
            f"weights {path} hold NaN or infinity: {_some(bad)}; take a checkpoint from before "
            "training went astray"
        )


def _some(items: list[str], shown: int = 3) -> str:
    more = f" and {len(items) - shown} more" * (len(items) > shown)
    return ", ".join(items[:shown]) + more
