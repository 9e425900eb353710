from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from heliostat_algorithms.optimizers import Adam
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.distributions import C51, Quantile, Scalar
from heliostat_algorithms.reinforcement.dqn import DQN, Transitions
from heliostat_algorithms.reinforcement.exploration import Constant
from heliostat_algorithms.reinforcement.networks import Dqn2015, Mlp
from heliostat_algorithms.reinforcement.targets import NoTarget, Periodic, Polyak

OBSERVATION, ACTIONS, ROWS = 3, 4, 18
SMALL = Mlp(hidden_units=(8, 7))


def config(**options: Any) -> DQN.Config:
    return DQN.Config(network=SMALL, **options)


def built(options: DQN.Config, seed: int = 0) -> DQN:
    """In float64, and with a target network that is not the online one."""
    torch.manual_seed(seed)
    agent = DQN(options, (OBSERVATION,), ACTIONS).double()
    if agent.target is not None:
        with torch.no_grad():
            for parameter in agent.target.parameters():
                parameter.add_(0.6 * torch.randn_like(parameter))
    return agent


def transitions(rows: int = ROWS, seed: int = 1) -> Transitions:
    """Some end (a bootstrap of 0), some are of three steps, some were cut short after two."""
    generator = torch.Generator().manual_seed(seed)
    bootstrap = torch.tensor([0.99, 0.0, 0.99**3, 0.99**2, 0.0, 0.99], dtype=torch.float64)
    return Transitions(
        observation=torch.randn(rows, OBSERVATION, generator=generator, dtype=torch.float64),
        action=torch.randint(0, ACTIONS, (rows,), generator=generator),
        reward=torch.randn(rows, generator=generator, dtype=torch.float64) * 2,
        bootstrap=bootstrap.repeat(math.ceil(rows / 6))[:rows],
        next_observation=torch.randn(rows, OBSERVATION, generator=generator, dtype=torch.float64),
        weight=torch.rand(rows, generator=generator, dtype=torch.float64) + 0.5,
    )


def draws(rows: range = range(ROWS), step: int = 5) -> Random:
    return Random(11, step, rows)


class Reference:
    """A network of plain layers in numpy, by the state dict of one of ours; noise is given as it was drawn."""

    def __init__(self, agent: DQN, name: str, noise: np.ndarray | None) -> None:
        state = agent.state_dict()
        self.state = {
            key.removeprefix(f"{name}."): value.numpy() for key, value in state.items() if key.startswith(f"{name}.")
        }
        self.outputs, self.noise = agent.config.distribution.outputs, noise

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = self.state[f"{name}.weight"] @ x + self.state[f"{name}.bias"]
        if self.noise is not None and f"{name}.weight_sigma" in self.state:
            before, behind = self.left[: len(x)], self.left[len(x) : len(x) + len(y)]
            self.left = self.left[len(x) + len(y) :]
            noisy = self.state[f"{name}.weight_sigma"] * np.outer(behind, before)
            y = y + noisy @ x + self.state[f"{name}.bias_sigma"] * behind
        return y

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """(A, N)."""
        if self.noise is not None:
            self.left = self.noise
        h = np.maximum(self.linear("trunk.layers.1", observation), 0)
        parts = []
        for stream in ("values", "state_value"):
            if f"head.{stream}.last.weight" in self.state:
                hidden = np.maximum(self.linear(f"head.{stream}.hidden", h), 0)
                parts.append(self.linear(f"head.{stream}.last", hidden).reshape(-1, self.outputs))
        if self.noise is not None:
            assert len(self.left) == 0
        if len(parts) == 1:
            return parts[0]
        return np.asarray(parts[1] + parts[0] - parts[0].mean(axis=0))


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def expectation(options: DQN.Config, output: np.ndarray) -> np.ndarray:
    """(A, N) -> (A,)."""
    kind = options.distribution
    if isinstance(kind, C51):
        atoms = np.array([kind.low + k * (kind.high - kind.low) / (kind.atoms - 1) for k in range(kind.atoms)])
        return np.asarray(softmax(output) @ atoms)
    return np.asarray(output.mean(axis=1))


def row_loss(options: DQN.Config, output: np.ndarray, following: np.ndarray, reward: float, bootstrap: float) -> float:
    """The loss of one row, from the N numbers of its action and of the next one."""
    kind = options.distribution
    if isinstance(kind, Scalar):
        error = reward + bootstrap * following[0] - output[0]
        if kind.loss == "mse" or abs(error) <= kind.delta:
            return float(error**2 / 2)
        return float(kind.delta * (abs(error) - kind.delta / 2))
    if isinstance(kind, Quantile):
        total = 0.0
        for i, q in enumerate(output):
            for t in reward + bootstrap * following:
                u, share = t - q, (i + 0.5) / len(output)
                size = u**2 / 2 if abs(u) <= 1 else abs(u) - 0.5
                total += abs(share - (u < 0)) * size / len(following)
        return total
    spacing = (kind.high - kind.low) / (kind.atoms - 1)
    m = np.zeros(kind.atoms)
    for j, p in enumerate(softmax(following)):
        b = (min(max(reward + bootstrap * (kind.low + j * spacing), kind.low), kind.high) - kind.low) / spacing
        lower = min(int(b), kind.atoms - 2)
        m[lower] += p * (lower + 1 - b)
        m[lower + 1] += p * (b - lower)
    prediction = softmax(output)
    return float(sum(a * math.log(a / p) for a, p in zip(m, prediction, strict=True) if a > 0))


RECIPES = {
    "dqn-2013": config(distribution=Scalar(loss="mse"), target=NoTarget()),
    "dqn-2015": config(),
    "huber-2": config(distribution=Scalar(delta=2.0)),
    "double": config(double=True),
    "dueling": config(dueling=True),
    "noisy": config(noisy=True),
    "noisy-without-target": config(noisy=True, target=NoTarget()),
    "c51": config(distribution=C51(atoms=7, low=-3, high=3)),
    "quantile": config(distribution=Quantile(quantiles=5)),
    "quantile-double": config(distribution=Quantile(quantiles=5), double=True),
    "rainbow": config(double=True, dueling=True, noisy=True, distribution=C51(atoms=7, low=-3, high=3)),
}


@pytest.mark.parametrize("name", RECIPES)
def test_losses_priorities_and_metrics_follow_the_papers(name: str) -> None:
    options, batch = RECIPES[name], transitions()
    agent = built(options)
    made = agent(batch, draws())

    def network(kind: str, noise: str) -> Reference:
        drawn = agent.online.head.draw(draws().within(noise).shared())
        assert (drawn is not None) == options.noisy
        return Reference(agent, kind, None if drawn is None else drawn[0].double().numpy())

    online = network("online", "online")
    follower = network("online" if isinstance(options.target, NoTarget) else "target", "target")
    chooser = network("online", "selection") if options.double else follower
    losses, errors, values, choices = [], [], [], []
    for k in range(ROWS):
        output = online(batch.observation[k].numpy())
        nexts = follower(batch.next_observation[k].numpy())
        best = int(np.argmax(expectation(options, chooser(batch.next_observation[k].numpy()))))
        choices.append(best != int(np.argmax(expectation(options, nexts))))
        action, reward, bootstrap = int(batch.action[k]), float(batch.reward[k]), float(batch.bootstrap[k])
        losses.append(row_loss(options, output[action], nexts[best], reward, bootstrap))
        values.append(expectation(options, output)[action])
        errors.append(abs(reward + bootstrap * expectation(options, nexts)[best] - values[-1]))
    assert any(choices) == options.double  # double is another choice in some row, or the test would not see it
    weight = batch.weight.numpy()
    assert made.loss.item() == pytest.approx(float((weight * losses).mean()), rel=1e-9)
    scalar = isinstance(options.distribution, Scalar)
    np.testing.assert_allclose(made.priority.numpy(), errors if scalar else losses, rtol=1e-8)
    np.testing.assert_allclose(made.metrics["q_mean"].numpy(), values, rtol=1e-8)
    np.testing.assert_allclose(made.metrics["td_error"].numpy(), errors, rtol=1e-8)
    assert set(made.metrics) == {"q_mean", "td_error"}
    assert not made.priority.requires_grad
    assert not any(metric.requires_grad for metric in made.metrics.values())


@pytest.mark.parametrize("name", RECIPES)
def test_gradients_flow_through_the_prediction_alone(name: str) -> None:
    """The slope of the loss along a random direction of the online network, its targets held fixed."""
    options, batch = RECIPES[name], transitions()
    agent = built(options)
    agent(batch, draws()).loss.backward()
    if agent.target is not None:
        assert all(parameter.grad is None for parameter in agent.target.parameters())
    parameters = list(agent.online.parameters())
    gradients = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    assert len(gradients) == len(parameters)

    frozen = built(dataclasses.replace(options, target=Periodic(), dueling_gradient=1.0))
    state = agent.online.state_dict()
    frozen.online.load_state_dict(state)
    assert frozen.target is not None
    frozen.target.load_state_dict(state if agent.target is None else agent.target.state_dict())
    generator = torch.Generator().manual_seed(2)
    head = set(frozen.online.head.parameters())
    direction = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    step, moved = 1e-6, []  # so small that no other action becomes the best
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(frozen.online.parameters(), direction, strict=True):
                p.add_(sign * step * d)
        moved.append(frozen(batch, draws()).loss.item())
        frozen.online.load_state_dict(state)
    slope = (moved[0] - moved[1]) / (2 * step)
    scale = math.sqrt(0.5) if options.dueling else 1.0  # of what dueling streams send into the trunk
    pairs = zip(gradients, direction, frozen.online.parameters(), strict=True)
    expected = sum(((g * d).sum() / (1.0 if p in head else scale)).item() for g, d, p in pairs)
    assert slope == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_learners_that_share_a_batch_have_its_gradient() -> None:
    options, batch = RECIPES["rainbow"], transitions()
    whole, parted = built(options), built(options)
    loss = whole(batch, draws()).loss
    loss.backward()
    parts = []
    for rows in (range(9), range(9, 18)):
        part = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        mine = Transitions(**{name: value[rows.start : rows.stop] for name, value in part.items()})
        parts.append(parted(mine, draws(rows)).loss / 2)
        parts[-1].backward()
    assert sum(parts).item() == pytest.approx(loss.item(), rel=1e-12)
    for one, other in zip(whole.online.parameters(), parted.online.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_noise_changes_from_update_to_update_and_not_within_one() -> None:
    agent, batch = built(config(noisy=True)), transitions()
    first, again, later = (agent(batch, draws(step=step)).loss.item() for step in (5, 5, 6))
    assert first == again
    assert first != later
    agent.eval()
    assert agent(batch, draws(step=5)).loss.item() == agent(batch, draws(step=6)).loss.item()


def test_ends_ignore_what_follows() -> None:
    agent, batch = built(config(distribution=Scalar(loss="mse"))), transitions()
    ended = batch.bootstrap == 0
    other = dataclasses.replace(
        batch, next_observation=torch.where(ended.unsqueeze(1), 100.0, batch.next_observation.double())
    )
    assert torch.equal(agent(batch, draws()).priority, agent(other, draws()).priority)
    assert ended.sum() == 6


def weights(network: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def drift(agent: DQN, amount: float) -> None:
    with torch.no_grad():
        for parameter in agent.online.parameters():
            parameter.add_(amount)


def test_without_target_network_there_is_none() -> None:
    agent = DQN(config(target=NoTarget()), (OBSERVATION,), ACTIONS)
    assert agent.target is None
    assert all(name.startswith("online.") for name in agent.state_dict())
    agent.after_update(1)


def test_a_periodic_target_is_renewed_after_every_so_many_updates() -> None:
    agent = DQN(config(target=Periodic(every=3)), (OBSERVATION,), ACTIONS)
    copies = weights(agent.target)
    torch.testing.assert_close(copies, weights(agent.online), rtol=0, atol=0)  # it begins as a copy
    renewed = []
    for updates in range(1, 10):
        drift(agent, 0.1)
        agent.after_update(updates)
        now = weights(agent.target)
        if not all(torch.equal(a, b) for a, b in zip(now, copies, strict=True)):
            renewed.append(updates)
            torch.testing.assert_close(now, weights(agent.online), rtol=0, atol=0)
        copies = now
    assert renewed == [3, 6, 9]


def test_a_polyak_target_moves_by_its_rate_in_every_update() -> None:
    agent = DQN(config(target=Polyak(rate=0.25)), (OBSERVATION,), ACTIONS).double()
    expected = weights(agent.target)
    for updates in range(1, 5):
        drift(agent, 0.1 * updates)
        agent.after_update(updates)
        expected = [0.75 * old + 0.25 * new for old, new in zip(expected, weights(agent.online), strict=True)]
        torch.testing.assert_close(weights(agent.target), expected)


def test_the_optimiser_moves_the_online_network_alone_and_the_whole_state_is_saved() -> None:
    agent = built(config(dueling=True, noisy=True))
    (group,) = agent.parameter_groups()
    assert {id(p) for p in group.parameters} == {id(p) for p in agent.online.parameters()}
    assert agent.target is not None
    assert not any(parameter.requires_grad for parameter in agent.target.parameters())
    other = built(config(dueling=True, noisy=True), seed=1)
    other.load_state_dict(agent.state_dict())
    assert other(transitions(), draws()).loss.item() == agent(transitions(), draws()).loss.item()


def test_those_who_play_need_the_online_network_only() -> None:
    learner, player = built(config(double=True)), built(config(target=NoTarget()), seed=1)
    player.load_acting_state(learner.acting_state())
    observation = transitions().observation
    assert torch.equal(player.q_values(observation), learner.q_values(observation))
    drift(learner, 0.1)
    assert not torch.equal(player.q_values(observation), learner.q_values(observation))
    assert sum(value.numel() for value in learner.acting_state().values()) == 32 + 63 + 32
    with pytest.raises(RuntimeError):
        player.load_acting_state(built(config(dueling=True)).acting_state())


@pytest.mark.parametrize("options", [config(), RECIPES["rainbow"], RECIPES["quantile"]], ids=["plain", "rainbow", "qr"])
def test_actions_do_not_depend_on_how_lanes_are_split_over_actors(options: DQN.Config) -> None:
    agent = built(options)
    observation = transitions(7).observation
    epsilon = torch.tensor([0.0, 0.2, 0.5, 0.5, 0.9, 1.0, 0.4])
    for step in range(20):
        action, q = agent.act(observation, epsilon, Random(3, step, range(7)))
        assert (action.shape, q.shape, action.dtype) == ((7,), (7, ACTIONS), torch.int64)
        for rows in (range(3), range(3, 4), range(4, 7)):
            cut = slice(rows.start, rows.stop)
            mine, values = agent.act(observation[cut], epsilon[cut], Random(3, step, rows))
            assert torch.equal(mine, action[cut])
            torch.testing.assert_close(values, q[cut])


def test_without_chance_the_action_of_the_largest_value_is_taken() -> None:
    agent = built(config())
    observation = transitions(50).observation
    action, q = agent.act(observation, torch.zeros(50), Random(0, 0, range(50)))
    assert action.tolist() == [int(np.argmax(row)) for row in q.numpy()]
    torch.testing.assert_close(q, agent.q_values(observation).detach())
    assert not q.requires_grad
    assert len(set(action.tolist())) > 1


def test_random_actions_are_as_frequent_as_told_and_uniform() -> None:
    agent = built(config())
    lanes = 20_000
    observation = torch.zeros(lanes, OBSERVATION, dtype=torch.float64)  # the same for all, so the same best action
    best = int(agent.q_values(observation[:1]).argmax())
    for epsilon in (0.1, 0.7, 1.0):
        action, _ = agent.act(observation, torch.full((lanes,), epsilon), Random(1, int(10 * epsilon), range(lanes)))
        counts = np.bincount(action.numpy(), minlength=ACTIONS)
        expected = np.full(ACTIONS, epsilon / ACTIONS)
        expected[best] += 1 - epsilon
        assert stats.chisquare(counts, expected * lanes).pvalue > 1e-3
    drawn = [agent.act(observation[:1], torch.ones(1), Random(1, step, range(1)))[0].item() for step in range(400)]
    assert stats.chisquare(np.bincount(drawn, minlength=ACTIONS)).pvalue > 1e-3


@pytest.mark.parametrize("actions", [1, 3, 16, 18, 31, 4099])
def test_the_largest_draw_is_still_an_action(actions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = DQN(config(), (OBSERVATION,), actions)
    largest = torch.full((1, 2), 1 - 2.0**-24)
    random = Random(0, 0, range(1))
    monkeypatch.setattr(random, "uniform", lambda stream, *shape: largest)
    action, _ = agent.act(torch.zeros(1, OBSERVATION), torch.ones(1), random)
    assert action.item() == actions - 1


def test_noise_explores_by_itself_in_each_lane_and_not_in_evaluation() -> None:
    agent = built(config(noisy=True))
    observation = torch.ones(5, OBSERVATION, dtype=torch.float64)
    _, q = agent.act(observation, torch.zeros(5), Random(2, 0, range(5)))
    assert len({tuple(row) for row in q.tolist()}) == 5
    _, later = agent.act(observation, torch.zeros(5), Random(2, 1, range(5)))
    assert not torch.allclose(later, q)
    assert not torch.allclose(agent.q_values(observation), q)
    agent.eval()
    _, calm = agent.act(observation, torch.zeros(5), Random(2, 0, range(5)))
    torch.testing.assert_close(calm, agent.q_values(observation).detach())


def test_each_lane_draws_the_noise_of_its_own_number() -> None:
    agent = built(config(noisy=True))
    observation = transitions(3).observation
    _, q = agent.act(observation, torch.zeros(3), Random(2, 0, range(4, 7)))
    drawn = agent.online.head.draw(Random(2, 0, range(4, 7)))
    assert drawn is not None
    for k in range(3):
        expected = Reference(agent, "online", drawn[k].double().numpy())(observation[k].numpy())
        np.testing.assert_allclose(q[k].numpy(), expected[:, 0], rtol=1e-9)


def test_bytes_of_pictures_pass_through() -> None:
    agent = DQN(DQN.Config(network=Dqn2015(), dueling=True), (4, 84, 84), 3)
    pictures = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    rows = torch.ones(2)
    made = agent(Transitions(pictures, torch.tensor([0, 2]), rows, rows, pictures, rows), draws(range(2)))
    made.loss.backward()
    assert made.loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in agent.online.parameters())


# A corridor of four places. From the last one, going on gives 1 and ends; elsewhere it leads on. The other action
# gives 0.1 and ends. With a discount of 0.9 going on is worth 0.9^3, 0.9^2, 0.9, 1.
CORRIDOR = np.array([[0.9 ** (3 - place), 0.1] for place in range(4)])


def corridor() -> Transitions:
    places = torch.eye(4)
    observation = places.repeat_interleave(2, dim=0)
    action = torch.tensor([0, 1] * 4)
    going_on = (action == 0) & (torch.arange(8) < 6)
    following = torch.cat([places[1:], torch.zeros(1, 4)]).repeat_interleave(2, dim=0)
    reward = torch.where(action == 1, 0.1, 0.0)
    reward[6] = 1.0
    return Transitions(observation, action, reward, 0.9 * going_on, following, torch.ones(8))


@pytest.mark.parametrize(
    "options",
    [
        config(target=NoTarget(), distribution=Scalar(loss="mse")),
        config(target=Periodic(every=20)),
        config(target=Polyak(rate=0.1), double=True, dueling=True),
        config(target=Periodic(every=20), distribution=C51(atoms=21, low=-1, high=1.5)),
        config(target=Periodic(every=20), distribution=Quantile(quantiles=8)),
        config(target=Periodic(every=20), noisy=True, dueling=True, double=True, noisy_sigma=0.1, epsilon=Constant()),
    ],
    ids=["2013", "2015", "double-dueling-polyak", "c51", "quantile", "noisy"],
)
def test_a_fixed_batch_teaches_the_values_of_a_corridor(options: DQN.Config) -> None:
    torch.manual_seed(0)
    agent = DQN(dataclasses.replace(options, network=Mlp(hidden_units=(32, 32))), (4,), 2)
    optimizer = Adam(learning_rate=5e-3).build(agent.parameter_groups(), 8)
    batch = corridor()
    for update in range(1, 501):
        optimizer.zero_grad()
        agent(batch, Random(0, update, range(8))).loss.backward()
        optimizer.step()
        agent.after_update(update)
    found = agent.q_values(torch.eye(4)).detach().numpy()
    np.testing.assert_allclose(found, CORRIDOR, atol=0.15 if options.noisy else 0.05)
    assert found.argmax(axis=1).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"discount": 1.01}, "discount is 1.01"),
        ({"discount": math.nan}, "discount is nan"),
        ({"n_step": 0}, "n_step is 0"),
        ({"reward_clip": 0.0}, "reward_clip is 0.0"),
        ({"dueling_gradient": 0.0}, "dueling_gradient is 0.0"),
        ({"noisy_sigma": math.inf}, "noisy_sigma is inf"),
        ({"double": True, "target": NoTarget()}, "double needs a target network"),
    ],
)
def test_choices_out_of_range_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**bad)


@pytest.mark.parametrize(
    ("kind", "bad", "message"),
    [
        (Periodic, {"every": 0}, "every is 0"),
        (Polyak, {"rate": 0.0}, "rate is 0.0"),
        (Polyak, {"rate": 1.1}, "rate is 1.1"),
    ],
)
def test_target_updates_out_of_range_are_refused(kind: Any, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**bad)


def test_an_agent_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="there are 0 actions"):
        DQN(config(), (OBSERVATION,), 0)
    with pytest.raises(ValueError, match="dqn-2015 sees pictures"):
        DQN(DQN.Config(), (4,), 2)
