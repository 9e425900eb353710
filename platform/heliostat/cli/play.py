"""``heliostat play``: watch a run's agent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from heliostat.reinforcement.exhibition import Exhibition
    from heliostat.reinforcement.rollout import Episode


def play(
    run: Annotated[str, typer.Argument(help="The run's folder, or its name below runs/.", show_default=False)],
    episodes: Annotated[int, typer.Option("--episodes", "-n", help="How many.")] = 1,
    checkpoint: Annotated[int | None, typer.Option(help="Its step; else the newest.", show_default=False)] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Share of random actions; else that of evaluations.", show_default=False)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides all that is random; else the job's.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The video, .gif or .mp4; else a gif in figures/.", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON, and nothing else.")] = False,
) -> None:
    """Play with what a run of reinforcement learning has learned, and write a video with its Q-values.

    Each episode's raw return is printed as it ends. A gif shows the first 1000 steps; an .mp4 shows all. The run is
    not changed.
    """
    import json as json_module

    from rich.console import Console
    from rich.text import Text

    from heliostat.reinforcement.exhibition import exhibit
    from heliostat.training.run_folder import RunFolder

    console = Console(quiet=json, highlight=False)

    def tell(number: int, episode: Episode) -> None:
        console.print(f"episode {number + 1}  return {episode.score:g}  {episode.length:,} steps")

    folder = RunFolder.open(run)
    with console.status("playing"):
        shown = exhibit(
            folder, episodes=episodes, checkpoint=checkpoint, epsilon=epsilon, seed=seed, output=output, tell=tell
        )
    data = as_data(folder.name, shown)
    if json:
        print(json_module.dumps(data, indent=2))
        return
    if len(shown.episodes) > 1:
        console.print(f"[bold]mean return {data['mean_return']:g}[/]")
    if shown.broken_off:
        console.print(f"{shown.broken_off} broken off, as the job's evaluations are: evaluation.max_steps")
    if shown.human_normalized is not None:
        console.print(f"human-normalised {data['human_normalized']:.1%}")
    video = shown.video
    about = f"{video.frames:,} steps, {video.seconds:.0f} s"
    console.print(Text(f"video  {video.path}  ({about})"), soft_wrap=True)


def as_data(run: str, shown: Exhibition) -> dict[str, Any]:
    """What was shown, for JSON."""
    returns = [episode.score for episode in shown.episodes]
    normalized = shown.human_normalized
    return {
        "run": run,
        "checkpoint": shown.step,
        "epsilon": shown.epsilon,
        "seed": shown.seed,
        "episodes": [{"return": episode.score, "steps": episode.length} for episode in shown.episodes],
        "broken_off": shown.broken_off,
        "mean_return": sum(returns) / len(returns),
        "human_normalized": None if normalized is None else sum(normalized) / len(normalized),
        "video": {
            "path": str(shown.video.path),
            "frames": shown.video.frames,
            "seconds": shown.video.seconds,
            "cut": shown.video.cut,
        },
    }
