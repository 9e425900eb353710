"""Perplexity, accuracy by length and BLEU, counted by hand and over workers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from heliostat.config.loading import parse
from heliostat.data.task_sources import Copy
from heliostat.errors import InputError
from heliostat.training import launch
from heliostat.training.bleu import Bleu
from heliostat.training.evaluation import SharedSamples, evaluate_checkpoint
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.algorithm import Batch
from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.evaluation import Perplexity, TokenAccuracy
from heliostat_algorithms.sequence.transformer import Transformer

JOB = """
name: tiny
algorithm: {type: transformer, width: 16, depth: 1, heads: 2, hidden: 16, extra_length: 4}
data:
  train: {source: copy, split: train, samples: 64, lengths: [3, 6], symbols: 5}
  test: {source: copy, split: test, samples: 21, lengths: [3, 6], symbols: 5}
optimization: {optimizer: {type: adam, learning_rate: 0.01}, schedule: {type: constant}, batch_size: 16, steps: 8}
evaluation: [{type: perplexity}, {type: token-accuracy}, {type: bleu}]
resources: {runtime: local}
checkpoint: {every_steps: 2, keep: 4}
"""


def model_and_data() -> tuple[Transformer, SharedSamples]:
    job = parse(JOB, "tiny.yaml")
    runtime = SilentRuntime(torch.device("cpu"), rank(), world_size())
    data = Copy(source="copy", split="test", samples=21, lengths=(3, 6), symbols=5).load()
    torch.manual_seed(1)
    assert isinstance(job.algorithm, Transformer.Config)
    return Transformer(job.algorithm, data.spec()).double(), SharedSamples(data, runtime)


def judged() -> dict[str, float]:
    model, test = model_and_data()
    found: dict[str, float] = {}
    for evaluator in (Perplexity(), TokenAccuracy(), Bleu()):
        found |= evaluator.judge(model, test, test, 0)
    return found


def test_numbers_are_those_counted_by_hand() -> None:
    model, test = model_and_data()
    model.eval()
    loss, right, count = 0.0, 0, 0
    whole: dict[int, list[bool]] = {}
    for index in range(21):
        chosen = test.data.select(np.array([index]))
        batch: Batch = {each.name: torch.from_numpy(each.values[each.rows]).long() for each in chosen}
        logits, targets = (x[0].detach() for x in model.predictions(batch))
        hits = [int(row.argmax()) == int(t) for row, t in zip(logits, targets, strict=True)]
        loss -= sum(float(row.log_softmax(0)[t]) for row, t in zip(logits, targets, strict=True))
        right, count = right + sum(hits), count + len(hits)
        whole.setdefault(len(hits), []).append(all(hits))
    found = judged()
    assert found["nll"] == pytest.approx(loss / count, rel=1e-9)
    assert found["perplexity"] == pytest.approx(math.exp(loss / count), rel=1e-9)
    assert found["token_accuracy"] == pytest.approx(right / count)
    assert {len(v) for v in whole.values()} == {10, 11}
    for length, hits in whole.items():
        assert found[f"exact_match_length_{length}"] == pytest.approx(sum(hits) / len(hits))


def test_any_number_of_workers_finds_the_same(on_workers) -> None:  # type: ignore[no-untyped-def]
    alone = judged()
    for result in on_workers(judged, 2):
        assert result == pytest.approx(alone, rel=1e-9)


def test_bleu_is_100_for_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model, test = model_and_data()
    monkeypatch.setattr(Transformer, "translate", lambda self, source: [row[:-1].tolist() for row in source])
    found = Bleu().judge(model, test, test, 0)
    assert found["bleu"] == pytest.approx(100)
    assert found["bleu_length_ratio"] == pytest.approx(1)


def test_evaluators_of_tokens_refuse_methods_of_images() -> None:
    text = JOB.replace("{type: transformer, width: 16, depth: 1, heads: 2, hidden: 16, extra_length: 4}", "{type: mae}")
    text = text.replace(
        "{source: copy, split: train, samples: 64, lengths: [3, 6], symbols: 5}", "{source: digits, split: train}"
    ).replace("{source: copy, split: test, samples: 21, lengths: [3, 6], symbols: 5}", "{source: digits, split: test}")
    text = text.replace(
        "{type: mae}", "{type: mae, backbone: {type: vit-tiny, patch_size: 4}, augmentation: {size: 8}}"
    )
    with pytest.raises(InputError) as caught:
        launch.load(parse(text, "tiny.yaml"))
    assert {p.where for p in caught.value.problems} == {"evaluation.0", "evaluation.1", "evaluation.2"}


def test_held_out_data_is_asked_for() -> None:
    job = parse(JOB, "tiny.yaml", ["data.test=null"])
    assert [p.where for p in launch.check(job)] == ["evaluation.0", "evaluation.1", "evaluation.2"]


def test_the_mean_of_the_last_checkpoints_is_judged(tmp_path: Path) -> None:
    job = parse(JOB, "tiny.yaml")
    data, runtime = launch.load(job), SilentRuntime(torch.device("cpu"))
    folder = RunFolder(str(tmp_path / "run"))
    folder.create(job)
    assert TrainingLoop(job, data, runtime, folder).run().status == "finished"
    sets = data.train, data.test
    step, averaged = evaluate_checkpoint(job, sets, folder, None, runtime, 3)
    assert step == 8
    assert averaged["eval/nll"] != evaluate_checkpoint(job, sets, folder, None, runtime)[1]["eval/nll"]
    store = folder.checkpoints()
    saved = [store.load(s)["algorithm"] for s in (4, 6, 8)]
    expected = Transformer(job.algorithm, data.train.spec())  # type: ignore[arg-type]
    expected.load_state_dict({name: sum(s[name] for s in saved) / 3 for name in saved[0]})
    assert data.test is not None
    test = SharedSamples(data.test, runtime)
    assert averaged["eval/nll"] == pytest.approx(Perplexity().judge(expected, test, test, 0)["nll"], rel=1e-5)
    with pytest.raises(InputError, match=r"checkpoint\.keep"):
        evaluate_checkpoint(job, sets, folder, None, runtime, 5)
