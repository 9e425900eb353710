"""Several jobs of one file, one after the other, each beginning from what the one before it learned.

A stage is a run like any other: it has its own folder, record and checkpoints, and can be looked at, judged and begun
from by itself. What ties the stages together is one small file, ``<name>-<id>/stages.yaml``, from which a chain that
was interrupted goes on.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from heliostat.config.job import Begin, Job
from heliostat.config.loading import Stage, dump, parse
from heliostat.errors import InputError, Problem, require
from heliostat.training import launch
from heliostat.training.conduct import Finished, Watcher
from heliostat.training.origin import take_over
from heliostat.training.run_folder import RunFolder
from heliostat.training.state import build_algorithm
from heliostat.training.storage import Storage

_FILE = "stages.yaml"
Announce = Callable[[Stage, str], Watcher]
"""Told of each stage and its run's name before it starts; gives who watches it."""


class Chain:
    """A chain of stages that has a place.

    Args:
        uri: the folder that holds ``stages.yaml``; the stages' own runs lie beside it.
    """

    def __init__(self, uri: str, stages: Sequence[Stage]) -> None:
        self.storage, self.stages = Storage(uri), tuple(stages)

    @property
    def name(self) -> str:
        """The last part of its place."""
        return self.storage.uri.rsplit("/", 1)[-1]

    @staticmethod
    def planned(stages: Sequence[Stage], name: str | None = None) -> Chain:
        """The chain of a job file, checked as a whole: what keeps a later stage from starting is said before the first.

        Raises:
            InputError: with all that is wrong.
        """
        problems: list[Problem] = []
        for stage in stages:
            found = launch.check(stage.job, follows=stage.follows is not None)
            problems += [Problem(f"stage {stage.name}: {problem.what}", problem.where) for problem in found]
        require(list(dict.fromkeys(problems)))
        stages = [resolved(stage) for stage in stages]
        check_data(stages)
        first = stages[0].job
        common = first.name.removesuffix(f"-{stages[0].name}")
        chain = Chain(f"{Storage(first.output).uri}/{name or f'{common}-{secrets.token_hex(3)}'}", stages)
        taken = [chain.storage.exists(_FILE), *(chain.folder(stage).storage.exists("job.yaml") for stage in stages)]
        if any(taken):
            what = (
                f"a run of this name exists; continue it with 'heliostat resume {chain.storage.uri}', or choose another"
            )
            raise InputError(Problem(what, chain.storage.uri))
        return chain

    @staticmethod
    def open(run: str, output: str = "runs") -> Chain | None:
        """A chain by its folder or its name below ``output``; None if there is none there."""
        for uri in (run, f"{Storage(output).uri}/{run}"):
            storage = Storage(uri)
            if storage.exists(_FILE):
                content = yaml.safe_load(storage.read(_FILE))
                where = f"{storage.uri}/{_FILE}"
                stages = [Stage(s["name"], parse(s["job"], where), s["follows"]) for s in content["stages"]]
                return Chain(storage.uri, stages)
        return None

    def folder(self, stage: Stage) -> RunFolder:
        """Where a stage's run is, or will be."""
        return RunFolder(f"{self.storage.uri}-{stage.name}")

    def run(self, announce: Announce) -> Iterator[Finished]:
        """Run what is not finished yet; ends after a stage that did not finish."""
        self.storage.make()
        content: list[dict[str, Any]] = [
            {"name": stage.name, "follows": stage.follows, "job": dump(stage.job)} for stage in self.stages
        ]
        self.storage.replace(_FILE, yaml.safe_dump({"stages": content}, sort_keys=False).encode())
        for stage in self.stages:
            folder = self.folder(stage)
            if folder.storage.exists("job.yaml"):
                if folder.about().get("status") == "finished":
                    continue
                finished = launch.resume(folder, folder.job(), announce(stage, folder.name))
            else:
                finished = launch.start(self._job(stage), announce(stage, folder.name), folder.name)
            yield finished
            if finished.outcome.status != "finished":
                return

    def _job(self, stage: Stage) -> Job:
        if stage.follows is None:
            return stage.job
        before = next(each for each in self.stages if each.name == stage.follows)
        begin = (stage.job.begin or Begin()).model_copy(update={"run": self.folder(before).storage.uri})
        return stage.job.model_copy(update={"begin": begin})


def resolved(stage: Stage) -> Stage:
    """With absolute places. What the stage before will leave behind has none yet."""
    begin = stage.job.begin
    job = launch.resolved(launch.settled(stage.job) if stage.follows else stage.job)
    return Stage(stage.name, job.model_copy(update={"begin": begin}) if stage.follows else job, stage.follows)


def check_data(stages: Sequence[Stage]) -> None:
    """Load each stage's data and let it begin from the untrained network of the stage before."""
    problems: list[Problem] = []
    built: dict[str, tuple[Job, Any]] = {}
    for stage in stages:
        try:
            data = launch.load(launch.settled(stage.job) if stage.follows else stage.job)
            algorithm = build_algorithm(stage.job, data.train.spec())
            if stage.follows in built:
                job, other = built[stage.follows]
                take_over(algorithm, other, job, f"the end of stage {stage.follows}")
            built[stage.name] = (stage.job, algorithm)
        except InputError as error:
            problems += [Problem(f"stage {stage.name}: {problem.what}", problem.where) for problem in error.problems]
    require(problems)
