"""Updates are those of a loop written out by hand, in float64, with its own network, loss, weights and Adam."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from heliostat.config.reinforcement import ReinforcementJob
from heliostat.errors import RunError
from heliostat.reinforcement.environments import EnvironmentSpec
from heliostat.reinforcement.learner import Learner, Shares
from heliostat.reinforcement.rollout import RolloutWorker
from heliostat.reinforcement.shard import ReplayShard, Sampled
from heliostat.training.storage import Storage
from heliostat_algorithms.reinforcement.replay.steps import Steps

MakeJob = Callable[..., ReinforcementJob]
Same = Callable[[Any, Any], bool]
SPEC = EnvironmentSpec("numbers", (3,), np.dtype(np.float32), 1, 3, ("a", "b", "c"))
CHANGES = ("algorithm.network.hidden_units=[8, 6]", "algorithm.discount=0.9", "rollout.environments=5")
PRIORITIZED = (
    *CHANGES,
    "algorithm.prioritization={exponent: 0.7}",
    "algorithm.importance={start: 0.4, end: 1.0}",
    "algorithm.double=true",
    "resources.shards=2",
)


def filled(job: ReinforcementJob, seed: int = 0) -> list[ReplayShard]:
    """Shards that hold 30 calls of noise, with ends and priorities."""
    dice, count, shards = np.random.default_rng(seed), job.rollout.environments, job.resources.shards
    made = []
    for index in range(shards):
        lanes = len(range(index, count, shards))
        shape = (30, lanes)
        ended = dice.random(shape) < 0.15
        acted = np.ones(shape, np.bool_)
        start = np.zeros(shape, np.bool_)
        start[0] = True
        for t in range(1, 30):
            acted[t] = ~(ended[t - 1] & acted[t - 1])
            start[t] = ~acted[t - 1]
        ended &= acted
        cut = dice.random(shape) < 0.5
        steps = Steps(
            frame=dice.normal(size=(*shape, 3)).astype(np.float32),
            action=dice.integers(0, 3, shape),
            reward=dice.normal(size=shape).astype(np.float32) * 2,
            terminated=ended & ~cut,
            truncated=ended & cut,
            life_lost=np.zeros(shape, np.bool_),
            acted=acted,
            start=start,
            priority=None if job.algorithm.prioritization is None else dice.gamma(1.0, size=shape).astype(np.float32),
        )
        shard = ReplayShard(job, SPEC, index, Storage(job.output))
        # The columns are this shard's lanes, as if one actor played these lanes of the job alone.
        shard.buffer.insert(steps, range(lanes))
        made.append(shard)
    return made


def sampled(shards: Sequence[ReplayShard], counts: Sequence[Sequence[int]], seed: int = 1) -> list[Sampled]:
    """``counts[shard][update]`` items at random."""
    dice = np.random.default_rng(seed)
    return [shard.sample(dice.random(sum(some)), tuple(some)) for shard, some in zip(shards, counts, strict=True)]


def shares(shards: Sequence[ReplayShard], factors: Sequence[float] | None = None) -> Shares:
    """What the coordinator knew; ``factors``: how much more than there is now."""
    reports = [shard.report() for shard in shards]
    masses = np.array([report.mass for report in reports]) * (1.0 if factors is None else np.array(factors))
    return Shares(tuple(masses / masses.sum()), sum(report.items for report in reports))


# The loop


Weights = dict[str, Tensor]


def network(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """3 -> 8 -> 6 -> 3, by the names of the parameters."""
    hidden = torch.relu(x @ weights["trunk.layers.1.weight"].T + weights["trunk.layers.1.bias"])
    hidden = torch.relu(hidden @ weights["head.values.hidden.weight"].T + weights["head.values.hidden.bias"])
    return hidden @ weights["head.values.last.weight"].T + weights["head.values.last.bias"]


class Loop:
    """DQN's algorithm 1 and Adam's, for one batch after the other."""

    def __init__(self, job: ReinforcementJob, state: Mapping[str, Tensor]) -> None:
        self.job = job
        self.online = {n.removeprefix("online."): p.double().clone() for n, p in state.items() if "online" in n}
        self.target = {name: p.clone() for name, p in self.online.items()}
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in self.online.items()}
        self.losses: list[float] = []

    def update(self, number: int, rows: Sequence[Any], weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """One update from single items; returns |TD error| of each."""
        agent, weights = self.job.algorithm, {n: p.clone().requires_grad_() for n, p in self.online.items()}
        loss, errors = torch.zeros((), dtype=torch.float64), []
        for row, w in zip(rows, weight, strict=True):
            seen, following = (torch.from_numpy(a[0]).double() for a in (row.observation, row.next_observation))
            with torch.no_grad():
                after = network(self.target, following)
                best = int(network(weights, following).argmax()) if agent.double else int(after.argmax())
                goal = float(row.reward[0]) + float(row.bootstrap[0]) * float(after[best])
            error = goal - network(weights, seen)[int(row.action[0])]
            size = float(error.detach().abs())
            loss = loss + w * (error**2 / 2 if size <= 1 else error.abs() - 0.5) / len(rows)
            errors.append(size)
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        limit = self.job.optimization.clip_gradient_norm
        for name, gradient in gradients.items():
            g = gradient if limit is None or norm <= limit else gradient * limit / norm
            first, second = self.moments[name]
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            self.moments[name] = first, second
            steps = len(self.losses) + 1
            step = first / (1 - 0.9**steps) / ((second / (1 - 0.999**steps)).sqrt() + EPSILON)
            self.online[name] = self.online[name] - 0.001 * step
        self.losses.append(float(loss.detach()))
        if number % agent.target.every == 0:  # type: ignore[union-attr]
            self.target = {name: p.clone() for name, p in self.online.items()}
        return np.array(errors)


EPSILON = 1e-3


def importance(chance: npt.NDArray[np.float64], items: int, beta: float) -> npt.NDArray[np.float64]:
    """Schaul et al. 2015, section 3.4."""
    weight = np.array([(items * p) ** -beta for p in chance])
    return weight / max(weight)


def assert_weights(learner: Learner, loop: Loop) -> None:
    for name, value in learner.state()["agent"].items():
        side, _, rest = name.partition(".")
        expected = (loop.online if side == "online" else loop.target)[rest]
        assert torch.allclose(value.double(), expected, rtol=1e-4, atol=2e-6), name


def job_with(small: MakeJob, *overrides: str) -> ReinforcementJob:
    job = small(*overrides, "algorithm.target.every=3", f"optimization.optimizer.eps={EPSILON}")
    assert job.optimization.batch_size == 16
    return job


def test_prioritized_updates_over_two_shards_are_those_of_the_loop(small: MakeJob) -> None:
    job = job_with(small, *PRIORITIZED)
    shards = filled(job)
    learner = Learner(job, SPEC)
    loop = Loop(job, learner.state()["agent"])
    known = shares(shards, (1.5, 1.0))  # masses change between asking and sampling
    # An update of which all items are of one shard, one of which none is.
    counts, progress = ((7, 16, 0, 9), (9, 0, 16, 7)), 0.25
    given = sampled(shards, counts)
    report, *feedback = learner.update(5, 4, progress, known, *given)

    beta, starts = 0.4 + 0.6 * progress, [0, 0]
    told: list[list[tuple[int, int, float]]] = [[], []]
    ages = []
    for number in range(4):
        rows, chance, owner = [], [], []
        for shard in range(2):
            for row in range(starts[shard], starts[shard] + counts[shard][number]):
                item = given[shard].batch.rows(range(row, row + 1))  # type: ignore[union-attr]
                rows.append(item)
                owner.append(shard)
                chance.append(known.mass[shard] * float(item.priority_mass[0]) / shards[shard].report().mass)
                ages.append(float(item.age[0]))
            starts[shard] += counts[shard][number]
        errors = loop.update(5 + number, rows, importance(np.array(chance), known.items, beta))
        for shard, item, error in zip(owner, rows, errors, strict=True):
            told[shard].append((int(item.slot[0]), int(item.generation[0]), error))
    assert_weights(learner, loop)
    assert (report.updates, report.diverged) == (4, None)
    assert report.metrics["loss"] == pytest.approx(np.mean(loop.losses), rel=1e-4)
    assert report.age == pytest.approx(np.mean(ages))
    for shard in range(2):
        slots, generations, priorities = feedback[shard]
        assert slots.tolist() == [slot for slot, _, _ in told[shard]]
        assert generations.tolist() == [generation for _, generation, _ in told[shard]]
        assert np.allclose(priorities, [error for *_, error in told[shard]], rtol=1e-3, atol=1e-5)
    # And each shard takes its own: the last that is told of an item counts.
    for shard in range(2):
        shards[shard].update_priorities(None, feedback[shard])
        last = {slot: error for slot, _, error in told[shard]}
        masses = shards[shard].buffer.arrays()["mass"]
        expected = [(error + 1e-6) ** 0.7 for error in last.values()]
        assert np.allclose(masses[list(last)], expected, rtol=1e-3, atol=1e-4)
        assert shards[shard].report().ignored == 0


@pytest.mark.parametrize("clip", [None, 0.05])
def test_uniform_updates_are_those_of_the_loop_and_need_no_feedback(small: MakeJob, clip: float | None) -> None:
    limit = "null" if clip is None else clip
    job = job_with(small, *CHANGES, f"optimization.clip_gradient_norm={limit}")
    shards = filled(job)
    learner = Learner(job, SPEC)
    loop = Loop(job, learner.state()["agent"])
    given = sampled(shards, [(16,) * 7])
    report, *feedback = learner.update(1, 7, 0.5, shares(shards), *given)
    batch = given[0].batch
    assert batch is not None
    for number in range(7):
        rows = [batch.rows(range(16 * number + i, 16 * number + i + 1)) for i in range(16)]
        loop.update(1 + number, rows, np.ones(16))
    assert_weights(learner, loop)
    assert feedback == [None]
    assert report.metrics["loss"] == pytest.approx(np.mean(loop.losses), rel=1e-4)


def test_a_gradient_that_is_too_long_is_shortened_to_the_limit(small: MakeJob) -> None:
    """With plain SGD and a rate of 1 the step is the gradient."""
    job = small(
        *CHANGES,
        "optimization.optimizer={type: sgd, learning_rate: 1.0, per: null, momentum: 0.0}",
        "optimization.clip_gradient_norm=0.01",
    )
    shards, learner = filled(job), Learner(job, SPEC)
    before = learner.acting_state()
    learner.update(1, 1, 0.0, shares(shards), *sampled(shards, [(16,)]))
    after = learner.acting_state()
    assert math.sqrt(sum(float(((after[n] - before[n]) ** 2).sum()) for n in before)) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("noisy", [False, True])
def test_several_updates_at_once_are_the_same_as_one_by_one(small: MakeJob, same_bits: Same, noisy: bool) -> None:
    job = small(*PRIORITIZED, f"algorithm.noisy={str(noisy).lower()}", "algorithm.target.every=2")
    shards = filled(job)
    counts = ((5, 16, 0), (11, 0, 16))
    given = sampled(shards, counts)
    together, apart = Learner(job, SPEC), Learner(job, SPEC)
    report, *feedback = together.update(1, 3, 0.5, shares(shards), *given)
    losses, told = [], [[], []]  # type: ignore[var-annotated]
    starts = [0, 0]
    for number in range(3):
        pieces = []
        for shard in range(2):
            rows = range(starts[shard], starts[shard] + counts[shard][number])
            starts[shard] = rows.stop
            batch = given[shard].batch
            assert batch is not None
            piece = batch.rows(rows) if len(rows) else None
            pieces.append(Sampled(piece, (len(rows),), given[shard].mass, 0.0))
        single, *back = apart.update(1 + number, 1, 0.5, shares(shards), *pieces)
        losses.append(single.metrics["loss"])
        for shard in range(2):
            if back[shard] is not None:
                told[shard].append(back[shard])
    assert same_bits(together.state(), apart.state())
    assert report.metrics["loss"] == pytest.approx(np.mean(losses))
    for shard in range(2):
        for found, expected in zip(feedback[shard], zip(*told[shard], strict=True), strict=True):
            assert np.array_equal(found, np.concatenate(expected))


def test_a_loss_that_is_not_finite_is_reported_with_its_number(small: MakeJob) -> None:
    job = small(*CHANGES, "optimization.optimizer={type: sgd, learning_rate: 1.0e+30, per: null, momentum: 0.0}")
    shards, learner = filled(job), Learner(job, SPEC)
    given = sampled(shards, [(16,) * 4])
    report, *_ = learner.update(41, 4, 0.0, shares(shards), *given)
    assert report.diverged == 42
    assert learner.update(45, 2, 0.0, shares(shards), *sampled(shards, [(16, 16)]))[0].diverged == 45
    quiet = Learner(small(*CHANGES), SPEC)
    assert quiet.update(41, 4, 0.0, shares(shards), *given)[0].diverged is None


def test_a_state_goes_on_where_it_was_taken(small: MakeJob, same_bits: Same) -> None:
    """Through a file, as a checkpoint does; what goes on does not reach back into it."""
    job = small(*PRIORITIZED, "algorithm.target.every=2")
    shards = filled(job)
    one, other = Learner(job, SPEC), Learner(job, SPEC)
    one.update(1, 3, 0.0, shares(shards), *sampled(shards, [(8, 8, 8), (8, 8, 8)]))
    state = one.state()
    kept = one.state()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other.load(torch.load(file, weights_only=True))
    assert same_bits(other.state(), kept)
    for learner in (one, other):
        learner.update(4, 2, 0.5, shares(shards), *sampled(shards, [(8, 8), (8, 8)], seed=2))
    assert same_bits(one.state(), other.state())
    assert not same_bits(one.state(), kept)
    assert same_bits(state, kept)
    assert all(not value.requires_grad for value in one.acting_state().values())


def test_what_rollouts_are_given_does_not_change_behind_their_backs(small: MakeJob) -> None:
    job = small(*CHANGES)
    shards, learner = filled(job), Learner(job, SPEC)
    given = learner.acting_state()
    kept = {name: value.clone() for name, value in given.items()}
    learner.update(1, 1, 0.0, shares(shards), *sampled(shards, [(16,)]))
    assert all(torch.equal(given[name], kept[name]) for name in given)
    assert not all(torch.equal(learner.acting_state()[name], kept[name]) for name in given)


@pytest.mark.parametrize("change", ["algorithm.network.hidden_units=[9, 6]", "algorithm.dueling=true", ""])
def test_a_state_of_another_agent_is_refused(small: MakeJob, change: str) -> None:
    learner = Learner(small(*CHANGES, *([change] if change else [])), SPEC)
    state = Learner(small(*CHANGES), SPEC).state()
    if not change:
        del state["optimizer"]
    with pytest.raises(RunError, match="the checkpoint is of another agent"):
        learner.load(state)


def test_frozen_arrays_are_learned_from_and_left_alone(small: MakeJob, same_bits: Same) -> None:
    """What comes out of an object store cannot be written to."""
    job = small(*CHANGES)
    shards = filled(job)
    states = []
    for freeze in (False, True):
        learner, given = Learner(job, SPEC), sampled(shards, [(16, 16)])
        batch = given[0].batch
        assert batch is not None
        if freeze:
            for array in vars(batch).values():
                array.flags.writeable = False
        learner.update(1, 2, 0.0, shares(shards), *given)
        states.append(learner.state())
    assert same_bits(states[0], states[1])


# Several learners


def learn_together(text: str) -> dict[str, Any]:
    """On one of the workers: three updates of its rows; the agent's state and feedback."""
    import torch.distributed as dist

    from heliostat.config.loading import parse_any

    job = parse_any(text, "job.yaml")
    shards = filled(job)  # type: ignore[arg-type]
    learner = Learner(job, SPEC, dist.get_rank())  # type: ignore[arg-type]
    given = sampled(shards, [(5, 16, 0), (11, 0, 16)])
    report, *feedback = learner.update(1, 3, 0.5, shares(shards), *given)
    return {
        "agent": learner.state()["agent"],
        "loss": report.metrics["loss"],
        "feedback": [None if told is None else [torch.from_numpy(array) for array in told] for told in feedback],
    }


def test_two_learners_are_one(small: MakeJob, on_workers: Any) -> None:
    """The same weights on both, equal to one learner's up to rounding; together they rate each item once."""
    from heliostat.config.loading import dump

    changes = (*PRIORITIZED, "algorithm.target.every=2", "optimization.clip_gradient_norm=0.5")
    first, second = on_workers(learn_together, 2, dump(small(*changes, "resources.learners=2")))
    assert all(torch.equal(first["agent"][name], second["agent"][name]) for name in first["agent"])
    job = small(*changes)
    shards, alone = filled(job), Learner(job, SPEC)
    report, *feedback = alone.update(1, 3, 0.5, shares(shards), *sampled(shards, [(5, 16, 0), (11, 0, 16)]))
    for name, value in alone.state()["agent"].items():
        assert torch.allclose(value, first["agent"][name], atol=1e-5), name
    assert report.metrics["loss"] == pytest.approx((first["loss"] + second["loss"]) / 2, rel=1e-4)
    for shard in range(2):
        parts = [told["feedback"][shard] for told in (first, second) if told["feedback"][shard] is not None]
        told = [torch.cat(some) for some in zip(*parts, strict=True)]
        assert sorted(told[0].tolist()) == sorted(feedback[shard][0].tolist())
        assert torch.allclose(told[2].sort().values, torch.from_numpy(np.sort(feedback[shard][2])), atol=1e-4)


def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu(small: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    job = small("resources={runtime: ray, gpus_per_learner: 0.5, gpus_per_actor: 0.25}")
    with pytest.raises(RunError, match=r"resources\.gpus_per_learner is 0\.5, but torch sees no GPU on this node"):
        Learner(job, SPEC)
    with pytest.raises(RunError, match=r"resources\.gpus_per_actor is 0\.25, but torch sees no GPU on this node"):
        RolloutWorker(job, SPEC, range(2))
