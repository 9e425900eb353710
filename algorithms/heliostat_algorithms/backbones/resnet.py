"""Deep Residual Learning for Image Recognition, He et al. 2015 (arXiv 1512.03385), without the classifier.

Parameters are named as in the common torchvision state dict (``conv1``, ``bn1``, ``layer1.0.conv1``, ...,
``layer2.0.downsample.0``), so that such weights load as they are once ``fc`` is left out. ResNet-50 strides in the
3 x 3 convolution ("v1.5"), as torchvision and SimCLR do.

SimCLR's official code differs in three details, for which exchangeable weights are worth more: the first block of each
stage projects its shortcut even where the identity fits (first stage of ResNet-18 and -34), convolutions begin with
variance 1 / fan-in, and the stem's pooling pads at the lower and right border only.

With selective kernels (Li et al. 2019, arXiv 1903.06586) it is the SK-ResNet of SimCLRv2 (2006.10029, section 3.1), as
in that paper's code: three 3 x 3 convolutions as stem, and averaging shortcuts (He et al. 2018, arXiv 1812.01187).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.backbones.checkpointing import Blockwise


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; figure 5, left."""

    expansion: ClassVar[int] = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation before the sum."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return cast("Tensor", self.relu(y + (x if self.downsample is None else self.downsample(x))))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut; figure 5, right."""

    expansion: ClassVar[int] = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2: nn.Module = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2: nn.Module = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalisation before the sum."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, 4 * channels, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return cast("Tensor", self.relu(y + (x if self.downsample is None else self.downsample(x))))


class SelectiveKernels(nn.Module):
    """Two 3 x 3 convolutions whose outputs are mixed, channel by channel, by weights that depend on the image.

    Each is normalised and rectified. Their sum, averaged over positions, goes through a narrow layer to two scores for
    each channel, and the mixing weights are the softmax of the two. In SimCLRv2 both kernels are 3 x 3; Li et al. 2019
    widen the second one.
    """

    ratio: ClassVar[int] = 16
    """Channels for each unit of the narrow layer."""
    narrowest: ClassVar[int] = 32
    """Units that the narrow layer has at least."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        units = max(channels // self.ratio, self.narrowest)
        self.conv = nn.Conv2d(channels, 2 * channels, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * channels)
        self.reduce = nn.Conv2d(channels, units, 1, bias=False)
        self.reduce_bn = nn.BatchNorm2d(units)
        self.select = nn.Conv2d(units, 2 * channels, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H / stride, W / stride), not negative."""
        first, second = self.relu(self.bn(self.conv(x))).chunk(2, dim=1)
        summary = (first + second).mean(dim=(2, 3), keepdim=True)
        scores = self.select(self.relu(self.reduce_bn(self.reduce(summary))))
        weights = torch.stack(scores.chunk(2, dim=1)).softmax(dim=0)
        return cast("Tensor", first * weights[0] + second * weights[1])


class LocalMean(nn.Module):
    """The means of 2 x 2 positions, ``stride`` apart: what a shortcut sees of its input.

    Beyond the lower and right border there are no positions with stride 1, and zeros with stride 2, as in SimCLRv2's
    code.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / stride, W / stride), rounded up."""
        if self.stride == 1:
            return F.avg_pool2d(x, 2, stride=1, padding=1, count_include_pad=False)[:, :, 1:, 1:]
        return F.avg_pool2d(x, 2, stride=self.stride, ceil_mode=True, divisor_override=4)


class SelectiveBottleneck(Bottleneck):
    """A bottleneck with selective kernels for its 3 x 3 convolution and a shortcut that averages before it projects."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, stride)
        self.conv2 = SelectiveKernels(channels, stride)
        self.bn2 = nn.Identity()  # what is mixed is normalised and rectified already
        if self.downsample is not None:
            out_channels = channels * self.expansion
            projection = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(LocalMean(stride), projection, nn.BatchNorm2d(out_channels))


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection of a shortcut whose shape changes (option B); None where the identity fits."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _deep_stem(channels: int, width: int) -> nn.Sequential:
    """Three 3 x 3 convolutions, the first with stride 2, in place of one of 7 x 7 (ResNet-C of He et al. 2018)."""
    narrow = width // 2
    return nn.Sequential(
        nn.Conv2d(channels, narrow, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(inplace=True),
        nn.Conv2d(narrow, narrow, 3, padding=1, bias=False),
        nn.BatchNorm2d(narrow),
        nn.ReLU(inplace=True),
        nn.Conv2d(narrow, width, 3, padding=1, bias=False),
    )


Block: TypeAlias = type[BasicBlock] | type[Bottleneck]
"""A kind of residual block."""


class ResNet(Blockwise):
    """Four stages of residual blocks, averaged over positions.

    Args:
        block: the kind of block.
        depths: blocks in each stage.
        stem: "imagenet": 7 x 7 stride 2 and max-pooling; "deep": three 3 x 3 and max-pooling; "cifar": 3 x 3 stride 1,
            as in SimCLR's appendix B.9.
        width: channels of the first stage, doubled in each further one.
        channels: channels of the images.
        zero_init_residual: each block begins as the identity.
    """

    def __init__(
        self,
        block: Block,
        depths: tuple[int, int, int, int],
        stem: Literal["imagenet", "deep", "cifar"],
        width: int,
        channels: int,
        zero_init_residual: bool,
    ) -> None:
        super().__init__()
        if stem == "imagenet":
            self.conv1: nn.Module = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        elif stem == "deep":
            self.conv1 = _deep_stem(channels, width)
        else:
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.maxpool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        in_channels = width
        for number, depth in enumerate(depths):
            out = width * 2**number
            blocks: list[nn.Module] = []
            for position in range(depth):
                blocks.append(block(in_channels, out, stride=2 if number > 0 and position == 0 else 1))
                in_channels = out * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.feature_dim = in_channels
        """D, the width of the features."""
        self._initialise(zero_init_residual)

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        return torch.flatten(self._map(images), 2).mean(dim=2)

    def sequence(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, D): the last feature map, row by row."""
        return torch.flatten(self._map(images), 2).transpose(1, 2)

    def _map(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D, h, w)."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self._through(block, x)
        return x


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """What all ResNets let one choose."""

    type: str
    """Which network this is."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """``cifar``: a 3 x 3 convolution without stride and no pooling, for images of 64 pixels or fewer."""
    width: int = 64
    """Channels of the first stage."""
    zero_init_residual: bool = True
    """Each block begins as the identity, as in SimCLR's code and Goyal et al. 2017; torchvision's default is false."""

    mixes_samples: ClassVar[bool] = True
    """Whether the features of a sample depend on the others of its batch: by batch normalisation, while training."""
    block: ClassVar[Block]
    depths: ClassVar[tuple[int, int, int, int]]

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width is {self.width}; it must be at least 1 channel")

    def build(self, channels: int, image_size: tuple[int, int]) -> ResNet:
        """The network for images of so many channels; a ResNet fits any (height, width)."""
        return ResNet(self.block, self.depths, self.stem, self.width, channels, self.zero_init_residual)


@dataclass(frozen=True, kw_only=True)
class ResNet18(ResNetConfig):
    """ResNet-18: 11.2 million parameters, features of width 512."""

    type: Literal["resnet18"] = "resnet18"
    block: ClassVar[Block] = BasicBlock
    depths: ClassVar[tuple[int, int, int, int]] = (2, 2, 2, 2)


@dataclass(frozen=True, kw_only=True)
class ResNet34(ResNetConfig):
    """ResNet-34: 21.3 million parameters, features of width 512."""

    type: Literal["resnet34"] = "resnet34"
    block: ClassVar[Block] = BasicBlock
    depths: ClassVar[tuple[int, int, int, int]] = (3, 4, 6, 3)


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(ResNetConfig):
    """What the deeper ResNets, of bottleneck blocks, let one choose besides."""

    selective_kernels: bool = False
    """SimCLRv2's SK-ResNet: the network mixes two convolutions in each block by weights that depend on the image. Half
    again as many parameters, and the better use of them (table 1). The ``cifar`` stem stays as it is."""

    block: ClassVar[Block] = Bottleneck

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selective_kernels and self.stem == "imagenet" and self.width < 2:
            raise ValueError("width is 1; with selective kernels the stem halves it, so it must be at least 2")

    def build(self, channels: int, image_size: tuple[int, int]) -> ResNet:
        if not self.selective_kernels:
            return super().build(channels, image_size)
        stem: Literal["deep", "cifar"] = "deep" if self.stem == "imagenet" else "cifar"
        return ResNet(SelectiveBottleneck, self.depths, stem, self.width, channels, self.zero_init_residual)


@dataclass(frozen=True, kw_only=True)
class ResNet50(BottleneckConfig):
    """ResNet-50: 23.5 million parameters, 35.2 with selective kernels; features of width 2048."""

    type: Literal["resnet50"] = "resnet50"
    depths: ClassVar[tuple[int, int, int, int]] = (3, 4, 6, 3)


@dataclass(frozen=True, kw_only=True)
class ResNet101(BottleneckConfig):
    """ResNet-101: 42.5 million parameters, 64.7 with selective kernels; features of width 2048."""

    type: Literal["resnet101"] = "resnet101"
    depths: ClassVar[tuple[int, int, int, int]] = (3, 4, 23, 3)


@dataclass(frozen=True, kw_only=True)
class ResNet152(BottleneckConfig):
    """ResNet-152: 58.1 million parameters, 88.9 with selective kernels; features of width 2048."""

    type: Literal["resnet152"] = "resnet152"
    depths: ClassVar[tuple[int, int, int, int]] = (3, 8, 36, 3)
