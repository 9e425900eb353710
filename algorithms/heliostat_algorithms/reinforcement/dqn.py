"""DQN: Playing Atari with Deep Reinforcement Learning, Mnih et al. 2013 (arXiv 1312.5602), Human-level control through
deep reinforcement learning, Mnih et al. 2015 (Nature 518), and what was added to it up to Rainbow, Hessel et al. 2017
(arXiv 1710.02298). Each part can be switched on by itself:

    double              Deep Reinforcement Learning with Double Q-learning, van Hasselt et al. 2015 (1509.06461)
    dueling             Dueling Network Architectures, Wang et al. 2015 (1511.06581)
    n_step              Learning to Predict by the Methods of Temporal Differences, Sutton 1988; Rainbow, section 3
    distribution        C51 (1707.06887) or quantiles (1710.10044)
    noisy               Noisy Networks for Exploration, Fortunato et al. 2017 (1706.10295)
    prioritization      Prioritized Experience Replay, Schaul et al. 2015 (1511.05952)

The agent is a network with three duties: act, compute the loss of a batch of transitions, and move its target network.
Who plays, remembers and samples is not its concern. Defaults are those of the 2015 paper.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from heliostat_algorithms.algorithm import ParameterGroup
from heliostat_algorithms.randomness import Random
from heliostat_algorithms.reinforcement.distributions import DistributionConfig, Scalar
from heliostat_algorithms.reinforcement.exploration import EpsilonConfig, Linear
from heliostat_algorithms.reinforcement.heads import DuelingHead, Head
from heliostat_algorithms.reinforcement.networks import Dqn2015, NetworkConfig
from heliostat_algorithms.reinforcement.replay.prioritization import Prioritization
from heliostat_algorithms.reinforcement.replay.sampling import ImportanceExponent
from heliostat_algorithms.reinforcement.targets import NoTarget, Periodic, TargetConfig


@dataclass(frozen=True)
class Transitions:
    """Rows of a batch, sampled from replay; all on the network's device."""

    observation: Tensor
    """(B, *stacked observation)."""
    action: Tensor
    """(B,) int64."""
    reward: Tensor
    """(B,): the sum of up to n discounted rewards, clipped where they are to be."""
    bootstrap: Tensor
    """(B,): the discount to the power of how many rewards were summed; 0 where the episode or a life ended."""
    next_observation: Tensor
    """(B, *stacked observation): what was seen after the last of the rewards; finite also where ``bootstrap`` is 0."""
    weight: Tensor | None = None
    """(B,): importance-sampling weights; None where all weigh alike, as in uniform replay."""


@dataclass(frozen=True)
class Losses:
    """What one forward pass gives back. Nothing but ``loss`` has a gradient, and nothing waits for the device."""

    loss: Tensor
    """The mean over these rows of weight * loss. Learners that share a batch hold equally many rows, so that the mean
    of their losses is that of the batch."""
    priority: Tensor
    """(B,): the size of the TD error, or of a distribution the loss, before weighting."""
    metrics: dict[str, Tensor]
    """(B,) each, of which means are to be told: ``q_mean``, the values of actions taken, and ``td_error``, the size of
    their TD errors, of expectations where there are distributions. Rows, since one mean over many updates is cheaper
    than as many means: a small network's update takes no longer than twenty of them."""


class QNetwork(nn.Module):
    """Observations -> the numbers that stand for each action's value.

    Args:
        config: the agent's.
        observation_shape: of stacked observations.
        actions: A.
    """

    def __init__(self, config: DQN.Config, observation_shape: tuple[int, ...], actions: int) -> None:
        super().__init__()
        self.trunk = config.network.build(observation_shape)
        outputs, sigma = config.distribution.outputs, config.noisy_sigma if config.noisy else None
        shape = (self.trunk.feature_dim, config.network.width, actions, outputs)
        self.head = DuelingHead(*shape, sigma, config.dueling_gradient) if config.dueling else Head(*shape, sigma)

    def forward(self, observation: Tensor, noise: Tensor | None) -> Tensor:
        """(B, *observation) -> (B, A, N), in float32 at least.

        Args:
            observation: bytes are divided by 255, other types are taken as they are.
            noise: of noisy layers, see ``Head``.
        """
        x = observation.to(self.head.values.last.weight.dtype)  # parameters() walks the whole tree of modules
        if observation.dtype == torch.uint8:
            x.div_(255)
        output: Tensor = self.head(self.trunk(x), noise)
        return output.to(torch.promote_types(output.dtype, torch.float32))


class DQN(nn.Module):
    """DQN (Mnih et al. 2013, 2015), with all or none of Rainbow's additions.

    Args:
        config: what it is made of.
        observation_shape: of stacked observations, (frames, height, width) of pictures.
        actions: how many there are.

    Raises:
        ValueError: the network cannot see such observations.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """The choices of the 2015 paper."""

        type: Literal["dqn"] = "dqn"
        network: NetworkConfig = field(default_factory=Dqn2015)
        """From observations to features; ``mlp`` for vectors, ``minatar`` for pictures of 10 x 10."""
        discount: float = 0.99
        """gamma: what a reward is worth one step earlier."""
        n_step: int = 1
        """Rewards that are summed before the network's own estimate takes over; 3 in Rainbow and Ape-X. Larger learns
        faster at first, from returns of actions that were taken by older networks."""
        reward_clip: float | None = 1.0
        """Rewards are clipped to +- this before they are learned from; scores are never clipped. 1 for Atari, null
        where the size of a reward matters."""
        double: bool = False
        """Choose the next action by the online network and value it by the target network, against overestimation."""
        dueling: bool = False
        """Estimate the value of the state and the advantages of actions in two streams."""
        dueling_gradient: float = math.sqrt(0.5)
        """Factor on the gradient that the two streams together send back into the layers that they share: 1 / sqrt(2)
        in the paper, 1 in DQN Zoo's Rainbow."""
        noisy: bool = False
        """Explore by learned noise on the weights of the head, in place of random actions: epsilon {type: constant}."""
        noisy_sigma: float = 0.5
        """How large that noise is at first, relative to the range of the weights: 0.5 in the paper and Rainbow."""
        distribution: DistributionConfig = field(default_factory=Scalar)
        """What is estimated of returns: their mean with a Huber loss or half the square, or their distribution."""
        target: TargetConfig = field(default_factory=Periodic)
        """What the online network's targets are computed with."""
        epsilon: EpsilonConfig = field(default_factory=Linear)
        """Share of random actions in training."""
        prioritization: Prioritization | None = None
        """Sample transitions by how wrong the network was about them; null: all alike."""
        importance: ImportanceExponent = field(default_factory=ImportanceExponent)
        """How far the loss is corrected for that; without effect where all are sampled alike."""

        def __post_init__(self) -> None:
            if not 0 <= self.discount <= 1:
                raise ValueError(f"discount is {self.discount}; it must be from 0 to 1")
            if self.n_step < 1:
                raise ValueError(f"n_step is {self.n_step}; it must be at least 1")
            if self.reward_clip is not None and not 0 < self.reward_clip < math.inf:
                raise ValueError(f"reward_clip is {self.reward_clip}; it must be above 0 and finite, or null for none")
            for name in ("dueling_gradient", "noisy_sigma"):
                if not 0 < getattr(self, name) < math.inf:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
            if self.double and isinstance(self.target, NoTarget):
                raise ValueError("double needs a target network to value actions with: target periodic or polyak")

    def __init__(self, config: Config, observation_shape: tuple[int, ...], actions: int) -> None:
        super().__init__()
        if actions < 1:
            raise ValueError(f"there are {actions} actions; an agent needs at least 1")
        self.config = config
        self.actions = actions
        self.online = QNetwork(config, observation_shape, actions)
        self.target: QNetwork | None = None
        if not isinstance(config.target, NoTarget):
            self.target = copy.deepcopy(self.online).requires_grad_(False)

    def q_values(self, observation: Tensor) -> Tensor:
        """(B, *observation) -> (B, A): the online network's values; of noisy layers, with their mean parameters."""
        return self.config.distribution.expectation(self.online(observation, None))

    @torch.no_grad()
    def act(self, observation: Tensor, epsilon: Tensor, random: Random) -> tuple[Tensor, Tensor]:
        """Actions (B,) int64, and the values (B, A) that they were chosen by.

        In each row the action of the largest value, the first of equal ones, or with probability ``epsilon`` any one.
        In training mode noisy layers draw noise for each row by itself; in evaluation mode they have none.

        Args:
            observation: (B, *observation).
            epsilon: (B,), on any device.
            random: its rows are the numbers of these lanes, and a step of it is used for one call only. A lane's action
                does not depend on which others are asked for with it. Draws may be made on the CPU, which is quicker
                for few lanes and alike on all machines.
        """
        noise = self.online.head.draw(random) if self.training else None
        if noise is not None:
            noise = noise.to(observation.device)
        q = self.config.distribution.expectation(self.online(observation, noise))
        draws = random.uniform("explore", 2).to(q.device)
        # Below A also after rounding: 1 - 2^-24, the largest draw, times A never comes within half a step of A.
        anything = (draws[:, 1] * self.actions).long()
        return torch.where(draws[:, 0] < epsilon.to(q.device), anything, q.argmax(dim=1)), q

    def forward(self, batch: Transitions, random: Random) -> Losses:
        """The loss of these rows.

        The networks' noise is drawn once for all rows of the global batch, by itself for each pass (Noisy Networks,
        algorithm 1).
        """
        distribution = self.config.distribution
        output = _of(self.online(batch.observation, self._shared_noise(random, "online")), batch.action)
        with torch.no_grad():
            network = self.online if self.target is None else self.target
            following = network(batch.next_observation, self._shared_noise(random, "target"))
            chooser = following
            if self.config.double:
                chooser = self.online(batch.next_observation, self._shared_noise(random, "selection"))
            following = _of(following, distribution.expectation(chooser).argmax(dim=1))
        losses, priority = distribution.losses(output, following, batch.reward, batch.bootstrap)
        with torch.no_grad():
            q, size = distribution.expectation(output.detach()), priority
            if not isinstance(distribution, Scalar):
                target = torch.addcmul(batch.reward, batch.bootstrap, distribution.expectation(following))
                size = (target - q).abs_()
            metrics = {"q_mean": q, "td_error": size}
        weighted = losses if batch.weight is None else batch.weight * losses
        return Losses(weighted.mean(), priority, metrics)

    def _shared_noise(self, random: Random, name: str) -> Tensor | None:
        """One row of noise that all workers draw alike; None where no layer is noisy, or in evaluation mode."""
        if not (self.config.noisy and self.training):
            return None
        return self.online.head.draw(random.within(name).shared())

    def after_update(self, updates: int) -> None:
        """Move the target network after the update of this number, from 1."""
        if self.target is not None and not isinstance(self.config.target, NoTarget):
            self.config.target.move(self.target, self.online, updates)

    def acting_state(self) -> dict[str, Tensor]:
        """What those who play need: the online network's parameters, as they are now and not as copies."""
        return dict(self.online.state_dict())

    def load_acting_state(self, state: dict[str, Tensor]) -> None:
        """Play with another agent's parameters, which are copied.

        Raises:
            RuntimeError: they are of another network.
        """
        self.online.load_state_dict(state)

    def parameter_groups(self) -> list[ParameterGroup]:
        """What the optimiser moves: the online network, all of it alike."""
        return [ParameterGroup("all", list(self.online.parameters()), True)]


def _of(output: Tensor, action: Tensor) -> Tensor:
    """(B, A, N), (B,) -> (B, N): of one action in each row."""
    return output.gather(1, action.view(-1, 1, 1).expand(-1, 1, output.shape[2])).squeeze(1)
