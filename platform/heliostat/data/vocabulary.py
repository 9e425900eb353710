"""What tokens stand for: symbols of a task, bytes, characters, or pieces of words.

A vocabulary is made from the training split alone and is part of the data set, so that what a network says can be
read again. Numbers below ``FIRST`` have a meaning of their own in the vocabularies of tasks and of subwords (PAD,
BEGIN, END, UNKNOWN); texts by bytes or characters have no need of them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

FIRST = 4
"""The first number that stands for a symbol or a piece of text, where PAD, BEGIN, END and UNKNOWN come before it."""


@dataclass(frozen=True)
class Vocabulary(ABC):
    """Tokens and their spelling."""

    @abstractmethod
    def __len__(self) -> int:
        """How many tokens there are."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without BEGIN and END.

        Raises:
            ValueError: something in it has no token, and the vocabulary has none for what is unknown.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; PAD, BEGIN and END have none."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Equal for vocabularies that are the same."""


@dataclass(frozen=True)
class Symbols(Vocabulary):
    """Numbered symbols of a generated task, written as numbers from 0 with spaces between them."""

    count: int
    """How many symbols there are, PAD, BEGIN, END and UNKNOWN not counted."""

    def __len__(self) -> int:
        return FIRST + self.count

    def encode(self, text: str) -> list[int]:
        numbers = [int(word) for word in text.split()]
        if any(not 0 <= number < self.count for number in numbers):
            raise ValueError(f"symbols are numbers from 0 to {self.count - 1}, not {text!r}")
        return [FIRST + number for number in numbers]

    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(str(token - FIRST) for token in tokens if token >= FIRST)

    @property
    def fingerprint(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.count} symbols"


@dataclass(frozen=True)
class Bytes(Vocabulary):
    """The 256 bytes of UTF-8."""

    def __len__(self) -> int:
        return 256

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    @property
    def fingerprint(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return "256 bytes"


@dataclass(frozen=True)
class Characters(Vocabulary):
    """The characters of a text, by their code points."""

    characters: str
    """Each once, in rising order."""

    @classmethod
    def of(cls, text: str) -> Characters:
        """Those that a text has."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    def encode(self, text: str) -> list[int]:
        numbers = {character: number for number, character in enumerate(self.characters)}
        unknown = sorted(set(text) - numbers.keys())
        if unknown:
            shown = "".join(unknown[:20])
            raise ValueError(
                f"{len(unknown)} characters have no token, because the training text lacks them: {shown!r}; "
                "take bytes, whose vocabulary knows all"
            )
        return [numbers[character] for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(self.characters[token] for token in tokens)

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.characters.encode()).hexdigest()

    def __str__(self) -> str:
        return f"{len(self)} characters"


@dataclass(frozen=True)
class Subwords(Vocabulary):
    """Pieces of words by byte-pair encoding (Sennrich, Haddow and Birch 2016, arXiv 1508.07909), learned by
    SentencePiece (Kudo and Richardson 2018, arXiv 1808.06226)."""

    model: bytes
    """SentencePiece's own format."""

    @classmethod
    def learn(cls, lines: Iterable[str], size: int) -> Subwords:
        """Learn ``size`` pieces from lines of text; the same lines give the same pieces.

        Raises:
            ValueError: the text has fewer pieces.
        """
        import io

        import sentencepiece

        from heliostat_algorithms.algorithm import BEGIN, END, PAD, UNKNOWN

        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=size,
                character_coverage=1.0,
                pad_id=PAD,
                bos_id=BEGIN,
                eos_id=END,
                unk_id=UNKNOWN,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"no {size} pieces can be learned from this text: {error}") from None
        return cls(model.getvalue())

    def __len__(self) -> int:
        return int(_processor(self.model).get_piece_size())

    def encode(self, text: str) -> list[int]:
        return list(_processor(self.model).encode(text))

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of many texts."""
        return list(_processor(self.model).encode(list(texts)))

    def decode(self, tokens: Sequence[int]) -> str:
        return str(_processor(self.model).decode([int(token) for token in tokens]))

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.model).hexdigest()

    def __str__(self) -> str:
        return f"{len(self)} subwords"


@lru_cache(maxsize=4)
def _processor(model: bytes) -> Any:
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=model)
