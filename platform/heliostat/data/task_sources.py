"""Sources of generated tasks of sequences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from heliostat.data.samples import Progress
from heliostat.data.sequences import PairData, TokenData
from heliostat.data.source import Source

Lengths = Annotated[tuple[PositiveInt, ...], Field(min_length=1, max_length=12)]


class Copy(Source):
    """Generated: say a sequence of symbols again."""

    source: Literal["copy"]
    split: Literal["train", "test"]
    samples: PositiveInt = 20000
    """How many there are; more leave the first ones of each length as they are."""
    lengths: Lengths = (10,)
    """Symbols of a sample; as many samples of each length."""
    symbols: PositiveInt = 10
    """How many different ones."""
    form: Literal["pairs", "tokens"] = "pairs"
    """Source and target, or one sequence whose second half is asked for."""

    def load(self, progress: Progress | None = None) -> PairData | TokenData:
        from heliostat.data.tasks import copied

        return copied(
            self.split,
            samples=self.samples,
            lengths=self.lengths,
            symbols=self.symbols,
            reverse=self.source != "copy",
            form=self.form,
        )


class Reverse(Copy):
    """Generated: say a sequence of symbols the other way round."""

    source: Literal["reverse"]  # type: ignore[assignment]


class SelectiveCopying(Source):
    """Generated: say the symbols that stand among noise at random places (Mamba, 2312.00752)."""

    source: Literal["selective-copying"]
    split: Literal["train", "test"]
    samples: PositiveInt = 20000
    """How many there are; more leave the first ones as they are."""
    length: PositiveInt = 256
    """Positions of symbols and noise; 4096 in the paper."""
    marked: PositiveInt = 16
    """How many symbols there are among them."""
    symbols: PositiveInt = 16
    """How many different ones."""

    def check(self) -> list[str]:
        fits = self.marked <= self.length
        return [] if fits else [f"marked is {self.marked}; it must be at most length, {self.length}"]

    def load(self, progress: Progress | None = None) -> TokenData:
        from heliostat.data.tasks import selective_copying

        return selective_copying(
            self.split, samples=self.samples, length=self.length, marked=self.marked, symbols=self.symbols
        )


class InductionHeads(Source):
    """Generated: say what stood after a special symbol when it comes a second time (Mamba, 2312.00752)."""

    source: Literal["induction-heads"]
    split: Literal["train", "test"]
    samples: PositiveInt = 20000
    """How many there are; more leave the first ones of each length as they are."""
    lengths: Lengths = (256,)
    """Tokens that are read; as many samples of each length. A test set has those to which it should generalise."""
    symbols: PositiveInt = 16
    """How many different ones, the special one not counted."""

    def check(self) -> list[str]:
        short = [length for length in self.lengths if length < 4]
        return [f"lengths are from 4 on, not {short[0]}"] if short else []

    def load(self, progress: Progress | None = None) -> TokenData:
        from heliostat.data.tasks import induction_heads

        return induction_heads(self.split, samples=self.samples, lengths=self.lengths, symbols=self.symbols)


class Passkey(Source):
    """Generated: say a key that was hidden in a long sequence (a toy of 2305.16300, as Infini-attention is tested)."""

    source: Literal["passkey"]
    split: Literal["train", "test"]
    samples: PositiveInt = 20000
    """How many there are; more leave the first ones of each length as they are."""
    lengths: Lengths = (128,)
    """Tokens that are read; as many samples of each length."""
    key_length: PositiveInt = 2
    """Symbols of the key."""
    symbols: Annotated[int, Field(ge=4)] = 16
    """How many different ones; keys are of the second half, the filler of the first."""
    near: Annotated[int, Field(ge=0)] = 32
    """Positions between key and question at least; as long as a segment, the key is in an earlier one."""

    def check(self) -> list[str]:
        least = 2 * self.key_length + 1 + self.near
        short = [length for length in self.lengths if length < least]
        return (
            [f"a length of {short[0]} has no room for the key and {self.near} after it; {least} has"] if short else []
        )

    def load(self, progress: Progress | None = None) -> TokenData:
        from heliostat.data.tasks import passkey

        return passkey(
            self.split,
            samples=self.samples,
            lengths=self.lengths,
            key_length=self.key_length,
            symbols=self.symbols,
            near=self.near,
        )
