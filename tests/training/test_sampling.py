"""``heliostat sample``: what a run made, as files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.config.loading import parse
from heliostat.errors import InputError
from heliostat.training import launch
from heliostat.training.loop import TrainingLoop
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.sampling import TextWish, sample_run, write
from heliostat_algorithms.algorithm import Clips, Panels, Sampled, Texts, Wish
from heliostat_algorithms.generative.vae import VAE
from heliostat_algorithms.randomness import Random

JOB = """
name: generative
seed: 3
algorithm: {type: vae, network: {type: mlp, hidden: [8]}, latent: 2}
data: {train: {source: digits, split: train}, test: {source: digits, split: test}}
optimization: {optimizer: {type: adam, learning_rate: 0.01}, schedule: {type: constant}, batch_size: 128, epochs: 3}
sample: {every_epochs: 1, count: 9}
resources: {runtime: local}
tracking: {every_steps: 5, system_metrics: false}
"""
GAN = """algorithm={type: gan, generator: {type: mlp, hidden: [8]}, discriminator: {type: mlp, hidden: [8]}}"""
RING = "data={train: {source: ring, split: train, samples: 600}, test: {source: ring, split: test, samples: 300}}"


def trained(tmp_path: Path, *overrides: str) -> RunFolder:
    job = parse(JOB, "generative.yaml", [f"output={tmp_path}", *overrides])
    assert launch.check(job) == []
    folder = RunFolder(str(tmp_path / "run"))
    folder.create(job)
    data = launch.load(job)
    assert TrainingLoop(job, data, SilentRuntime(torch.device("cpu")), folder).run().status == "finished"
    return folder


def test_samples_while_training_and_at_the_end(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    assert folder.figures() == [
        "reconstructions.png", "samples.png",
        "step-00000011-samples.png", "step-00000011-walk.png",
        "step-00000022-samples.png", "step-00000022-walk.png",
        "walk.png",
    ]  # fmt: skip


def test_samples_of_points(tmp_path: Path) -> None:
    assert trained(tmp_path, GAN, RING, "sample=null").figures() == ["samples.png"]


def test_the_same_seed_makes_the_same_files(tmp_path: Path) -> None:
    folder = trained(tmp_path, "sample=null")

    def made(place: str, seed: int, only: tuple[str, ...] = ()) -> dict[str, bytes]:
        files = sample_run(folder, tmp_path / place, count=10, seed=seed, only=only).files
        return {path.name: path.read_bytes() for path in files}

    one = made("one", 0)
    assert set(one) == {"samples.png", "walk.png"}
    assert made("two", 0) == one
    assert made("three", 1)["samples.png"] != one["samples.png"]
    assert set(made("four", 0, ("walk",))) == {"walk.png"}
    with pytest.raises(InputError, match=r"makes no 'wlak'.*walk"):
        made("five", 0, ("wlak",))


def test_the_command(tmp_path: Path) -> None:
    folder = trained(tmp_path, "sample=null")
    result = CliRunner().invoke(app, ["sample", folder.storage.uri, "-n", "4", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["checkpoint"] == 33
    assert [Path(file).name for file in found["files"]] == ["samples.png", "walk.png"]
    assert all(Path(file).parent == tmp_path / "run" / "samples" and Path(file).exists() for file in found["files"])
    refused = CliRunner().invoke(app, ["sample", folder.storage.uri, "--log"])
    assert isinstance(refused.exception, InputError)
    assert "MLflow does not know this run" in str(refused.exception)


def test_a_run_that_was_tracked_is_given_its_samples(tmp_path: Path) -> None:
    from heliostat.tracking.client import connect

    store = f"sqlite:///{tmp_path}/mlflow.db"
    job = parse(JOB, "generative.yaml", [f"output={tmp_path}", "sample=null", f"tracking.uri={store}"])

    class Silent:
        def show(self, snapshot: Any) -> None:
            """Nobody watches."""

    finished = launch.start(job, Silent(), "tracked")
    result = CliRunner().invoke(app, ["sample", finished.folder.storage.uri, "-n", "2", "--log", "--only", "samples"])
    assert result.exit_code == 0, result.output
    run = finished.folder.about()["tracking_run_id"]
    stored = connect(store).list_artifacts(run, "samples/step-00000033")
    assert [artifact.path for artifact in stored] == ["samples/step-00000033/samples.png"]


def test_all_kinds_become_files(tmp_path: Path) -> None:
    videos = torch.zeros(2, 5, 1, 8, 6)
    for frame in range(5):
        videos[0, frame, 0, :, frame] = 1.0
    paths = write("clips", Clips(videos, frames_per_second=10), tmp_path)
    assert [path.name for path in paths] == ["clips.png", "clips.gif"]
    with Image.open(paths[1]) as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"]) == (5, (12, 8), 100)  # type: ignore[attr-defined]
        for frame in range(5):
            gif.seek(frame)
            shown = np.asarray(gif.convert("L"))
            assert (shown[:, frame] > 200).all()
            assert shown.sum() < 8 * 256
    (text,) = write("continuations", Texts(("one", "two")), tmp_path)
    assert text.read_text() == "one\n\ntwo\n\n"


def test_rows_that_are_not_full_are_filled_with_white() -> None:
    panels = Panels.grid(torch.zeros(10, 1, 2, 2))
    assert panels.images.shape == (2, 8, 1, 2, 2)
    assert float(panels.images.sum()) == 6 * 4
    assert Panels.grid(torch.zeros(3, 1, 2, 2)).images.shape == (1, 3, 1, 2, 2)


def test_prompts_reach_the_method_and_its_refusal_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = trained(tmp_path, "sample=null")

    def sample(self: VAE, wish: Wish, random: Random) -> Mapping[str, Sampled]:
        assert len(random.rows) == wish.count
        assert len(wish.given["image"]) >= wish.count
        if not wish.prompts:
            raise ValueError("it wants a prompt")
        return {"echo": Texts(wish.prompts)}

    monkeypatch.setattr(VAE, "sample", sample)
    with pytest.raises(InputError, match="wants a prompt"):
        sample_run(folder, tmp_path / "out", count=2, seed=0)
    made = sample_run(folder, tmp_path / "out", count=2, seed=0, texts=TextWish(prompts=("a", "b")))
    assert made.files[0].read_text() == "a\n\nb\n\n"


def test_methods_that_make_nothing_say_so(tmp_path: Path) -> None:
    simclr = "algorithm={type: simclr, backbone: {type: resnet18, stem: cifar, width: 4}}"
    job = parse(JOB, "generative.yaml", [simclr])
    assert ["simclr is not generative" in problem.what for problem in launch.check(job)] == [True]
    folder = RunFolder(str(tmp_path / "none"))
    folder.create(job)
    with pytest.raises(InputError, match="no checkpoint"):
        sample_run(folder, tmp_path, count=1, seed=0)


ADAM = (
    "optimization={optimizer: {type: adam, learning_rate: 0.01}, schedule: {type: constant}, batch_size: 16, steps: 2}"
)
MODEL = "algorithm={type: language-model, network: {type: transformer, width: 8, depth: 1, heads: 2, hidden: 8}}"


def text_run(tmp_path: Path, *overrides: str) -> RunFolder:
    (tmp_path / "text.txt").write_text("abcd efgh. " * 200)
    text = f"data={{train: {{source: text, path: {tmp_path}/text.txt, split: train, window: 12}}}}"
    return trained(tmp_path, MODEL, text, ADAM, "sample=null", *overrides)


def blocks(file: Path) -> list[tuple[str, str]]:
    """What was given and what was made of it."""
    found = re.findall(r"\[\d+\] given\n(.*?)\n\[\d+\] made\n(.*?)\n\n", file.read_text(), flags=re.DOTALL)
    assert found
    return found


def test_texts_go_on(tmp_path: Path) -> None:
    folder = text_run(tmp_path)
    assert folder.figures() == ["continuations.txt"]

    def made(place: str, seed: int = 0, count: int = 3, **wishes: Any) -> list[tuple[str, str]]:
        (file,) = sample_run(folder, tmp_path / place, count=count, seed=seed, texts=TextWish(**wishes)).files
        return blocks(file)

    stored = made("stored", length=7)
    assert [given for given, _ in stored] == [("abcd efgh. " * 9)[start : start + 6] for start in (0, 12, 24)]
    assert {len(text) for _, text in stored} == {7}
    asked = made("asked", prompts=("ab", "efgh"), length=5)
    assert [given for given, _ in asked] == ["ab"] * 3 + ["efgh"] * 3
    assert len({text for _, text in asked}) > 3  # drawn
    assert made("again", prompts=("ab", "efgh"), length=5) == asked
    assert made("other", prompts=("ab", "efgh"), length=5, seed=1) != asked
    assert made("fewer", prompts=("ab", "efgh"), length=5, count=2)[:2] == asked[:2]
    cold = made("cold", prompts=("ab",), top_k=1)
    assert len({text for _, text in cold}) == 1
    assert made("colder", prompts=("ab",), temperature=1e-4) == cold
    with pytest.raises(InputError, match="a prompt is empty"):
        made("empty", prompts=("",))
    with pytest.raises(InputError, match=r"characters have no token.*'Z'"):
        made("unknown", prompts=("aZ",))


def test_tasks_are_answered_and_sources_translated(tmp_path: Path) -> None:
    tokens = "data={train: {source: copy, split: train, samples: 40, lengths: [2, 3], symbols: 5, form: tokens}}"
    (file,) = sample_run(trained(tmp_path / "a", MODEL, tokens, ADAM, "sample=null"), tmp_path, count=30, seed=0).files
    answers = blocks(file)
    assert file.name == "answers.txt"
    assert len(answers) == 30
    assert {len(given.split()) for given, _ in answers} == {2, 3}
    pairs = tokens.replace("form: tokens", "form: pairs")
    small = "algorithm={type: transformer, width: 8, depth: 1, heads: 2, hidden: 8, extra_length: 2}"
    folder = trained(tmp_path / "b", small, pairs, ADAM, "sample=null")
    (file,) = sample_run(folder, tmp_path, count=30, seed=0).files
    assert file.name == "translations.txt"
    assert len(blocks(file)) == 30
    (file,) = sample_run(folder, tmp_path, count=1, seed=0, texts=TextWish(prompts=("4 0", "1"))).files
    (file_alone,) = sample_run(folder, tmp_path / "alone", count=1, seed=0, texts=TextWish(prompts=("1",))).files
    assert [given for given, _ in blocks(file)] == ["4 0", "1"]
    assert blocks(file)[1] == blocks(file_alone)[0]  # what a source is padded with does not matter
