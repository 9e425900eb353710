"""Generated tasks of sequences: nothing to download.

Each sample is a function of (task, its sizes, split, its number): more samples leave the first ones as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from heliostat.data.sequences import PairData, TokenData, Tokens
from heliostat.data.vocabulary import FIRST, Symbols
from heliostat_algorithms.algorithm import BEGIN, END, IGNORED
from heliostat_algorithms.randomness import Random

Split = Literal["train", "test"]
Numbers = npt.NDArray[np.int64]
_CHUNK = 4096
"""Samples drawn at a time."""


def _drawn(task: str, split: Split, samples: int, draw: Callable[[Random], Sequence[Numbers]]) -> list[Numbers]:
    """What ``draw`` gives for all samples: arrays whose first dimension is the sample."""
    parts = []
    for first in range(0, samples, _CHUNK):
        rows = range(first, min(first + _CHUNK, samples))
        parts.append(draw(Random(0, 0, rows, scope=f"heliostat:{task}:{split}")))
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def _symbols(random: Random, stream: str, count: int, *shape: int) -> Numbers:
    """Tokens of symbols."""
    drawn: Numbers = random.integers(stream, count, *shape).numpy() + FIRST
    return drawn


def _by_length(samples: int, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(length, how many samples), as equally many of each as possible."""
    share, rest = divmod(samples, len(lengths))
    return [(length, share + (number < rest)) for number, length in enumerate(lengths)]


def _token_data(read: list[Tokens], asked: list[Tokens], symbols: int, name: str) -> TokenData:
    return TokenData.of(read, asked, Symbols(symbols), name)


def _answered(prompt: Numbers, answer: Numbers) -> tuple[list[Tokens], list[Tokens]]:
    """Each prompt (N, P) then its answer (N, A) -> what is read, all but the last token, and what is asked after each:
    the answer, and nothing within the prompt."""
    whole = np.concatenate([prompt, answer], axis=1).astype(np.int32)
    targets = np.full_like(whole[:, 1:], IGNORED)
    targets[:, prompt.shape[1] - 1 :] = answer
    return list(whole[:, :-1]), list(targets)


def copied(
    split: Split, *, samples: int, lengths: Sequence[int], symbols: int, reverse: bool, form: Literal["pairs", "tokens"]
) -> PairData | TokenData:
    """Say a sequence of symbols again, or the other way round: as pairs, or as one sequence, the symbols, BEGIN, and
    what is asked for: the symbols again, then END."""
    task = "reverse" if reverse else "copy"
    sources: list[Numbers] = []
    for length, count in _by_length(samples, lengths):
        if count:

            def draw(random: Random, length: int = length) -> list[Numbers]:
                return [_symbols(random, "symbol", symbols, length)]

            sources += _drawn(f"{task}:{length}", split, count, draw)
    name = f"{task}/{split}"
    if form == "pairs":
        rows = [row for part in sources for row in part]
        said = [row[::-1] if reverse else row for row in rows]
        return PairData.of([row.tolist() for row in rows], [row.tolist() for row in said], Symbols(symbols), name)
    read: list[Tokens] = []
    asked: list[Tokens] = []
    for part in sources:
        column = np.full((len(part), 1), BEGIN)
        again = part[:, ::-1] if reverse else part
        tokens, targets = _answered(
            np.concatenate([part, column], axis=1), np.concatenate([again, np.full_like(column, END)], axis=1)
        )
        read, asked = read + tokens, asked + targets
    return _token_data(read, asked, symbols, name)


def selective_copying(split: Split, *, samples: int, length: int, marked: int, symbols: int) -> TokenData:
    """Say the symbols that stand among noise at random places, in their order (Gu and Dao 2023, arXiv 2312.00752,
    section 4.1.1): ``length`` positions with ``marked`` symbols, then as many times BEGIN, after each of which one of
    them is asked for. The noise is one more symbol."""

    def draw(random: Random) -> list[Numbers]:
        said = _symbols(random, "symbol", symbols, marked)
        places = np.sort(random.permutation("place", length).numpy()[:, :marked], axis=1)
        stretch = np.full((len(said), length), FIRST + symbols)
        np.put_along_axis(stretch, places, said, axis=1)
        return [stretch, said]

    stretch, said = _drawn(f"selective-copying:{length}:{marked}:{symbols}", split, samples, draw)
    read = np.concatenate([stretch, np.full_like(said, BEGIN)], axis=1).astype(np.int32)
    asked = np.full_like(read, IGNORED)
    asked[:, length:] = said
    return _token_data(list(read), list(asked), symbols + 1, f"selective-copying/{split}")


def induction_heads(split: Split, *, samples: int, lengths: Sequence[int], symbols: int) -> TokenData:
    """Say what stood after a special symbol when it comes a second time (2312.00752, section 4.1.2): random symbols
    with the special one, the last of the vocabulary, once among them and once at the end, after which the answer is
    asked for, and nothing else."""
    read: list[Tokens] = []
    asked: list[Tokens] = []
    for length, count in _by_length(samples, lengths):

        def draw(random: Random, length: int = length) -> list[Numbers]:
            tokens = _symbols(random, "symbol", symbols, length)
            place = random.integers("place", length - 2).numpy()
            rows = np.arange(len(tokens))
            tokens[rows, place] = tokens[:, -1] = FIRST + symbols
            return [tokens, tokens[rows, place + 1]]

        if not count:
            continue
        tokens, answer = _drawn(f"induction-heads:{length}:{symbols}", split, count, draw)
        targets = np.full(tokens.shape, IGNORED, np.int32)
        targets[:, -1] = answer
        read, asked = read + list(tokens.astype(np.int32)), asked + list(targets)
    return _token_data(read, asked, symbols + 1, f"induction-heads/{split}")


def passkey(
    split: Split, *, samples: int, lengths: Sequence[int], key_length: int, symbols: int, near: int
) -> TokenData:
    """Say a key that was hidden in a long sequence (a toy of Mohtashami and Jaggi 2023, arXiv 2305.16300): random
    filler of half the symbols; a marker and the key, of the other half; more filler; the marker again, after which the
    key is asked for. The key ends at least ``near`` positions before the question, so that who sees only so many has to
    guess.

    ``lengths`` count all that is read: filler, both markers and the key, and the key's own first tokens again.
    """
    read: list[Tokens] = []
    asked: list[Tokens] = []
    half = symbols // 2
    for length, count in _by_length(samples, lengths):
        body = length - key_length  # up to the question, which is its last position
        room = body - near - key_length  # places where marker and key can begin

        def draw(random: Random, body: int = body, room: int = room) -> list[Numbers]:
            tokens = _symbols(random, "filler", half, body)
            key = _symbols(random, "key", symbols - half, key_length) + half
            begin = random.integers("place", room).numpy()
            places = begin[:, None] + 1 + np.arange(key_length)
            np.put_along_axis(tokens, places, key, axis=1)
            tokens[np.arange(len(tokens)), begin] = tokens[:, -1] = FIRST + symbols
            return [tokens, key]

        if not count:
            continue
        task = f"passkey:{length}:{key_length}:{symbols}:{near}"
        prompt, key = _drawn(task, split, count, draw)
        tokens, targets = _answered(prompt, np.concatenate([key, np.full((len(key), 1), END)], axis=1))
        read, asked = read + tokens, asked + targets
    return _token_data(read, asked, symbols + 1, f"passkey/{split}")
