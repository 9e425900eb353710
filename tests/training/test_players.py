"""Several players in one step: whose parameters move in a turn, on which samples and noise, and by which optimiser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from heliostat.config.job import Job
from heliostat.config.loading import parse
from heliostat.data.loader import Loader
from heliostat.data.points import ring
from heliostat.errors import InputError
from heliostat.training import launch
from heliostat.training.loop import TrainingLoop
from heliostat.training.replay import replay_step
from heliostat.training.run_folder import RunFolder
from heliostat.training.runtime import SilentRuntime
from heliostat.training.state import build_algorithm
from heliostat_algorithms.algorithm import ParameterGroup
from heliostat_algorithms.generative.gan import GAN, discriminator_loss, generator_loss
from heliostat_algorithms.randomness import Random

JOB = """
name: players
seed: 5
algorithm: {type: gan, generator: {type: mlp, hidden: [8], activation: relu}, noise_dim: 3, discriminator_steps: 2,
            discriminator: {type: mlp, hidden: [8], activation: tanh}, discriminator_rate: 0.5}
data: {train: {source: ring, split: train, samples: 100}}
optimization: {optimizer: {type: adam, learning_rate: 0.01}, schedule: {type: constant}, batch_size: 16, steps: 6}
resources: {runtime: local}
checkpoint: {every_steps: 2}
tracking: {every_steps: 1, system_metrics: false}
"""


def made(tmp_path: Path, *overrides: str) -> TrainingLoop:
    job: Job = parse(JOB, "players.yaml", [f"output={tmp_path}", *overrides])
    return TrainingLoop(job, launch.load(job), SilentRuntime(torch.device("cpu")), RunFolder(str(tmp_path / "run")))


def test_the_trajectory_is_that_of_two_optimisers_in_algorithm_1(tmp_path: Path) -> None:
    loop = made(tmp_path)
    job, k, size = loop.job, 2, 16
    model: Any = build_algorithm(job, loop.spec)
    d = torch.optim.Adam(model.discriminator.parameters(), lr=0.005)
    g = torch.optim.Adam(model.generator.parameters(), lr=0.01)
    points = torch.from_numpy(loop.loader.data.points)
    for step in range(6):
        indices = torch.tensor(loop.loader.indices(step))
        noise = [
            Random(5, step, range(size), scope="" if turn == 0 else f"turn {turn}/").uniform("noise", 3, low=-1, high=1)
            for turn in range(k + 1)
        ]
        for turn in range(k):
            real = points[indices[turn * size : (turn + 1) * size]].view(size, 1, 1, 2)
            d.zero_grad()
            said = discriminator_loss(model.logits(real), model.logits(model.make(noise[turn]).detach()))
            said.backward()
            d.step()
        g.zero_grad()
        wanted = generator_loss(model.logits(model.make(noise[k])), saturating=False)
        wanted.backward()
        g.step()
        step_made = loop.advance(step).step
        torch.testing.assert_close(step_made.metrics["discriminator_loss"], said.detach())
        torch.testing.assert_close(step_made.metrics["generator_loss"], wanted.detach())
        torch.testing.assert_close(step_made.loss, said.detach() + wanted.detach())
    for name, parameter in loop.state.algorithm.named_parameters():
        torch.testing.assert_close(parameter, model.get_parameter(name), msg=name)


def test_in_a_turn_the_other_player_is_held_still(tmp_path: Path) -> None:
    loop = made(tmp_path, "optimization.optimizer={type: adamw, learning_rate: 0.1, per: null, weight_decay: 0.5}")
    loop.advance(0)  # the optimiser has moments of both players from now on, and would move both
    algorithm = loop.state.algorithm
    for number, turn in enumerate(loop.state.turns):
        before = {name: p.detach().clone() for name, p in algorithm.named_parameters()}
        loop.stepper.update(replace(loop.stepper.clock(1), turn=turn), number, measure=True)
        for name, parameter in algorithm.named_parameters():
            own = name.startswith(turn.player)
            assert torch.equal(parameter, before[name]) != own, (turn, name)
            assert (parameter.grad is not None) == own, (turn, name)
            assert parameter.requires_grad


def test_each_turn_has_samples_and_noise_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = made(tmp_path)
    seen: list[Any] = []
    prepare = loop.state.algorithm.prepare

    def watched(batch: Any, clock: Any, random: Random) -> Any:
        inputs = prepare(batch, clock, random)
        seen.append((clock.turn.player, batch["index"].tolist(), inputs["noise"]))
        return inputs

    monkeypatch.setattr(loop.state.algorithm, "prepare", watched)
    for step in range(loop.loader.steps_per_epoch):
        loop.advance(step)
    assert loop.loader.steps_per_epoch == 3  # of 100 points, 32 a step
    assert [player for player, _, _ in seen[:3]] == ["discriminator", "discriminator", "generator"]
    used = [index for player, indices, _ in seen if player == "discriminator" for index in indices]
    assert len(used) == len(set(used)) == 96
    noises = [noise for _, _, noise in seen]
    assert all(not torch.equal(one, other) for n, one in enumerate(noises) for other in noises[:n])


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    whole, parts = made(tmp_path), made(tmp_path, "optimization.accumulate=4")
    for step in range(3):
        whole.advance(step)
        parts.advance(step)
    for one, other in zip(whole.state.algorithm.parameters(), parts.state.algorithm.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_each_players_gradient_is_clipped_by_itself(tmp_path: Path) -> None:
    loop = made(tmp_path, "optimization.clip_gradient_norm=0.001")
    for number, turn in enumerate(loop.state.turns):
        _, norm = loop.stepper.update(replace(loop.stepper.clock(0), turn=turn), number, measure=False)
        grads = [p.grad for p in loop.state.algorithm.parameters() if p.grad is not None]
        assert float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))) == pytest.approx(0.001, rel=1e-2)
        assert norm is not None
        assert float(norm) > 0.001


def test_a_replayed_step_shows_the_gradients_of_both_players(tmp_path: Path) -> None:
    loop = made(tmp_path)
    loop.folder.create(loop.job)
    assert loop.run().status == "finished"
    report = replay_step(loop.folder, 3)
    names = {gradient.parameter for gradient in report.gradients}
    assert names == {name for name, _ in loop.state.algorithm.named_parameters()}
    assert {"discriminator_loss", "generator_loss", "discriminator_on_data"} <= report.metrics.keys()
    assert len(report.samples) == 32


def test_a_step_needs_samples_for_all_its_minibatches() -> None:
    data = ring("train", samples=40, modes=8, radius=2.0, deviation=0.02)
    loader = Loader(data, batch_size=10, seed=0, minibatches=2)
    assert (loader.steps_per_epoch, loader.samples_per_step, loader.dropped_per_epoch) == (2, 20, 0)
    parts = [loader.batch(1, minibatch)["index"] for minibatch in range(2)]
    assert torch.equal(torch.cat(parts), torch.tensor(loader.indices(1)))
    with pytest.raises(InputError, match=r"2 batches of 24 samples.*at most 20"):
        Loader(data, batch_size=24, seed=0, minibatches=2)


def test_a_player_without_a_turn_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = GAN.parameter_groups

    def renamed(self: GAN) -> list[ParameterGroup]:
        return [replace(group, player="nobody") if group.player == "generator" else group for group in groups(self)]

    monkeypatch.setattr(GAN, "parameter_groups", renamed)
    with pytest.raises(InputError, match="no turn"):
        made(tmp_path)


def test_points_are_for_those_who_take_them(tmp_path: Path) -> None:
    job = parse(JOB, "players.yaml", ["algorithm={type: vae}"])
    with pytest.raises(InputError, match="VAE learns from images, and the samples are points"):
        launch.load(job)
