"""The Transformer's parts and the whole, against the paper's formulas and properties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from heliostat_algorithms.algorithm import BEGIN, END, PAD, Batch, Clock, DataSpec, TokenSpec
from heliostat_algorithms.backbones.dropout import Dropout, draw_keys, number
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.schedules import InverseSqrt
from heliostat_algorithms.sequence.attention import sinusoids
from heliostat_algorithms.sequence.beam import beam_search, length_penalty
from heliostat_algorithms.sequence.classifier import SequenceClassifier
from heliostat_algorithms.sequence.decoder import TransformerDecoder
from heliostat_algorithms.sequence.infini_attention import InfiniAttention
from heliostat_algorithms.sequence.language_model import LanguageModel
from heliostat_algorithms.sequence.transformer import Transformer

CLOCK = Clock(step=0, total_steps=10, steps_per_epoch=10, batch_size=3)
PAIRS = DataSpec(classes=None, tokens=TokenSpec(vocabulary=11, length=7, source_length=6))
TEXT = DataSpec(classes=None, tokens=TokenSpec(vocabulary=11, length=12))
NETWORKS = {
    "post": TransformerDecoder(width=16, depth=2, heads=2, hidden=24, dropout=0.0),
    "pre": TransformerDecoder(width=16, depth=2, heads=2, hidden=24, dropout=0.0, norm="pre"),
    "infini": InfiniAttention(width=16, depth=2, heads=2, hidden=24, dropout=0.0, segment=4),
    "infini-linear": InfiniAttention(width=16, depth=2, heads=2, hidden=24, dropout=0.0, segment=3, rule="linear"),
    "infini-off": InfiniAttention(width=16, depth=2, heads=2, hidden=24, dropout=0.0, segment=4, memory=False),
}


def transformer(**options: object) -> Transformer:
    torch.manual_seed(0)
    config = Transformer.Config(width=16, depth=2, heads=2, hidden=24, **options)  # type: ignore[arg-type]
    return Transformer(config, PAIRS).double().eval()


def language_model(name: str) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(LanguageModel.Config(network=NETWORKS[name]), TEXT).double().eval()


def pairs() -> Batch:
    source = torch.tensor([[5, 6, 7, 8, 9, END], [4, 10, END, PAD, PAD, PAD], [9, 9, 8, END, PAD, PAD]])
    target = torch.tensor([[BEGIN, 4, 5, 6, 7, 8, END], [BEGIN, 6, END, PAD, PAD, PAD, PAD], [BEGIN, END, *[PAD] * 5]])
    return {"source": source, "target": target}


def texts(rows: int = 3, length: int = 12) -> Tensor:
    return Random(1, 0, range(rows)).integers("tokens", 11, length)


# Positions


def test_positions_are_those_of_the_formula() -> None:
    found = sinusoids(3, 2, torch.empty(1, 6, dtype=torch.float64))
    for row, place in enumerate((3, 4)):
        for i in range(3):
            angle = place / 10000 ** (2 * i / 6)
            assert found[row, 2 * i] == pytest.approx(math.sin(angle), abs=1e-15)
            assert found[row, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-15)


def test_a_shift_of_positions_is_one_rotation_for_all() -> None:
    width, shift = 16, 7
    all_ = sinusoids(0, 50, torch.empty(1, width, dtype=torch.float64))
    angle = shift * 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    turn = torch.zeros(width, width, dtype=torch.float64)
    for i, a in enumerate(angle):
        turn[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[a.cos(), a.sin()], [-a.sin(), a.cos()]])
    assert torch.allclose(all_[:-shift] @ turn.T, all_[shift:], atol=1e-12)
    assert not torch.allclose(all_[:-shift], all_[shift:], atol=0.1)


# Causality, padding, states


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_known_of_the_future(name: str) -> None:
    network = language_model(name).network
    x = torch.randn(1, 12, 16, dtype=torch.float64, requires_grad=True)
    for place in (0, 3, 4, 7, 11):
        (gradient,) = torch.autograd.grad(network(x)[:, place].sum(dim=0) @ torch.randn(16, dtype=torch.float64), x)
        assert not gradient[:, place + 1 :].any()
        assert gradient[:, place].abs().max() > 0


def test_the_decoder_knows_nothing_of_the_future() -> None:
    model, batch = transformer(), pairs()
    changed = batch["target"].clone()
    changed[:, 4:] = 10
    before, after = (model.predictions({**batch, "target": t}).logits for t in (batch["target"], changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.equal(before[:, 4:], after[:, 4:])


def test_padding_changes_nothing() -> None:
    model, batch = transformer(dropout=0.0), pairs()
    wide = {name: F.pad(x, (0, 3), value=PAD) for name, x in batch.items()}
    one, other = model.predictions(batch), model.predictions(wide)
    inside = one.targets >= 0
    assert torch.allclose(one.logits[inside], other.logits[:, : inside.shape[1]][inside], atol=1e-12)
    keys = draw_keys(Random(0, 0, range(3)))
    losses = [float(model({**b, "keys": keys}, CLOCK).loss) for b in (batch, wide)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    alone = model.predictions({name: x[1:2, :3] for name, x in batch.items()})
    assert torch.allclose(alone.logits[0], one.logits[1, :2], atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("split", [(1,) * 12, (5, 1, 1, 5), (12,), (4, 8), (3, 3, 6)])
def test_step_by_step_is_all_at_once(name: str, split: tuple[int, ...]) -> None:
    network = language_model(name).network
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    state, said = network.initial_state(x), []
    for part in x.split(list(split), dim=1):
        y, state = network.advance(part, state)
        said.append(y)
    assert state.position == 12
    assert torch.allclose(torch.cat(said, dim=1), network(x), atol=1e-12)


def test_cached_decoding_is_full_decoding() -> None:
    model, batch = transformer(), pairs()
    full = model.predictions(batch).logits
    state = model.start(batch["source"])
    for place in range(6):
        logits, state = model.advance(batch["target"][:, place : place + 1], state)
        assert torch.allclose(logits, full[:, place], atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_generation_says_what_full_passes_say(name: str) -> None:
    model, prompt = language_model(name), texts(2, 5)
    found = model.generate(prompt, 6)
    expected = prompt
    for _ in range(6):
        expected = torch.cat([expected, model.logits(expected)[:, -1].argmax(dim=1, keepdim=True)], dim=1)
    assert torch.equal(found, expected)


def test_drawn_tokens_follow_the_shares_and_the_rows() -> None:
    model = language_model("post")
    prompt = texts(1, 4).expand(4000, -1)
    shares = (model.logits(prompt[:1])[0, -1] / 0.7).softmax(dim=0)
    drawn = model.generate(prompt, 1, Random(0, 0, range(4000)), temperature=0.7)[:, -1]
    found = torch.bincount(drawn, minlength=11) / 4000
    assert (found - shares).abs().max() < 4 * math.sqrt(0.25 / 4000)
    later = model.generate(prompt[1000:2000], 1, Random(0, 0, range(1000, 2000)), temperature=0.7)[:, -1]
    assert torch.equal(later, drawn[1000:2000])
    few = model.generate(prompt, 1, Random(0, 0, range(4000)), top_k=2)[:, -1]
    assert set(few.tolist()) == set(shares.topk(2).indices.tolist())


# Loss and schedule


def test_the_loss_is_the_smoothed_cross_entropy_over_all_tokens() -> None:
    model, batch = transformer(dropout=0.0), pairs()
    logits, _ = model.predictions(batch)
    total, count = 0.0, 0
    for b, t in itertools.product(range(3), range(6)):
        if batch["target"][b, t + 1] == PAD:
            continue
        shares = logits[b, t].exp() / logits[b, t].exp().sum()
        wanted = torch.full((11,), 0.1 / 11, dtype=torch.float64)
        wanted[batch["target"][b, t + 1]] += 0.9
        total -= float((wanted * shares.log()).sum())
        count += 1
    assert count == 9
    made = model({**batch, "keys": draw_keys(Random(0, 0, range(3)))}, CLOCK)
    assert float(made.loss) == pytest.approx(total / count, abs=1e-12)


def test_the_gradient_of_the_loss_is_zero_at_the_smoothed_target() -> None:
    model = transformer(dropout=0.0)
    wanted = torch.full((11,), 0.1 / 11, dtype=torch.float64)
    wanted[6] += 0.9
    logits = wanted.log().expand(1, 1, 11).clone().requires_grad_()
    model._said = lambda *_: (logits, torch.tensor([[6]]))  # type: ignore[assignment, return-value, method-assign]
    inputs = {name: torch.zeros(1, 1, dtype=torch.int64) for name in ("source", "target", "keys")}
    model(inputs, CLOCK).loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-15
    logits.grad = None
    logits.data[0, 0, 6] += 0.1
    model(inputs, CLOCK).loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() > 1e-3


def test_the_learning_rate_is_the_papers() -> None:
    width, warmup = 512, 40
    schedule = InverseSqrt(warmup_steps=warmup)
    peak = (width * warmup) ** -0.5
    rates = []
    for step in range(200):
        clock = Clock(step=step, total_steps=200, steps_per_epoch=10, batch_size=1)
        rates.append(peak * schedule.multiplier(clock))
        s = step + 1
        assert rates[-1] == pytest.approx(width**-0.5 * min(s**-0.5, s * warmup**-1.5), rel=1e-12)
    assert max(rates) == rates[warmup - 1] == pytest.approx(peak)
    with pytest.raises(ValueError, match="warmup_steps"):
        InverseSqrt(warmup_epochs=1.0)


# Beam search


def exhaustive(model: Transformer, source: Tensor, longest: int, alpha: float) -> list[int]:
    """The best of all sequences that end within the limit."""
    best: tuple[float, list[int]] = (-math.inf, [])
    symbols = [token for token in range(11) if token not in (PAD, BEGIN, END)]
    for length in range(longest):
        for said in itertools.product(symbols, repeat=length):
            target = torch.tensor([[BEGIN, *said, END]])
            likely = model.predictions({"source": source, "target": target}).logits.log_softmax(dim=2)
            score = sum(float(likely[0, t, token]) for t, token in enumerate([*said, END]))
            best = max(best, (score / length_penalty(length + 1, alpha), list(said)))
    return best[1]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_a_wide_beam_is_an_exhaustive_search(alpha: float) -> None:
    model, source = transformer(), pairs()["source"]
    model.embedding.weight.data *= 3.0  # opinions, so that the best sequence is not always the shortest
    for row in range(3):
        one = source[row : row + 1]
        limit = torch.tensor([3])
        found = beam_search(model.advance, model.start(one), limit, beam=80, alpha=alpha)[0]
        assert found == exhaustive(model, one, 3, alpha)


def test_a_beam_of_one_is_greedy_and_rows_do_not_meet() -> None:
    model, source = transformer(), pairs()["source"]
    model.embedding.weight.data *= 2.0
    together = model.translate(source, beam=1)
    for row in range(3):
        said = [BEGIN]
        one = source[row : row + 1, : int((source[row] != PAD).sum())]
        while len(said) <= one.shape[1] + 50:
            target = torch.tensor([[*said, END]])
            logits = model.predictions({"source": one, "target": target}).logits[0, -1]
            logits[[PAD, BEGIN]] = -torch.inf
            said.append(int(logits.argmax()))
            if said[-1] == END:
                break
        assert together[row] == [token for token in said[1:] if token != END]
        assert model.translate(source)[row] == model.translate(one)[0]


# Dropout


def test_dropout_is_a_function_of_the_row() -> None:
    part = torch.nn.Sequential(Dropout(0.3), Dropout(0.3))
    number(part)
    first, second = part
    x = torch.ones(6, 50, 40, dtype=torch.float64)
    keys = draw_keys(Random(0, 5, range(6)))
    whole = first(x, keys)
    assert torch.equal(whole[2:4], first(x[2:4], draw_keys(Random(0, 5, range(2, 4)))))
    assert not torch.equal(whole, second(x, keys))
    assert not torch.equal(whole, first(x, draw_keys(Random(0, 6, range(6)))))
    dropped = whole == 0
    assert float(dropped.double().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / x.numel()))
    assert whole[~dropped].unique().tolist() == pytest.approx([1 / 0.7], rel=1e-4)
    pairs_ = torch.stack([a.flatten() for a in (dropped[:, :-1], dropped[:, 1:])]).double()
    assert abs(float(torch.corrcoef(pairs_)[0, 1])) < 0.03
    assert torch.equal(first.eval()(x, None), x)
    with pytest.raises(ValueError, match="keys"):
        first.train()(x, None)


def test_the_whole_model_drops_in_training_only() -> None:
    model, batch = transformer(dropout=0.5), pairs()
    inputs = model.prepare(batch, CLOCK, Random(0, 0, range(3)))
    still = float(model(inputs, CLOCK).loss)
    model.train()
    moving = [float(model(model.prepare(batch, CLOCK, Random(0, s, range(3))), CLOCK).loss) for s in range(3)]
    assert len({still, *moving}) == 4


# Pixels


def test_a_classifier_reads_pixels_row_by_row() -> None:
    data = DataSpec(image_shape=(1, 2, 3), classes=4)
    model = SequenceClassifier(SequenceClassifier.Config(network=NETWORKS["post"], pool="last"), data)
    images = torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3)
    assert torch.equal(model.whole(images)[0, :, 0] * 255, torch.arange(6).float())
    assert model.class_scores(images).shape == (1, 4)


def test_a_method_of_images_says_that_tokens_are_none() -> None:
    from heliostat_algorithms.representation.simclr import SimCLR

    with pytest.raises(ValueError, match="SimCLR learns from images, and the samples are tokens"):
        SimCLR(SimCLR.Config(), TEXT)
