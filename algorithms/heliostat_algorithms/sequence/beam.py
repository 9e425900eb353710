"""Beam search with a length penalty: Google's Neural Machine Translation System, Wu et al. 2016 (arXiv 1609.08144),
section 7, equation 14 without coverage, as Attention Is All You Need decodes (section 6.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from heliostat_algorithms.algorithm import BEGIN, END, PAD


class Selectable(Protocol):
    """A state of decoding: rows that can be chosen from."""

    def select(self, rows: Tensor) -> Self:
        """Some rows, in this order, any of them more than once."""


State = TypeVar("State", bound=Selectable)
Advance = Callable[[Tensor, State], tuple[Tensor, State]]
"""The last tokens (N, 1) and the state of N rows -> logits (N, V) of the next ones, and the state after."""


def length_penalty(length: int, alpha: float) -> float:
    """((5 + |y|) / 6)^alpha, by which the log-probability of |y| tokens, END counted, is divided."""
    return float(((5 + length) / 6) ** alpha)


@torch.no_grad()
def beam_search(
    advance: Advance[State], state: State, longest: Tensor, *, beam: int = 4, alpha: float = 0.6
) -> list[list[int]]:
    """The sequences, from BEGIN to END, that score best; returned without both.

    In each step every row goes on with its ``beam`` most likely unfinished sequences. A sequence is finished where END
    is among the ``beam`` most likely ways to go on, and a row where it has that many finished ones, or where no
    unfinished one could overtake the best any more. A row that reaches its limit with nothing finished gives its most
    likely unfinished sequence. With a beam of 1 this is greedy decoding.

    Args:
        advance: the network; PAD and BEGIN are never chosen, whatever it says.
        state: of B rows before the first token.
        longest: (B,) tokens, END counted, after which a row is cut off.
        beam: 4 in the paper.
        alpha: 0.6 in the paper; 0 compares plain log-probabilities, which favours short sequences.
    """
    rows, device = len(longest), longest.device
    active = torch.arange(rows, device=device)
    state = state.select(active.repeat_interleave(beam))
    said = torch.full((rows, beam, 1), BEGIN, dtype=torch.int64, device=device)
    scores = torch.full((rows, beam), -torch.inf, dtype=torch.float64, device=device)
    scores[:, 0] = 0.0  # all beams of a row begin alike, and only one of them may count
    finished = torch.zeros(rows, dtype=torch.int64, device=device)
    best = torch.full((rows,), -torch.inf, dtype=torch.float64, device=device)
    found: list[list[int]] = [[] for _ in range(rows)]
    for length in range(1, int(longest.max()) + 1):
        logits, state = advance(said[:, :, -1:].flatten(0, 1), state)
        likely = logits.double().log_softmax(dim=1)
        likely[:, [PAD, BEGIN]] = -torch.inf
        vocabulary = likely.shape[1]
        ways = (likely.view(len(active), beam, vocabulary) + scores[:, :, None]).flatten(1)
        way_scores, way = ways.topk(min(2 * beam, ways.shape[1]), dim=1)  # at most beam of them end
        origin, token = way // vocabulary, way % vocabulary
        ended = token == END
        ends = torch.where(ended & (torch.arange(way.shape[1], device=device) < beam), way_scores, -torch.inf)
        finished = finished + torch.isfinite(ends).sum(dim=1)
        top, place = (ends / length_penalty(length, alpha)).max(dim=1)
        for row in (top > best).nonzero().flatten().tolist():
            found[int(active[row])] = said[row, origin[row, place[row]], 1:].tolist()
        best = torch.maximum(best, top)
        scores, kept = way_scores.masked_fill(ended, -torch.inf).topk(beam, dim=1)
        origin, token = origin.gather(1, kept), token.gather(1, kept)
        said = torch.cat([said.gather(1, origin[:, :, None].expand(-1, -1, length)), token[:, :, None]], dim=2)
        limits = longest[active]
        cut = length >= limits
        for row in (cut & torch.isinf(best)).nonzero().flatten().tolist():
            found[int(active[row])] = said[row, 0, 1:].tolist()
        # Log-probabilities only fall, and are divided by at most the penalty of the limit.
        bound = scores[:, 0] / ((5 + limits.double()) / 6) ** alpha
        open_ = (~(cut | (finished >= beam) | (best >= bound))).nonzero().flatten()
        if not len(open_):
            break
        parents = (torch.arange(len(active), device=device)[:, None] * beam + origin)[open_]
        state = state.select(parents.flatten())
        active, said, scores, finished, best = (x[open_] for x in (active, said, scores, finished, best))
    return found
