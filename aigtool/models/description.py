"""What a model file says about its network, besides the weights."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from aigtool.conversion import named_gates, named_shortcuts
from aigtool.device import to_channels_last
from aigtool.gates import POLICIES, Policy
from aigtool.models.override import InputOverride

FORMAT_VERSION = 1


@dataclass(frozen=True)
class InputSpec:
    """How an image becomes the network's input.

    Attributes:
        size: Channels, height, width.
        mean: Per channel, subtracted from pixels in 0..1.
        std: Per channel, divided by.
        interpolation: timm's name of the resizing filter.
        crop_pct: The share of the resized image that the centre crop keeps.
        crop_mode: timm's name of the cropping: center, squash or border.
    """

    size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    @classmethod
    def of(cls, network: nn.Module) -> "InputSpec":
        """Read it off a timm network's ``pretrained_cfg``; else ImageNet's, as torchvision uses.

        Example:
            >>> from aigtool.models.cifar_resnet import cifar_resnet20
            >>> InputSpec.of(cifar_resnet20()).size
            (3, 32, 32)
        """
        if not hasattr(network, "pretrained_cfg"):
            return cls()
        config = resolve_model_data_config(network)
        return cls(
            size=tuple(config["input_size"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            interpolation=config["interpolation"],
            crop_pct=config["crop_pct"],
            crop_mode=config["crop_mode"],
        )

    @classmethod
    def of_transforms(cls, transforms: Any) -> "InputSpec":
        """Read it off the transforms that torchvision publishes with weights.

        Example:
            >>> from torchvision.models import ResNet50_Weights
            >>> spec = InputSpec.of_transforms(ResNet50_Weights.IMAGENET1K_V2.transforms())
            >>> spec.size, round(spec.crop_pct, 3)
            ((3, 224, 224), 0.966)
        """
        side = transforms.crop_size[0]
        return cls(
            size=(3, side, side),
            mean=tuple(transforms.mean),
            std=tuple(transforms.std),
            interpolation=transforms.interpolation.value,
            crop_pct=side / transforms.resize_size[0],
        )

    def overridden(self, by: InputOverride) -> "InputSpec":
        """Return a copy with what is given in place of its own.

        Example:
            >>> InputSpec().overridden(InputOverride(img_size=288)).size
            (3, 288, 288)
        """
        given = by.given
        if side := given.pop("img_size", None):
            given["size"] = (self.size[0], side, side)
        return replace(self, **given)


@dataclass(frozen=True)
class Description:
    """The JSON description in a model file's header.

    Attributes:
        source: The network's name, as ``create_network`` takes it; empty for a user's own module.
        num_classes: Outputs of the network.
        class_names: Names in the order of the outputs, where they are known.
        input: How an image becomes the input.
        gated_blocks: The gated blocks' names, each with the target of its own or None.
        gate_width: d of the gates.
        policy: The gate policy at test time.
        history: What was done to the network, oldest first.
        options: Of the architecture, where it was built with other than its own.
        shortcuts: For gated blocks both of whose branches have as many layers, the name of a layer
            on the shortcut.
    """

    source: str
    num_classes: int
    class_names: tuple[str, ...] | None = None
    input: InputSpec = field(default_factory=InputSpec)
    gated_blocks: dict[str, float | None] = field(default_factory=dict)
    gate_width: int = 16
    policy: Policy = "argmax"
    history: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    shortcuts: dict[str, str] = field(default_factory=dict)

    def with_gates_of(self, network: nn.Module) -> "Description":
        """Return a copy that describes the gates which ``network`` has."""
        gates = dict(named_gates(network))
        widths = {gate.width for gate in gates.values()}
        return replace(
            self,
            gated_blocks={name: gate.target for name, gate in gates.items()},
            gate_width=widths.pop() if widths else self.gate_width,
            shortcuts=named_shortcuts(network),
        )

    @property
    def new_classifier(self) -> bool:
        """Whether the classifier was built anew and has not been trained since."""
        for step in reversed(self.history):
            if step.get("new_classifier") or step.get("step") == "finetune":
                return "new_classifier" in step
        return False

    def after(self, step: str, **details: Any) -> "Description":
        """Return a copy whose history has one more step.

        Example:
            >>> Description("resnet18", 1000).after("convert", width=16).history
            ({'step': 'convert', 'width': 16},)
        """
        return replace(self, history=(*self.history, {"step": step, **details}))

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Description":
        """Read what ``to_json`` wrote.

        Raises:
            KeyError, TypeError, ValueError: The values are not a description.
        """
        values = dict(values)
        values.pop("format_version")
        kinds = {"source": str, "num_classes": int, "gated_blocks": dict, "gate_width": int}
        for name, kind in kinds.items():
            if not isinstance(values[name], kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        for name in ("options", "shortcuts"):
            if not isinstance(values.get(name, {}), dict):
                raise TypeError(f"{name} is no dict")
        if values["policy"] not in POLICIES:
            raise ValueError(f"there is no policy {values['policy']!r}")
        if not all(isinstance(side, int) for side in values["input"]["size"]):
            raise TypeError("the input's size is no list of whole numbers")
        spec = values.pop("input")
        lists = {key: tuple(value) for key, value in spec.items() if isinstance(value, list)}
        names = values.pop("class_names")
        return cls(
            **values | {"history": tuple(values["history"])},
            input=InputSpec(**{**spec, **lists}),
            class_names=None if names is None else tuple(names),
        )


class PixelNetwork(nn.Module):
    """A network that takes pixels in 0..1 and normalises them itself.

    It computes in the channels-last memory format, in which convolutions are faster, on a CPU too.
    Pixels are normalised in their own precision, whatever that of the network.

    Args:
        network: Takes normalised images; its weights are laid out channels-last, in place.
        spec: Whose mean and standard deviation to use.

    Example:
        >>> import torch
        >>> spec = InputSpec(mean=(0.5,), std=(0.25,))
        >>> PixelNetwork(nn.Identity(), spec)(torch.tensor([[[[1.0]]]])).item()
        2.0
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()

        self.network = to_channels_last(network)
        self.register_buffer("mean", torch.tensor(spec.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels ``(N, C, H, W)`` in 0..1 to the network's output."""
        normalized = (pixels - self.mean) / self.std
        if (weight := next(self.network.parameters(), None)) is not None:
            normalized = normalized.to(weight.dtype)
        output: Tensor = self.network(normalized.contiguous(memory_format=torch.channels_last))
        return output
