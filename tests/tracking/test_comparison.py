from __future__ import annotations

import html.parser
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from rich.console import Console

from heliostat.config.evaluators import EvaluatorConfig
from heliostat.errors import InputError
from heliostat.tracking import charts, display, metrics, terminal
from heliostat.tracking.client import prepare_store
from heliostat.tracking.comparison import Comparison, main_metrics
from heliostat.tracking.comparison import compare as put_side_by_side
from heliostat.tracking.conditions import parse_conditions
from heliostat.tracking.export import to_json
from heliostat.tracking.figures import draw_curves, draw_results
from heliostat.tracking.grouping import single
from heliostat.tracking.location import StoreError
from heliostat.tracking.metrics import Cell, direction, number
from heliostat.tracking.page import render
from heliostat.tracking.records import RunRecord, list_runs, load_runs
from heliostat.tracking.statistics import Verdict
from heliostat_algorithms.evaluation import Collapse


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Each run by itself."""
    return put_side_by_side(single(runs))


def record(name: str, metrics: Mapping[str, float] | None = None, **changes: Any) -> RunRecord:
    facts: dict[str, Any] = {
        "id": f"{abs(hash(name)):032x}"[:32],
        "experiment": "e",
        "status": "FINISHED",
        "start": 1e9,
        "duration": 75.0,
        "parameters": {},
        "tags": {},
    }
    return RunRecord(name=name, metrics=metrics or {}, **{**facts, **changes})


BEST, UNKNOWN = Verdict("best"), Verdict("unknown")


@pytest.fixture(scope="session")
def runs(store: SimpleNamespace) -> dict[str, str]:
    """Three runs in an experiment of their own; name to id."""
    experiment = prepare_store(store.uri, "compared")
    client = store.client
    ids = {}
    for name, top1, offset in (
        ("simclr-digits-3fa2c1", 0.9, 0),
        ("simclr-digits-77beef", 0.8, 1),
        ("mae-digits-000aaa", 0.7, 2),
    ):
        run_id = client.create_run(experiment, start_time=1_000_000 + 1000 * offset, run_name=name).info.run_id
        client.log_param(run_id, "seed", "0")
        client.log_param(run_id, "temperature", str(0.1 + offset))
        for step, value in ((0, 0.95), (10, 0.5), (20, top1)):  # the best is at the first step
            client.log_metric(run_id, "eval/knn_top1", value, step=step)
        client.log_metric(run_id, "train/loss", math.nan if offset else math.inf, step=0)
        client.log_metric(run_id, "train/loss", 1.0 + offset, step=20)
        client.log_metric(run_id, "system/cpu", 3.0, step=0)
        client.log_text(run_id, json.dumps({"packages": {"torch": f"2.{offset}"}, "gpus": []}), "environment.json")
        client.set_terminated(run_id, "FAILED" if offset == 2 else "FINISHED", 1_060_000 + 1000 * offset)
        ids[name] = run_id
    return ids


def test_results_are_of_the_last_step_never_the_best(store: SimpleNamespace, runs: dict[str, str]) -> None:
    first, second = load_runs(store.uri, ["simclr-digits-3fa2c1", "simclr-digits-77beef"])
    assert first.metrics["eval/knn_top1"] == 0.9
    assert first.histories["eval/knn_top1"] == [(0, 0.95), (10, 0.5), (20, 0.9)]
    assert first.histories["train/loss"] == [(0, math.inf), (20, 1.0)]
    assert "system/cpu" not in first.histories
    assert (first.status, first.start, first.duration) == ("FINISHED", 1000.0, 60.0)
    assert first.environment == {"packages.torch": "2.0", "gpus": "[]"}

    result = compare([first, second])
    assert [(row.name, row.values) for row in result.parameters] == [("temperature", ("0.1", "1.1"))]
    assert [(row.name, row.values) for row in result.environment] == [("packages.torch", ("2.0", "2.1"))]
    rows = {row.name: row for row in result.metrics}
    assert set(rows) == {"eval/knn_top1", "train/loss"}
    assert rows["eval/knn_top1"].cells == (
        Cell(0.9, None, True, True, verdict=BEST),
        Cell(0.8, share=True, verdict=UNKNOWN),
    )
    assert rows["train/loss"].cells == (Cell(1.0, None, True, verdict=BEST), Cell(2.0, verdict=UNKNOWN))


def test_runs_are_found_by_name_beginning_id_and_path(store: SimpleNamespace, runs: dict[str, str]) -> None:
    name, run_id = "simclr-digits-3fa2c1", runs["simclr-digits-3fa2c1"]
    for given in (name, "simclr-digits-3", run_id, run_id[:12], f"runs/{name}", f"/abs/runs/{name}/"):
        assert [run.id for run in load_runs(store.uri, [given], "compared")] == [run_id], given
    order = ["mae", name, run_id]  # twice the same run is one run
    assert [run.id for run in load_runs(store.uri, order, "compared")] == [runs["mae-digits-000aaa"], run_id]


def test_wrong_names_are_told_all_at_once(store: SimpleNamespace, runs: dict[str, str]) -> None:
    with pytest.raises(InputError) as caught:
        load_runs(store.uri, ["simclr-digits-3fa2c2", "simclr", "mae"], "compared")
    unknown, ambiguous = map(str, caught.value.problems)
    assert "Did you mean 'simclr-digits-3fa2c1'?" in unknown
    assert "simclr-digits-77beef" in ambiguous
    assert "simclr-digits-3fa2c1" in ambiguous
    with pytest.raises(InputError, match="Did you mean 'compared'"):
        load_runs(store.uri, [], "compare")


def test_listing(store: SimpleNamespace, runs: dict[str, str], tmp_path: Path) -> None:
    def names(**question: Any) -> list[str]:
        return [run.name[:8] + run.name[-6:] for run in list_runs(store.uri, "compared", **question)]

    assert names() == ["mae-digi000aaa", "simclr-d77beef", "simclr-d3fa2c1"]
    assert names(limit=1) == ["mae-digi000aaa"]
    assert names(status="failed") == ["mae-digi000aaa"]
    assert names(sort="eval/knn_top1", limit=2) == ["simclr-d3fa2c1", "simclr-d77beef"]
    assert names(sort="train/loss") == ["simclr-d3fa2c1", "simclr-d77beef", "mae-digi000aaa"]
    assert names(conditions=parse_conditions(["temperature=1.10"])) == ["simclr-d77beef"]
    with pytest.raises(InputError, match="Did you mean 'eval/knn_top1'"):
        names(sort="eval/knn_top")
    with pytest.raises(InputError, match="Did you mean 'FINISHED'"):
        names(status="finish")
    with pytest.raises(InputError, match="Did you mean 'temperature'"):
        names(conditions=parse_conditions(["temprature>1"]))
    with pytest.raises(InputError, match="There is no tracking store"):
        list_runs(f"sqlite:///{tmp_path}/none.db")
    assert not (tmp_path / "none.db").exists()
    (tmp_path / "text.db").write_text("dear diary, " * 100)
    with pytest.raises(StoreError):
        list_runs(f"sqlite:///{tmp_path}/text.db")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train/loss", "lower"),
        ("eval/knn_top1", "higher"),
        ("eval/top5", "higher"),
        ("eval/effective_rank", "higher"),
        ("eval/linear_accuracy", "higher"),
        ("perf/images_per_second", "higher"),
        ("perf/step_seconds", "lower"),
        ("eval/alignment", None),
        ("eval/reconstruction_error", "lower"),
        ("eval/ranking_loss", "lower"),
        ("eval/uniformity", None),
        ("eval/elbo", "higher"),
        ("eval/iwae_500", "higher"),
        ("eval/bound_gap", None),
        ("eval/cnll_is_100", "lower"),
        ("eval/modes", "higher"),
        ("eval/mode_kl", "lower"),
        ("accuracy/blossom", None),
        ("eval/stopped", None),
        ("train/loss_rank", None),
    ],
)
def test_direction(name: str, expected: str | None) -> None:
    assert direction(name) == expected


def test_best_is_marked_where_it_means_something() -> None:
    def marks(name: str, *values: float) -> list[bool]:
        runs = [record(str(i), {name: value}) for i, value in enumerate(values)]
        (row,) = compare(runs).metrics
        return [cell is not None and cell.best for cell in row.cells]

    assert marks("eval/top1", 0.1, 0.3, 0.2) == [False, True, False]
    assert marks("loss", 0.1, 0.3) == [True, False]
    assert marks("loss", 0.1, 0.3, 0.1) == [True, False, True]
    assert marks("loss", 0.1, 0.1) == [False, False]
    assert marks("loss", math.nan, 0.5, 0.7, -math.inf) == [False, True, False, False]
    assert marks("uniformity", 1, 2) == [False, False]


def test_intervals_and_baselines_stand_with_their_metric() -> None:
    first = record(
        "a",
        {
            "eval/few_label_10_top1": 0.8,
            "eval/few_label_10_interval": 0.02,
            "eval/rank": 5.0,
            "eval/rank_interval": 0.5,
            "baseline/untrained/few_label_10_top1": 0.4,
            "baseline/untrained/few_label_10_interval": 0.03,
            "baseline/pixels/few_label_10_top1": 0.6,
        },
    )
    result = compare([first, record("b", {"eval/few_label_10_top1": 0.7})])
    assert [row.name for row in result.metrics] == ["eval/few_label_10_top1", "eval/rank"]
    row = result.metrics[0]
    assert row.cells == (Cell(0.8, 0.02, True, True, verdict=BEST), Cell(0.7, share=True, verdict=UNKNOWN))
    assert str(row.cells[0]) == "80.0 ± 2.0%"
    assert row.baselines == {"pixels": (Cell(0.6, share=True), None), "untrained": (Cell(0.4, 0.03, share=True), None)}
    assert result.metrics[1].cells == (Cell(5.0, 0.5), None)


def test_parameters_that_a_run_lacks_differ() -> None:
    result = compare([record("a", parameters={"x": "1", "y": "2"}), record("b", parameters={"x": "1"})])
    assert [(row.name, row.values) for row in result.parameters] == [("y", ("2", None))]


def test_json_is_json_whatever_the_numbers() -> None:
    result = compare([record("a", {"x": math.nan, "eval/top1": 0.5}), record("b", {"x": math.inf})])
    text = json.dumps(to_json(result), allow_nan=False)
    back = json.loads(text)
    assert back["metrics"]["x"]["groups"][0] == {"value": "nan", "interval": None, "n": 1, "verdict": None, "p": None}
    assert back["metrics"]["eval/top1"] == {
        "better": "higher",
        "groups": [{"value": 0.5, "interval": None, "n": 1, "verdict": None, "p": None}, None],
        "baselines": {},
    }
    assert [run["name"] for run in back["runs"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (3.0, "3"),
        (12345.6, "12346"),
        (-1234567.0, "-1.235e+06"),
        (math.nan, "nan"),
        (1e-7, "1e-07"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_terminal_fits_eighty_columns_and_shows_markup_as_text() -> None:
    runs = [
        record(
            f"[red]run-{i}-with-a-long-name",
            {"eval/knn_top1": i / 10, "baseline/pixels/knn_top1": 0.05},
            parameters={"algorithm.backbone.type": f"[bold]resnet{i}"},
        )
        for i in range(7)
    ]
    console = Console(width=80, record=True, force_terminal=False)
    with console.capture() as capture:
        terminal.print_comparison(console, compare(runs))
        terminal.print_runs(console, runs)
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("* 60.0%") == 1
    assert "[bold]resnet6" in text
    squeezed = re.sub(r"\s", "", text)
    assert all(f"[red]run-{i}" in squeezed for i in range(7))
    assert "pixels" in text


def test_durations() -> None:
    assert [display.duration(s) for s in (None, 9.26, 252, 11_100)] == ["-", "9.3 s", "4 min 12 s", "3 h 05 min"]


class Checker(html.parser.HTMLParser):
    """Counts tags and complains of those that are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "img", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_needs_nothing_and_runs_nothing() -> None:
    evil = '<script>alert("x")</script>'
    attack = '"><img src=x onerror=alert(1)>'
    first = record(
        evil,
        {"eval/top1": 0.5, evil: 1.0, "eval/" + attack: 2.0, f"baseline/{attack}/top1": 0.1},
        parameters={attack: evil, "same": "1"},
        histories={"eval/top1": [(0, 0.1), (5, math.nan), (9, 0.5)], "eval/" + attack: [(0, 1.0), (1, 2.0)]},
        environment={"git.commit": evil},
        status=attack,
        experiment=evil,
        id=attack,
    )
    second = record("$title ${store}", {"eval/top1": 0.4}, histories={"eval/top1": [(0, 0.2), (9, 0.4)]})
    text = render(compare([first, second]), {attack: [(f"figures/{attack}.png", b"png")]}, store=evil)
    checker = Checker()
    checker.feed(text)
    checker.close()
    assert checker.open == []
    assert "script" not in checker.tags
    assert checker.tags.count("img") == 1  # the figure
    assert checker.tags.count("svg") == 2
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    sources = [value for name, value in checker.attributes if name in ("src", "href", "xlink:href")]
    assert sources == ["data:image/png;base64,cG5n"]
    assert not re.search(r"https?:|url\((?!#)|@import|<link", text)
    assert "$title ${store}" in text
    assert "&lt;script&gt;" in text
    assert text.count('<td class="best">') == 1


def test_page_shows_what_the_comparison_holds() -> None:
    first = record("a", {"eval/top1": 0.51234, "baseline/untrained/top1": 0.25}, parameters={"lr": "0.1"})
    text = render(compare([first, record("b", {"eval/top1": 0.25}, parameters={"lr": "0.3"})]))
    plain = re.sub(r"<[^>]+>", "|", text)
    for shown in ("0.5123", "untrained", "lr", "0.1", "0.3", "1 min 15 s", "2 runs compared"):
        assert shown in plain
    assert "No run has logged a metric" in render(compare([record("empty")]))


def test_ticks_are_round_and_span_the_values() -> None:
    assert charts.ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert charts.ticks(0, 97, 5) == [0, 20, 40, 60, 80, 100]
    for low, high in ((3.0, 3.0), (0.0, 0.0), (-1e-8, 1e-8), (1e300, 1e307), (-5.5, 1234.5)):
        found = charts.ticks(low, high, 5)
        assert 2 <= len(found) <= 9
        assert found[0] <= low
        assert found[-1] >= high


def test_thinning_keeps_spikes_and_ends() -> None:
    points = [(step, 0.0) for step in range(10_000)]
    points[5_003] = (5_003, 100.0)
    points[5_010] = (5_010, -100.0)
    thin = charts.thinned(points)
    assert len(thin) <= 410
    assert {points[0], points[5_003], points[5_010], points[-1]} <= set(thin)
    assert thin == sorted(thin)


def test_gaps_are_drawn_as_gaps() -> None:
    curve = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 3.0), (4, 4.0)]
    svg = charts.chart(compare([record("a", {"x": 4.0}, histories={"x": curve})]), "x")
    assert svg.count("<polyline") == 2
    assert "nan" not in svg


def test_curves_are_a_picture_of_the_main_metrics(tmp_path: Path) -> None:
    history = {
        "train/loss": [(0, 2.0), (1, 1.0)],
        "eval/top1": [(0, 0.1), (1, 0.2)],
        "once": [(0, 1.0)],
        "x": [(0, 1), (1, 2)],
    }
    runs = [record(f"$run_{i}$ 50%", dict.fromkeys(history, 1.0), histories=history) for i in range(9)]
    result = compare(runs)
    assert main_metrics(result) == ["eval/top1", "train/loss", "x"]
    path = tmp_path / "curves.png"
    assert draw_curves(result, path) == ["eval/top1", "train/loss", "x"]
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width > 800
    assert height > 500
    assert draw_curves(compare([record("a")]), tmp_path / "none.png") == []
    assert not (tmp_path / "none.png").exists()


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (Cell(0.7794, 0.02061, share=True), "77.9 ± 2.1%"),
        (Cell(0.7794, share=True), "77.9%"),
        (Cell(0.7794), "0.7794"),
        (Cell(5.0, 0.5), "5 ± 0.5"),
        (Cell(float("nan"), share=True), "nan"),
    ],
)
def test_cells_as_people_read_them(cell: Cell, shown: str) -> None:
    assert str(cell) == shown


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    names = ["eval/few_label_10_top1", "eval/few_label_5_top1", "eval/few_label_1_top1", "eval/alignment"]
    assert sorted(names, key=metrics.natural) == ["eval/alignment", names[2], names[1], names[0]]


def test_results_are_drawn_beside_their_baselines(tmp_path: Path) -> None:
    results = {
        "eval/few_label_1_top1": 0.78,
        "eval/few_label_1_interval": 0.02,
        "eval/knn_top1": 0.9,
        "eval/rankme": 80.0,
        "baseline/untrained/few_label_1_top1": 0.5,
        "baseline/pixels/few_label_1_top1": 0.6,
    }
    picture = tmp_path / "results.png"
    assert draw_results(results, "a $name$", picture)
    width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    assert width > height > 300
    assert not draw_results({"eval/rankme": 80.0}, "no accuracy", tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_names_tell_the_direction_that_evaluators_tell() -> None:
    # Measures of collapse warn; a comparison marks nobody as best for them.
    evaluators = [kind() for kind in get_args(get_args(EvaluatorConfig)[0]) if kind is not Collapse]
    told = {name: better for each in evaluators for name, better in each.higher_is_better.items()}
    assert {"knn_top1", "elbo", "bleu", "exact_match", "nll", "motion_whole", "classifier_frechet"} <= set(told)
    assert {name: direction(f"eval/{name}") for name in told} == {
        name: "higher" if higher else "lower" for name, higher in told.items()
    }
