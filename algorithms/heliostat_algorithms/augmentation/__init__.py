"""Augmentation of whole batches on the training device, with parameters per sample."""

from heliostat_algorithms.augmentation.color import (
    ColorJitter,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    to_greyscale,
)
from heliostat_algorithms.augmentation.filters import GaussianBlur, gaussian_blur, solarize
from heliostat_algorithms.augmentation.geometry import crop_boxes, resized_crop
from heliostat_algorithms.augmentation.views import CropAndFlip, ViewAugmentation

__all__ = [
    "ColorJitter",
    "CropAndFlip",
    "GaussianBlur",
    "ViewAugmentation",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "color_jitter",
    "crop_boxes",
    "gaussian_blur",
    "resized_crop",
    "solarize",
    "to_greyscale",
]
