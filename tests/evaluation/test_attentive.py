from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heliostat.data.images import ImageData
from heliostat.training.evaluation import SharedSamples
from heliostat.training.runtime import SilentRuntime
from heliostat_algorithms.algorithm import Algorithm, Batch, Clock, DataSpec, Inputs, Step
from heliostat_algorithms.collectives import rank, world_size
from heliostat_algorithms.evaluation import AttentiveProbe, Features, LinearProbe
from heliostat_algorithms.evaluation import attentive as module
from heliostat_algorithms.evaluation.attentive import _Probe, _Tokens
from heliostat_algorithms.randomness import Random, permutation

CLASSES, TOKENS, WIDTH = 4, 6, 16


class Rows(Algorithm):
    """Each row of an image is a token, moved and scaled; the features are their mean."""

    def __init__(self, offset: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(None, DataSpec(image_shape=(1, TOKENS, WIDTH), classes=CLASSES))
        self.scale = nn.Parameter(torch.tensor(scale))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.offset = offset

    def prepare(self, batch: Batch, clock: Clock, random: Random) -> Inputs:
        raise AssertionError("probes do not train the algorithm")

    def forward(self, inputs: Inputs, clock: Clock) -> Step:
        raise AssertionError("probes do not train the algorithm")

    def features(self, images: Tensor) -> Tensor:
        return self.token_features(images).mean(dim=1)

    def token_features(self, images: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        tokens = self.norm((images.squeeze(1).float() - 128).flatten(0, 1) / 32).view(-1, TOKENS, WIDTH)
        return self.scale * (tokens + self.offset)


def hidden_class(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (N, 1, tokens, width) whose class stands in one row, marked as such, at a random place; another row says
    the opposite without the mark, so that the mean of all rows knows nothing."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    tokens = 0.3 * torch.randn(count, TOKENS, WIDTH, generator=random)
    tokens -= tokens.mean(dim=1, keepdim=True)
    signal = 2.0 * F.one_hot(labels, WIDTH).float()
    places = torch.rand(count, TOKENS, generator=random).argsort(dim=1)
    everyone = torch.arange(count)
    tokens[everyone, places[:, 0]] += signal
    tokens[everyone, places[:, 1]] -= signal
    tokens[everyone, places[:, 0], -1] += 3.0
    return (128 + 32 * tokens).round().clamp(0, 255).to(torch.uint8).unsqueeze(1), labels


PROBE = AttentiveProbe(learning_rates=(3e-2, 1e-4), epochs=10, batch_size=32, heads=2)


@pytest.fixture
def train(samples: Any) -> Any:
    return samples(*hidden_class(320, 0), CLASSES)


@pytest.fixture
def test_set(samples: Any) -> Any:
    return samples(*hidden_class(200, 1), CLASSES)


def test_a_token_that_the_mean_hides_is_found(train: Any, test_set: Any) -> None:
    found = PROBE.judge(Rows(), train, test_set, 0)
    assert found["attentive_top1"] > 0.9
    assert set(found) == {"attentive_top1", "attentive_lr"}  # four classes have no top 5
    means = []
    for images, labels in (hidden_class(320, 0), hidden_class(200, 1)):
        tokens = (images.squeeze(1).float() - 128) / 32
        means.append(Features(tokens.mean(dim=1), labels, CLASSES))
    assert LinearProbe().evaluate(*means, 0)["linear_top1"] < 0.4


def test_the_same_arguments_give_the_same_numbers_and_nothing_else_changes(train: Any, test_set: Any) -> None:
    quick = AttentiveProbe(learning_rates=(1e-2, 1e-3), epochs=2, batch_size=32)
    algorithm = Rows().train()
    algorithm.norm.eval()
    before = copy.deepcopy(algorithm.state_dict())
    first = quick.judge(algorithm, train, test_set, 3)
    torch.rand(7)  # the global generator has no part in it
    state = torch.get_rng_state()
    assert quick.judge(algorithm, train, test_set, 3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert (algorithm.training, algorithm.norm.training) == (True, False)
    assert all(torch.equal(value, before[name]) for name, value in algorithm.state_dict().items())
    assert all(parameter.grad is None for parameter in algorithm.parameters())


def test_the_seed_decides_start_and_order() -> None:
    one, same, other = (_Probe(8, 1, 4.0, 3, f"{seed}:x") for seed in (0, 0, 1))
    assert torch.equal(one.pool.kv.weight, same.pool.kv.weight)
    assert not torch.equal(one.pool.kv.weight, other.pool.kv.weight)
    assert one(torch.randn(2, 5, 8)).abs().max() == 0  # the classifier begins without an opinion


def test_the_learning_rate_is_chosen_without_the_test_set(samples: Any, train: Any) -> None:
    chosen = set()
    images, labels = hidden_class(200, 1)
    for told in (labels, (labels + 1) % CLASSES, torch.zeros_like(labels)):
        chosen.add(PROBE.judge(Rows(), train, samples(images, told, CLASSES), 0)["attentive_lr"])
    assert len(chosen) == 1
    assert chosen <= set(PROBE.learning_rates)


def test_the_learning_rate_fits_the_data(train: Any, test_set: Any) -> None:
    """One rate is too small to move, one too large to converge."""
    grid = AttentiveProbe(learning_rates=(1e-7, 3e-2, 1e3), epochs=10, batch_size=32, heads=2)
    found = grid.judge(Rows(), train, test_set, 0)
    assert found["attentive_lr"] == 3e-2
    assert found["attentive_top1"] > 0.9
    still = AttentiveProbe(learning_rates=(1e-7, 1e-6), epochs=1).judge(Rows(), train, test_set, 0)
    assert still["attentive_lr"] == 1e-7  # neither moves: the smaller one


def test_the_held_out_part_is_not_trained_on(train: Any, test_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[set[int]] = []
    judged: list[set[int]] = []
    fit, right = AttentiveProbe._fit, AttentiveProbe._right

    def seen_fit(self: Any, tokens: Any, rows: Tensor, *rest: Any) -> Any:
        trained.append(set(rows.tolist()))
        return fit(self, tokens, rows, *rest)

    def seen_right(self: Any, tokens: Any, rows: Tensor, *rest: Any) -> Any:
        judged.append(set(rows.tolist()))
        return right(self, tokens, rows, *rest)

    monkeypatch.setattr(AttentiveProbe, "_fit", seen_fit)
    monkeypatch.setattr(AttentiveProbe, "_right", seen_right)
    AttentiveProbe(learning_rates=(1e-2, 1e-3), epochs=1, validation=0.25).judge(Rows(), train, test_set, 0)
    assert [len(rows) for rows in trained] == [240, 320]
    assert judged[0] == set(range(320)) - trained[0]


def test_training_follows_its_description(train: Any) -> None:
    """AdamW with cosine and clipping, one probe by itself, against a loop over whole tensors."""
    probe = AttentiveProbe(epochs=2, batch_size=60, weight_decay=0.1, heads=2)  # batches of 60, 60 and 10
    with torch.no_grad():
        tokens = _Tokens(Rows().eval(), train, standardize=True)
    rows = torch.arange(100, 230)
    found = probe._fit(tokens, rows, [3e-3, 1e-2], CLASSES, "key")
    labels = hidden_class(320, 0)[1]
    x = tokens.standard(tokens.values)
    for rate, ours in zip((3e-3, 1e-2), found, strict=True):
        reference = _Probe(WIDTH, 2, 4.0, CLASSES, "key")
        matrices = [p for p in reference.parameters() if p.ndim > 1]
        vectors = [p for p in reference.parameters() if p.ndim == 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], foreach=False
        )
        step = 0
        for epoch in range(2):
            order = rows[permutation(f"key/epoch{epoch}", 130)]
            for chosen in (order[:60], order[60:120], order[120:]):
                for group in optimizer.param_groups:
                    group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / 6))
                optimizer.zero_grad()
                F.cross_entropy(reference(x[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
                norm = torch.cat([p.grad.flatten() for p in reference.parameters()]).norm()
                for parameter in reference.parameters():
                    parameter.grad *= min(1.0, 1.0 / (float(norm) + 1e-6))
                optimizer.step()
                step += 1
        for mine, theirs in zip(ours.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)


def test_tokens_are_standardised_by_the_formula(train: Any) -> None:
    algorithm = Rows(offset=50.0, scale=0.01).eval()
    with torch.no_grad():
        tokens = _Tokens(algorithm, train, standardize=True)
        raw = _Tokens(algorithm, train, standardize=False)
    images, _ = hidden_class(320, 0)
    x = algorithm.norm((images.squeeze(1).float() - 128).flatten(0, 1) / 32).detach().double().numpy()
    expected = (x - x.mean(axis=0)) / x.std(axis=0)
    found = tokens.standard(tokens.values).flatten(0, 1).numpy()
    # Rounded to 11 bits of their distance from the mean of the first samples, though that is 50 standard deviations.
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_allclose(raw.standard(raw.values).flatten(0, 1).numpy(), 0.01 * (x + 50), atol=1e-4)


def test_offset_and_scale_of_all_tokens_do_not_matter(train: Any, test_set: Any) -> None:
    expected = PROBE.judge(Rows(), train, test_set, 0)["attentive_top1"]
    moved = PROBE.judge(Rows(offset=100.0, scale=1e-3), train, test_set, 0)["attentive_top1"]
    assert moved == pytest.approx(expected, abs=0.05)


def test_rounding_noise_in_a_constant_dimension_is_not_blown_up(train: Any) -> None:
    class Constant(Rows):
        def token_features(self, images: Tensor) -> Tensor:
            tokens = super().token_features(images)
            noise = 1e-8 * torch.randn(tokens.shape[:2], generator=torch.Generator().manual_seed(0))
            return torch.cat([tokens[..., :-2], (0.3 + noise).unsqueeze(2), torch.zeros_like(tokens[..., :1])], dim=2)

    with torch.no_grad():
        tokens = _Tokens(Constant().eval(), train, standardize=True)
    values = tokens.standard(tokens.values)
    assert values[..., -2:].abs().max() == 0
    assert float(values[..., 0].std(correction=0)) == pytest.approx(1.0, abs=1e-3)


def test_collapsed_tokens_are_at_chance(train: Any, test_set: Any) -> None:
    found = AttentiveProbe(epochs=1).judge(Rows(scale=0.0), train, test_set, 0)
    assert found["attentive_top1"] == pytest.approx(0.25)


def test_memory_is_known_before(train: Any, test_set: Any) -> None:
    sample = {"image": hidden_class(1, 0)[0]}
    AttentiveProbe(cache_gib=1.0).check_network(Rows(), sample, 5_000_000)  # 0.89 GiB
    with pytest.raises(ValueError, match=r"6 x 16 numbers of 2 bytes each: 1\.07 GiB over all workers") as error:
        AttentiveProbe(cache_gib=1.0).check_network(Rows(), sample, 6_000_000)
    fraction = float(str(error.value).partition("train_fraction: ")[2].split()[0])
    AttentiveProbe(cache_gib=1.0, train_fraction=fraction).check_network(Rows(), sample, 6_000_000)
    with pytest.raises(ValueError, match="head: attentive, frozen: true"):
        AttentiveProbe(cache_gib=1e-6).judge(Rows(), train, test_set, 0)


def test_a_share_of_the_samples_is_one_of_each_class(
    train: Any, test_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    tokens = module._Tokens

    def seen(algorithm: Algorithm, samples: Any, standardize: bool) -> _Tokens:
        made.append(tokens(algorithm, samples, standardize))
        return made[-1]

    monkeypatch.setattr(module, "_Tokens", seen)
    AttentiveProbe(train_fraction=0.25, epochs=1).judge(Rows(), train, test_set, 0)
    assert made[0].labels.bincount().tolist() == [20] * CLASSES


def test_heads_divide_the_width() -> None:
    assert [AttentiveProbe()._heads(width) for width in (16, 192, 384, 1280, 200)] == [1, 3, 6, 20, 2]
    sample = {"image": hidden_class(1, 0)[0]}
    with pytest.raises(ValueError, match="heads is 3, which does not divide the tokens' width of 16"):
        AttentiveProbe(heads=3).check_network(Rows(), sample, 10)


def test_tokens_that_are_not_finite_are_an_error(train: Any, test_set: Any) -> None:
    with pytest.raises(ValueError, match="320 of 320 samples are not finite"):
        AttentiveProbe(epochs=1).judge(Rows(scale=math.nan), train, test_set, 0)


def test_a_probe_that_diverges_alone_is_an_error(train: Any, test_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = _Probe.forward
    monkeypatch.setattr(_Probe, "forward", lambda self, tokens: forward(self, tokens) * math.inf)
    with pytest.raises(ArithmeticError, match=r"diverged at a learning rate of 0\.01"):
        AttentiveProbe(learning_rates=(1e-2,), epochs=1).judge(Rows(), train, test_set, 0)


def test_labels_are_asked_for(samples: Any, train: Any) -> None:
    images, labels = hidden_class(20, 0)
    with pytest.raises(ValueError, match="needs labels"):
        AttentiveProbe().judge(Rows(), samples(images, None, CLASSES), train, 0)
    with pytest.raises(ValueError, match="differ in classes: 4 and 5"):
        AttentiveProbe().judge(Rows(), train, samples(images, labels, 5), 0)
    with pytest.raises(ValueError, match="needs labels"):
        AttentiveProbe().check(100, None, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rates": ()},
        {"learning_rates": (-1e-3,)},
        {"epochs": 0},
        {"batch_size": 0},
        {"heads": 0},
        {"mlp_ratio": 0.0},
        {"weight_decay": -1.0},
        {"validation": 1.0},
        {"train_fraction": 0.0},
        {"train_fraction": 1.5},
        {"cache_gib": 0.0},
        {"every_epochs": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AttentiveProbe(**wrong)


def test_too_few_samples_to_hold_some_out() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"validation = 0\.1 of 4"):
        AttentiveProbe().check(4, labels, 2)
    with pytest.raises(ValueError, match=r"validation = 0\.1 of 4"):
        AttentiveProbe(train_fraction=0.01).check(400, labels, 2)


def shared(count: int, seed: int) -> SharedSamples:
    images, labels = hidden_class(count, seed)
    names = tuple(map(str, range(CLASSES)))
    data = ImageData(images=images.numpy(), labels=labels.numpy(), classes=names, name="made up")
    return SharedSamples(data, SilentRuntime(torch.device("cpu"), rank(), world_size()))


def judge_together() -> dict[str, Any]:
    """Batches of 3, of which a worker often holds none."""
    probe = AttentiveProbe(learning_rates=(1e-2, 1e-3), epochs=1, batch_size=3, heads=2)
    train, test = shared(61, 0), shared(33, 1)
    with torch.no_grad():
        tokens = _Tokens(Rows().eval(), train, standardize=True)
    (fitted,) = probe._fit(tokens, torch.arange(61), [1e-3], CLASSES, "key")
    weights = {name: value.detach() for name, value in fitted.state_dict().items()}
    return {"metrics": probe.judge(Rows(), train, test, 0), "weights": weights, "held": len(tokens.values)}


def test_two_workers_find_what_one_does(on_workers: Any) -> None:
    alone = judge_together()
    results = on_workers(judge_together, 2)
    assert [result["held"] for result in results] == [30, 31]
    for result in results:
        assert result["metrics"] == alone["metrics"]
        for name, value in result["weights"].items():
            torch.testing.assert_close(value, alone["weights"][name], atol=1e-4, rtol=1e-3)
            assert torch.equal(value, results[0]["weights"][name])
