"""The CIFAR ResNets of He et al. (2016, arXiv 1512.03385, section 4.2), registered with timm.

A 3x3 convolution to 16 channels, three stages of n basic blocks with 16, 32 and 64 channels (depth
6n + 2), option-A shortcuts without parameters, global average pooling and a linear layer.
"""

from typing import Any

from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "CifarResNet",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
]

_CFG = {
    "url": "",
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "first_conv": "conv1",
    "classifier": "linear",
    "label_names": (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
}

default_cfgs = generate_default_cfgs(
    {f"cifar_resnet{depth}": _CFG for depth in (20, 32, 44, 56, 110)}
)


class OptionAShortcut(nn.Module):
    """Take every second pixel both ways and pad the channels with zeros, half on each side."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.padding = (out_channels - in_channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, 2 C, H / 2, W / 2)``."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else OptionAShortcut(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, channels, H / stride, W / stride)``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A CIFAR ResNet that answers timm's questions.

    Args:
        depth: 6n + 2.
        num_classes: Outputs; 0 for the pooled features.
        in_chans: Channels of the input.
        global_pool: timm's name of the pooling.

    Example:
        >>> network = CifarResNet(20)
        >>> sum(p.numel() for p in network.parameters())
        269722
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_chans: int = 3, global_pool: str = "avg"
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 64
        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.global_pool: nn.Module
        self.linear: nn.Module
        self.global_pool, self.linear = create_classifier(64, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def get_classifier(self) -> nn.Module:
        """Return the final linear layer."""
        return self.linear

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the final linear layer by a fresh one for ``num_classes`` (0: none)."""
        self.num_classes = num_classes
        self.global_pool, self.linear = create_classifier(64, num_classes, pool_type=global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Map images ``(N, 3, H, W)`` to features ``(N, 64, H / 4, W / 4)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        features: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool features and, unless ``pre_logits``, classify them."""
        x = self.global_pool(x)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images ``(N, 3, H, W)`` to logits ``(N, num_classes)``."""
        return self.forward_head(self.forward_features(x))


def _stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    strides = [1 if in_channels == channels else 2] + [1] * (blocks - 1)
    inputs = [in_channels] + [channels] * (blocks - 1)
    return nn.Sequential(
        *(BasicBlock(c, channels, stride) for c, stride in zip(inputs, strides, strict=True))
    )


def _create(variant: str, depth: int, pretrained: bool, **options: Any) -> nn.Module:
    network: nn.Module = build_model_with_cfg(
        CifarResNet, variant, pretrained, depth=depth, **options
    )
    return network


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet20(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-20 for 32x32 images, 0.27 M parameters."""
    return _create("cifar_resnet20", 20, pretrained, **options)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet32(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-32 for 32x32 images, 0.46 M parameters."""
    return _create("cifar_resnet32", 32, pretrained, **options)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet44(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-44 for 32x32 images, 0.66 M parameters."""
    return _create("cifar_resnet44", 44, pretrained, **options)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet56(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-56 for 32x32 images, 0.85 M parameters."""
    return _create("cifar_resnet56", 56, pretrained, **options)


@register_model  # type: ignore[untyped-decorator]
def cifar_resnet110(pretrained: bool = False, **options: Any) -> nn.Module:
    """ResNet-110 for 32x32 images, 1.73 M parameters."""
    return _create("cifar_resnet110", 110, pretrained, **options)
