"""Registered models: a name under which others find the checkpoint of a run."""

from __future__ import annotations

from dataclasses import dataclass

from heliostat.errors import InputError, Problem
from heliostat.tracking.client import connect
from heliostat.tracking.location import StoreError, display_uri, scrub
from heliostat.tracking.records import find_run
from heliostat.tracking.sending import CHECKPOINT_TAG


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    model: str
    version: str
    run: str
    checkpoint: str
    """Where the weights are: ``models:/<model>/<version>`` downloads from there."""
    alias: str | None
    known: bool
    """Whether the same checkpoint was a version of this model already; then nothing new was made."""


def register_model(uri: str, run: str, model: str, alias: str | None = None, experiment: str | None = None) -> Version:
    """Make the checkpoint of a finished run a version of a registered model, without copying it.

    Raises:
        InputError: no such run, a run without a model, or a name that the registry does not take.
        StoreError: the store does not answer, or does not take this checkpoint's place.
    """
    record = find_run(uri, run, experiment)
    client = connect(uri)
    from mlflow.exceptions import MlflowException

    try:
        experiment_id = client.get_run(record.id).info.experiment_id
        found = client.search_logged_models([experiment_id], filter_string=f"source_run_id = '{record.id}'")
        linked = [each for each in found if CHECKPOINT_TAG in each.tags]
        if not linked:
            what = f"{record.name} has no model: it is {record.status.lower()}, and a model comes at a run's end"
            raise InputError(Problem(what, run))
        logged = max(linked, key=lambda each: int(each.params.get("step", "0")))
        checkpoint = str(logged.tags[CHECKPOINT_TAG])
        try:
            client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions = client.search_model_versions(f"name = '{model}'")
        same = next((each for each in versions if each.tags.get(CHECKPOINT_TAG) == checkpoint), None)
        version = same or client.create_model_version(
            model,
            source=checkpoint,
            run_id=record.id,
            tags={CHECKPOINT_TAG: checkpoint},
            model_id=logged.model_id,
            await_creation_for=0,
        )
        if alias is not None:
            client.set_registered_model_alias(model, alias, version.version)
    except MlflowException as error:
        text = scrub(str(error), uri)
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise StoreError(f"The registry of {display_uri(uri)} does not answer: {text}") from error
        if "local path" in text:  # a server cannot know that its clients see the same disk
            what = "A server takes no folder of a machine as a model's place: write runs to shared storage, as in"
            raise InputError(Problem(f"{what} output=s3://bucket/runs.", run)) from error
        raise InputError(Problem(text, model)) from error
    return Version(model, str(version.version), record.name, checkpoint, alias, same is not None)
