"""The loop inside Ray Train: a worker group that is replaced when it breaks, and one actor that the workers tell.

Checkpoints do not travel through ``ray.train.report``: rank 0 writes them to the run's folder, where the in-process
runtime, ``evaluate`` and ``resume`` look as well, and a restarted worker group reads the newest. Ray decides when to
restart and on which nodes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from heliostat.config.job import Job
from heliostat.config.loading import dump, parse
from heliostat.data.samples import Samples
from heliostat.data.sharing import Shared, share
from heliostat.errors import InputError, PartLost, RunError
from heliostat.training import ray_cluster
from heliostat.training.allocation import keep_freed_memory
from heliostat.training.datasets import Datasets
from heliostat.training.denormals import flush_denormals
from heliostat.training.loop import TrainingLoop
from heliostat.training.monitor import EndStatus, Monitor, Outcome, Progress, Snapshot
from heliostat.training.run_folder import RunFolder

if TYPE_CHECKING:
    from heliostat.tracking.tracker import Tracker, TrackerStatus

_COLLECTIVE_TIMEOUT_S = 1800
"""Evaluation happens on rank 0 while the others wait; a linear probe on a large set takes minutes."""
_OLD_WORKER_S = 60
"""How long a new rank 0 waits for one that a killed driver left behind."""


class RayRuntime:
    """A Ray Train worker's view of the run; tells the monitor's actor without waiting for it."""

    def __init__(self, monitor: Any) -> None:
        context = ray.train.get_context()
        self._monitor = monitor
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._monitor.log.remote(dict(metrics), step)

    def progress(self, progress: Progress) -> None:
        self._monitor.progress.remote(progress)

    def notice(self, text: str) -> None:
        self._monitor.notice.remote(text)

    def before_checkpoint(self) -> None:
        # Waited for: what the tracker could not send must be on disk before the steps count as done.
        ray.get(self._monitor.before_checkpoint.remote())

    def link_checkpoint(self, name: str, uri: str, step: int, metrics: Mapping[str, float]) -> None:
        self._monitor.link_checkpoint.remote(name, uri, step, dict(metrics))

    def conclude(self, outcome: Outcome) -> None:
        ray.get(self._monitor.conclude.remote(outcome))

    def stop_requested(self) -> bool:
        return bool(self.rank == 0 and ray.get(self._monitor.stop_requested.remote()))

    def preemption(self) -> str | None:
        info = ray.train.get_preemption_info()  # a barrier: all workers call it at the same steps
        if info is None:
            return None
        ranks = ", ".join(map(str, info.preempted_ranks))
        return f"{len(info.preempted_node_ids)} node(s) with the workers {ranks} will be taken away"


class _TellFailures(UserCallback):
    """Shows at once why a worker group is being restarted; runs on Ray Train's controller."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for rank, error in sorted(worker_exceptions.items()):
            last_line = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            self._monitor.notice.remote(f"worker {rank} failed: {last_line[0]}; restarting from the last checkpoint")


def _work(config: dict[str, Any]) -> None:
    """What each worker runs."""
    keep_freed_memory()
    flush_denormals()
    runtime = RayRuntime(config["monitor"])
    shared: Shared[Samples] = config["train"]
    held_out: Shared[Samples] | None = config["test"]
    data = Datasets(shared.open(), held_out.open() if held_out else None)
    job = parse(config["job"], "the job")
    folder = RunFolder(config["folder"])
    alone = folder.locked("worker", _OLD_WORKER_S) if runtime.rank == 0 else nullcontext()
    with alone:  # a run that is still held by another process fails this worker: Ray may try again
        try:
            TrainingLoop(job, data, runtime, folder, config["pause_at"], profile=config["profile"]).run()
        except (InputError, RunError) as error:  # would be the same after a restart
            runtime.conclude(Outcome("failed", 0, str(error)))


class _Backend(_TorchBackend):
    """Ray's own, whose workers can reach one another also where a host does not know its own address."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(ray_cluster.listen_where_ray_does)
        super().on_start(worker_group, backend_config)


class _Collectives(TorchConfig):
    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend


def connect(job: Job) -> None:
    """Join or start Ray for a job's workers.

    Raises:
        InputError: this machine cannot hold the workers.
    """
    resources = job.resources
    workers = resources.worker_range[0]
    needed = workers * resources.cpus_per_worker, workers * resources.gpus_per_worker
    ray_cluster.connect(*needed, f"{workers} workers")


class RayRun:
    """A run on Ray, driven from a thread of this process.

    Args:
        job: what to do.
        data: decoded samples; put into the object store once.
        folder: the run's files.
        open_tracker: makes the tracker, inside the monitor's actor.
        pause_at, profile: see :class:`TrainingLoop`.
    """

    def __init__(
        self,
        job: Job,
        data: Datasets,
        folder: RunFolder,
        open_tracker: Callable[[], Tracker],
        pause_at: int | None = None,
        *,
        profile: bool = False,
    ) -> None:
        connect(job)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor: Any = ray.remote(Monitor)
        self._handle = actor.options(num_cpus=0, scheduling_strategy=here).remote(open_tracker)
        self.monitor = RemoteMonitor(self._handle)
        resources = job.resources
        per_worker: dict[str, float] = {"CPU": resources.cpus_per_worker}
        if resources.gpus_per_worker:
            per_worker["GPU"] = resources.gpus_per_worker
        self._trainer = TorchTrainer(
            _work,
            train_loop_config={
                "job": dump(job),
                "folder": folder.storage.uri,
                "train": share(data.train),
                "test": share(data.test) if data.test is not None else None,
                "monitor": self._handle,
                "pause_at": pause_at,
                "profile": profile,
            },
            scaling_config=ScalingConfig(
                num_workers=cast("int", resources.workers),  # or a range; Ray's annotation is that of Train v1
                elastic_resize_monitor_interval_s=resources.resize_seconds,  # type: ignore[call-arg]  # as above
                use_gpu=resources.gpus_per_worker > 0,
                resources_per_worker=per_worker,
            ),
            torch_config=_Collectives(timeout_s=_COLLECTIVE_TIMEOUT_S),
            run_config=RunConfig(
                name="ray",
                storage_path=folder.storage.uri,
                failure_config=FailureConfig(max_failures=resources.max_failures),
                callbacks=[cast("Any", _TellFailures(self._handle))],  # Ray's annotation is that of Train v1
            ),
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        # In a thread, because in the main one Ray Train would take Ctrl-C for itself and abort without a checkpoint.
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - handed to the main thread, which reports it
            self._error = error

    def wait(self, seconds: float) -> bool:
        """Wait a while; whether the run has ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def outcome(self) -> Outcome:
        """How it ended, after :meth:`wait` returned true."""
        outcome = self.monitor.snapshot().outcome
        if outcome is not None and self._error is None:
            return outcome
        progress = self.monitor.snapshot().progress
        reason = str(self._error).strip() if self._error else "the workers ended without a result"
        return Outcome("failed", progress.step if progress else 0, reason)


class RemoteMonitor:
    """The driver's side of the monitor's actor.

    Raises:
        PartLost: from each method, once the actor is dead.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def snapshot(self) -> Snapshot:
        """As :meth:`Monitor.snapshot`."""
        return cast("Snapshot", self._get(self._handle.snapshot.remote()))

    def request_stop(self) -> None:
        """As :meth:`Monitor.request_stop`."""
        self._get(self._handle.request_stop.remote())

    def log_figure(self, path: Path, name: str) -> None:
        """As :meth:`Monitor.log_figure`; the actor is on this machine and reads the same file."""
        self._get(self._handle.log_figure.remote(path, name))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """As :meth:`Monitor.set_tags`."""
        ray.get(self._handle.set_tags.remote(dict(tags)))

    def finish(self, status: EndStatus, timeout: float) -> TrackerStatus:
        """As :meth:`Monitor.finish`."""
        return cast("TrackerStatus", self._get(self._handle.finish.remote(status, timeout)))

    @staticmethod
    def _get(answer: Any) -> Any:
        """The monitor is not restarted: points since the last checkpoint that it had not sent went with it, and only
        steps made again bring them back."""
        try:
            return ray.get(answer)
        except RayActorError as error:
            what = "the process that keeps the run's record died; the run can go on from its newest checkpoint"
            raise PartLost(f"{what} ({str(error).strip().splitlines()[0]})") from None
