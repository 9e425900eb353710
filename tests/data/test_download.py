from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from heliostat.data import download
from heliostat.data.download import RemoteFile, cache_folder
from heliostat.errors import InputError

CONTENT = bytes(range(256)) * 400
MD5 = "md5:" + hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@dataclass
class Site:
    """A web server of one file that can be told to misbehave."""

    content: bytes = CONTENT
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)
    """Bytes after which each coming connection ends."""
    statuses: list[int] = field(default_factory=list)
    """Errors that the coming requests get."""
    requests: list[str | None] = field(default_factory=list)
    """The ``Range`` of every request."""
    url: str = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(download, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(download, "_BLOCK", 1000)
    state = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.requests.append(asked)
            if state.statuses:
                self.send_error(state.statuses.pop(0))
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            if start and start >= len(state.content):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            end = start + state.breaks.pop(0) if state.breaks else None
            self.wfile.write(state.content[start:end])

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}/files/data.bin"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_file_arrives_whole_with_progress_and_leaves_nothing_else(site, tmp_path):
    told = []
    path = RemoteFile(site.url, MD5).fetch(tmp_path / "deep" / "cache", lambda *seen: told.append(seen))
    assert path == tmp_path / "deep" / "cache" / "data.bin"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert told[-1] == ("downloading data.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_sha256_works_too(site, tmp_path):
    digest = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
    assert RemoteFile(site.url, digest).fetch(tmp_path).read_bytes() == CONTENT


def test_second_fetch_asks_nobody(site, tmp_path):
    for _ in range(2):
        RemoteFile(site.url, MD5).fetch(tmp_path)
    assert len(site.requests) == 1


def test_broken_connection_is_resumed_where_it_broke(site, tmp_path):
    site.breaks = [30_000, 20_000]
    assert RemoteFile(site.url, MD5).fetch(tmp_path).read_bytes() == CONTENT
    assert site.requests == [None, "bytes=30000-", "bytes=50000-"]


def test_next_run_resumes_what_the_last_one_left(site, tmp_path):
    site.breaks = [10_000, 5_000, 1_000]
    with pytest.raises(InputError, match="ended after 16000 of 102400 bytes"):
        RemoteFile(site.url, MD5).fetch(tmp_path)
    assert not (tmp_path / "data.bin").exists()
    assert RemoteFile(site.url, MD5).fetch(tmp_path).read_bytes() == CONTENT
    assert site.requests[-1] == "bytes=16000-"


def test_server_without_ranges_starts_again(site, tmp_path):
    site.ranges, site.breaks = False, [30_000]
    assert RemoteFile(site.url, MD5).fetch(tmp_path).read_bytes() == CONTENT
    assert site.requests == [None, "bytes=30000-"]


def test_complete_part_needs_no_byte_more(site, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert RemoteFile(site.url, MD5).fetch(tmp_path).read_bytes() == CONTENT
    assert site.requests == [f"bytes={len(CONTENT)}-"]


def test_wrong_checksum_is_deleted_and_said(site, tmp_path):
    site.content = b"x" + CONTENT[1:]
    found = hashlib.md5(site.content, usedforsecurity=False).hexdigest()
    with pytest.raises(InputError, match=f"had md5:{found} and was deleted.*{MD5}"):
        RemoteFile(site.url, MD5).fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_wrong_file_put_there_by_hand_is_kept_but_refused(site, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"other")
    with pytest.raises(InputError, match=rf"data.bin is not {site.url}.*instead of {MD5}"):
        RemoteFile(site.url, MD5).fetch(tmp_path)
    assert (tmp_path / "data.bin").read_bytes() == b"other"


def test_404_is_final_and_503_is_not(site, tmp_path):
    site.statuses = [404]
    with pytest.raises(InputError, match="HTTP 404"):
        RemoteFile(site.url, MD5).fetch(tmp_path)
    assert len(site.requests) == 1
    site.statuses = [503]
    assert RemoteFile(site.url, MD5).fetch(tmp_path).read_bytes() == CONTENT


def test_refused_connection_says_what_to_put_where(site, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_PAUSES", ())
    url = "http://127.0.0.1:9/files/data.bin"  # the discard port, where nobody listens
    with pytest.raises(InputError) as error:
        RemoteFile(url, MD5).fetch(tmp_path)
    message = str(error.value)
    assert url in message
    assert "refused" in message
    assert f"put the file there by hand: {tmp_path / 'data.bin'} ({MD5})" in message


def test_cache_folder_that_is_a_file(site, tmp_path):
    (tmp_path / "cache").write_text("x")
    with pytest.raises(InputError, match="cannot be stored"):
        RemoteFile(site.url, MD5).fetch(tmp_path / "cache")


def _hold(part: str, ready, release) -> None:
    import fcntl

    with Path(part).open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(CONTENT)
        ready.set()
        release.wait(20)
        file.flush()
        Path(part).rename(part.removesuffix(".part"))


def test_second_process_waits_and_finds_the_file(site, tmp_path):
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "data.bin.part"), ready, release))
    other.start()
    assert ready.wait(20)
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(RemoteFile(site.url, MD5).fetch(tmp_path)))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive(), "it did not wait for the process that downloads"
    release.set()
    waiting.join(20)
    other.join(20)
    assert found == [tmp_path / "data.bin"]
    assert site.requests == []
    assert list(tmp_path.iterdir()) == found


def test_many_threads_download_once(site, tmp_path):
    threads = [threading.Thread(target=RemoteFile(site.url, MD5).fetch, args=(tmp_path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "data.bin").read_bytes() == CONTENT
    assert len(site.requests) == 1
    assert os.listdir(tmp_path) == ["data.bin"]  # noqa: PTH208


def test_cache_folder_comes_from_the_job_then_the_environment_then_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HELIOSTAT_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "heliostat"
    monkeypatch.setenv("HELIOSTAT_CACHE", "~/elsewhere")
    assert cache_folder() == tmp_path / "elsewhere"
    assert cache_folder("/given") == Path("/given")
