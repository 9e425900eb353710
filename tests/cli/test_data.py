"""``heliostat data``: from a folder of images to a set, and what is shown of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from heliostat.cli.app import app
from heliostat.errors import InputError


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twenty pictures of two classes, one of which is broken."""
    for number in range(20):
        folder = tmp_path / "pictures" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10, 3), number * 10, np.uint8)).save(folder / f"{number:02d}.png")
    (folder / "19.png").write_bytes(b"broken")
    return tmp_path / "pictures"


def test_prepare_then_info_with_a_contact_sheet(pictures: Path, tmp_path: Path) -> None:
    runner, target = CliRunner(), str(tmp_path / "set")
    options = ["--rows-per-group", "5", "--max-corrupt", "0.05"]
    done = runner.invoke(app, ["data", "prepare", str(pictures), target, *options])
    assert done.exit_code == 0, done.output
    shown = runner.invoke(app, ["data", "info", target, "--sheet", str(tmp_path / "sheet.png")])
    assert shown.exit_code == 0, shown.output
    for said in ("19; 1 of the input were corrupt", "9 to 10 images in each", "dog 10", "10, 8 pixels"):
        assert said in shown.output
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.width == 8 * 112
    colours = {tuple(pixel) for pixel in np.asarray(sheet).reshape(-1, 3).tolist()}
    assert {(10 * number,) * 3 for number in range(19)} <= colours  # every picture is there
    found = json.loads(runner.invoke(app, ["data", "info", target, "--json"]).stdout)
    assert found["statistics"]["class_counts"] == [9, 10]


def test_wrong_input(pictures: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["data", "prepare", str(pictures), str(tmp_path / "set")])
    assert isinstance(done.exception, InputError)
    assert "cat/19.png" in str(done.exception)
    nothing = runner.invoke(app, ["data", "info", str(tmp_path / "missing")])
    assert "does not exist" in str(nothing.exception)
