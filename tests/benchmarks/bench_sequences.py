"""The step of sequence models over one written by hand, and decoding by the length of what came before."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from typing import Any

import bench_training as training
import torch
import torch.nn.functional as F
from torch import nn

from heliostat.config.loading import parse
from heliostat.data.loader import Loader
from heliostat.training import launch
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.algorithm import DataSpec, TokenSpec
from heliostat_algorithms.sequence.decoder import TransformerDecoder
from heliostat_algorithms.sequence.infini_attention import InfiniAttention
from heliostat_algorithms.sequence.language_model import LanguageModel

JOB = """
name: bench
algorithm:
  type: language-model
  network: {type: transformer, width: 128, depth: 4, heads: 4, hidden: 512, dropout: 0.1, norm: pre}
data: {train: {source: copy, split: train, samples: 2000, lengths: [64], form: tokens}}
optimization:
  optimizer: {type: adam, learning_rate: 1.0e-3, betas: [0.9, 0.98]}
  schedule: {type: constant}
  batch_size: 16
  steps: 100000
resources: {runtime: local}
tracking: {every_steps: 20, system_metrics: false}
"""


class HandBlock(nn.Module):
    """A block in a few lines of torch, with dropout where ours has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(128) for _ in range(2))
        self.qkv, self.out = nn.Linear(128, 384, bias=False), nn.Linear(128, 128, bias=False)
        self.inner, self.outer = nn.Linear(128, 512), nn.Linear(512, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norms[0](x)).view(*x.shape[:2], 3, 4, 32).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.dropout(self.out(y.transpose(1, 2).flatten(2)), 0.1)
        return x + F.dropout(self.outer(F.relu(self.inner(self.norms[1](x)))), 0.1)


class ByHand(nn.Module):
    """The same network, with torch's own dropout and positions that are computed once."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 128)
        self.blocks = nn.Sequential(*(HandBlock() for _ in range(4)), nn.LayerNorm(128))
        self.register_buffer("positions", torch.randn(256, 128))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) * 128**0.5 + self.positions[: tokens.shape[1]]  # type: ignore[index]
        return self.blocks(F.dropout(x, 0.1)) @ self.embedding.weight.T  # type: ignore[no-any-return]


def step_row(steps: int) -> dict[str, Any]:
    """Sequences per second of the platform's step over a bare one."""
    job = parse(JOB, "bench.yaml")
    data = launch.load(job)
    model = ByHand(len(data.train.vocabulary))  # type: ignore[attr-defined]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3, (0.9, 0.98), fused=True)
    batches = [Loader(data.train, batch_size=16, seed=1).batch(step) for step in range(64)]

    def bare(step: int) -> None:
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        F.cross_entropy(model(batch["tokens"]).transpose(1, 2), batch["targets"]).backward()
        optimizer.step()

    with tempfile.TemporaryDirectory() as folder:
        loop = TrainingLoop(job, data, SilentRuntime(torch.device("cpu")), RunFolder(folder))
        first, second, ratio = training.rates(loop.turn, bare, 16, steps)
    return _row("language model: step over a hand-written one", first, second, ratio, "sequences/s")


def decoding(network: TransformerDecoder | InfiniAttention) -> Callable[[int, int], float]:
    """Makes a model; gives tokens per second after so many tokens."""
    data = DataSpec(classes=None, tokens=TokenSpec(vocabulary=64, length=4096))
    model = LanguageModel(LanguageModel.Config(network=network), data).eval()

    @torch.no_grad()
    def rate(context: int, count: int) -> float:
        prompt = torch.arange(context).remainder(64).unsqueeze(0)
        _, state = model.advance(prompt, model.initial_state(1))
        start = time.perf_counter()
        for _ in range(count):
            _, state = model.advance(prompt[:, :1], state)
        return count / (time.perf_counter() - start)

    return rate


def rows(quick: bool = False) -> list[dict[str, Any]]:
    """The step, and tokens per second of Infini-attention's constant state over the Transformer's growing cache."""
    sizes: dict[str, Any] = {"width": 256, "depth": 4, "heads": 4, "hidden": 512}
    infini, transformer = decoding(InfiniAttention(**sizes, segment=256)), decoding(TransformerDecoder(**sizes))
    found, count = [step_row(5 if quick else 40)], 10 if quick else 60
    for context in (256, 1024, 4096):
        rates = [(infini(context, count), transformer(context, count)) for _ in range(1 if quick else 3)]
        ours, other = (sorted(each)[len(each) // 2] for each in zip(*rates, strict=True))
        name = f"decoding after {context} tokens: infini-attention over the transformer's cache"
        found.append(_row(name, ours, other, ours / other, "tokens/s"))
    return found


def _row(name: str, ours: float, other: float, ratio: float, unit: str) -> dict[str, Any]:
    return {"name": name, "ours": ours, "other": other, "ratio": ratio, "unit": unit, "higher_is_better": True}
