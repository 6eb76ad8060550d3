"""A name to a network, and what is known of a network by name."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torchvision.models
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models import get_arch_pretrained_cfgs, load_model_config_from_hf
from torch import nn

import aigtool.models.cifar_resnet  # noqa: F401 (registers its networks with timm)
from aigtool.blocks import Split
from aigtool.discovery import find_splits
from aigtool.errors import UserError
from aigtool.graphs import UnsplittableBlockError
from aigtool.models.description import Description, InputSpec
from aigtool.models.weights import classifier_name

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
_HF_HUB = ("hf-hub:", "hf_hub:")
_LOCAL_DIR = "local-dir:"
_LOADING = {
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}
"""Options of timm's that read files or the network; no model file may ask for them."""


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


def close_names(name: str) -> list[str]:
    """Name up to three of the networks listed that are spelt much like ``name``.

    Example:
        >>> close_names("resnet5O.a1_in1k")[0]
        'resnet50'
    """
    plain = name.lower() if name.startswith(TORCHVISION) else name.lower().partition(".")[0]
    return difflib.get_close_matches(plain.strip("*"), list_networks(), n=3, cutoff=0.6)


def create_network(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a network by name.

    Args:
        name: A timm name (``resnet50.a1_in1k``, ``cifar_resnet56``, ``hf-hub:...``,
            ``local-dir:...``), or ``torchvision:`` and a torchvision name, perhaps with a dot and
            the name of its weights (``torchvision:resnet50.IMAGENET1K_V2``).
        pretrained: Whether to fetch the published weights; a tag in the name says which.
        num_classes: Outputs of the classifier; the published number by default.
        options: Of the architecture, as a ``Description`` holds them.

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
    if name.startswith(TORCHVISION):
        build = partial(_build_torchvision, name, pretrained, num_classes)
    else:
        _check_timm(name, pretrained)
        if loading := _LOADING & set(options or {}):
            raise UserError(f"option {loading.pop()!r} of {name!r} would load a file: leave it out")
        chosen = {
            **(options or {}),
            **({} if num_classes is None else {"num_classes": num_classes}),
        }
        build = partial(timm.create_model, name, pretrained=pretrained, **chosen)
    try:
        return build().eval()
    except UserError:
        raise
    # Libraries and the network connection beneath raise errors of many kinds.
    except Exception as error:
        advice = ""
        if name.startswith(_HF_HUB):
            advice = "fetch it elsewhere and give its folder as local-dir:FOLDER"
        elif pretrained and not name.startswith(_LOCAL_DIR):
            advice = "fetch them elsewhere and give the file with --weights"
        raise UserError(
            f"network {name!r} could not be built{' with its published weights' * pretrained}: "
            f"{str(error).rstrip('.')}"
            f"{f'; if there is no network connection here, {advice}' * bool(advice)}"
        ) from error


def describe(name: str, network: nn.Module, *, pretrained: bool = False) -> Description:
    """Describe a network that ``create_network`` built: its classes and its input.

    Args:
        name: As it was given to ``create_network``. What it refers to on a hub or in a folder
            is resolved, so that a model file needs neither.
        network: The network.
        pretrained: Whether its weights are the published ones.

    Example:
        >>> describe("cifar_resnet20", create_network("cifar_resnet20")).class_names[:2]
        ('airplane', 'automobile')
    """
    source, options = _resolve(name)
    spec = InputSpec.of(network)
    if name.startswith(TORCHVISION):
        architecture, weights = _torchvision_weights(name, default=pretrained)
        if weights is not None:
            source = f"{TORCHVISION}{architecture}.{weights.name}"
            spec = InputSpec.of_transforms(weights.transforms())
    return Description(
        source=source,
        options=options,
        num_classes=count_classes(network),
        class_names=published_class_names(network),
        input=spec,
    )


@dataclass(frozen=True)
class NetworkFacts:
    """What is known of a network by name, without its weights.

    Attributes:
        name: As ``create_network`` takes it.
        blocks: How many residual blocks it has that look as if they can be gated.
        params: Number of parameters.
        input_size: Channels, height and width.
        problem: Why it cannot be converted; None where it can.
    """

    name: str
    blocks: int
    params: int
    input_size: tuple[int, int, int]
    problem: str | None


def look_up(name: str) -> NetworkFacts:
    """Learn about a network without building its weights.

    Example:
        >>> facts = look_up("cifar_resnet20")
        >>> facts.blocks, facts.params, facts.input_size, facts.problem
        (9, 269722, (3, 32, 32), None)
    """
    with torch.device("meta"):
        network = create_network(name)
    found = find_splits(network)
    refused = {n: e for n, e in found.items() if isinstance(e, UnsplittableBlockError)}
    blocks = sum(isinstance(parts, Split) for parts in found.values())
    problems = [f"{block}: {reason}" for block, reason in refused.items()]
    return NetworkFacts(
        name=name,
        blocks=blocks,
        params=sum(parameter.numel() for parameter in network.parameters()),
        input_size=InputSpec.of(network).size,
        problem="; ".join(problems) or (None if blocks else "no residual block found"),
    )


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


def count_published_classes(network: nn.Module) -> int | None:
    """Return how many classes the published weights of a network are for, if that is known.

    Example:
        >>> count_published_classes(create_network("resnet18", num_classes=7))
        1000
    """
    config = getattr(network, "pretrained_cfg", None) or {"num_classes": 1000}
    count: int | None = config.get("num_classes")
    return count


def published_class_names(network: nn.Module) -> tuple[str, ...] | None:
    """Return the names of a network's outputs as published: ImageNet's are its WordNet ids.

    Example:
        >>> published_class_names(create_network("torchvision:resnet18"))[0]
        'n01440764'
        >>> published_class_names(create_network("resnet18", num_classes=7))
    """
    classes = count_classes(network)
    if classes != count_published_classes(network):
        return None
    config = getattr(network, "pretrained_cfg", None) or {}
    if names := config.get("label_names"):
        return tuple(names) if len(names) == classes else None
    subset = infer_imagenet_subset({"num_classes": classes})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def _resolve(name: str) -> tuple[str, dict[str, Any]]:
    """Turn a name on a hub or of a folder into the architecture there and its options."""
    if name.startswith(_HF_HUB):
        _, architecture, options = load_model_config_from_hf(name.partition(":")[2])
        return architecture, dict(options)
    if name.startswith(_LOCAL_DIR):
        config = json.loads((Path(name.removeprefix(_LOCAL_DIR)) / "config.json").read_text())
        return config["architecture"], config.get("model_args") or {}
    return name, {}


def _check_timm(name: str, pretrained: bool) -> None:
    if name.startswith((*_HF_HUB, _LOCAL_DIR)):
        return
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown(name)
    published = published_weights(architecture)
    if pretrained and not published:
        raise UserError(f"network {name!r} has no published weights: give your own with --weights")
    known = [key.partition(".")[2] for key in get_arch_pretrained_cfgs(architecture)]
    expected = published if pretrained else known
    if tag and tag not in expected:
        raise UserError(
            f"no weights {tag!r} of {architecture}: expected {', '.join(expected) or 'no tag'}"
        )


def _torchvision_weights(name: str, *, default: bool) -> tuple[str, Any]:
    """The architecture, and the weights that the name says, or the best ones, or None."""
    architecture, _, tag = name.removeprefix(TORCHVISION).partition(".")
    if architecture not in torchvision.models.list_models(module=torchvision.models):
        raise _unknown(name)
    weights = torchvision.models.get_model_weights(architecture)
    if tag and tag not in weights.__members__:
        names = ", ".join(weights.__members__)
        raise UserError(f"no weights {tag!r} of {TORCHVISION}{architecture}: expected {names}")
    return architecture, weights[tag] if tag else weights.DEFAULT if default else None


def _build_torchvision(name: str, pretrained: bool, num_classes: int | None) -> nn.Module:
    architecture, weights = _torchvision_weights(name, default=True)
    chosen = weights if pretrained else None
    network: nn.Module = torchvision.models.get_model(architecture, weights=chosen)
    if num_classes is not None:
        name = classifier_name(network)
        classifier = cast(nn.Linear, network.get_submodule(name))
        if num_classes != classifier.out_features:
            network.set_submodule(name, nn.Linear(classifier.in_features, num_classes))
    return network


def _unknown(name: str) -> UserError:
    prefix, colon, _ = name.partition(":")
    if colon and f"{prefix}:" != TORCHVISION:
        return UserError(
            f"network {name!r}: {prefix!r} is no library; expected torchvision:, hf-hub:, "
            "local-dir:, or no prefix for timm's networks and ours"
        )
    near = close_names(name)
    hint = f"did you mean {', '.join(near)}?" if near else "`aigtool models` lists the ResNets"
    return UserError(f"no network is called {name!r}; {hint}")
