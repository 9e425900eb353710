"""Linear layers with learned noise: Noisy Networks for Exploration, Fortunato et al. 2017 (arXiv 1706.10295)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.randomness import Random


def scaled_noise(random: Random, size: int) -> Tensor:
    """(rows, size) float32: f(e) = sign(e) sqrt(|e|) of standard normal draws (section 3b of the paper)."""
    e = random.normal("noise", size)
    return e.sign() * e.abs_().sqrt_()


class NoisyLinear(nn.Module):
    """A linear layer whose weights are w + s * f(e_out) f(e_in)^T, whose biases are b + t * f(e_out): factorised noise
    (equations 9 to 11); w, b, s and t are learned.

    The noise is an argument and no state, so that the layer is a function of its inputs. It is applied to what goes in
    and what comes out, not to the weights:

        y = x w^T + b + f(e_out) * ((x * f(e_in)) s^T + t)

    which is the same, needs no second weight matrix, and lets each row have noise of its own.

    Args:
        in_dim: inputs p. Means begin uniform within +-1 / sqrt(p), which is also torch's own choice for a linear layer.
        out_dim: outputs.
        sigma: s and t begin at sigma / sqrt(p); 0.5 in the paper (section 3.2).
    """

    def __init__(self, in_dim: int, out_dim: int, sigma: float = 0.5) -> None:
        super().__init__()
        self.noise_sizes = [in_dim, out_dim]
        """How many numbers of noise go in front of the layer and behind it."""
        bound = 1 / math.sqrt(in_dim)
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_dim).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((out_dim, in_dim), sigma * bound))
        self.bias_sigma = nn.Parameter(torch.full((out_dim,), sigma * bound))

    def forward(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """(B, in_dim) -> (B, out_dim).

        Args:
            noise: (1, in_dim + out_dim), one draw of ``scaled_noise`` for all rows, as in an update (section 3.1); or
                (B, in_dim + out_dim), one for each; None: the mean parameters.
        """
        mean = F.linear(x, self.weight, self.bias)
        if noise is None:
            return mean
        before, behind = torch.split(noise, self.noise_sizes, dim=1)
        return torch.addcmul(mean, F.linear(x * before, self.weight_sigma, self.bias_sigma), behind)
