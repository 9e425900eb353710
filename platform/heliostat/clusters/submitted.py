"""What a driver knows of the way it came: Ray hands the metadata of its submission to it.

``heliostat submit`` and Ray's own ``ray job submit`` leave it alike, so a run is recorded however it was submitted.
"""

from __future__ import annotations

import json
import os

RUN = "heliostat.run"
"""Metadata of a submission: the name of the run that it works on."""
JOB = "heliostat.job"
"""The name of the job."""
ATTEMPT = "heliostat.attempt"
"""How often the run was submitted, from 1."""
ADDRESS = "heliostat.address"
"""Where it was submitted to, without secrets."""
COMMIT, CHANGED = "heliostat.commit", "heliostat.changed_files"
"""The git commit of the shipped code, and how many files differed from it."""

_RAY_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_RAY_ID = "job_submission_id"


def metadata() -> dict[str, str]:
    """The metadata of the submission that this process is the driver of; empty where it was not submitted."""
    try:
        found = json.loads(os.environ.get(_RAY_VARIABLE, "{}")).get("metadata") or {}
    except (ValueError, AttributeError):  # not Ray's
        return {}
    return {str(key): str(value) for key, value in found.items()}


def tags() -> dict[str, str]:
    """What a run's record says of its submission; empty where it was not submitted."""
    found = metadata()
    if _RAY_ID not in found:
        return {}
    result = {"heliostat.submission": found[_RAY_ID]}
    if ADDRESS in found:
        result[ADDRESS] = found[ADDRESS]
    return result


def git() -> dict[str, object] | None:
    """Commit and number of changed files of the code that was shipped; None where none was, or from no checkout."""
    found = metadata()
    return {"commit": found[COMMIT], "changed_files": int(found[CHANGED])} if COMMIT in found else None
