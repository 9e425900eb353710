"""A 3-D U-Net factorised over space and time: Video Diffusion Models, Ho et al. 2022 (arXiv 2204.03458), section 3.

The U-Net of image diffusion (Ho, Jain and Abbeel 2020; Nichol and Dhariwal 2021), whose 3 x 3 convolutions become
1 x 3 x 3 and whose attention over the places of a picture stays within each frame. Behind each of these comes attention
over time, at each place by itself, with a learned bias for each distance between two frames.

All but attention over time sees one frame at a time, so frames lie in the batch dimension and the layers are those of
pictures. That holds for group normalisation, too: its statistics are each frame's own. Statistics over all frames would
tell the independent images of joint training of the video, past every mask.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SPREAD = (-4, 4)
"""Frames, from the one that looks: between these lie the distances that heads prefer at first."""


@dataclass(frozen=True, kw_only=True)
class VideoUNetConfig:
    """The size of the network; by default about that of the paper's larger models."""

    width: int = 256
    """Channels at full resolution."""
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    """Channels at each resolution over ``width``; from one to the next, height and width are halved."""
    blocks: int = 2
    """Residual blocks at each resolution on the way down; one more on the way up."""
    attention: tuple[int, ...] = (1, 2, 3)
    """Resolutions with attention over space and time, counted from 0, the full one. Between the ways down and up there
    always is one."""
    head_width: int = 64
    """Channels of an attention head; must divide all widths with attention."""
    conditioning: Literal["add", "adaptive-norm"] = "add"
    """What the embedding of noise level and class does in a residual block: it is added (the paper), or it is scale and
    shift of the second group normalisation (Dhariwal and Nichol 2021, arXiv 2105.05233)."""
    norm_groups: int = 32
    """Groups of all group normalisations; must divide ``width``."""
    reach: int = 16
    """Distance in frames from which on biases of attention over time are all the same."""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "head_width", "norm_groups", "reach"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(f"multipliers are {list(self.multipliers)}; one or more numbers of at least 1 are needed")
        if self.width % self.norm_groups:
            raise ValueError(f"norm_groups is {self.norm_groups}, which does not divide a width of {self.width}")
        levels = len(self.multipliers)
        wrong = [level for level in self.attention if not 0 <= level < levels]
        if wrong:
            raise ValueError(f"attention names the resolutions {wrong}, and there are those from 0 to {levels - 1}")
        for level in {*self.attention, levels - 1}:
            channels = self.width * self.multipliers[level]
            if channels % self.head_width:
                raise ValueError(
                    f"head_width is {self.head_width}, which does not divide the {channels} channels of resolution "
                    f"{level}"
                )

    @property
    def divisor(self) -> int:
        """What must divide the height and width of frames."""
        return int(2 ** (len(self.multipliers) - 1))


class Embedding(nn.Module):
    """(N,) log-SNRs and (N,) class numbers -> (N, E), E = 4 * ``width``.

    The log-SNR is squeezed to u = 2 / pi * arctan(exp(-lambda / 2)), which for the cosine schedule is the time, and
    1000 u is seen as sines and cosines, as steps are in image diffusion. Classes come with one more, the null label.
    """

    def __init__(self, width: int, classes: int | None) -> None:
        super().__init__()
        self.frequencies = max(2, width // 2)
        self.mlp = nn.Sequential(nn.Linear(2 * self.frequencies, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))
        self.label = None if classes is None else nn.Embedding(classes + 1, 4 * width)

    def forward(self, log_snr: Tensor, label: Tensor | None) -> Tensor:
        u = 1000.0 * (2.0 / math.pi) * torch.atan(torch.exp(-0.5 * log_snr))
        rates = torch.exp(
            -math.log(10_000.0) * torch.arange(self.frequencies, device=u.device) / (self.frequencies - 1)
        )
        angles = u.unsqueeze(1) * rates.to(u)
        h: Tensor = self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))
        return h if self.label is None else h + self.label(label)


class ResidualBlock(nn.Module):
    """(N, C, H, W) frames and (N, E) embeddings -> (N, D, H, W)."""

    def __init__(self, before: int, after: int, embedding: int, config: VideoUNetConfig) -> None:
        super().__init__()
        self.adaptive = config.conditioning == "adaptive-norm"
        self.norm1 = nn.GroupNorm(config.norm_groups, before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.condition = nn.Linear(embedding, 2 * after if self.adaptive else after)
        self.norm2 = nn.GroupNorm(config.norm_groups, after)
        self.conv2 = _zero(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        said = self.condition(F.silu(embedding))[:, :, None, None]
        if self.adaptive:
            scale, shift = said.chunk(2, dim=1)
            h = self.norm2(h) * (1.0 + scale) + shift
        else:
            h = self.norm2(h + said)
        out: Tensor = self.skip(x) + self.conv2(F.silu(h))
        return out


class SpaceAttention(nn.Module):
    """(N, C, H, W): each place looks at all places of its frame."""

    def __init__(self, width: int, config: VideoUNetConfig) -> None:
        super().__init__()
        self.heads = width // config.head_width
        self.norm = nn.GroupNorm(config.norm_groups, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = _zero(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = x + self.out(seen).transpose(1, 2).reshape(x.shape)
        return out


class TimeAttention(nn.Module):
    """(B * F, C, H, W): each place of a video frame looks at the same place of all frames of its video.

    A learned bias for each head and each distance in time tells frames apart (the paper cites Shaw, Uszkoreit and
    Vaswani 2018 for positions relative to one another; the form is T5's, Raffel et al. 2019). Where more frames follow
    than the video has, they are independent images: the matrix of attention is the identity for them, so that each
    sees its own value alone. A video of one frame is such an image.
    """

    def __init__(self, width: int, config: VideoUNetConfig) -> None:
        super().__init__()
        self.heads, self.reach = width // config.head_width, config.reach
        self.norm = nn.GroupNorm(config.norm_groups, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.bias = nn.Parameter(_looking_apart(self.heads, config.reach))
        self.out = _zero(nn.Linear(width, width))

    def forward(self, x: Tensor, frames: int, video: int) -> Tensor:
        """
        Args:
            frames: F, of each sample.
            video: how many of them, the first ones, are the video.
        """
        n, c, height, width = x.shape
        tokens = self.norm(x).view(n // frames, frames, c, height * width).permute(0, 3, 1, 2)  # (B, HW, F, C)
        if video == 1:
            seen = F.linear(tokens, self.qkv.weight[2 * c :], self.qkv.bias[2 * c :])
        else:
            q, k, v = self.qkv(tokens).chunk(3, dim=3)
            seen = torch.cat([self._attend(q[:, :, :video], k[:, :, :video], v[:, :, :video]), v[:, :, video:]], dim=2)
        out: Tensor = x + self.out(seen).permute(0, 2, 3, 1).reshape(x.shape)
        return out

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, HW, T, C) each -> (B, HW, T, C)."""
        b, places, t, c = q.shape
        q, k, v = (each.reshape(b * places, t, self.heads, -1).transpose(1, 2) for each in (q, k, v))
        order = torch.arange(t, device=q.device)
        distance = (order - order.unsqueeze(1)).clamp(-self.reach, self.reach) + self.reach
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias[:, distance].to(q.dtype))
        return seen.transpose(1, 2).reshape(b, places, t, c)


class Level(nn.Module):
    """A residual block, with attention over space and then over time where the resolution has it."""

    def __init__(self, before: int, after: int, embedding: int, attends: bool, config: VideoUNetConfig) -> None:
        super().__init__()
        self.block = ResidualBlock(before, after, embedding, config)
        self.space = SpaceAttention(after, config) if attends else None
        self.time = TimeAttention(after, config) if attends else None

    def forward(self, x: Tensor, embedding: Tensor, frames: int, video: int) -> Tensor:
        x = self.block(x, embedding)
        if self.space is not None and self.time is not None:
            x = self.time(self.space(x), frames, video)
        return x


class VideoUNet(nn.Module):
    """What a denoiser is made of.

    Args:
        config: its size.
        channels: of a frame.
        classes: how many labels there are, beside the null label; None for a network without labels.
    """

    def __init__(self, config: VideoUNetConfig, channels: int, classes: int | None) -> None:
        super().__init__()
        self.classes = classes
        widths = [config.width * m for m in config.multipliers]
        e = 4 * config.width
        self.embedding = Embedding(config.width, classes)
        self.first = nn.Conv2d(channels, config.width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, here = [config.width], config.width
        for level, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(Level(here, width, e, level in config.attention, config))
                here = width
                skips.append(here)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(here, here, 3, stride=2, padding=1))
                skips.append(here)
        self.middle = nn.ModuleList([Level(here, here, e, attends, config) for attends in (True, False)])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(Level(here + skips.pop(), width, e, level in config.attention, config))
                here = width
            if level > 0:
                self.up.append(nn.Conv2d(here, here, 3, padding=1))
        self.norm = nn.GroupNorm(config.norm_groups, here)
        self.last = _zero(nn.Conv2d(here, channels, 3, padding=1))

    def forward(self, z: Tensor, log_snr: Tensor, label: Tensor | None = None, video: int | None = None) -> Tensor:
        """
        Args:
            z: (B, F, C, H, W).
            log_snr: (B, F), of each frame.
            label: (B, F) int64, of each frame, ``classes`` for the null label; None for a network without labels.
            video: how many of the F frames are the video, the first ones; the others are images by themselves. None:
                all.

        Returns:
            (B, F, C, H, W).
        """
        frames = z.shape[1]
        video = frames if video is None else video
        embedding = self.embedding(log_snr.flatten(), None if label is None else label.flatten())
        x = self.first(z.flatten(0, 1))
        skips = [x]
        for part in self.down:
            x = part(x, embedding, frames, video) if isinstance(part, Level) else part(x)
            skips.append(x)
        for part in self.middle:
            x = part(x, embedding, frames, video)
        for part in self.up:
            if isinstance(part, Level):
                x = part(torch.cat([x, skips.pop()], dim=1), embedding, frames, video)
            else:
                x = part(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return cast("Tensor", self.last(F.silu(self.norm(x)))).view(z.shape)


def _looking_apart(heads: int, reach: int) -> Tensor:
    """(heads, 2 * reach + 1): the biases with which heads begin, for distances from -``reach`` to ``reach``.

    From zero, heads would first have to learn that frames have an order. Here each prefers a distance of its own, and
    each frame further from that costs 1, in a straight line as in ALiBi (Press, Smith and Lewis 2022, arXiv
    2108.12409), whose heads all prefer the distance 0. The video paper says nothing of how biases begin.
    """
    low, high = _SPREAD
    own = low + (high - low) * (torch.arange(heads) + 0.5) / heads
    return -(torch.arange(-reach, reach + 1) - own.unsqueeze(1)).abs()


def _zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Begins at zero: each branch, and the whole network, begins as if it were not there."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
