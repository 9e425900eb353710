"""``heliostat evaluate``: judge a stored checkpoint again, with the run's evaluators or others."""

from __future__ import annotations

from typing import Annotated

import typer


def evaluate(
    run: Annotated[str, typer.Argument(help="The run's folder, or its name below runs/.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes to data or evaluation, such as evaluation.0.k=50", show_default=False),
    ] = None,
    checkpoint: Annotated[int | None, typer.Option(help="Its step; else the newest.", show_default=False)] = None,
    weights: Annotated[
        str | None, typer.Option(help="A run whose weights are judged in place of this run's.", show_default=False)
    ] = None,
    average: Annotated[
        int, typer.Option(min=1, help="Judge the mean of so many checkpoints: it and those before it.")
    ] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """Judge a checkpoint's features, beside those of the untrained network and raw pixels. Changes nothing of the
    run."""
    import json as json_module

    from rich.console import Console

    from heliostat.cli.display import results_table
    from heliostat.config.loading import parse
    from heliostat.errors import InputError, Problem, require
    from heliostat.training import launch
    from heliostat.training.evaluation import evaluate_checkpoint
    from heliostat.training.run_folder import RunFolder
    from heliostat.training.runtime import SilentRuntime

    folder = RunFolder.open(run)
    for change in overrides or []:
        if change.split(".")[0].split("=")[0] not in ("data", "evaluation", "resources"):
            what = "only data, evaluation and resources may change; the network is the run's"
            raise InputError(Problem(what, f"command line, '{change}'"))
    text = folder.storage.read("job.yaml").decode()
    job = parse(text, f"{folder.storage.uri}/job.yaml", overrides or [])
    source = RunFolder.open(weights) if weights else folder
    job = launch.settled(job)
    require(launch.check(job, follows=True))
    data = launch.load(job)
    step, results = evaluate_checkpoint(
        job, (data.train, data.test), source, checkpoint, SilentRuntime(launch.device(job)), average
    )
    if json:
        print(json_module.dumps({"run": source.name, "step": step, "results": results}, indent=2))
        return
    Console().print(results_table(results, f"{source.name}, step {step}"))
