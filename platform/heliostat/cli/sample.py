"""``heliostat sample``: let a run's generative method make something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sample(
    run: Annotated[str, typer.Argument(help="The run's folder, or its name below runs/.", show_default=False)],
    count: Annotated[
        int, typer.Option("--count", "-n", min=1, help="How many samples, of each prompt; or rows of pictures.")
    ] = 16,
    seed: Annotated[int, typer.Option(help="Decides all that is random.")] = 0,
    checkpoint: Annotated[int | None, typer.Option(help="Its step; else the newest.", show_default=False)] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="A text to continue or to translate; may be given several times.", show_default=False),
    ] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens by which a text is continued.")] = 200,
    temperature: Annotated[float, typer.Option(help="Below 1 likely tokens are drawn more often.")] = 1.0,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Draw among so many of the most likely tokens.", show_default=False)
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Make only this, by name (samples, walk, ...); may be repeated.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The folder for the files; else one in the run's.", show_default=False),
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="Also store the files with the run in MLflow.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the files as JSON, and nothing else.")] = False,
) -> None:
    """Make samples with what a generative run has learned: grids of pictures, walks through the latent space,
    completions, videos (gif), texts. The same seed makes the same samples."""
    import json as json_module

    from rich.console import Console
    from rich.text import Text

    from heliostat.errors import InputError, Problem
    from heliostat.tracking.location import resolve_uri
    from heliostat.training.run_folder import RunFolder
    from heliostat.training.sampling import TextWish, sample_run

    folder = RunFolder.open(run)
    tracked = folder.about().get("tracking_run_id")
    if log and tracked is None:
        raise InputError(Problem("MLflow does not know this run, so nothing can be stored with it", "--log"))
    place = output or Path(folder.storage.path("samples") if folder.storage.local else f"{folder.name}-samples")
    if not 0 < temperature < float("inf"):
        raise InputError(Problem(f"temperature is {temperature}; it must be above 0 and finite", "--temperature"))
    texts = TextWish(prompts=tuple(prompt or ()), length=length, temperature=temperature, top_k=top_k)
    made = sample_run(folder, place, count=count, seed=seed, checkpoint=checkpoint, texts=texts, only=only or ())
    if log:
        from heliostat.tracking.client import connect

        client = connect(resolve_uri(folder.job().tracking.uri))
        for path in made.files:
            client.log_artifact(tracked, str(path), f"samples/step-{made.step:08d}")
    files = [str(path) for path in made.files]
    if json:
        print(json_module.dumps({"run": folder.name, "checkpoint": made.step, "seed": seed, "files": files}, indent=2))
        return
    console = Console(highlight=False)
    for file in files:
        console.print(Text(file), soft_wrap=True)
