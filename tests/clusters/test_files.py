"""Cluster files: ours are sound, and what is wrong with others is said; what is rendered is what was asked for."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from heliostat.cli import app
from heliostat.clusters import rendering, shipping, submission, submitted
from heliostat.clusters.checking import check
from heliostat.clusters.cluster_file import NodeGroup, Site, read
from heliostat.clusters.demand import Demand, check_fit, demands
from heliostat.clusters.jobs import Submission, resolve_address
from heliostat.clusters.submission import plan
from heliostat.errors import InputError, PartLost
from heliostat.training.continuation import same_trajectory

ROOT = Path(__file__).parents[2]
OURS = sorted([*(ROOT / "clusters").glob("*.yaml"), *(ROOT / "clusters").glob("*.sbatch")])
PLACES = ("output=s3://bucket/runs", "tracking.uri=http://127.0.0.1:5000")
ON_PREMISES = yaml.safe_load((ROOT / "clusters/on-premises.yaml").read_text())


@pytest.fixture
def problems(tmp_path: Path) -> Callable[..., str]:
    """What is said of one of our files after a replacement."""

    def look(name: str, old: str, new: str) -> str:
        text = (ROOT / "clusters" / name).read_text()
        assert old in text
        path = tmp_path / name
        path.write_text(text.replace(old, new))
        try:
            return "\n".join(map(str, check(read(path)).problems))
        except InputError as error:
            return str(error)

    return look


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_ours_are_sound(path: Path) -> None:
    report = check(read(path))
    assert report.problems == ()
    assert report.remarks == ()


def test_there_is_one_of_each_kind() -> None:
    found = {(read(path).kind, read(path).provider) for path in OURS}
    assert found == {("ray-up", "local"), ("ray-up", "aws"), ("ray-up", "gcp"), ("kuberay", ""), ("slurm", "")}


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("aws.yaml", "type: aws", "type: asw", "unknown provider 'asw'. Did you mean 'aws'?"),
        ("aws.yaml", "  region: us", "  regoin: us", "unknown key 'regoin' in provider. Did you mean 'region'?"),
        ("gcp.yaml", "  project_id: my-project", "  project_id: ''", "'project_id' is missing in provider"),
        ("aws.yaml", "max_workers: 16\nup", "max_worker: 16\nup", "Did you mean 'max_workers'?"),
        ("aws.yaml", "head_node_type: head", "head_node_type: haed", "head_node_type"),
        ("aws.yaml", "    min_workers: 0", "    min_worker: 0", "Did you mean 'min_workers'?"),
        ("aws.yaml", "min_workers: 0", "min_workers: 99", "(said by Ray)"),
        ("aws.yaml", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "listens on every address"),
        ("aws.yaml", "RAY_AUTH_MODE=token ray start --head", "ray start --head", "anybody who reaches this node"),
        ("on-premises.yaml", "RAY_AUTH_TOKEN_PATH=/etc/heliostat/auth_token ray start --h", "RAY_AUTH_TOKEN=a",
         "RAY_AUTH_TOKEN stands in the file"),
        ("on-premises.yaml", "RAY_enable_autoscaler_v2=0", "", "never starts the last one"),
        ("on-premises.yaml", "tracking: http://127", "tracking: http://me:pw@127", "an address with a password"),
        ("on-premises.yaml", "output: /shared", "outptu: /shared", "Did you mean 'output'?"),
        ("on-premises.yaml", "cluster_name: heliostat", "cluster_name: [", "not valid YAML"),
        ("kuberay.yaml", "backoffLimit", "backofLimit", "Did you mean 'backoffLimit'?"),
        ("kuberay.yaml", "mode: token", "mode: disabled", "anybody who reaches the cluster"),
        ("kuberay.yaml", "serviceType: ClusterIP", "serviceType: LoadBalancer", "shows the dashboard outside"),
        ("kuberay.yaml", "      minReplicas: 2", "      minReplica: 2", "Did you mean 'minReplicas'?"),
        ("slurm.sbatch", "--ntasks-per-node=1", "--ntask-per-node=1", "Did you mean 'ntasks-per-node'?"),
        ("slurm.sbatch", "export RAY_AUTH_MODE=token", "", "other users of the nodes"),
        ("slurm.sbatch", "set -euo pipefail", "if true", "bash cannot read it"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(problems: Callable[..., str], name: str, old: str, new: str, said: str) -> None:
    assert said in problems(name, old, new)


def test_a_problem_stands_at_its_line(problems: Callable[..., str]) -> None:
    text = (ROOT / "clusters/aws.yaml").read_text()
    line = next(number for number, each in enumerate(text.splitlines(), 1) if "region:" in each)
    assert f"aws.yaml:{line}: " in problems("aws.yaml", "  region: us", "  regoin: us")


def test_no_cluster_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\n")
    with pytest.raises(InputError, match="this is no cluster file"):
        read(tmp_path / "job.yaml")
    with pytest.raises(InputError, match=r"Did you mean 'job.yaml'"):
        read(tmp_path / "jop.yaml")


NODES = (NodeGroup("head", 1, 1, 0, 0), NodeGroup("gpu", 0, 3, 16, 4))


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Demand("workers", 12, 12, 4, 1), None),
        (Demand("workers", 13, 13, 4, 1), "can never hold more than 12"),
        (Demand("workers", 1, 1, 1, 8), "can never hold more than 0"),
        (Demand("workers", 4, 4, 12, 0), "can never hold more than 3"),
    ],
)
def test_whether_a_job_fits(wanted: Demand, said: str | None) -> None:
    problems, _ = check_fit([wanted], NODES)
    assert (said in str(problems[0])) if said else problems == []


def test_parts_that_fit_alone_may_not_fit_together() -> None:
    parts = [Demand("learners", 1, 1, 30, 0), Demand("rollout actors", 20, 20, 1, 0)]
    problems, _ = check_fit(parts, [NodeGroup("one", 1, 1, 32, 0)])
    assert "need 50 CPUs together, but the cluster has 32" in str(problems[0])


def test_what_cannot_be_known_is_a_remark() -> None:
    problems, remarks = check_fit([Demand("workers", 99, 99, 1, 0)], [NodeGroup("mine", 1, 1, None, None)])
    assert problems == []
    assert "does not say" in str(remarks[0])


def digits(*changes: str, **options: Any) -> Any:
    return plan(ROOT / "jobs/representation/simclr-digits.yaml", changes, options.pop("site", Site()), **options)


def test_places_that_would_be_lost() -> None:
    with pytest.raises(InputError) as caught:
        digits("resources.runtime=local", "resources.workers=1")
    assert {problem.where for problem in caught.value.problems} == {"output", "tracking.uri", "resources.runtime"}
    site = Site(output="/shared/runs", tracking="http://127.0.0.1:5000")
    assert digits(site=site).overrides == ("output=/shared/runs", "tracking.uri=http://127.0.0.1:5000")
    assert digits("output=s3://mine/runs", site=site).overrides[0] == "output=s3://mine/runs"


def test_the_command_that_is_run() -> None:
    made = digits(*PLACES, "resources.workers=[1, 2]", run="one")
    assert made.entrypoint(goes_on=False) == (
        "python -m heliostat run simclr-digits.yaml output=s3://bucket/runs tracking.uri=http://127.0.0.1:5000 "
        "'resources.workers=[1, 2]' --name one"
    )
    assert made.entrypoint(goes_on=True).endswith("--name one --continue")
    assert re.fullmatch(r"simclr-digits-[0-9a-f]{6}", digits(*PLACES).run)


def test_what_is_shipped() -> None:
    job = ROOT / "jobs/representation/simclr-digits.yaml"
    with shipping.packed(job) as shipment:
        environment = shipment.runtime_env
        assert shipment.bytes < shipping.LIMIT_BYTES
        assert [each.name for each in Path(environment["working_dir"]).iterdir()] == ["simclr-digits.yaml"]
        assert [Path(module).name for module in environment["py_modules"]] == ["heliostat", "heliostat_algorithms"]
        assert "pip" not in environment, "a cluster that has the dependencies needs no index"
    assert not Path(environment["working_dir"]).exists()
    with pytest.raises(InputError, match="no such file"), shipping.packed(job, [Path("nowhere")]):
        pass


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://head:8265", "http://head:8265"),
        ("head:8265", "http://head:8265"),
        ("http://head", "http://head:8265"),
        ("https://head/ray", "https://head/ray"),
    ],
)
def test_addresses(given: str, expected: str) -> None:
    assert resolve_address(given) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("head:6379", "is for nodes that join"),
        ("ray://head:10001", "jobs go to the dashboard"),
        ("http://:8265", "no host"),
    ],
)
def test_wrong_addresses(given: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        resolve_address(given)


def test_what_a_submission_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert submitted.tags() == {}
    known = {
        "job_submission_id": "one.2",
        submitted.ADDRESS: "http://head:8265",
        submitted.COMMIT: "abc",
        submitted.CHANGED: "3",
    }
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": known}))
    assert submitted.tags() == {"heliostat.submission": "one.2", "heliostat.address": "http://head:8265"}
    assert submitted.git() == {"commit": "abc", "changed_files": 3}


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [
        ("SUCCEEDED", 0, False),
        ("FAILED", 1, False),  # would fail again
        ("FAILED", 2, False),
        ("STOPPED", 130, False),
        ("FAILED", 75, True),  # a part that could not be replaced
        ("FAILED", -9, True),
        ("FAILED", None, True),  # its node was lost
    ],
)
def test_what_is_submitted_again(status: str, code: int | None, again: bool) -> None:
    assert submission.lost(Submission("one.1", status, "one", 1, "", "", code, None, None)) is again
    assert submission.lost(None), "a head that does not know the job any more"


def test_a_part_that_was_lost_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> None:
        raise PartLost("the process that keeps the run's record died")

    monkeypatch.setattr(app, "app", run)
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 75
    assert "keeps the run's record" in capsys.readouterr().err


def test_going_on_keeps_the_trajectory() -> None:
    stored, given = digits(*PLACES).jobs[0], digits(*PLACES, "resources.workers=4").jobs[0]
    assert same_trajectory(stored, given, "here").resources.workers == 4
    with pytest.raises(InputError, match="another experiment: seed differ"):
        same_trajectory(stored, digits(*PLACES, "seed=9").jobs[0], "here")


def test_shapes() -> None:
    made = digits(*PLACES, "resources.workers=8", "resources.gpus_per_worker=1", "resources.cpus_per_worker=4")
    assert rendering.shape(made, 4) == rendering.Shape(2, 2, 16, 4)
    assert rendering.shape(made) == rendering.Shape(8, 8, 4, 1)
    with pytest.raises(InputError, match="cannot be shared out by 3"):
        rendering.shape(made, 3)
    assert sum(demand.least for demand in demands(made.jobs[0])) == 8


def test_rendered_files_check_and_carry_the_job(tmp_path: Path) -> None:
    made = digits(*PLACES, "resources.workers=[2, 4]", "optimization.batch_size=240", run="Run_1.x")
    text = rendering.kuberay(made, rendering.shape(made), "image:1", hours=2)
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert check(read(path)).problems == ()
    config, job = yaml.safe_load_all(text)
    assert config["data"]["simclr-digits.yaml"] == made.job.read_text()
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    (group,) = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"]) == (2, 4)
    assert job["spec"]["activeDeadlineSeconds"] == 7200
    assert job["metadata"]["name"] == "run-1-x"
    with pytest.raises(InputError, match="one number of workers"):
        rendering.slurm(made, rendering.shape(made))
    fixed = digits(*PLACES, run="one")
    script = tmp_path / "job.sbatch"
    script.write_text(rendering.slurm(fixed, rendering.shape(fixed), hours=1.5))
    assert check(read(script)).problems == ()
    assert "#SBATCH --time=01:30:00" in script.read_text()
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, None, False), (1, None, False), (75, None, True), (75, 9, True), (75, 10, False)],
)
def test_a_job_of_slurm_is_queued_again_only_where_it_pays(
    tmp_path: Path, status: int, restarts: int | None, again: bool
) -> None:
    """The script itself, with commands of Slurm that note what they are asked and end as a run would."""
    plan = digits(*PLACES, run="one")
    (tmp_path / "job.sbatch").write_text(rendering.slurm(plan, rendering.shape(plan)))
    commands = {
        "srun": f'[[ $* == *hostname* ]] && echo 10.0.0.1 || {{ echo "srun $*" >> asked; exit {status}; }}',
        "scontrol": '[[ $1 == show ]] && echo one || echo "scontrol $*" >> asked',
    }
    for name, does in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "one", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "1"}
    if restarts is not None:
        slurm["SLURM_RESTART_COUNT"] = str(restarts)
    path = f"{tmp_path}:{os.environ['PATH']}"
    ended = subprocess.run(
        ["bash", "job.sbatch"], cwd=tmp_path, env={**os.environ, **slurm, "PATH": path}, check=False, timeout=60
    )
    assert ended.returncode == status
    started, *queued = (tmp_path / "asked").read_text().splitlines()
    assert "ray symmetric-run --address 10.0.0.1:6379" in started
    assert queued == (["scontrol requeue 7"] if again else [])


def test_against_kuberays_own_definitions() -> None:
    """Set HELIOSTAT_KUBERAY_CRDS to a folder with ray.io_rayjobs.yaml of KubeRay 1.7."""
    folder = os.environ.get("HELIOSTAT_KUBERAY_CRDS")
    if not folder:
        pytest.skip("HELIOSTAT_KUBERAY_CRDS names no folder with KubeRay's definitions")
    import jsonschema

    definition = yaml.safe_load((Path(folder) / "ray.io_rayjobs.yaml").read_text())
    schema = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]

    def strict(node: Any) -> Any:
        """Kubernetes drops unknown keys in silence; here they are errors."""
        if isinstance(node, dict):
            if (
                "properties" in node
                and "additionalProperties" not in node
                and not node.get("x-kubernetes-preserve-unknown-fields")
            ):
                node = {**node, "additionalProperties": False}
            if node.get("x-kubernetes-int-or-string"):
                return {"type": ["integer", "string"]}
            return {key: strict(value) for key, value in node.items()}
        return [strict(each) for each in node] if isinstance(node, list) else node

    schema["properties"]["metadata"] = {"type": "object", "additionalProperties": True}
    grows = digits(
        *PLACES, "resources.workers=[2, 4]", "resources.gpus_per_worker=1", "optimization.batch_size=240", run="grows"
    )
    fixed = digits(*PLACES, "resources.workers=4", run="fixed")
    texts = [
        (ROOT / "clusters/kuberay.yaml").read_text(),
        rendering.kuberay(grows, rendering.shape(grows), "registry/heliostat:1", hours=12),
        rendering.kuberay(fixed, rendering.shape(fixed, 2), "heliostat:latest", retries=0),
    ]
    for text in texts:
        (job,) = [document for document in yaml.safe_load_all(text) if document["kind"] == "RayJob"]
        jsonschema.validate(job, strict(schema))
        job["spec"]["backofLimit"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(job, strict(schema))
