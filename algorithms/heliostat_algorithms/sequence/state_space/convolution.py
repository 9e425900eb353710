"""Long causal convolutions by fast Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_convolution(u: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum over l of kernel_l u_{t - l}: u (..., H, L) and the kernel (H, L) -> (..., H, L).

    Twice the length keeps the end from wrapping around onto the beginning. In the kernel's precision.
    """
    length = u.shape[-1]
    if length == 0:
        return u
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    y: Tensor = torch.fft.irfft(spectrum, n=2 * length)
    return y[..., :length]
