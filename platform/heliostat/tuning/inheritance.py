"""How a member of a population goes on from another's state: weights, optimiser and, of an agent, the replay memory.

The driver copies the donor's checkpoint while all members stand still; the heir's own process takes it over. Randomness
needs no copy: every stream is a function of the seed and the step, and the heir goes on at the donor's step with its
own seed.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs

from heliostat.config.job import Job
from heliostat.config.loading import AnyJob
from heliostat.errors import InputError, Problem
from heliostat.training.checkpoint import CheckpointStore
from heliostat.training.run_folder import RunFolder
from heliostat.training.storage import Storage

_FOLDER, _READY = "inherited", "inherited/ready.json"
_OWN = ("format", "step", "files", "written", "torch", "machine")
"""Keys of a manifest that its store writes itself."""


def hand_over(donor: RunFolder, step: int, heir: RunFolder, generation: int) -> None:
    """Copy a donor's checkpoint of a step to where :func:`adopt` finds it. What a crash leaves of it is not used.

    Args:
        generation: the step at which the population is changed; names this copy.
    """
    for rest in (_READY, _FOLDER):  # in this order: without the first the second is nothing
        heir.storage.delete(rest)
    name = CheckpointStore.name(step)
    _copy(donor.storage, name, heir.storage, f"{_FOLDER}/{name}")
    if donor.storage.exists("replay"):
        _copy(donor.storage, "replay", heir.storage, f"{_FOLDER}/replay")
    heir.storage.write_json(_READY, {"donor": donor.name, "step": step, "generation": generation})


def adopt(folder: RunFolder, job: AnyJob, generation: int) -> None:
    """Take over what was handed over for a generation, in place of the run's own checkpoints; once.

    The optimiser's momentum and moments are the donor's; its settings (weight decay, betas) are those of the job.

    Raises:
        InputError: the donor's state is of another network.
    """
    storage = folder.storage
    if not storage.exists(_READY):
        return
    facts = storage.read_json(_READY)
    if facts["generation"] != generation:  # made by a driver that died before it had written down what is in it
        return
    step = int(facts["step"])
    source = CheckpointStore(Storage(f"{storage.uri}/{_FOLDER}"))
    saved, manifest = source.load(step), source.manifest(step)
    holder = saved if isinstance(job, Job) else saved["learner"]
    mine = _parameter_groups(job, manifest)
    theirs = holder["optimizer"]["param_groups"]
    if [len(group["params"]) for group in mine] != [len(group["params"]) for group in theirs]:
        raise InputError(Problem(f"the optimiser of {facts['donor']} has other parameters", storage.uri))
    holder["optimizer"]["param_groups"] = mine
    storage.delete("checkpoints")
    about = {key: value for key, value in manifest.items() if key not in _OWN} | {"inherited_from": facts["donor"]}
    folder.checkpoints(job.checkpoint.keep).save(step, saved, about)
    if storage.exists(f"{_FOLDER}/replay"):
        storage.delete("replay")
        _copy(storage, f"{_FOLDER}/replay", storage, "replay")
    for rest in (_READY, _FOLDER):
        storage.delete(rest)


def _parameter_groups(job: AnyJob, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of a new optimiser of the job, group by group."""
    optimization = job.optimization
    if isinstance(job, Job):
        from heliostat.training.origin import spec_from
        from heliostat.training.state import build_algorithm

        groups = build_algorithm(job, spec_from(manifest["data"])).parameter_groups()
    else:
        from heliostat.reinforcement.agent import build_agent

        groups = build_agent(job, job.environment.spec()).parameter_groups()
    found: list[dict[str, Any]] = optimization.optimizer.build(groups, optimization.batch_size).state_dict()[
        "param_groups"
    ]
    return found


def _copy(source: Storage, name: str, target: Storage, new_name: str) -> None:
    target.make(str(PurePosixPath(new_name)))
    fs.copy_files(
        source.path(name), target.path(new_name), source_filesystem=source.filesystem,
        destination_filesystem=target.filesystem,
    )  # fmt: skip
