"""What a trial takes from the cluster, and in which process it does its work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heliostat.config.job import Job
from heliostat.config.loading import AnyJob


@dataclass(frozen=True)
class Needs:
    """What a trial takes from the cluster."""

    bundles: list[dict[str, float]]
    """Reserved by Tune: the trial's own process, and the actors that it hires."""
    cpus: float
    gpus: float
    """In all, with workers that Ray Train reserves itself."""

    @property
    def reserves_itself(self) -> bool:
        """Whether Ray Train takes what the trial needs, and Tune does not know of it."""
        return self.bundles == [{"CPU": 0.0}]


def needs(job: AnyJob) -> Needs:
    """What a trial of a job takes."""
    if isinstance(job, Job):
        workers = job.resources.worker_range[0]
        cpus, gpus = job.resources.cpus_per_worker, job.resources.gpus_per_worker
        own = {"CPU": cpus, "GPU": gpus} if job.resources.runtime == "local" else {"CPU": 0.0}
        return Needs([own], workers * cpus, workers * gpus)
    resources = job.resources
    actor = {"CPU": float(resources.cpus_per_actor), "GPU": resources.gpus_per_actor}
    learner = {"CPU": float(resources.cpus_per_learner), "GPU": resources.gpus_per_learner}
    if resources.runtime == "local":
        return Needs([learner], learner["CPU"], learner["GPU"])
    bundles = [actor] * resources.actors + [learner] * resources.learners
    return Needs([{"CPU": 0.0}, *bundles], sum(b["CPU"] for b in bundles), sum(b["GPU"] for b in bundles))


def in_trial(job: AnyJob) -> AnyJob:
    """The job as a trial runs it: what one process can do, it does in the trial's own, to the same bits."""
    resources = job.resources
    alone = (
        job.resources.worker_range == range(1, 2)
        if isinstance(job, Job)
        else job.resources.lockstep and job.resources.actors == job.resources.shards == job.resources.learners == 1
    )
    if not alone:
        return job
    changes: dict[str, Any] = {"runtime": "local"} | ({"workers": 1} if isinstance(job, Job) else {})
    return job.model_copy(update={"resources": resources.model_copy(update=changes)})
