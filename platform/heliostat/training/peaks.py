"""What devices can compute at most: the denominator of model FLOPs utilisation."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

_TERA = 1e12
# Dense operations per second (x 1e12) in 16-bit matrix units, in TF32 and in fp32, from NVIDIA's data sheets. The first
# name that a device's name holds counts.
_GPUS: dict[str, tuple[float, float, float]] = {
    "H200": (989, 494, 67),
    "H100 PCIe": (756, 378, 51),
    "H100 NVL": (835, 417, 60),
    "H100": (989, 494, 67),
    "A100": (312, 156, 19.5),
    "L40S": (362, 183, 91.6),
}
_SIZE, _TRIES = 768, 5


@dataclass(frozen=True)
class Peak:
    """Floating-point operations per second."""

    flops: float
    source: str
    """Where the number is from."""


def peak_of(device: torch.device, precision: str) -> Peak | None:
    """The peak of a GPU by its name, or of this process's CPU threads by measurement; None for an unknown GPU.

    Args:
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """
    if device.type == "cuda":
        return peak_of_gpu(torch.cuda.get_device_name(device), precision, torch.backends.cuda.matmul.allow_tf32)
    return _measured(precision)


def peak_of_gpu(name: str, precision: str, tf32: bool) -> Peak | None:
    """The peak of a GPU that calls itself ``name``; ``tf32``: whether fp32 products may use it."""
    for known, (half, tensor, single) in _GPUS.items():
        if known in name:
            value, unit = (half, "16-bit") if precision != "fp32" else (tensor, "TF32") if tf32 else (single, "fp32")
            return Peak(value * _TERA, f"{known}, {unit}, data sheet")
    return None


def _measured(precision: str) -> Peak:
    """The fastest of some matrix products in the threads that this process has."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.ones(_SIZE, _SIZE, dtype=dtype)
    best = float("inf")
    for _ in range(_TRIES):
        began = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - began)
    threads = torch.get_num_threads()
    source = f"measured: {_SIZE} x {_SIZE} matrix products in {precision} on {threads} CPU thread(s)"
    return Peak(2 * _SIZE**3 / best, source)
