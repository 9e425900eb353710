"""What the names of metrics tell: which way is better, what is a share, which interval belongs to which value."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from heliostat.tracking.statistics import Verdict

Direction: TypeAlias = Literal["higher", "lower"]
_HIGHER = re.compile(
    r"(^|_)(top\d*|accuracy|recall|precision|map|rank|return|per_second|elbo|iwae|modes|quality|match|bleu|whole)(_|$)"
)
_LOWER = re.compile(
    r"(^|_)(loss|interval|error|seconds|perplexity|frechet|cnll|mode_kl|nll|distance|bits_per_character)(_|$)"
)
_VALIDATION = re.compile(r"(^|[/_])val(idation)?([/_])")
_SHARE = re.compile(r"(^|_)(top\d+|accuracy|(recall|precision)_\d+|map)$")
INTERVAL = "_interval"


@dataclass(frozen=True)
class Cell:
    """A number of one run, or the mean of several."""

    value: float
    interval: float | None = None
    """Half the width of its 95 % confidence interval: over the runs, or of a single run as that logged it."""
    best: bool = False
    share: bool = False
    """Whether it is a share of 1, shown in per cent."""
    count: int = 1
    """Runs behind it."""
    verdict: Verdict | None = None
    """How it stands to the best; None where no way is better or there is nothing to compare."""

    def __str__(self) -> str:
        if self.share and math.isfinite(self.value):
            return f"{self.value:.1%}" if self.interval is None else f"{100 * self.value:.1f} ± {self.interval:.1%}"
        return f"{number(self.value)} ± {number(self.interval)}" if self.interval is not None else number(self.value)


def number(value: float) -> str:
    """A number as tables show it: four significant digits, more where they stand before the point."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def direction(metric: str) -> Direction | None:
    """Which way a metric is better, from the last part of its name; None where that does not tell."""
    name = metric.rpartition("/")[2]
    higher, lower = bool(_HIGHER.search(name)), bool(_LOWER.search(name))
    if higher == lower:
        return None
    return "higher" if higher else "lower"


def is_validation(metric: str) -> bool:
    """Whether a metric was measured on a validation split, on which one may choose: ``validation/loss``,
    ``eval/validation_top1``."""
    return bool(_VALIDATION.search(metric))


def of_test(metric: str) -> str:
    """The name of what a validation metric measures without the part that says validation: ``loss``, ``eval/top1``."""
    return _VALIDATION.sub(lambda match: match[1], metric, count=1)


def cell(metrics: Mapping[str, float], name: str) -> Cell | None:
    """A metric's final value among a run's, with its interval where the run logged one; None where there is none."""
    value = metrics.get(name)
    if value is None:
        return None
    interval = metrics.get(name + INTERVAL, metrics.get(interval_name(name) or ""))
    return Cell(value, interval, share=bool(_SHARE.search(name)))


def interval_name(name: str) -> str | None:
    """The interval of ``few_label_10_top1`` may be called ``few_label_10_interval``."""
    stem, _, measure = name.rpartition("_")
    return stem + INTERVAL if stem and measure in ("top1", "accuracy") else None


def natural(name: str) -> list[tuple[int, str]]:
    """Orders numbers inside names as numbers: few_label_5 before few_label_10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
