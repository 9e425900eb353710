"""``heliostat register``: a run's model in MLflow's model registry."""

from __future__ import annotations

from typing import Annotated

import typer


def register(
    run: Annotated[str, typer.Argument(help="A run's name or its beginning, its directory, or MLflow's id.")],
    model: Annotated[str, typer.Option("--model", "-m", help="The registered model; made where there is none.")],
    alias: Annotated[
        str | None, typer.Option("--alias", help="Also point this alias at the new version, as in champion.")
    ] = None,
    experiment: Annotated[str | None, typer.Option("--experiment", "-e", help="Only runs of this experiment.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    uri: Annotated[
        str | None, typer.Option("--uri", help="Tracking store. [default: $MLFLOW_TRACKING_URI, else ./mlflow.db]")
    ] = None,
) -> None:
    """Register a finished run's model in MLflow: a version that points at the checkpoint, which is not copied."""
    from heliostat.tracking.location import resolve_uri
    from heliostat.tracking.registry import register_model

    version = register_model(resolve_uri(uri), run, model, alias, experiment)
    if json:
        import json as json_module

        print(json_module.dumps(vars(version), indent=2))
        return
    also = f", alias {version.alias}" if version.alias else ""
    known = "was registered already as" if version.known else "is now"
    print(f"{version.run} {known} models:/{version.model}/{version.version}{also}")
    print(f"  checkpoint  {version.checkpoint}")
