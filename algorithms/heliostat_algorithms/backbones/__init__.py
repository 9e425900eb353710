"""Networks that turn images into features."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from heliostat_algorithms.algorithm import OneOf
from heliostat_algorithms.backbones.resnet import ResNet, ResNet18, ResNet34, ResNet50

BackboneConfig: TypeAlias = Annotated[ResNet18 | ResNet34 | ResNet50, OneOf()]
"""Any backbone, told apart by ``type``: resnet18, resnet34, resnet50."""

__all__ = ["BackboneConfig", "ResNet", "ResNet18", "ResNet34", "ResNet50"]
