"""Sequences of tokens in memory: windows of a text, sequences with what is asked of them, and pairs.

All tokens of a set lie in one flat array, one sequence after another, and a batch is cut out of it by positions; its
last element is what shorter sequences are filled up with.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from heliostat.data.samples import Samples, Selection
from heliostat.data.vocabulary import Vocabulary
from heliostat.errors import InputError

if TYPE_CHECKING:
    from heliostat_algorithms.algorithm import DataSpec
    from heliostat_algorithms.randomness import Random

Tokens: TypeAlias = npt.NDArray[np.int32]
Places: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceSamples(Samples):
    """A data set of sequences of tokens.

    Raises:
        InputError: there is no sample.
        ValueError: an array has the wrong type or shape, or a token is outside the vocabulary, which is a mistake of
            the code that made it.
    """

    vocabulary: Vocabulary
    """What the tokens stand for."""
    labels: npt.NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, tokens in self._stored().items():
            if tokens.dtype != np.int32 or tokens.ndim != 1 or not tokens.flags.c_contiguous:
                raise ValueError(f"{name} must be contiguous int32 (P,), not {tokens.dtype} {tokens.shape}")
            if len(tokens) and int(tokens.max()) >= len(self.vocabulary):
                raise ValueError(f"{name} hold {int(tokens.max())}, and the vocabulary has {len(self.vocabulary)}")
        if not len(self):
            raise InputError(f"{self.name} holds no samples")
        super().__post_init__()

    @abstractmethod
    def _stored(self) -> dict[str, Tokens]:
        """The flat arrays of tokens."""

    def _digest(self) -> str:
        digest = hashlib.sha256(self.vocabulary.fingerprint.encode())
        for tokens in self._stored().values():
            digest.update(np.array(tokens.shape, "<i8").tobytes())
            digest.update(tokens.astype("<i4", copy=False).data)
        for array in self._further_arrays():
            digest.update(array.astype("<i8", copy=False).tobytes())
        return digest.hexdigest()

    def _labels_of(self, indices: Places) -> npt.NDArray[np.int64] | None:
        return None if self.labels is None else self.labels[indices]


@dataclass(frozen=True, kw_only=True, eq=False)
class TextData(SequenceSamples):
    """A text, read in windows of one length: each token is to be said after those before it in the window.

    Sample i is a window that begins in the i-th stretch of the text; where in it is drawn when it is trained on. In
    evaluation it is the stretch itself, so that every token is said exactly once.
    """

    tokens: Tokens
    """(P,): the whole text, contiguous; may be read-only."""
    window: int
    """L, tokens of a sample; also of a stretch."""
    characters: int
    """How many characters the text has."""
    stretches: Places | None = None
    """(N,): where the stretches begin; None: all that fit, one after another."""

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"a window has tokens from 1, not {self.window}")
        if self.stretches is None:
            count = max(0, (len(self.tokens) - 1) // self.window)
            object.__setattr__(self, "stretches", np.arange(count, dtype=np.int64) * self.window)
            if not count:
                raise InputError(f"{self.name} has {len(self.tokens)} tokens, too few for a window of {self.window}")
        super().__post_init__()

    def _stored(self) -> dict[str, Tokens]:
        return {"tokens": self.tokens}

    @property
    def _begins(self) -> Places:
        assert self.stretches is not None  # settled above
        return self.stretches

    def __len__(self) -> int:
        return len(self._begins)

    def spec(self) -> DataSpec:
        from heliostat_algorithms.algorithm import DataSpec, TokenSpec

        return DataSpec(
            classes=None if self.labels is None else len(self.classes),
            tokens=TokenSpec(
                vocabulary=len(self.vocabulary),
                length=self.window,
                characters_per_token=self.characters / len(self.tokens),
            ),
        )

    def select(
        self,
        indices: Places,
        *,
        clips: bool = True,
        random: Random | None = None,
        together: Places | None = None,
    ) -> tuple[Selection, ...]:
        begin = self._begins[indices]
        if random is not None:
            drawn: Places = random.integers("window", self.window).numpy()
            begin = np.minimum(begin + drawn, len(self.tokens) - 1 - self.window)
        rows = begin[:, None] + np.arange(self.window)
        return Selection("tokens", self.tokens, rows), Selection("targets", self.tokens, rows + 1)

    def part(self, indices: Places, name: str) -> Self:
        return type(self)(
            tokens=self.tokens,
            window=self.window,
            characters=self.characters,
            stretches=self._begins[indices],
            vocabulary=self.vocabulary,
            labels=self._labels_of(indices),
            classes=self.classes,
            name=name,
            corrupt=self.corrupt,
        )

    def _further_arrays(self) -> list[npt.NDArray[np.int64]]:
        return [self._begins, *super()._further_arrays()]


@dataclass(frozen=True, eq=False)
class Ragged:
    """Sequences of different lengths in one flat array."""

    values: Tokens
    """(P,): one sequence after another, then one element with which shorter ones are filled up."""
    starts: Places
    """(N + 1,): sequence n is ``values[starts[n] : starts[n + 1]]``; ``starts[N]`` is P - 1."""

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int] | Tokens], fill: int) -> Ragged:
        """The flat form of sequences."""
        starts = np.concatenate([[0], np.cumsum([len(s) for s in sequences], dtype=np.int64)]).astype(np.int64)
        values = np.empty(int(starts[-1]) + 1, np.int32)
        for start, sequence in zip(starts[:-1].tolist(), sequences, strict=True):
            values[start : start + len(sequence)] = np.asarray(sequence, np.int32)
        values[-1] = fill
        return cls(values, starts)

    @property
    def lengths(self) -> Places:
        """(N,)."""
        return np.diff(self.starts)

    def places(self, indices: Places, together: Places | None) -> Places:
        """(B, L): positions of the elements of these sequences, filled up to the longest of ``together``."""
        lengths = self.lengths
        longest = int(lengths[indices if together is None else together].max())
        inner = np.arange(longest)
        inside = inner < lengths[indices, None]
        return np.where(inside, self.starts[indices, None] + inner, len(self.values) - 1)

    def part(self, indices: Places) -> Ragged:
        """Some of the sequences."""
        return Ragged.of([self.values[self.starts[i] : self.starts[i + 1]] for i in indices], int(self.values[-1]))


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenData(SequenceSamples):
    """Sequences of tokens, each with what is to be said after each token, where anything is asked; or with a label."""

    tokens: Tokens
    """(P,): see ``Ragged``; filled up with PAD."""
    targets: Tokens
    """(P,): in the same places, ``IGNORED`` where nothing is asked."""
    starts: Places
    """(N + 1,)."""

    @classmethod
    def of(cls, tokens: Sequence[Tokens], targets: Sequence[Tokens], vocabulary: Vocabulary, name: str) -> TokenData:
        """From one pair of arrays for each sample."""
        from heliostat_algorithms.algorithm import IGNORED, PAD

        read, asked = Ragged.of(tokens, PAD), Ragged.of(targets, IGNORED)
        return cls(tokens=read.values, targets=asked.values, starts=read.starts, vocabulary=vocabulary, name=name)

    def __post_init__(self) -> None:
        if self.tokens.shape != self.targets.shape or self.starts[-1] != len(self.tokens) - 1:
            raise ValueError(
                f"{len(self.tokens)} tokens, {len(self.targets)} targets, {self.starts[-1]} + 1 in samples"
            )
        super().__post_init__()

    def _stored(self) -> dict[str, Tokens]:
        return {"tokens": self.tokens, "targets": self.targets}

    @property
    def _read(self) -> Ragged:
        return Ragged(self.tokens, self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def spec(self) -> DataSpec:
        from heliostat_algorithms.algorithm import DataSpec, TokenSpec

        length = int(self._read.lengths.max())
        return DataSpec(
            classes=None if self.labels is None else len(self.classes),
            tokens=TokenSpec(vocabulary=len(self.vocabulary), length=length),
        )

    def select(
        self,
        indices: Places,
        *,
        clips: bool = True,
        random: Random | None = None,
        together: Places | None = None,
    ) -> tuple[Selection, ...]:
        places = self._read.places(indices, together)
        return Selection("tokens", self.tokens, places), Selection("targets", self.targets, places)

    def part(self, indices: Places, name: str) -> Self:
        read, asked = (Ragged(values, self.starts).part(indices) for values in (self.tokens, self.targets))
        return type(self)(
            tokens=read.values,
            targets=asked.values,
            starts=read.starts,
            vocabulary=self.vocabulary,
            labels=self._labels_of(indices),
            classes=self.classes,
            name=name,
            corrupt=self.corrupt,
        )

    def _further_arrays(self) -> list[npt.NDArray[np.int64]]:
        return [self.starts, *super()._further_arrays()]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairData(SequenceSamples):
    """Pairs of sequences: a source, and the target that it is to be turned into."""

    sources: Tokens
    """(P,): see ``Ragged``; each ends with END; filled up with PAD."""
    source_starts: Places
    """(N + 1,)."""
    targets: Tokens
    """(Q,): each from BEGIN to END; filled up with PAD."""
    target_starts: Places
    """(N + 1,)."""
    references: tuple[str, ...] = field(default=(), repr=False)
    """The targets as they were written, for measures that compare texts; empty where they are no text."""

    @classmethod
    def of(
        cls,
        sources: Sequence[Sequence[int]],
        targets: Sequence[Sequence[int]],
        vocabulary: Vocabulary,
        name: str,
        references: Sequence[str] = (),
    ) -> PairData:
        """From sequences without BEGIN and END."""
        from heliostat_algorithms.algorithm import BEGIN, END, PAD

        read = Ragged.of([[*source, END] for source in sources], PAD)
        said = Ragged.of([[BEGIN, *target, END] for target in targets], PAD)
        return cls(
            sources=read.values,
            source_starts=read.starts,
            targets=said.values,
            target_starts=said.starts,
            references=tuple(references),
            vocabulary=vocabulary,
            name=name,
        )

    def _stored(self) -> dict[str, Tokens]:
        return {"sources": self.sources, "targets": self.targets}

    def written(self, index: int) -> str:
        """A target as it was written, or where it was no text, as its tokens read."""
        if self.references:
            return self.references[index]
        return self.vocabulary.decode(self.targets[self.target_starts[index] : self.target_starts[index + 1]].tolist())

    def __len__(self) -> int:
        return len(self.source_starts) - 1

    @property
    def _read(self) -> Ragged:
        return Ragged(self.sources, self.source_starts)

    @property
    def _said(self) -> Ragged:
        return Ragged(self.targets, self.target_starts)

    def spec(self) -> DataSpec:
        from heliostat_algorithms.algorithm import DataSpec, TokenSpec

        return DataSpec(
            classes=None if self.labels is None else len(self.classes),
            tokens=TokenSpec(
                vocabulary=len(self.vocabulary),
                length=int(self._said.lengths.max()) - 1,
                source_length=int(self._read.lengths.max()),
            ),
        )

    def select(
        self,
        indices: Places,
        *,
        clips: bool = True,
        random: Random | None = None,
        together: Places | None = None,
    ) -> tuple[Selection, ...]:
        return (
            Selection("source", self.sources, self._read.places(indices, together)),
            Selection("target", self.targets, self._said.places(indices, together)),
        )

    def part(self, indices: Places, name: str) -> Self:
        read, said = self._read.part(indices), self._said.part(indices)
        return type(self)(
            sources=read.values,
            source_starts=read.starts,
            targets=said.values,
            target_starts=said.starts,
            references=tuple(self.references[i] for i in indices) if self.references else (),
            vocabulary=self.vocabulary,
            labels=self._labels_of(indices),
            classes=self.classes,
            name=name,
            corrupt=self.corrupt,
        )

    def _further_arrays(self) -> list[npt.NDArray[np.int64]]:
        return [self.source_starts, self.target_starts, *super()._further_arrays()]
