"""Networks that turn images into features."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.backbones.resnet import ResNet, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from heliostat_algorithms.backbones.vit import (
    Tokens,
    VisionTransformer,
    ViTBase,
    ViTGiant,
    ViTHuge,
    ViTLarge,
    ViTSmall,
    ViTTiny,
)

BackboneConfig: TypeAlias = Annotated[
    ResNet18
    | ResNet34
    | ResNet50
    | ResNet101
    | ResNet152
    | ViTTiny
    | ViTSmall
    | ViTBase
    | ViTLarge
    | ViTHuge
    | ViTGiant,
    OneOf(),
]
"""Any backbone, told apart by ``type``: resnet18, resnet34, resnet50, resnet101, resnet152, vit-tiny, vit-small,
vit-base, vit-large, vit-huge, vit-giant."""

ViTBackboneConfig: TypeAlias = Annotated[ViTTiny | ViTSmall | ViTBase | ViTLarge | ViTHuge | ViTGiant, OneOf()]
"""A Vision Transformer, for methods that need tokens."""

__all__ = [
    "BackboneConfig",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "Tokens",
    "ViTBackboneConfig",
    "ViTBase",
    "ViTGiant",
    "ViTHuge",
    "ViTLarge",
    "ViTSmall",
    "ViTTiny",
    "VisionTransformer",
]
