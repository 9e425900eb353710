"""Which store a run is tracked in.

Ray workers change their working directory, so a relative address would mean another file on each of them; every address
is made absolute once, where the user typed it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from heliostat.errors import InputError, Problem, RunError

ENVIRONMENT_VARIABLE = "MLFLOW_TRACKING_URI"

_DATABASES = ("postgresql", "mysql", "mssql")
_VALID = "Valid: sqlite:///path/to/mlflow.db, http(s)://host:port, and postgresql://, mysql:// or mssql:// addresses."
_SECRET = re.compile(r"pass|token|secret|key|credential|signature|auth", re.IGNORECASE)
_MASK = "***"


class StoreError(RunError):
    """The tracking store did not answer. A ``Tracker`` copes: it keeps what it is given until the store is back."""


def resolve_uri(uri: str | None) -> str:
    """The absolute address of the store: ``uri``, else ``$MLFLOW_TRACKING_URI``, else ``mlflow.db`` in this directory.

    Raises:
        InputError: the address cannot be used; says what would be right, with secrets masked.
    """
    where = "tracking uri"
    if uri is None:
        uri = os.environ.get(ENVIRONMENT_VARIABLE)
        where = f"${ENVIRONMENT_VARIABLE}"
        if not uri:
            return f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    uri = uri.strip()
    try:
        parts = urlsplit(uri)
        _ = parts.port  # parsed on access
    except ValueError as error:
        raise InputError(Problem(f"'{display_uri(uri)}' is not an address: {error}. {_VALID}", where)) from error
    scheme = parts.scheme.lower()
    engine = scheme.partition("+")[0]
    if engine == "sqlite":
        return _absolute_sqlite(uri, where)
    if scheme in ("", "file"):
        folder = parts.path or "."
        raise InputError(
            Problem(
                f"'{uri}' names a folder, and MLflow no longer keeps runs in folders. "
                f"Use a database file, for example sqlite:///{Path(folder).absolute().parent / 'mlflow.db'}.",
                where,
            )
        )
    if scheme in ("http", "https"):
        if not parts.hostname:
            raise InputError(Problem(f"'{display_uri(uri)}' names no host. Right: {scheme}://host:5000.", where))
        return uri.rstrip("/")
    if engine in _DATABASES:
        if len(parts.path) < 2:
            raise InputError(
                Problem(f"'{display_uri(uri)}' names no database. Right: {scheme}://user@host/database.", where)
            )
        return uri
    raise InputError(Problem(f"'{display_uri(uri)}' is no kind of store that is supported. {_VALID}", where))


def _absolute_sqlite(uri: str, where: str) -> str:
    prefix, separator, rest = uri.partition(":///")
    path, _, query = rest.partition("?")
    if not separator or not path:
        raise InputError(
            Problem(f"'{uri}' names no file. Right: sqlite:///mlflow.db or sqlite:////data/mlflow.db.", where)
        )
    if path == ":memory:" or "mode=memory" in query:
        raise InputError(Problem(f"'{uri}' is gone when the process ends. Right: sqlite:///mlflow.db.", where))
    absolute = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100 - resolve() would follow links
    return f"{prefix}:///{absolute}" + (f"?{query}" if query else "")


def sqlite_path(uri: str) -> Path | None:
    """The database file of a resolved SQLite address; None for other stores."""
    if not uri.startswith("sqlite"):
        return None
    return Path(uri.partition(":///")[2].partition("?")[0])


def display_uri(uri: str) -> str:
    """The address as it may be printed: passwords, tokens and secret query values replaced by ``***``."""
    try:
        parts = urlsplit(uri)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:  # not parsable; hide whatever could be a password
        return re.sub(r"//[^/@]*@", f"//{_MASK}@", uri)
    location = parts.netloc
    if "@" in location:
        user, _, host = location.rpartition("@")
        name, colon, _password = user.partition(":")
        if parts.scheme in ("http", "https") and not colon:
            name = _MASK  # a bare user of a web address is usually a token
        location = f"{name}{f':{_MASK}' if colon else ''}@{host}"
    shown = [(key, _MASK if _SECRET.search(key) else value) for key, value in query]
    query_text = urlencode(shown, safe="*/:") if query else ""
    # urlunsplit drops the empty authority of sqlite:///x on some versions; the text is put together by hand
    if location:
        return urlunsplit((parts.scheme, location, parts.path, query_text, ""))
    return uri.partition("?")[0] + (f"?{query_text}" if query_text else "")


def scrub(text: str, uri: str) -> str:
    """``text``, usually an error's, without the secrets of ``uri``."""
    text = text.replace(uri, display_uri(uri))
    try:
        parts = urlsplit(uri)
        secrets = [value for key, value in parse_qsl(parts.query) if _SECRET.search(key)]
    except ValueError:
        return text
    secrets.append(parts.password or "")
    if parts.scheme in ("http", "https") and parts.password is None:
        secrets.append(parts.username or "")
    for secret in filter(None, secrets):
        text = text.replace(secret, _MASK)
    return text
