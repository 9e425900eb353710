"""Turns waiting events into calls of an MLflow client, so that what the store has already is not stored twice."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from heliostat.tracking.backlog import Event

BATCH = 1000
"""Entities that MLflow takes in one request."""
BATCH_NAMES = 100
"""Parameters, and tags, that MLflow takes in one request."""
VALUE_CHARACTERS = 6000
"""Characters of a parameter's value that MLflow takes; of a tag's, 8,000."""
CHANGED_TAG = "heliostat.changed."
"""Prefix of the tags that hold parameters which a resumed run has otherwise than it began with."""
CHECKPOINT_TAG = "heliostat.checkpoint"
"""Tag of a model: the address of the checkpoint that it is."""

BATCHED = ("metric", "param", "tag")
"""Kinds of events that share a request."""
_REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "ENDPOINT_NOT_FOUND",  # an older server that has no logged models, say
    "NOT_IMPLEMENTED",
}


class Refused(Exception):  # noqa: N818 - says what the store did
    """The store answered that it will never take this event."""


class Sender:
    """Sends the events of one run, in order.

    Args:
        client: an ``mlflow.MlflowClient``.
        experiment_id: the experiment that the run belongs to.
        run_id: the run.
        refused: called with an event that cannot be stored, and why.
    """

    def __init__(self, client: Any, experiment_id: str, run_id: str, refused: Callable[[Event, str], None]) -> None:
        self._client, self._experiment_id, self.run_id, self._refused = client, experiment_id, run_id, refused
        self.last_step: dict[str, int] = {}
        """The last step that the store has of each metric."""
        self.parameters: dict[str, str] = {}
        """The parameters that the store has; MLflow never changes one."""
        self.skipped = 0
        """Points that were not sent because the store had them."""

    def refresh(self) -> Any:
        """Ask the store what it has; returns MLflow's ``Run``.

        Raises:
            ConnectionError: the run was deleted; it may be restored, so what waits keeps waiting.
        """
        run = self._client.get_run(self.run_id)
        if run.info.lifecycle_stage != "active":
            raise ConnectionError(f"the run {self.run_id} was deleted; restore it with `mlflow runs restore`")
        # RunData has no public way to a metric's last step; the history of each would be the whole run.
        self.last_step = {metric.key: metric.step for metric in run.data._metric_objs}
        self.parameters = dict(run.data.params)
        return run

    def send(self, events: Sequence[Event]) -> int:
        """Send some events from the front of ``events``; returns how many are dealt with, at least one."""
        count = _batch_length(events)
        if count:
            self._batch(events[:count])
            return count
        event = events[0]
        try:
            getattr(self, f"_send_{event['kind']}")(event)
        except Exception as error:
            if not isinstance(error, Refused) and getattr(error, "error_code", None) not in _REFUSALS:
                raise
            self.refresh()  # a deleted run refuses everything, and that is not the event's fault
            self._refused(event, str(error))
        return 1

    def _batch(self, events: Sequence[Event]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics: list[Metric] = []
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        last: dict[str, int] = {}
        skipped = 0
        for event in events:
            key = event["key"]
            if event["kind"] == "metric":
                if event["step"] <= max(last.get(key, event["step"] - 1), self.last_step.get(key, event["step"] - 1)):
                    skipped += 1
                    continue
                last[key] = event["step"]
                metrics.append(Metric(key, float(event["value"]), event["time"], event["step"]))
            elif event["kind"] == "param":
                if event["value"] != self.parameters.get(key, params.setdefault(key, event["value"])):
                    tags[CHANGED_TAG + key] = event["value"]
            else:
                tags[key] = event["value"]
        params = {key: value for key, value in params.items() if key not in self.parameters}
        try:
            if metrics or params or tags:
                self._client.log_batch(
                    self.run_id,
                    metrics=metrics,
                    params=[Param(*item) for item in params.items()],
                    tags=[RunTag(*item) for item in tags.items()],
                    synchronous=True,
                )
        except Exception as error:
            if getattr(error, "error_code", None) not in _REFUSALS:
                raise
            self.refresh()
            if len(events) == 1:
                self._refused(events[0], str(error))
                return
            middle = len(events) // 2  # one bad name must not take a thousand good points with it
            self._batch(events[:middle])
            self._batch(events[middle:])
            return
        self.skipped += skipped
        self.last_step.update(last)
        self.parameters.update(params)

    def _send_text(self, event: Event) -> None:
        self._client.log_text(self.run_id, event["text"], event["path"])

    def _send_artifact(self, event: Event) -> None:
        local = Path(event["local"])
        if not os.access(local, os.R_OK):
            raise Refused(f"{local} is gone or cannot be read")
        if event["name"] in (None, local.name):
            self._client.log_artifact(self.run_id, str(local), event["path"])
            return
        with tempfile.TemporaryDirectory(prefix="heliostat-") as folder:  # MLflow keeps the name of the file
            renamed = Path(folder) / event["name"]
            shutil.copyfile(local, renamed)
            self._client.log_artifact(self.run_id, str(renamed), event["path"])

    def _send_dataset(self, event: Event) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=event["name"],
            digest=event["digest"],
            source_type="external",
            source=json.dumps({"uri": event["source"]}),
            profile=json.dumps({"num_rows": event["rows"]}),
        )
        tags = [InputTag("mlflow.data.context", event["context"])]
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def _send_model(self, event: Event) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        model_id = self._model(event)
        run = self._client.get_run(self.run_id)
        if model_id not in {output.model_id for output in (run.outputs.model_outputs if run.outputs else ())}:
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model_id, event["step"])])
        metrics = []
        for key, value in event["metrics"].items():
            # A model's metric is stored for its run too; with the time and value of the run's own point it is that
            # point, and not a second one.
            points = [m for m in self._client.get_metric_history(self.run_id, key) if m.step == event["step"]]
            value, time = (points[0].value, points[0].timestamp) if points else (float(value), event["time"])
            metrics.append(Metric(key, value, time, event["step"], model_id=model_id, run_id=self.run_id))
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)

    def _model(self, event: Event) -> str:
        """The model of a checkpoint; made once, even where the answer to its making was lost."""
        from mlflow.entities import LoggedModelStatus

        found = self._client.search_logged_models(
            [self._experiment_id], filter_string=f"source_run_id = '{self.run_id}' AND name = '{event['name']}'"
        )
        for model in found:
            if model.tags.get(CHECKPOINT_TAG) == event["checkpoint"]:
                return str(model.model_id)
        # What mlflow.create_external_model does, which knows only the global store.
        model = self._client.create_logged_model(
            self._experiment_id,
            name=event["name"],
            source_run_id=self.run_id,
            tags={"mlflow.model.isExternal": "true", CHECKPOINT_TAG: event["checkpoint"]},
            params={"step": str(event["step"])},
        )
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        return str(model.model_id)

    def close(self, status: str, time: int) -> None:
        """End the run; ``time`` in milliseconds since 1970."""
        self._client.set_terminated(self.run_id, status, time)


def _batch_length(events: Sequence[Event]) -> int:
    """How many events from the front fit into one request; 0 where the first is sent alone."""
    names = 0  # parameters count as tags too: a changed one becomes a tag
    for count, event in enumerate(events[:BATCH]):
        if event["kind"] not in BATCHED:
            return count
        names += event["kind"] != "metric"
        if names > BATCH_NAMES:
            return count
    return min(len(events), BATCH)
