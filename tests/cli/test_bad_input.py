"""Wrong input: a clear sentence, exit code 2, and nothing started or made."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from heliostat.cli.app import main

JOB = Path(__file__).parents[2] / "jobs/representation/simclr-digits.yaml"
Heliostat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def heliostat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Heliostat:
    """Runs the command line in this process, in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["heliostat", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def parquet(path: Path, rows: int = 12, label: str = "label") -> Path:
    random = np.random.default_rng(0)
    images = []
    for _ in range(rows):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    image = pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": image, label: pa.array(range(rows), pa.int64())}), path)
    return path


def source(path: Path, **options: object) -> str:
    return "data.train=" + json.dumps({"source": "parquet", "path": str(path), **options})


def refused(heliostat: Heliostat, *overrides: str, job: Path = JOB) -> str:
    code, out, err = heliostat("run", job, *overrides)
    assert code == 2, (out, err)
    assert err.startswith("wrong input: ")
    assert not Path("runs").exists()
    assert not Path("mlflow.db").exists()
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()
    return err


def test_a_profile_of_what_has_no_single_loop(heliostat: Heliostat) -> None:
    jobs = Path(__file__).parents[2] / "jobs"
    assert "name it with --stage" in refused(heliostat, "--profile", job=jobs / "representation/simclr-v2-digits.yaml")
    assert "not play" in refused(heliostat, "--profile", job=jobs / "reinforcement/cartpole.yaml")


def test_unknown_key(heliostat: Heliostat) -> None:
    assert "Did you mean 'batch_size'?" in refused(heliostat, "optimization.batch_sise=3")


def test_wrong_type(heliostat: Heliostat) -> None:
    assert "must be a valid integer" in refused(heliostat, "optimization.batch_size=many")


def test_impossible_value(heliostat: Heliostat) -> None:
    assert "temperature is -1.0; it must be above 0" in refused(heliostat, "algorithm.temperature=-1")


def test_missing_job_file(heliostat: Heliostat) -> None:
    said = refused(heliostat, job=JOB.with_name("simclr-digit.yaml"))
    assert "no such job file" in said
    assert "Did you mean 'simclr-digits.yaml'?" in said


def test_missing_data_file(heliostat: Heliostat, tmp_path: Path) -> None:
    parquet(tmp_path / "train.parquet")
    said = refused(heliostat, source(tmp_path / "trian.parquet"))
    assert "data.train" in said
    assert "train.parquet" in said


def test_a_batch_that_the_workers_cannot_share(heliostat: Heliostat) -> None:
    said = refused(heliostat, "resources.workers=3")
    assert "3 workers cannot share a batch of 256 equally; 255 would do" in said
    said = refused(heliostat, "resources.workers=[1,4]")
    assert "3 workers cannot share" in said


def test_a_batch_larger_than_the_data(heliostat: Heliostat) -> None:
    assert "larger than" in refused(heliostat, "optimization.batch_size=2048")


def test_a_warm_up_longer_than_the_training(heliostat: Heliostat) -> None:
    assert "warm-up of 5 epochs is not shorter" in refused(heliostat, "optimization.epochs=5")


def test_unknown_source(heliostat: Heliostat) -> None:
    assert "Did you mean 'digits'?" in refused(heliostat, "data.train={source: digit, split: train}")


def test_empty_data(heliostat: Heliostat, tmp_path: Path) -> None:
    said = refused(heliostat, source(parquet(tmp_path / "empty.parquet", rows=0)))
    assert "empty.parquet" in said


def test_absent_label_column(heliostat: Heliostat, tmp_path: Path) -> None:
    said = refused(heliostat, source(parquet(tmp_path / "train.parquet", label="labels")))
    assert "'label'" in said
    assert "'labels'" in said


def test_parquet_cut_in_half(heliostat: Heliostat, tmp_path: Path) -> None:
    path = parquet(tmp_path / "train.parquet")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "train.parquet" in refused(heliostat, source(path))


@pytest.mark.parametrize("uri", ["sqlit:///x.db", "file:///tmp/mlruns", "http:/host:5000", "ht!tp://x"])
def test_a_tracking_uri_that_cannot_be(heliostat: Heliostat, uri: str) -> None:
    assert uri.split(":")[0] in refused(heliostat, f"tracking.uri={uri}")


def test_all_that_is_wrong_comes_at_once(heliostat: Heliostat, tmp_path: Path) -> None:
    said = refused(heliostat, source(tmp_path / "no.parquet"), "resources.workers=3", "tracking.uri=file:///x")
    assert said.count("wrong input: ") == 3, said


def test_a_place_that_cannot_be_written(heliostat: Heliostat, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot be written" in refused(heliostat, f"output={tmp_path / 'file'}")


def test_json_errors_are_json(heliostat: Heliostat) -> None:
    code, out, err = heliostat("run", JOB, "optimization.batch_sise=3", "--json")
    assert code == 2
    assert out == ""
    assert "batch_size" in json.loads(err)["problems"][0]


def test_an_existing_name_and_another_architecture(heliostat: Heliostat, tmp_path: Path) -> None:
    small = [
        "optimization.epochs=null",
        "optimization.steps=2",
        "optimization.schedule.warmup_epochs=0",
        "evaluation=[]",
    ]
    store = f"tracking.uri=sqlite:///{tmp_path / 'mlflow.db'}"
    options = [*small, store, "tracking.system_metrics=false", "--local"]
    code, out, err = heliostat("run", JOB, *options, "algorithm.backbone.width=4", "--name", "one", "--json")
    assert code == 0, err
    outcome = json.loads(out)
    assert outcome["status"] == "finished"
    assert Path(outcome["folder"]) == tmp_path / "runs/one"

    code, _, err = heliostat("run", JOB, *options, "--name", "one")
    assert code == 2
    assert "a run of this name exists" in err
    assert "heliostat resume" in err

    code, _, err = heliostat("resume", "one")
    assert code == 2
    assert "finished" in err

    code, _, err = heliostat("resume", "oen")
    assert code == 2
    assert "Did you mean 'one'?" in err

    code, _, err = heliostat("resume", "one", "algorithm.temperature=1")
    assert code == 2

    code, out, err = heliostat("evaluate", "one", "evaluation=[{type: knn}]", "--json")
    assert code == 0, err
    assert "eval/knn_top1" in json.loads(out)["results"]

    code, _, err = heliostat("evaluate", "one", "--checkpoint", "1", "evaluation=[{type: knn}]")
    assert code == 2
    assert "no checkpoint of step 1; complete ones: 2" in err

    shutil.copytree("runs/one", "runs/wide")
    job = Path("runs/wide/job.yaml")
    job.write_text(job.read_text().replace("width: 4", "width: 8"))
    code, _, err = heliostat("evaluate", "wide", "evaluation=[{type: knn}]")
    assert code == 2
    assert "of another architecture" in err
    code, _, err = heliostat("evaluate", "one", "--weights", "wide", "evaluation=[{type: knn}]")
    assert code == 0, "the weights fit: only the copy's job file is wrong"


def test_validate_says_all_and_starts_nothing(heliostat: Heliostat) -> None:
    code, out, _ = heliostat("validate", JOB)
    assert code == 0
    assert "valid" in out
    assert not Path("runs").exists()
    code, _, err = heliostat("validate", JOB, "resources.workers=3")
    assert code == 2
    assert "cannot share" in err
    code, out, _ = heliostat("validate", JOB, "--json", "seed=9")
    assert json.loads(out)["seed"] == 9
    code, out, _ = heliostat("validate", "--schema")
    assert "data" in json.loads(out)["else"]["else"]["properties"]
    assert "environment" in json.loads(out)["else"]["then"]["properties"]


def test_list(heliostat: Heliostat) -> None:
    code, out, _ = heliostat("list", "--json")
    assert code == 0
    listing = json.loads(out)
    assert "simclr" in listing["algorithms"]
    images = {"digits", "ring", "parquet", "image-folder", "cifar10", "cifar100", "mnist", "fashion-mnist", "stl10"}
    images |= {"prepared"}
    videos = {"atari-frames", "atari-clips", "moving-digits", "bouncing-shapes", "video-folder"}
    sequences = {"text", "parallel-text", "copy", "reverse", "selective-copying", "induction-heads", "passkey"}
    assert images | videos | sequences == set(listing["data"])
    assert {"resnet18", "resnet50", "vit-tiny", "vit-giant"} <= set(listing["backbones"])
    assert all(what for entries in listing.values() for what in entries.values())
    code, _, _ = heliostat("list", "algorithm")
    assert code == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("environment.id=CartPol-v1", "Did you mean 'CartPole-v1'?"),
        ("environment.id=Pendulum-v1", "continuous"),
        ("replay={capacity: 32, minimum: 32, samples_per_insert: 8}", "a batch of 64 is larger than the memory of 32"),
        ("resources.shards=3", "3 shards cannot share 100000 slots equally; 99999 would do"),
    ],
    ids=["unknown-environment", "continuous-actions", "batch-above-memory", "shards-do-not-divide"],
)
def test_reinforcement(heliostat: Heliostat, override: str, said: str) -> None:
    assert said in refused(heliostat, override, job=JOB.parents[1] / "reinforcement/cartpole.yaml")
