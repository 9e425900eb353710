"""The Transformer: Attention Is All You Need, Vaswani et al. 2017 (arXiv 1706.03762).

Encoder and decoder for sequence to sequence, as the paper: norms after the branches, one matrix for both embeddings and
the softmax, sinusoidal positions, dropout on embeddings and branches, label smoothing, beam search. Its decoder alone,
as a network for language models, is ``decoder``; its parts are in ``attention``, its learning rate is the schedule
``inverse-sqrt``, and the mean of the last checkpoints is judged by ``heliostat evaluate --average``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat_algorithms.algorithm import (
    END,
    IGNORED,
    PAD,
    Algorithm,
    Batch,
    Clock,
    DataSpec,
    Inputs,
    Kind,
    Sampled,
    Step,
    Texts,
    Wish,
)
from heliostat_algorithms.backbones.dropout import Dropout, draw_keys, number
from heliostat_algorithms.collectives import mean_over_workers
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.sequence.attention import CausalAttention, FeedForward, Heads, sinusoids
from heliostat_algorithms.sequence.beam import beam_search
from heliostat_algorithms.sequence.network import MixerState, Norms, Residual, layer_norm
from heliostat_algorithms.sequence.prediction import Predictions, Predictor, Translator, asked


class EncoderLayer(nn.Module):
    """Self-attention over the whole source and a feed-forward network (section 3.1)."""

    def __init__(self, width: int, heads: int, hidden: int, placement: Norms, dropout: float) -> None:
        super().__init__()
        norm = layer_norm(width)
        self.attention = Heads(width, heads)
        self.attending = Residual(norm(), placement, dropout)
        self.feed_forward = FeedForward(width, hidden)
        self.feeding = Residual(norm(), placement, dropout)

    def forward(self, x: Tensor, seen: Tensor, keys: Tensor | None) -> Tensor:
        """(B, S, D), of which ``seen`` (B, 1, 1, S) is source and not padding -> (B, S, D)."""

        def attend(rows: Tensor) -> Tensor:
            a = self.attention
            q, k, v = a.split(rows, a.q), a.split(rows, a.k), a.split(rows, a.v)
            return a.join(F.scaled_dot_product_attention(q, k, v, attn_mask=seen))

        y: Tensor = self.feeding(self.attending(x, attend, keys), self.feed_forward, keys)
        return y


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to what the encoder made of the source, a feed-forward network (section 3.1)."""

    def __init__(self, width: int, heads: int, hidden: int, placement: Norms, dropout: float) -> None:
        super().__init__()
        norm = layer_norm(width)
        self.mixer = CausalAttention(width, heads)
        self.mixing = Residual(norm(), placement, dropout)
        self.attention = Heads(width, heads)
        self.attending = Residual(norm(), placement, dropout)
        self.feed_forward = FeedForward(width, hidden)
        self.feeding = Residual(norm(), placement, dropout)

    def memory(self, encoded: Tensor) -> MixerState:
        """Keys and values of the source (B, S, D): (B, heads, S, D / heads) each."""
        return self.attention.split(encoded, self.attention.k), self.attention.split(encoded, self.attention.v)

    def forward(self, x: Tensor, encoded: Tensor, seen: Tensor, keys: Tensor | None) -> Tensor:
        """(B, T, D) from its beginning, and the source (B, S, D) -> (B, T, D)."""
        return self._rest(self.mixing(x, self.mixer, keys), self.memory(encoded), seen, keys)

    def advance(self, x: Tensor, state: MixerState, memory: MixerState, seen: Tensor) -> tuple[Tensor, MixerState]:
        """The next positions (B, T, D) -> their output, and the cache with them."""
        after = state

        def mix(rows: Tensor) -> Tensor:
            nonlocal after
            y, after = self.mixer.advance(rows, state)
            return y

        return self._rest(self.mixing(x, mix), memory, seen, None), after

    def _rest(self, x: Tensor, memory: MixerState, seen: Tensor, keys: Tensor | None) -> Tensor:
        def attend(rows: Tensor) -> Tensor:
            k, v = memory
            q = self.attention.split(rows, self.attention.q)
            return self.attention.join(F.scaled_dot_product_attention(q, k, v, attn_mask=seen))

        y: Tensor = self.feeding(self.attending(x, attend, keys), self.feed_forward, keys)
        return y


@dataclass(frozen=True)
class DecodingState:
    """All that decoding needs of the source and of what has been said."""

    position: int
    """How many tokens have been said, BEGIN counted."""
    layers: tuple[MixerState, ...]
    """Keys and values of what has been said, for each layer."""
    memory: tuple[MixerState, ...]
    """Keys and values of the source, for each layer."""
    seen: Tensor
    """(B, 1, 1, S) bool: source, and not padding."""

    def select(self, rows: Tensor) -> DecodingState:
        """Some rows, in this order, any of them more than once."""
        layers, memory = (
            tuple(tuple(part.index_select(0, rows) for part in layer) for layer in each)
            for each in (self.layers, self.memory)
        )
        return DecodingState(self.position, layers, memory, self.seen.index_select(0, rows))


class Transformer(Algorithm, Predictor, Translator):
    """The Transformer (Vaswani et al. 2017): encoder and decoder, for sequence to sequence."""

    learns_from: ClassVar[frozenset[Kind]] = frozenset({"pairs"})

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The paper's base model (table 3)."""

        type: Literal["transformer"] = "transformer"
        width: int = 512
        """D; 1024 in the big model."""
        depth: int = 6
        """Layers of the encoder, and as many of the decoder."""
        heads: int = 8
        """16 in the big model."""
        hidden: int = 2048
        """Width inside the feed-forward layers; 4096 in the big model."""
        dropout: float = 0.1
        """Rate, on embeddings and at the end of each residual branch; 0.3 in the big model for English to German."""
        label_smoothing: float = 0.1
        """Share of each target that is spread evenly over all tokens."""
        norm: Norms = "post"
        """Norms after the branches, as in the paper, or before them, as in later work."""
        beam: int = 4
        """Sequences that decoding keeps."""
        length_penalty: float = 0.6
        """alpha of the length penalty."""
        extra_length: int = 50
        """Tokens by which a translation may be longer than its source (section 6.1)."""

        def __post_init__(self) -> None:
            for name in ("width", "depth", "heads", "hidden", "beam", "extra_length"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
            for name in ("dropout", "label_smoothing"):
                if not 0 <= getattr(self, name) < 1:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
            if self.width % self.heads:
                raise ValueError(f"{self.heads} heads cannot share a width of {self.width} equally")
            if not self.length_penalty >= 0:
                raise ValueError(f"length_penalty is {self.length_penalty}; it cannot be negative")

    def __init__(self, config: Config, data: DataSpec) -> None:
        super().__init__(config, data)
        assert data.tokens is not None  # it learns from pairs
        self.config = c = config
        self.embedding = nn.Embedding(data.tokens.vocabulary, c.width)
        nn.init.normal_(self.embedding.weight, std=c.width**-0.5)
        self.source_dropout, self.target_dropout = Dropout(c.dropout), Dropout(c.dropout)
        sizes = c.width, c.heads, c.hidden, c.norm, c.dropout
        self.encoder_layers = nn.ModuleList(EncoderLayer(*sizes) for _ in range(c.depth))
        self.decoder_layers = nn.ModuleList(DecoderLayer(*sizes) for _ in range(c.depth))
        last = layer_norm(c.width) if c.norm == "pre" else nn.Identity
        self.encoder_norm, self.decoder_norm = last(), last()
        number(self)

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        """``source`` (B, S) and ``target`` (B, T) as they are, and ``keys`` (B,), what dropout is drawn from."""
        return {"source": batch["source"], "target": batch["target"], "keys": draw_keys(random)}

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        """Cross-entropy with smoothed labels in nats: the mean over all tokens of the global batch. ``nll`` is the same
        without smoothing."""
        logits, targets = self._said(inputs["source"], inputs["target"], inputs["keys"])
        with torch.autocast(logits.device.type, enabled=False):
            likely = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=2)
            inside = asked(targets)
            right = -likely.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
            share = self.config.label_smoothing
            losses = (1 - share) * right - share * likely.mean(dim=2)
            # Workers hold different numbers of tokens: each divides by their mean, so that the mean over workers is
            # that over tokens.
            count = mean_over_workers(inside.sum().to(losses.dtype))
            loss = (losses * inside).sum() / count
            accuracy = ((likely.argmax(dim=2) == targets) & inside).sum() / count
            nll = (right.detach() * inside).sum() / count
        return Step(loss, {"nll": nll, "accuracy": accuracy})

    def _said(self, source: Tensor, target: Tensor, keys: Tensor | None = None) -> Predictions:
        seen = (source != PAD)[:, None, None]
        encoded = self.encode(source, seen, keys)
        x = self.target_dropout(self._embedded(target[:, :-1], 0), keys)
        for layer in self._decoder:
            x = layer(x, encoded, seen, keys)
        targets = target[:, 1:]
        return Predictions(self._logits(x), targets.masked_fill(targets == PAD, IGNORED))

    def encode(self, source: Tensor, seen: Tensor, keys: Tensor | None = None) -> Tensor:
        """(B, S), of which ``seen`` (B, 1, 1, S) is not padding -> (B, S, D)."""
        x = self.source_dropout(self._embedded(source, 0), keys)
        for layer in self.encoder_layers:
            x = layer(x, seen, keys)
        encoded: Tensor = self.encoder_norm(x)
        return encoded

    def _embedded(self, tokens: Tensor, first: int) -> Tensor:
        x: Tensor = self.embedding(tokens) * self.config.width**0.5
        return x + sinusoids(first, tokens.shape[1], x)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear(self.decoder_norm(x), self.embedding.weight)

    @property
    def _decoder(self) -> list[DecoderLayer]:
        return [cast("DecoderLayer", layer) for layer in self.decoder_layers]

    def predictions(self, batch: Batch) -> Predictions:
        return self._said(batch["source"], batch["target"])

    # Decoding

    def start(self, source: Tensor) -> DecodingState:
        """(B, S) -> the state before anything is said. In evaluation mode."""
        seen = (source != PAD)[:, None, None]
        encoded = self.encode(source, seen)
        layers = tuple(layer.mixer.initial_state(encoded) for layer in self._decoder)
        return DecodingState(0, layers, tuple(layer.memory(encoded) for layer in self._decoder), seen)

    def advance(self, tokens: Tensor, state: DecodingState) -> tuple[Tensor, DecodingState]:
        """The next tokens (B, T), the first of all being BEGIN -> the logits (B, V) of what comes after the last of
        them, and the state."""
        x = self._embedded(tokens, state.position)
        layers = []
        for layer, before, memory in zip(self._decoder, state.layers, state.memory, strict=True):
            x, after = layer.advance(x, before, memory, state.seen)
            layers.append(after)
        state = DecodingState(state.position + tokens.shape[1], tuple(layers), state.memory, state.seen)
        return self._logits(x[:, -1]), state

    @torch.no_grad()
    def translate(self, source: Tensor, beam: int | None = None) -> list[list[int]]:
        """(B, S) int64, each row up to END, then PAD -> what each becomes, without BEGIN and END, by beam search. In
        evaluation mode.

        Args:
            beam: in place of the config's; 1 is greedy.
        """
        longest = (source != PAD).sum(dim=1) + self.config.extra_length
        c = self.config
        return beam_search(self.advance, self.start(source), longest, beam=beam or c.beam, alpha=c.length_penalty)

    def sample(self, wish: Wish, random: Random) -> Mapping[str, Sampled]:
        """``translations`` of the prompts, or of stored sources, by beam search; nothing is drawn.

        Raises:
            ValueError: a prompt has tokens that the vocabulary lacks.
        """
        codec = wish.codec
        if codec is None:
            return {}
        source = wish.given["source"][: wish.count]
        if wish.prompts:
            begun = [torch.tensor([*codec.encode(prompt), END]) for prompt in wish.prompts]
            source = nn.utils.rnn.pad_sequence(begun, batch_first=True, padding_value=PAD).to(source.device)
        made = self.translate(source)
        texts, given = ([codec.decode(tokens) for tokens in each] for each in (made, source.tolist()))
        return {"translations": Texts(tuple(texts), tuple(given))}
