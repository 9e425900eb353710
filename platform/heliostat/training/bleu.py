"""BLEU of translations, as sacrebleu computes it: texts are compared as they were written, not as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from heliostat.data.sequences import PairData
from heliostat_algorithms.algorithm import Algorithm, Batch
from heliostat_algorithms.collectives import world_size
from heliostat_algorithms.evaluation import NetworkEvaluator, SampleSet
from heliostat_algorithms.evaluation.extraction import device_of, evaluating
from heliostat_algorithms.sequence.prediction import Translator


@dataclass(frozen=True, kw_only=True)
class Bleu(NetworkEvaluator):
    """BLEU (Papineni et al. 2002) of beam-search translations of the test set, by sacrebleu (Post 2018, 1804.08771).

    The default of sacrebleu: cased, tokenised by 13a, exponential smoothing. Metrics: ``bleu`` from 0 to 100, and
    ``bleu_length_ratio``, by which the translations are longer than the references. The untrained network is not
    judged: it says nothing, at length.
    """

    type: Literal["bleu"] = "bleu"

    needs_labels: ClassVar[bool] = False
    judges_untrained: ClassVar[bool] = False

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"bleu": True}

    def check_network(self, algorithm: Algorithm, sample: Batch, samples: int) -> None:
        if not isinstance(algorithm, Translator):
            raise ValueError(f"bleu judges translations, and {type(algorithm).__name__} makes none")

    def judge(self, algorithm: Algorithm, train: SampleSet, test: SampleSet, seed: int) -> dict[str, float]:
        from sacrebleu.metrics.bleu import BLEU

        data = getattr(test, "data", None)
        if not isinstance(algorithm, Translator) or not isinstance(data, PairData):
            raise ValueError("bleu judges translations of pairs of texts")
        said: list[str] = []
        device = device_of(algorithm)
        with evaluating(algorithm):
            for batch in test.batches():
                said += [data.vocabulary.decode(tokens) for tokens in algorithm.translate(batch["source"].to(device))]
        if world_size() > 1:
            parts: list[list[str]] = [[] for _ in range(world_size())]
            torch.distributed.all_gather_object(parts, said)
            said = [text for part in parts for text in part]
        score = BLEU().corpus_score(said, [[data.written(index) for index in range(len(data))]])
        return {"bleu": float(score.score), "bleu_length_ratio": float(score.sys_len / max(score.ref_len, 1))}
