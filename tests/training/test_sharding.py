"""Weights, gradients and the optimiser's state spread over workers. That they follow the trajectory of one worker is
tested for every method in ``test_every_method``; here is what a spread run saves, reads and survives."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from heliostat.config.loading import parse
from heliostat.errors import InputError
from heliostat.training import launch
from heliostat.training.checkpoint import CheckpointStore, own_rows
from heliostat.training.loop import TrainingLoop
from heliostat.training.monitor import Outcome
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.sharding import blocks
from heliostat.training.state import TrainingState
from heliostat_algorithms.collectives import norms, rank, world_size

# Workers cannot import test modules by name.
_HERE = Path(__file__).parent
_TABLE = runpy.run_path(str(_HERE / "methods.py"))
_EVERY = runpy.run_path(str(_HERE / "test_every_method.py"))
flattened, whole = _EVERY["flattened"], _EVERY["whole"]
EVALUATED = "evaluation: [{type: knn}, {type: linear, solver: {type: sgd, epochs: 2}}]"
TEXT = _TABLE["job_text"]("moco-v3-vit", "").replace("evaluation: []", EVALUATED)
"""A Transformer with a teacher, heads with batch normalisation, AdamW."""


class Runtime(SilentRuntime):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), rank(), world_size())
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


def loop_of(folder: str, *overrides: str, pause_at: int | None = None) -> tuple[TrainingLoop, Runtime]:
    job = parse(TEXT, "tiny.yaml", [f"output={Path(folder).parent}", *overrides])
    runtime = Runtime()
    run = RunFolder(folder)
    if runtime.rank == 0 and not run.storage.exists("job.yaml"):
        run.create(job)
    return TrainingLoop(job, launch.load(launch.settled(job)), runtime, run, pause_at), runtime


def state_of(training: TrainingLoop) -> dict[str, Any]:
    return dict(flattened(whole(training.state.state_dict())))


def train(folder: str, strategy: str, pause_at: int | None = None) -> dict[str, Any]:
    """Train, or go on, and return the whole state at the end."""
    training, runtime = loop_of(folder, f"resources.strategy={strategy}", pause_at=pause_at)
    outcome = training.run()
    return {**state_of(training), "status": outcome.status, "step": outcome.step, "notices": runtime.notices}


def read(folder: str, strategy: str) -> dict[str, Any]:
    """What a run would go on from."""
    training, runtime = loop_of(folder, f"resources.strategy={strategy}")
    return {"restored": training.restore(), **state_of(training), "notices": runtime.notices}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    paths = {path for path in expected if path.startswith("/")}
    assert paths == {path for path in found if path.startswith("/")}
    assert any("exp_avg" in path for path in paths)
    for path in paths:
        a, b = found[path], expected[path]
        assert torch.equal(a, b) if isinstance(b, Tensor) else a == b, path


def held(folder: str) -> dict[str, Any]:
    """How many numbers of the network, its gradients and the optimiser a worker holds after a step."""
    training, _runtime = loop_of(folder, "resources.strategy=fsdp", "evaluation=[]")
    training.advance(0)
    parameters = list(training.state.algorithm.parameters())
    assert all(isinstance(p, DTensor) for p in parameters)
    own = sum(p.to_local().numel() for p in parameters)
    gradients = sum(p.grad.to_local().numel() for p in parameters if p.grad is not None)
    moments = sum(x.to_local().numel() for s in training.state.optimizer.state.values() for x in s.values() if x.ndim)
    return {"own": own, "gradients": gradients, "moments": moments, "all": sum(p.numel() for p in parameters)}


def test_each_worker_holds_its_share(on_workers: Any, tmp_path: Path) -> None:
    results = on_workers(held, 2, str(tmp_path / "run"))
    total = results[0]["all"]
    assert sum(result["own"] for result in results) == total  # each number is somewhere, and once
    for result in results:
        assert result["own"] < 0.55 * total
        assert result["gradients"] < 0.55 * total
        assert 0 < result["moments"] < 2 * 0.55 * total


def test_a_checkpoint_is_read_by_any_number_of_workers(on_workers: Any, tmp_path: Path) -> None:
    """Written by 4, whose shares are not equal; read by 2, by 2 that hold everything each, and by one."""
    folder = str(tmp_path / "run")
    written = on_workers(train, 4, folder, "fsdp", 4)
    assert {result["status"] for result in written} == {"interrupted"}
    place = Path(folder) / "checkpoints" / "step-00000004"
    assert {path.name for path in place.iterdir()} == {"manifest.json", "state.pt"} | {
        f"rows-{number}-of-4.pt" for number in range(4)
    }
    for strategy in ("fsdp", "ddp"):
        for result in on_workers(read, 2, folder, strategy) if strategy == "fsdp" else [read(folder, strategy)]:
            assert result["restored"] == 4
            assert_same(result, written[0])
    # What the workers share is nowhere twice.
    first = flattened(torch.load(place / "state.pt", weights_only=True))
    empty = [path for path, leaf in first.items() if isinstance(leaf, Tensor) and leaf.is_meta]
    shares = [torch.load(place / f"rows-{number}-of-4.pt", weights_only=True) for number in range(4)]
    for index, path in enumerate(empty):
        assert torch.equal(torch.cat([share[index] for share in shares]), written[0][path])
    assert len(empty) > 0.6 * sum(isinstance(leaf, Tensor) for leaf in first.values())


def test_a_spread_run_goes_on_from_a_whole_checkpoint(on_workers: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    alone = train(folder, "ddp", 4)
    for result in on_workers(read, 2, folder, "fsdp"):
        assert result["restored"] == 4
        assert_same(result, alone)


def test_a_run_that_stopped_ends_with_the_same_bits(on_workers: Any, tmp_path: Path) -> None:
    undisturbed = on_workers(train, 2, str(tmp_path / "whole"), "fsdp")
    stopped = str(tmp_path / "stopped")
    assert on_workers(stop_early, 2, stopped)[0]["step"] == 6
    results = on_workers(go_on, 2, stopped)
    assert results[0]["status"] == undisturbed[0]["status"] == "finished"
    assert_same(results[0], undisturbed[0])
    numbers = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "stopped")]
    assert numbers[0] == numbers[1]
    assert "eval/knn_top1" in numbers[0]


def stop_early(folder: str) -> dict[str, Any]:
    return train(folder, "fsdp", 6)


def go_on(folder: str) -> dict[str, Any]:
    return train(folder, "fsdp")


def test_evaluations_see_the_whole_network(on_workers: Any, tmp_path: Path) -> None:
    on_workers(train, 2, str(tmp_path / "spread"), "fsdp")
    train(str(tmp_path / "alone"), "ddp")
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("spread", "alone"))
    assert one.keys() == other.keys()
    assert {name for name in one if "baseline/untrained" in name}
    for name in one:  # rounding moves a vote or two
        assert one[name] == pytest.approx(other[name], abs=0.02), name


def test_a_damaged_share_is_noticed_by_all(on_workers: Any, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    on_workers(train, 2, folder, "fsdp", 8)
    rows = Path(folder) / "checkpoints" / "step-00000008" / "rows-1-of-2.pt"
    damaged = bytearray(rows.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    rows.write_bytes(damaged)
    for result in on_workers(read, 2, folder, "fsdp"):
        assert result["restored"] == 4
    store = CheckpointStore(RunFolder(folder).storage)
    with pytest.raises(InputError, match=r"rows-1-of-2\.pt is damaged"):
        store.load(8)
    rows.unlink()
    with pytest.raises(InputError, match=r"rows-1-of-2\.pt is missing"):
        store.load(8)
    assert store.load(8, share=(0, 2))  # the other worker's share is all there


def train_on_full_disk(folder: str) -> dict[str, Any]:
    """The second worker's disk is full when the second checkpoint is due."""
    training, runtime = loop_of(folder, "resources.strategy=fsdp", "evaluation=[]")
    write = training.checkpoints.write

    def refusing(step: int, name: str, content: Any) -> Any:
        if step == 8 and rank() == 1:
            raise OSError(28, "No space left on device")
        return write(step, name, content)

    training.checkpoints.write = refusing  # type: ignore[method-assign]
    outcome: Outcome = training.run()
    return {"status": outcome.status, "steps": training.checkpoints.steps(), "notices": runtime.notices}


def test_one_worker_that_cannot_write_fails_the_checkpoint_for_all(on_workers: Any, tmp_path: Path) -> None:
    results = on_workers(train_on_full_disk, 2, str(tmp_path / "run"))
    for result in results:
        assert result["status"] == "finished"
        assert result["steps"] == [4, 10]
    assert any("worker 1" in text and "No space left" in text for text in results[0]["notices"])
    assert not (tmp_path / "run" / "checkpoints" / "step-00000008").exists()


def measured(_: str) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    plain = [torch.arange(15.0).view(5, 3), torch.tensor([2.0]), torch.zeros(4, 2), torch.full((3,), 7.0)]
    spread: list[Tensor] = [distribute_tensor(x, mesh, [Shard(0)]) for x in plain[:3]]
    mixed = [*spread, plain[3]]
    own = [x.to_local() if isinstance(x, DTensor) else x for x in mixed]
    return {"found": norms(own, mixed), "expected": norms(plain, plain)}


def test_norms_of_spread_tensors_are_those_of_the_whole(on_workers: Any) -> None:
    for workers in (2, 4):
        for result in on_workers(measured, workers, ""):
            assert torch.allclose(result["found"], result["expected"], rtol=1e-7, atol=0)
    assert torch.equal(result["expected"], torch.tensor([1015.0**0.5, 2.0, 0.0, 147.0**0.5]))


@pytest.mark.parametrize("count", [1, 5, 8, 9])
@pytest.mark.parametrize("workers", [1, 2, 4, 7])
def test_rows_are_dealt_out_as_torch_does(count: int, workers: int) -> None:
    rows = torch.arange(count)
    dealt = [rows[own_rows(count, number, workers)] for number in range(workers)]
    expected = list(rows.chunk(workers))
    assert [part.tolist() for part in dealt if len(part)] == [part.tolist() for part in expected]


def test_blocks_are_what_stands_in_a_row() -> None:
    def network(method: str) -> nn.Module:
        job = parse(_TABLE["job_text"](method, ""), "tiny.yaml")
        data = launch.load(launch.settled(job))
        return TrainingState(job, data.train.spec(), torch.device("cpu"), 1).algorithm

    assert [type(block).__name__ for block in blocks(network("moco-v3-vit"))] == [
        "Block"
    ] * 4  # encoder and its teacher
    assert {type(block).__name__ for block in blocks(network("simclr"))} == {"BasicBlock"}
    assert [type(b).__name__ for b in blocks(network("transformer"))] == ["EncoderLayer"] * 2 + ["DecoderLayer"] * 2


def test_fp16_is_refused_before_anything_starts() -> None:
    job = parse(TEXT, "tiny.yaml", ["resources.strategy=fsdp", "optimization.precision=fp16"])
    assert [problem.where for problem in launch.check(job)] == ["optimization.precision"]
