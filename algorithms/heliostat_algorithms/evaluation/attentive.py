"""Attentive probe: a learned query looks at all tokens of a frozen encoder, a linear classifier at what it gathers.

V-JEPA: Revisiting Feature Prediction for Learning Visual Representations from Video, Bardes et al. 2024 (arXiv
2404.08471), section 4: for encoders that were not trained to put everything into one feature, a linear probe on a mean
of tokens says too little. AdamW without warm-up, cosine to zero, gradients clipped to a norm of 1, no decay of biases
and norms: as in the official code for images. That code shows the encoder augmented images in every epoch; here each
image is encoded once, whole, and its tokens are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import Algorithm, Batch
from heliostat_algorithms.collectives import rank, sum_over_workers, world_size
from heliostat_algorithms.evaluation.evaluator import NetworkEvaluator, SampleSet, ranks
from heliostat_algorithms.evaluation.extraction import device_of, evaluating, sample_tokens
from heliostat_algorithms.evaluation.training import accuracies_over_workers, add_gradients, decayed
from heliostat_algorithms.heads.attentive import AttentivePool
from heliostat_algorithms.randomness import bits, permutation
from heliostat_algorithms.schedules import cosine_ramp

_GIB = 1 << 30
_BYTES = 2
"""Of a number in float16."""
_HEAD_WIDTH = 64
"""Dimensions of an attention head in the common Vision Transformers."""


@dataclass(frozen=True, kw_only=True)
class AttentiveProbe(NetworkEvaluator):
    """Trains a query with cross-attention, an MLP and a linear classifier on all tokens of the frozen encoder.

    The learning rate is the one with the best accuracy on a part held out from the *training* set, the smaller one
    where several are equal; then all training samples are used. The test set is looked at once.

    Metrics: ``attentive_top1``, for more than five classes ``attentive_top5``, and the chosen ``attentive_lr``.

    Cost: one pass of the encoder over both sets; then (learning rates + 1) x epochs passes of the probe, about 6 N D^2
    multiplications for N tokens of width D, over the training set: on small data more than the pass of the encoder.
    Memory: 2 bytes for each number of each training token, spread over the workers; ``check_network`` knows it before.
    Tokens are centred and rounded to float16, which moves a token by at most 0.05 % of its distance from the centre.
    """

    type: Literal["attentive"] = "attentive"
    heads: int | None = None
    """Attention heads of the query; must divide the tokens' width. null: one for 64 dimensions, or the next lower
    number that divides it."""
    mlp_ratio: float = 4.0
    """Width inside the MLP over that of the tokens."""
    learning_rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3, 3e-4)
    """Peak learning rates to choose from, used as they are; V-JEPA takes 1e-3. All are trained side by side on the same
    batches. A choice at the end of the list says that the list should be longer."""
    weight_decay: float = 1e-3
    """V-JEPA: 0.001 for images, 0.01 for video."""
    epochs: int = 20
    """Passes over the training set; V-JEPA: 20. Small sets need more of them, or smaller batches."""
    batch_size: int = 256
    """Samples in a step, over all workers; V-JEPA: 1024. Smaller training sets are one batch."""
    validation: float = 0.1
    """Share of the training samples on which the learning rate is chosen."""
    standardize: bool = True
    """Give each dimension of the tokens mean 0 and variance 1 over the training tokens before the probe, as the linear
    probe does: the offset that untrained encoders give to all tokens alike, and which no norm of the probe takes away,
    should not decide how well they do. False: tokens as they are, as in V-JEPA."""
    train_fraction: float = 1.0
    """Share of the training samples of each class that is used."""
    cache_gib: float = 4.0
    """Most memory for the training tokens, in GiB over all workers."""

    needs_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("epochs", "batch_size", "heads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("mlp_ratio", "cache_gib"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, not {getattr(self, name)}")
        if not self.learning_rates or not all(0 < rate < math.inf for rate in self.learning_rates):
            raise ValueError(f"learning_rates must list values above 0, not {list(self.learning_rates)}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay cannot be negative, but is {self.weight_decay}")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be a share between 0 and 1, not {self.validation}")
        if not 0 < self.train_fraction <= 1:
            raise ValueError(f"train_fraction must be a share above 0 and at most 1, not {self.train_fraction}")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"attentive_top1": True, "attentive_top5": True}

    def check(self, samples: int, labels: Tensor | None, classes: int | None) -> None:
        super().check(samples, labels, classes)
        used = round(self.train_fraction * samples)
        if not 0 < self._held_out(used) < used:
            raise ValueError(f"validation = {self.validation} of {used} training samples leaves nothing for one part")

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if not algorithm.has_features:
            raise ValueError(f"attentive judges features, and {type(algorithm).__name__} has none")
        with evaluating(algorithm):
            _, tokens, width = sample_tokens(algorithm, sample).shape
        self._heads(width)
        used = round(self.train_fraction * samples)
        needed = used * tokens * width * _BYTES / _GIB
        if needed > self.cache_gib:
            fits = 0.99 * self.train_fraction * self.cache_gib / needed
            raise ValueError(
                f"attentive keeps the tokens of {used} samples, {tokens} x {width} numbers of {_BYTES} bytes each: "
                f"{needed:.3g} GiB over all workers, more than cache_gib = {self.cache_gib:g}. Where there is memory, "
                f"raise cache_gib; or take fewer samples, train_fraction: {fits:.3g} or less; or train a job with "
                "algorithm: {type: vit, head: attentive, frozen: true}, which keeps none"
            )

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        classes = self._classes(train, test)
        known = train.some(self.train_fraction, seed)
        if len(known) < world_size():
            raise ValueError(f"attentive trains on {len(known)} samples: too few for {world_size()} workers")
        if not 0 < self._held_out(len(known)) < len(known):
            raise ValueError(f"validation = {self.validation} of {len(known)} samples leaves nothing for one part")
        self.check_network(algorithm, _first(known), len(train))
        key = f"{seed}:evaluation/attentive"
        with evaluating(algorithm):
            tokens = _Tokens(algorithm, known, self.standardize)
        rates = sorted(self.learning_rates)
        everything = torch.arange(len(known))
        if len(rates) > 1:
            order = permutation(f"{key}/validation", len(known))
            held_out, rest = order.tensor_split([self._held_out(len(known))])
            probes = self._fit(tokens, rest, rates, classes, f"{key}/choice")
            right = self._right(tokens, held_out, probes)
            rates = [rates[right.index(max(right))]]
        (probe,) = self._fit(tokens, everything, rates, classes, f"{key}/final")
        # All workers have the same weights, and so agree on what is raised.
        if not all(bool(parameter.isfinite().all()) for parameter in probe.parameters()):
            raise ArithmeticError(f"the attentive probe diverged at a learning rate of {rates[0]:g}; add smaller ones")
        found = []
        with evaluating(algorithm):
            for batch in test.batches():
                seen = tokens.standard(tokens.rounded(sample_tokens(algorithm, batch)))
                found.append(ranks(probe(seen), batch["label"]))
        metrics = accuracies_over_workers(found, classes, "attentive", device_of(algorithm))
        return {**metrics, "attentive_lr": rates[0]}

    def _held_out(self, samples: int) -> int:
        return round(self.validation * samples)

    def _heads(self, width: int) -> int:
        if self.heads is None:
            return next(heads for heads in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % heads == 0)
        if width % self.heads:
            raise ValueError(f"heads is {self.heads}, which does not divide the tokens' width of {width}")
        return self.heads

    def _fit(self, tokens: _Tokens, rows: Tensor, rates: Sequence[float], classes: int, key: str) -> list[_Probe]:
        """One probe for each learning rate, all from the same start on the same batches of ``rows`` (n,), samples of
        the whole set. ``key`` names start and order."""
        width = tokens.width
        probes = [_Probe(width, self._heads(width), self.mlp_ratio, classes, key).to(tokens.device) for _ in rates]
        groups = []
        for probe, rate in zip(probes, rates, strict=True):
            groups += [{**group, "peak": rate} for group in decayed(probe.parameters(), self.weight_decay)]
        optimizer = torch.optim.AdamW(groups)
        batch = min(self.batch_size, len(rows))
        steps, step = self.epochs * math.ceil(len(rows) / batch), 0
        for epoch in range(self.epochs):
            order = rows[permutation(f"{key}/epoch{epoch}", len(rows))]
            for chosen in torch.split(order, batch):
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * cosine_ramp(1.0, 0.0, step / steps)
                x, y = tokens.held(chosen)
                with torch.enable_grad(), torch.autocast(tokens.device.type, enabled=False):
                    losses = [F.cross_entropy(probe(x), y, reduction="sum") for probe in probes]
                    optimizer.zero_grad()
                    (torch.stack(losses).sum() / len(chosen)).backward()  # type: ignore[no-untyped-call]
                add_gradients(parameter for probe in probes for parameter in probe.parameters())
                for probe in probes:
                    nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
                optimizer.step()
                step += 1
        return probes

    @torch.no_grad()
    def _right(self, tokens: _Tokens, rows: Tensor, probes: Sequence[_Probe]) -> list[int]:
        """How often each probe is right on these samples of the whole set."""
        counts = torch.zeros(len(probes), dtype=torch.int64, device=tokens.device)
        for chosen in torch.split(rows, self.batch_size):
            x, y = tokens.held(chosen)
            counts += torch.stack([(ranks(probe(x), y) == 0).sum() for probe in probes])
        return [int(count) for count in sum_over_workers(counts)]


class _Probe(nn.Module):
    """Pool and classifier, whose start ``key`` decides; the classifier begins at zero."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, classes: int, key: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(bits(f"{key}/weights", 0, 1)))
            self.pool = AttentivePool(width, heads, mlp_ratio)
            self.linear = nn.Linear(width, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, classes)."""
        scores: Tensor = self.linear(self.pool(tokens))
        return scores


class _Tokens:
    """The training tokens that this worker holds.

    They are stored as float16 after a pivot, near the mean of all tokens, was taken away and all was divided by one
    number: what tokens differ by is rounded, not what they have in common.
    """

    def __init__(self, algorithm: Algorithm, samples: SampleSet, standardize: bool) -> None:
        self.device, self.part = device_of(algorithm), samples.part()
        first = sample_tokens(algorithm, next(iter(samples.batches())))
        self.pivot, self.scale = _measured(first)
        self.width = first.shape[2]
        self.values = torch.empty(len(self.part), *first.shape[1:], dtype=torch.float16)
        labels, stored = [], 0
        for batch in samples.batches():
            rounded = self.rounded(sample_tokens(algorithm, batch))
            self.values[stored : stored + len(rounded)] = rounded.cpu()
            stored += len(rounded)
            labels.append(batch["label"])
        self.labels = torch.cat(labels)
        broken = sum(int((~rows.isfinite()).flatten(1).any(dim=1).sum()) for rows in torch.split(self.values, 64))
        broken = int(sum_over_workers(torch.tensor(broken, device=self.device)))
        if broken:
            raise ValueError(f"tokens of {broken} of {len(samples)} samples are not finite: the encoder has diverged")
        if standardize:
            mean, inverse = self._statistics(len(samples))
            self.factor, self.shift = inverse, -mean * inverse
        else:
            self.factor, self.shift = self.scale, self.pivot

    def rounded(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> the same in float16, as it is stored."""
        return ((tokens.float() - self.pivot) / self.scale).half()

    def standard(self, stored: Tensor) -> Tensor:
        """(B, N, D) as stored -> what the probe sees, float32."""
        return stored.float() * self.factor + self.shift

    def held(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the probe sees (n, N, D), and labels (n,), of those of these samples of the whole set that this worker
        holds; there may be none."""
        mine = rows[(rows >= self.part.start) & (rows < self.part.stop)] - self.part.start
        return self.standard(self.values[mine].to(self.device)), self.labels[mine.to(self.device)]

    def _statistics(self, samples: int) -> tuple[Tensor, Tensor]:
        """Mean and reciprocal standard deviation (D,) of the stored tokens of all workers; the latter is 0 for a
        dimension that is constant up to rounding."""
        chunks = torch.split(self.values, 64)
        count = samples * self.values.shape[1]

        def mean_of(measure: Callable[[Tensor], Tensor]) -> Tensor:
            total = torch.zeros(self.width, dtype=torch.float64, device=self.device)
            for chunk in chunks:
                total += measure(chunk.to(self.device).flatten(0, 1).double()).sum(dim=0)
            return sum_over_workers(total) / count

        mean = mean_of(lambda rows: rows)
        variance = mean_of(lambda rows: (rows - mean).square())
        std, offset = variance.sqrt(), mean + self.pivot / self.scale  # the pivot was part of the tokens
        constant = std <= 1e-6 * (1 + (variance + offset.square()).sqrt())
        return mean.float(), torch.where(constant, 0.0, 1 / std).float()


def _measured(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Pivot (D,) and scale () of the first worker's (B, N, D), for all workers."""
    rows = tokens.flatten(0, 1).double()
    pivot = rows.mean(dim=0)
    scale = (rows - pivot).square().mean().sqrt()
    measured = torch.cat([pivot, torch.where(scale > 0, scale, 1.0).expand(1)])
    measured = sum_over_workers(measured if rank() == 0 else torch.zeros_like(measured)).float()
    return measured[:-1], measured[-1]


def _first(samples: SampleSet) -> Batch:
    """One sample."""
    return {name: values[:1] for name, values in next(iter(samples.batches())).items()}
