"""YAML with places, and overrides."""

from __future__ import annotations

import math

import pytest

from heliostat.config.document import Document
from heliostat.errors import InputError

TEXT = """\
name: run
optimization:
  optimizer: {type: lars, weight_decay: 1e-6}
  batch_size: 256
evaluation:
  - {type: knn, k: 20}
  - type: linear
"""


def test_values_follow_yaml_1_2() -> None:
    text = "a: 1e-6\nb: no\nc: 2026-11-24\nd: 0123\ne: true\nf: ~\ng: .inf\nh: 1_000\ni: '7'\nj: -3\nk: 1.5\nl: on\n"
    data = Document(text, "x").data
    assert data == {
        "a": 1e-6, "b": "no", "c": "2026-11-24", "d": "0123", "e": True, "f": None,
        "g": math.inf, "h": 1000, "i": "7", "j": -3, "k": 1.5, "l": "on",
    }  # fmt: skip
    assert type(data["j"]) is int
    assert type(data["a"]) is float


def test_every_value_knows_its_line() -> None:
    document = Document(TEXT, "job.yaml")
    assert document.place(("optimization", "batch_size")) == "job.yaml:4"
    assert document.place(("optimization", "optimizer", "weight_decay")) == "job.yaml:3"
    assert document.place(("evaluation", 1, "type")) == "job.yaml:7"


def test_a_missing_value_is_placed_at_what_encloses_it() -> None:
    assert Document(TEXT, "job.yaml").place(("optimization", "epochs")) == "job.yaml:2"


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("optimization.batch_size=512", ("optimization", "batch_size"), 512),
        ("optimization.optimizer.weight_decay=1e-4", ("optimization", "optimizer", "weight_decay"), 1e-4),
        ("evaluation.0.k=5", ("evaluation", 0, "k"), 5),
        ("resources.workers=[1, 4]", ("resources", "workers"), [1, 4]),
        ("evaluation=[]", ("evaluation",), []),
        ("name=a=b", ("name",), "a=b"),
        ("tracking.uri=", ("tracking", "uri"), None),
        ("data.train={source: digits, split: train}", ("data", "train"), {"source": "digits", "split": "train"}),
    ],
)
def test_overrides(assignment: str, path: tuple[str | int, ...], value: object) -> None:
    document = Document(TEXT, "job.yaml")
    document.override(assignment)
    found = document.data
    for part in path:
        found = found[part]
    assert found == value
    assert assignment in document.place(path)


def test_overrides_leave_everything_else() -> None:
    document, untouched = Document(TEXT, "job.yaml"), Document(TEXT, "job.yaml")
    document.override("optimization.batch_size=512")
    assert document.data["optimization"].pop("batch_size") == 512
    assert untouched.data["optimization"].pop("batch_size") == 256
    assert document.data == untouched.data


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("batch_size", "key=value"),
        ("=3", "key=value"),
        ("name.first=x", "'first'"),
        ("evaluation.7.k=3", "list of 2"),
        ("evaluation.knn.k=3", "list of 2"),
        ("seed=[1, 2", "not valid YAML"),
    ],
)
def test_impossible_overrides(assignment: str, said: str) -> None:
    with pytest.raises(InputError, match="command line") as caught:
        Document(TEXT, "job.yaml").override(assignment)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said", "where"),
    [
        ("a: 1\nb: [1,\n", "not valid YAML", "x:3"),
        ("a: 1\na: 2\n", "'a' is given twice", "x:2"),
        ("- 1\n- 2\n", "mapping", "x"),
        ("", "mapping", "x"),
        ("a: !!python/object/apply:os.system ['true']\n", "not a plain value", "x:1"),
        ("a: 1\n\tb: 2\n", "not valid YAML", "x:2"),
        ("a: \x00", "not valid YAML", "x"),
    ],
)
def test_bad_yaml(text: str, said: str, where: str) -> None:
    with pytest.raises(InputError) as caught:
        Document(text, "x")
    assert said in str(caught.value)
    assert str(caught.value).startswith(where)
