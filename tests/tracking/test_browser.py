"""Pages in a real browser: every chart draws, nothing is asked of the network, nothing is complained of."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from heliostat.tracking.client import prepare_store
from heliostat.tracking.comparison import compare
from heliostat.tracking.page import render
from heliostat.tracking.run_record import PARENT_TAG, RunRecord
from heliostat.tracking.sweeps import as_sweep

pytestmark = pytest.mark.browser
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1240,1600"
)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Headless Chromium that keeps what its pages ask for and complain of."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program, "install chromium"
    assert driver, "install chromium-driver"
    options = Options()
    options.binary_location = program
    for flag in [*_FLAGS.split(), f"--user-data-dir={tmp_path}/profile"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield opened
    finally:
        opened.quit()


def requests(browser: Any) -> list[str]:
    """Addresses that were asked for."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


def records(settings: int, seeds: int) -> list[RunRecord]:
    dice = random.Random(0)
    runs = []
    for setting in range(settings):
        for seed in range(seeds):
            value = dice.random()
            curves = {name: [(s, value + s / 100) for s in range(0, 60, 10)] for name in ("eval/top1", "train/loss")}
            runs.append(
                RunRecord(
                    name=f"job-{setting:03x}{seed:03x}",
                    id=f"{setting}-{seed}",
                    experiment="e",
                    status="FINISHED",
                    start=1e9,
                    duration=60.0,
                    parameters={"seed": str(seed), "lr": str(10.0 ** -(setting / 10)), "kind": "ab"[setting % 2]},
                    metrics={name: curve[-1][1] for name, curve in curves.items()},
                    tags={},
                    histories=curves,
                )
            )
    return runs


@pytest.mark.parametrize(("settings", "seeds"), [(1, 1), (2, 3), (50, 2)])
def test_the_page_draws_and_asks_for_nothing(browser: Any, tmp_path: Path, settings: int, seeds: int) -> None:
    comparison = compare(records(settings, seeds))
    page = tmp_path / "page.html"
    page.write_text(render(comparison, sweep=as_sweep(comparison)), encoding="utf-8")
    browser.get("about:blank")
    requests(browser)  # those of the browser's own first page
    browser.get(page.as_uri())
    charts = browser.execute_script(
        "return [...document.querySelectorAll('svg')].map(svg => {"
        " const box = svg.getBoundingClientRect();"
        " const marks = [...svg.querySelectorAll('polyline, rect.bar')].map(m => m.getBBox());"
        " return {width: box.width, height: box.height, label: svg.getAttribute('aria-label'),"
        "         marks: marks.length, drawn: marks.filter(b => b.width > 0).length}})"
    )
    assert len(charts) == (2 if settings < 5 else 4)  # two curves; parallel coordinates and importance of many
    for each in charts:
        assert each["width"] > 200, each
        assert each["height"] > 50, each
        assert each["label"], each
        assert each["marks"] == each["drawn"] > 0, each
    assert browser.execute_script("return document.querySelectorAll('polygon.band').length") == (
        2 * settings if seeds > 1 else 0
    )
    overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(overflow) <= 0  # tables scroll in their frames, never the page
    assert browser.get_log("browser") == []
    assert set(requests(browser)) == {page.as_uri()}


def test_mlflows_own_pages_show_the_runs(browser: Any, store: SimpleNamespace, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    experiment = prepare_store(store.uri, "seen")
    sweep = store.client.create_run(experiment, run_name="sweep-seen").info.run_id
    ids = []
    for index in range(2):
        run_id = store.client.create_run(
            experiment, run_name=f"trial-seen-{index}", tags={PARENT_TAG: sweep}
        ).info.run_id
        store.client.log_param(run_id, "temperature", str(index))
        for step in range(3):
            store.client.log_metric(run_id, "eval/knn_top1", index + step / 10, step=step)
        store.client.set_terminated(run_id)
        ids.append(run_id)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "heliostat", "ui", "--port", str(port), "--uri", store.uri]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.5)

        def shows(address: str, *texts: str) -> None:
            browser.get(address)
            WebDriverWait(browser, 60).until(
                lambda b: all(text in b.find_element(By.TAG_NAME, "body").text for text in texts)
            )
            if (folder := os.environ.get("HELIOSTAT_SCREENSHOTS")) is not None:
                time.sleep(3)
                browser.save_screenshot(f"{folder}/mlflow-{len(texts)}.png")

        base = f"http://127.0.0.1:{port}/#"
        shows(f"{base}/experiments/{experiment}/runs", "sweep-seen")
        runs = json.dumps(ids).replace(" ", "")
        shows(f'{base}/compare-runs?runs={runs}&experiments=["{experiment}"]', "trial-seen-0", "trial-seen-1")
        shows(f"{base}/experiments/{experiment}/runs/{ids[0]}", "trial-seen-0", "eval/knn_top1", "temperature")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)
