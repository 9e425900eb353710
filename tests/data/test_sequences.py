"""Texts, pairs and tasks as tokens, and the batches that are cut out of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from heliostat.data.loader import Loader, sequential
from heliostat.data.sequence_sources import ParallelText, Text
from heliostat.data.sequences import PairData, TextData, TokenData
from heliostat.data.sources import Digits
from heliostat.data.task_sources import Copy, InductionHeads, Passkey, Reverse, SelectiveCopying
from heliostat.data.vocabulary import FIRST, Bytes, Characters, Subwords, Symbols
from heliostat.errors import InputError
from heliostat.training.datasets import Datasets, check_alike
from heliostat_algorithms.algorithm import BEGIN, END, IGNORED, PAD

LINES = [f"the {a} {b} sees a {c} near the {d}" for a in ("old", "young") for b in ("man", "dog", "bird") for c in
         ("tree", "house", "river") for d in ("road", "lake", "hill")]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text("\n".join(LINES), encoding="utf-8")
    return str(tmp_path / "text.txt")


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    for split, lines in (("train", LINES), ("test", LINES[:5])):
        table = pa.table({"de": [line.upper() for line in lines], "en": lines})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    return str(tmp_path)


def parallel(folder: str, split: str = "train", **options: object) -> ParallelText:
    return ParallelText(
        source="parallel-text",
        path=folder,
        split=split,
        source_column="de",
        target_column="en",
        vocabulary=80,
        cache=f"{folder}/cache",
        **options,
    )  # type: ignore[arg-type]


# Texts


@pytest.mark.parametrize("tokens", ["bytes", "characters", "subwords"])
def test_windows_of_a_text(text: str, tmp_path: Path, tokens: str) -> None:
    source = Text(source="text", path=text, split="train", window=16, tokens=tokens, vocabulary=60, cache=str(tmp_path))  # type: ignore[arg-type]
    data = source.load()
    whole = Path(text).read_text()
    seen = data.vocabulary.decode(data.tokens.tolist())
    assert seen.split() == whole[: len(seen)].split()
    batch = Loader(data, batch_size=8, seed=0).batch(0)
    assert torch.equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    every = list(sequential(data, batch_size=3))
    read = torch.cat([b["targets"] for b in every]).flatten()
    assert torch.equal(read, torch.from_numpy(data.tokens[1 : 1 + len(read)]).long())  # each token exactly once
    assert len(data.tokens) - 1 - len(read) < 16
    spec = data.spec().tokens
    assert spec is not None
    assert spec.characters_per_token == pytest.approx(data.characters / len(data.tokens))


def test_windows_move_from_epoch_to_epoch_and_stay_near_their_stretch(text: str) -> None:
    data = Text(source="text", path=text, split="train", window=16).load()
    loader = Loader(data, batch_size=len(data), seed=0)
    starts = []
    for epoch in range(2):
        batch = loader.batch(epoch)
        order = batch["index"].argsort()
        for row in order.tolist():
            found = [
                p
                for p in range(int(batch["index"][row]) * 16 - 16, int(batch["index"][row]) * 16 + 16)
                if p >= 0 and np.array_equal(data.tokens[p : p + 16], batch["tokens"][row])
            ]
            assert found
        starts.append(batch["tokens"][order])
    assert not torch.equal(*starts)


def test_workers_see_the_rows_of_one_batch(pairs: str) -> None:
    data = parallel(pairs).load()
    whole = Loader(data, batch_size=8, seed=3).batch(2)
    for workers in (2, 4):
        parts = [Loader(data, batch_size=8, seed=3, rank=r, world_size=workers).batch(2) for r in range(workers)]
        for name, values in whole.items():
            assert torch.equal(torch.cat([part[name] for part in parts]), values)


def test_the_test_split_is_the_end_and_has_the_vocabulary_of_the_beginning(text: str) -> None:
    train, test = (Text(source="text", path=text, split=s, window=8, held_out=0.25).load() for s in ("train", "test"))
    whole = Path(text).read_text()
    assert train.vocabulary.decode(train.tokens.tolist()) + test.vocabulary.decode(test.tokens.tolist()) == whole
    assert check_alike(Datasets(train, test)) == []
    other = Text(source="text", path=text, split="test", window=8, tokens="bytes").load()
    assert "different vocabularies" in check_alike(Datasets(train, other))[0].what


def test_characters_that_training_lacks_are_named(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a" * 90 + "ß" * 10)
    source = Text(source="text", path=str(tmp_path / "t.txt"), split="test", window=4)
    with pytest.raises(InputError, match="ß"):
        source.load()


def test_a_short_text_a_folder_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abc")
    with pytest.raises(InputError, match="too few for a window of 256"):
        Text(source="text", path=str(tmp_path / "t.txt"), split="train").load()
    assert "is a folder" in Text(source="text", path=str(tmp_path), split="train").check()[0]
    assert "does not exist" in Text(source="text", path=str(tmp_path / "u.txt"), split="train").check()[0]


def test_a_part_of_a_text_keeps_its_stretches(text: str) -> None:
    data = Text(source="text", path=text, split="train", window=16).load()
    part = data.part(np.array([1, 4]), "part")
    (batch,) = sequential(part, batch_size=9)
    assert torch.equal(batch["tokens"][1], torch.from_numpy(data.tokens[64:80]).long())
    assert part.fingerprint != data.fingerprint


# Pairs


def test_pairs_are_filled_up_and_read_as_they_were_written(pairs: str) -> None:
    data = parallel(pairs, "test").load()
    assert isinstance(data, PairData)
    (batch,) = sequential(data, batch_size=9)
    for row in range(5):
        target = batch["target"][row].tolist()
        said = target[1 : target.index(END)]
        assert target[0] == BEGIN
        assert set(target[target.index(END) + 1 :]) <= {PAD}
        assert data.vocabulary.decode(said) == LINES[row] == data.written(row)
        source = batch["source"][row].tolist()
        assert data.vocabulary.decode(source[: source.index(END)]) == LINES[row].upper()


def test_subwords_are_those_of_the_training_split_and_are_kept(pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = parallel(pairs).load()
    monkeypatch.setattr(Subwords, "learn", lambda *_: pytest.fail("they were learned already"))
    test = parallel(pairs, "test").load()
    assert train.vocabulary == test.vocabulary
    assert check_alike(Datasets(train, test)) == []


def test_subwords_are_learned_alike(pairs: str) -> None:
    assert Subwords.learn(LINES, 60) == Subwords.learn(LINES, 60)
    with pytest.raises(ValueError, match="no 9000 pieces"):
        Subwords.learn(LINES, 9000)


def test_what_is_wrong_with_pairs(pairs: str) -> None:
    assert "Did you mean 'test'" in parallel(pairs, "tset").check()[0]
    wrong = parallel(pairs).model_copy(update={"source_column": "fr"})
    assert "no column 'fr'" in wrong.check()[0]
    pq.write_table(pa.table({"de": ["a", ""], "en": ["b", "c"]}), f"{pairs}/train.parquet")
    with pytest.raises(InputError, match="column 'de' has no text in row 1"):
        parallel(pairs).load()


# Tasks


def rows(data: TokenData | PairData) -> list[dict[str, torch.Tensor]]:
    return [{name: values[0] for name, values in b.items()} for b in sequential(data, batch_size=1)]


def test_copy_and_reverse() -> None:
    for kind, step in ((Copy, 1), (Reverse, -1)):
        name = "copy" if step == 1 else "reverse"
        data = kind(source=name, split="train", samples=9, lengths=(3, 5), symbols=6).load()  # type: ignore[arg-type]
        assert isinstance(data, PairData)
        for row in rows(data):
            assert row["target"].tolist() == [BEGIN, *row["source"].tolist()[:-1][::step], END]
        data = kind(source=name, split="train", samples=9, lengths=(3, 5), symbols=6, form="tokens").load()  # type: ignore[arg-type]
        assert [len(row["tokens"]) for row in rows(data)] == [7] * 5 + [11] * 4
        for row in rows(data):
            size = (len(row["tokens"]) - 1) // 2
            prompt = row["tokens"].tolist()[:size]
            assert row["tokens"].tolist()[size:] == [BEGIN, *prompt[::step]]
            assert row["targets"].tolist() == [IGNORED] * size + [*prompt[::step], END]


def test_selective_copying() -> None:
    data = SelectiveCopying(
        source="selective-copying", split="train", samples=50, length=20, marked=4, symbols=5
    ).load()
    for row in rows(data):
        stretch = row["tokens"][:20]
        assert row["tokens"][20:].tolist() == [BEGIN] * 4
        assert stretch[stretch != FIRST + 5].tolist() == row["targets"][20:].tolist()
        assert set(row["targets"][:20].tolist()) == {IGNORED}


def test_induction_heads() -> None:
    data = InductionHeads(source="induction-heads", split="test", samples=60, lengths=(8, 16), symbols=5).load()
    places = set()
    for row in rows(data):
        tokens, special = row["tokens"].tolist(), FIRST + 5
        assert tokens.count(special) == 2
        assert tokens[-1] == special
        places.add(tokens.index(special))
        assert row["targets"].tolist() == [IGNORED] * (len(tokens) - 1) + [tokens[tokens.index(special) + 1]]
    assert len(places) > 8


def test_passkey() -> None:
    data = Passkey(source="passkey", split="train", samples=80, lengths=(24,), key_length=2, symbols=8, near=9).load()
    places = set()
    for row in rows(data):
        tokens, marker = row["tokens"].tolist(), FIRST + 8
        assert len(tokens) == 24
        first, question = (place for place, token in enumerate(tokens) if token == marker)
        key = tokens[first + 1 : first + 3]
        assert min(key) >= FIRST + 4
        assert max(t for i, t in enumerate(tokens[:question]) if i not in (first, first + 1, first + 2)) < FIRST + 4
        assert question - (first + 2) >= 9
        assert tokens[question + 1 :] == key
        assert row["targets"].tolist() == [IGNORED] * question + [*key, END]
        places.add(question - (first + 2))
    assert min(places) == 9
    assert "no room" in Passkey(source="passkey", split="train", lengths=(13,), near=9).check()[0]


def test_more_samples_leave_the_first_as_they_are_and_splits_differ() -> None:
    few, many, test = (
        InductionHeads(source="induction-heads", split=s, samples=n, lengths=(12,)).load()  # type: ignore[arg-type]
        for s, n in (("train", 10), ("train", 5000), ("test", 10))
    )
    assert np.array_equal(few.tokens[:-1], many.tokens[:120])
    assert not np.array_equal(few.tokens, test.tokens)


# Others


def test_vocabularies_spell_what_they_read() -> None:
    for vocabulary, text in ((Bytes(), "Grüße"), (Characters.of("Grüße"), "eßüG"), (Symbols(5), "3 0 4")):
        tokens = vocabulary.encode(text)
        assert vocabulary.decode(tokens) == text
        assert max(tokens) < len(vocabulary)
    with pytest.raises(ValueError, match="from 0 to 4"):
        Symbols(5).encode("5")


def test_digits_can_be_larger() -> None:
    assert Digits(source="digits", split="test", image_size=14).load().images.shape == (360, 1, 14, 14)


def test_tokens_outside_the_vocabulary_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="vocabulary has 256"):
        TextData(tokens=np.full(9, 256, np.int32), window=2, characters=9, vocabulary=Bytes(), name="x")
