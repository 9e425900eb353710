"""Language modelling: any network of ``networks`` says the next token of a text, or the answer of a task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import (
    IGNORED,
    Algorithm,
    Batch,
    Clock,
    Codec,
    DataSpec,
    Inputs,
    Kind,
    ParameterGroup,
    Sampled,
    Step,
    Texts,
    TokenSpec,
    Wish,
)
from heliostat_algorithms.backbones.dropout import draw_keys, number
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.sequence.decoder import TransformerDecoder
from heliostat_algorithms.sequence.network import StackState, embedding, grouped
from heliostat_algorithms.sequence.networks import SequenceNetworkConfig
from heliostat_algorithms.sequence.prediction import Predictions, Predictor, asked, chosen


class LanguageModel(Algorithm, Predictor):
    """A language model: says each token from those before it, with any network of sequences."""

    learns_from: ClassVar[frozenset[Kind]] = frozenset({"tokens"})
    separable: ClassVar[bool] = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The network, and what is around it."""

        type: Literal["language-model"] = "language-model"
        network: SequenceNetworkConfig = field(default_factory=TransformerDecoder)
        """What is between embedding and head."""
        tied: bool = True
        """One matrix for the embedding and before the softmax (Press and Wolf 2017, arXiv 1608.05859; Vaswani et al.,
        section 3.4)."""
        label_smoothing: float = 0.0
        """Share of each target that is spread evenly over all tokens."""

        def __post_init__(self) -> None:
            if not 0 <= self.label_smoothing < 1:
                raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        assert data.tokens is not None  # it learns from tokens
        self.config = config
        self.data: TokenSpec = data.tokens
        self.network = config.network.build()
        self.embedding = embedding(data.tokens.vocabulary, self.network)
        self.head = nn.Linear(self.network.width, data.tokens.vocabulary, bias=False)
        if config.tied:
            self.head.weight = self.embedding.weight
        number(self)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``tokens`` and ``targets`` (B, L) as they are, and ``keys`` (B,), what dropout is drawn from."""
        return {"tokens": batch["tokens"], "targets": batch["targets"], "keys": draw_keys(random)}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Cross-entropy in nats: the mean over samples of the mean over a sample's asked positions. Where all samples
        have equally many, as the windows of a text, it is the mean over tokens."""
        targets = inputs["targets"]
        logits = self.logits(inputs["tokens"], inputs["keys"])
        with torch.autocast(logits.device.type, enabled=False):
            losses = F.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2),
                targets,
                ignore_index=IGNORED,
                label_smoothing=self.config.label_smoothing,
                reduction="none",
            )
            counts = asked(targets).sum(dim=1).clamp(min=1)
            loss = (losses.sum(dim=1) / counts).mean()
        right = (logits.detach().argmax(dim=2) == targets).sum(dim=1) / counts
        return Step(loss, {"accuracy": right.to(loss.dtype).mean()})

    def logits(self, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, L) -> (B, L, V)."""
        said: Tensor = self.head(self.network(self._embedded(tokens), keys))
        return said

    def _embedded(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)
        return x * self.network.embedding_scale

    def predictions(self, batch: Batch) -> Predictions:
        return Predictions(self.logits(batch["tokens"]), batch["targets"])

    def initial_state(self, batch_size: int) -> StackState:
        """Before the first token of so many texts."""
        return self.network.initial_state(self.embedding.weight.new_empty(batch_size, 0))

    def advance(self, tokens: Tensor, state: StackState) -> tuple[Tensor, StackState]:
        """The next T tokens (B, T) -> the logits (B, V) of what comes after the last of them, and the state."""
        h, state = self.network.advance(self._embedded(tokens), state)
        said: Tensor = self.head(h[:, -1])
        return said, state

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        length: int,
        random: Random | None = None,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tensor:
        """Continue texts (B, T), T from 1, by ``length`` tokens -> (B, T + length). In evaluation mode.

        Args:
            random: of B rows; the token at each place is drawn from a stream of its own. None: the most likely one.
            temperature: logits are divided by it; below 1 likely tokens are drawn more often.
            top_k: only so many of the most likely tokens can be drawn; None: all.
        """
        logits, state = self.advance(prompt, self.initial_state(len(prompt)))
        said = [prompt]
        for place in range(length):
            own = None if random is None else random.within(f"place {place}")
            token = chosen(logits, own, temperature, top_k).unsqueeze(1)
            said.append(token)
            if place < length - 1:
                logits, state = self.advance(token, state)
        return torch.cat(said, dim=1)

    def sample(self, wish: Wish, random: Random) -> Mapping[str, Sampled]:
        """``continuations`` of the prompts, or of the first half of stored texts, of which each token is drawn; of
        tasks without prompts ``answers``, the most likely ones.

        Raises:
            ValueError: a prompt without tokens, or with some that the vocabulary lacks.
        """
        codec = wish.codec
        if codec is None:
            return {}
        if wish.prompts:
            begun = [codec.encode(prompt) for prompt in wish.prompts]
            if not all(begun):
                raise ValueError("a prompt is empty; give a text of a token at least")
            device = self.embedding.weight.device
            parts = [torch.tensor([tokens] * wish.count, device=device) for tokens in begun]
            draws = [random.within(f"prompt {number}") for number in range(len(parts))]
        else:
            tokens, targets = wish.given["tokens"][: wish.count], wish.given["targets"][: wish.count]
            if not bool(asked(targets).all()):
                return {"answers": self._answers(tokens, targets, codec)}
            parts, draws = [tokens[:, : max(1, tokens.shape[1] // 2)]], [random.whole(len(tokens))]
        given, made = [], []
        for prompt, own in zip(parts, draws, strict=True):
            said = self.generate(prompt, wish.length, own, temperature=wish.temperature, top_k=wish.top_k)
            given += [codec.decode(row) for row in prompt.tolist()]
            made += [codec.decode(row) for row in said[:, prompt.shape[1] :].tolist()]
        return {"continuations": Texts(tuple(made), tuple(given))}

    def _answers(self, tokens: Tensor, targets: Tensor, codec: Codec) -> Texts:
        """To the tasks (B, L): what is said where something is asked, after all that is read before."""
        given, made = [], []
        for read, target in zip(tokens, targets, strict=True):
            places = asked(target).nonzero().flatten()
            prompt = read[: int(places[0]) + 1].unsqueeze(0)
            said = self.generate(prompt, len(places))
            given.append(codec.decode(prompt[0].tolist()))
            made.append(codec.decode(said[0, prompt.shape[1] :].tolist()))
        return Texts(tuple(made), tuple(given))

    def parameter_groups(self) -> list[ParameterGroup]:
        return grouped(self)
