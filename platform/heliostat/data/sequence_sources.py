"""Sources of sequences: texts, pairs of texts, and generated tasks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field

from heliostat.data.locations import absolute
from heliostat.data.samples import Progress
from heliostat.data.sequences import PairData, TextData
from heliostat.data.source import Cached, Location
from heliostat.errors import InputError


class Text(Cached):
    """A text file, as bytes, characters or subwords, in windows of one length."""

    source: Literal["text"]
    path: Location
    """A UTF-8 file; local, or a URI such as ``s3://bucket/text.txt``."""
    split: Literal["train", "test"]
    """``test`` is the end of the text."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of the text that is the test split."""
    window: int = Field(default=256, gt=0)
    """Tokens that are read at once."""
    tokens: Literal["bytes", "characters", "subwords"] = "characters"
    """What a token is; characters and subwords are those of the train split."""
    vocabulary: int = Field(default=8000, gt=4)
    """How many subwords there are, where tokens are subwords."""

    def check(self) -> list[str]:
        from heliostat.data.locations import locate

        try:
            _, info = locate(self.path)
        except InputError as error:
            return [*super().check(), *(str(problem) for problem in error.problems)]
        wrong = [] if info.is_file else [f"{self.path} is a folder; name a text file"]
        return [*super().check(), *wrong]

    def resolved(self) -> Self:
        return super().resolved().model_copy(update={"path": absolute(self.path)})

    def load(self, progress: Progress | None = None) -> TextData:
        from heliostat.data.text import load_text

        return load_text(self.path, self.split, self.held_out, self.window, self.tokens, self.vocabulary, self.cache)


class ParallelText(Cached):
    """Pairs of texts in two columns of Parquet files, a file for each split, as subwords of both languages."""

    source: Literal["parallel-text"]
    path: Location
    """A folder that holds ``train.parquet``, ``test.parquet`` and others, or as on the Hugging Face hub
    ``train-00000-of-00001.parquet``; local, or a URI such as ``s3://bucket/folder``."""
    split: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    """Which of the files; ``train`` must be there too, because subwords are learned from it."""
    source_column: str
    """What is translated, such as ``de``."""
    target_column: str
    """Into what, such as ``en``."""
    vocabulary: int = Field(default=8000, gt=4)
    """How many subwords both languages share."""

    @property
    def _columns(self) -> tuple[str, str]:
        return self.source_column, self.target_column

    def check(self) -> list[str]:
        from heliostat.data.parquet import ParquetTable
        from heliostat.data.text import pair_problems, split_file

        found = super().check()
        for split in dict.fromkeys(("train", self.split)):
            try:
                table = ParquetTable.open(split_file(self.path, split))
                found += [str(problem) for problem in pair_problems(table, self._columns)]
            except InputError as error:
                found += [str(problem) for problem in error.problems]
        return list(dict.fromkeys(found))

    def resolved(self) -> Self:
        return super().resolved().model_copy(update={"path": absolute(self.path)})

    def load(self, progress: Progress | None = None) -> PairData:
        from heliostat.data.text import load_pairs

        return load_pairs(self.path, self.split, self._columns, self.vocabulary, self.cache)
