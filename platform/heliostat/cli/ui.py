"""``heliostat ui``: MLflow's own pages over the tracking store."""

from __future__ import annotations

from typing import Annotated

import typer


def ui(
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Port to listen on.")] = 5000,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on. Others than 127.0.0.1 let everybody there in.")
    ] = "127.0.0.1",
    uri: Annotated[
        str | None, typer.Option("--uri", help="Tracking store. [default: $MLFLOW_TRACKING_URI, else ./mlflow.db]")
    ] = None,
) -> None:
    """Serve MLflow's pages over the tracking store until Ctrl-C."""
    import os
    import signal
    import subprocess
    import sys

    from heliostat.errors import InputError, Problem, RunError
    from heliostat.tracking.location import display_uri, resolve_uri, sqlite_path

    store = resolve_uri(uri)
    if store.startswith("http"):
        raise InputError(Problem(f"{display_uri(store)} is a server that has pages already: open it in a browser."))
    path = sqlite_path(store)
    if path is not None and not path.exists():
        raise InputError(Problem(f"There is no tracking store at {path}. Name another with --uri.", "--uri"))
    _require_free(host, port)
    # The address may hold a password, which other users could read from a command line.
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    if path is not None:
        command += ["--default-artifact-root", (path.parent / "mlartifacts").as_uri()]
    print(f"MLflow on http://{host}:{port} over {display_uri(store)}; Ctrl-C ends it.", flush=True)
    # In a session of its own: Ctrl-C at the terminal reaches this process alone, and the server is ended in good order.
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the server too
    try:
        code = server.wait()
    except KeyboardInterrupt:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        print("\nMLflow has ended; the runs are where they were.")
        return
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code:
        raise RunError(f"MLflow ended with exit code {code}; its output above says why.")


def _require_free(host: str, port: int) -> None:
    import socket

    from heliostat.errors import InputError, Problem

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free, as for the server
            probe.bind(address)
    except OSError as error:
        raise InputError(
            Problem(
                f"{host}:{port} cannot be used ({error.strerror or error}). Choose another, as in --port {port + 1}."
            )
        ) from error
