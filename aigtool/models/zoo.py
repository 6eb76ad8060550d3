"""A name to a network, and a checkpoint's weights into it."""

import difflib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
import torchvision.models
from timm.models import get_arch_pretrained_cfgs
from torch import Tensor, nn

import aigtool.models.cifar_resnet  # noqa: F401 (registers its networks with timm)
from aigtool.errors import UserError

TIMM_MODULES = (
    "resnet",
    "resnetv2",
    "res2net",
    "resnest",
    "sknet",
    "senet",
    "byobnet",
    "nfnet",
    "tresnet",
    "byoanet",
    "cifar_resnet",
)
_FAMILY = ("resnet", "resnext", "resnest", "res2ne")
TORCHVISION = "torchvision:"
_PREFIXES = ("module.", "_orig_mod.")
_HUBS = ("hf-hub:", "hf_hub:", "local-dir:")


def list_networks() -> list[str]:
    """Name the ResNets that timm, torchvision and this package publish, worked out from them.

    Example:
        >>> {"resnet50", "torchvision:resnet50", "cifar_resnet56"} <= set(list_networks())
        True
    """
    ours = [
        name
        for module in TIMM_MODULES
        for name in timm.list_models(module=module)
        if any(part in name for part in _FAMILY)
    ]
    return ours + [
        TORCHVISION + name
        for name in torchvision.models.list_models(module=torchvision.models)
        if any(part in name for part in _FAMILY)
    ]


def create_network(
    name: str, *, pretrained: bool = False, num_classes: int | None = None
) -> nn.Module:
    """Build a network by name.

    Args:
        name: A timm name (``resnet50.a1_in1k``, ``cifar_resnet56``, ``hf-hub:...``,
            ``local-dir:...``), or ``torchvision:`` and a torchvision name.
        pretrained: Whether to fetch the published weights; a tag in the name says which.
        num_classes: Outputs of the classifier; the published number by default.

    Returns:
        The network, on the CPU, in evaluation mode.

    Raises:
        UserError: The name is unknown, or the published weights cannot be had.

    Example:
        >>> create_network("cifar_resnet20", num_classes=5).num_classes
        5
    """
    if num_classes is not None and num_classes < 1:
        raise UserError(f"number of classes {num_classes}: expected a whole number of at least 1")
    try:
        if name.startswith(TORCHVISION):
            network = _torchvision(name, pretrained, num_classes)
        else:
            if not name.startswith(_HUBS) and not timm.is_model(name.split(".", 1)[0]):
                raise _unknown(name)
            options = {} if num_classes is None else {"num_classes": num_classes}
            network = timm.create_model(name, pretrained=pretrained, **options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"network {name!r} could not be built{' with its published weights' * pretrained}: "
            f"{error}"
        ) from error
    return network.eval()


def published_weights(name: str) -> list[str]:
    """Name the published weights of a network: timm's tags or torchvision's enum.

    Example:
        >>> published_weights("torchvision:resnet18"), published_weights("cifar_resnet20")
        (['IMAGENET1K_V1'], [])
    """
    if name.startswith(TORCHVISION):
        weights = torchvision.models.get_model_weights(name.removeprefix(TORCHVISION))
        return [member.name for member in weights]
    configs = get_arch_pretrained_cfgs(name)
    return [tag.partition(".")[2] for tag, config in configs.items() if config.has_weights]


def count_classes(network: nn.Module) -> int:
    """Return a network's number of outputs: timm's answer, or its last linear layer's.

    Raises:
        UserError: Neither is there.

    Example:
        >>> count_classes(create_network("torchvision:resnet18", num_classes=7))
        7
    """
    if isinstance(answer := getattr(network, "num_classes", None), int):
        return answer
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise UserError(f"{type(network).__name__} does not tell its number of classes")
    return linear[-1].out_features


def published_class_names(network: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a network's outputs, where it publishes them.

    Example:
        >>> published_class_names(create_network("cifar_resnet20"))[:2]
        ('airplane', 'automobile')
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    names = config.get("label_names")
    if not names or len(names) != getattr(network, "num_classes", None):
        return None
    return tuple(names)


def read_class_names(path: str | Path, count: int) -> tuple[str, ...]:
    """Read class names from a text file, one a line.

    Raises:
        UserError: The file is missing, or has another number of names than ``count``.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"class names {path}: no such file; expected a text file, a name a line")
    lines = path.read_text(errors="replace").splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != count:
        raise UserError(
            f"class names {path} has {len(set(names))} names, the network {count} outputs: "
            "expected a name for each, all different"
        )
    return names


def _torchvision(name: str, pretrained: bool, num_classes: int | None) -> nn.Module:
    name = name.removeprefix(TORCHVISION)
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise _unknown(TORCHVISION + name)
    network = cast(
        nn.Module, torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    )
    if num_classes is not None:
        network.fc = nn.Linear(cast(nn.Linear, network.fc).in_features, num_classes)
    return network


def _unknown(name: str) -> UserError:
    near = difflib.get_close_matches(name, list_networks(), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "`aigtool models` lists the names"
    return UserError(f"no network is called {name!r}; {hint}")


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into a network, every key of it.

    Args:
        network: The architecture that the weights belong to.
        path: ``.safetensors``, or what ``torch.save`` wrote, read with ``weights_only=True``: a
            state dict, or a dict with one under ``state_dict`` or ``model``. The prefixes
            ``module.`` and ``_orig_mod.`` are taken off.

    Raises:
        UserError: The file is missing, empty or no checkpoint, would run code, or its keys or
            shapes are not the network's.
    """
    path = Path(path)
    state = _state_dict(path)
    own = network.state_dict()
    problems = [
        # Checkpoints from before PyTorch 0.4.1 lack the counter; loading fills it in.
        *(
            f"missing {key}"
            for key in own
            if key not in state and not key.endswith("num_batches_tracked")
        ),
        *(f"unexpected {key}" for key in state if key not in own),
        *(
            f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
    ]
    if problems:
        shown = "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" * (len(problems) > 4))
        raise UserError(
            f"weights {path} are of another architecture or number of classes: {shown}; "
            "choose the network they were trained as"
        )
    network.load_state_dict(state)


def _state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; check the path")
    if path.stat().st_size == 0:
        raise UserError(f"weights {path}: the file is empty; fetch it again")
    try:
        if path.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the error below says it
                loaded = torch.load(path, map_location="cpu", weights_only=True)
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
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(value, Tensor) for value in loaded.values())
    ):
        raise UserError(f"weights {path}: no state dict in it; expected names with tensors")
    state = {str(key): value for key, value in loaded.items()}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state
