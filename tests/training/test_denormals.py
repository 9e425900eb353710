from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn

from heliostat.reinforcement import launch as agents
from heliostat.training import evaluation, launch, ray_runtime
from heliostat.training.denormals import flushed_denormals
from heliostat.tuning import trial

pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush denormals")


def kept() -> int:
    """How many of 1,000 products that are too small to be written the usual way are not zero; no more of them, since
    threads of OpenMP that earlier tests started would help."""
    return int((torch.full((1000,), 1e-30) * 1e-10).count_nonzero())


def in_another_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(kept()))
    thread.start()
    thread.join()
    return found[0]


def test_they_are_zero_within_the_block_alone() -> None:
    assert kept() == 1000
    with flushed_denormals():
        assert kept() == 0
        assert in_another_thread() == 0
    assert kept() == 1000


def test_an_error_ends_the_block_too() -> None:
    with pytest.raises(KeyError), flushed_denormals():
        raise KeyError
    assert kept() == 1000


def test_a_block_in_another_leaves_it_as_it_was() -> None:
    with flushed_denormals():
        with flushed_denormals():
            pass
        assert kept() == 0


def test_what_is_larger_stays_and_gradients_too() -> None:
    smallest = torch.finfo(torch.float32).tiny
    with flushed_denormals():
        x = torch.full((1000,), 2 * smallest, requires_grad=True)
        (0.5 * x).sum().backward()
        assert (0.5 * x).eq(smallest).all()
        assert x.grad is not None
        assert x.grad.eq(0.5).all()


PROGRAM = """
import torch
from heliostat.training.denormals import flush_denormals

flush_denormals()
torch.set_num_threads(2)
print(int((torch.full((1_000_000,), 1e-30) * 1e-10).count_nonzero()))
"""


def test_threads_that_share_an_operation_flush_them_too() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 0


def trained() -> tuple[list[Tensor], list[Tensor]]:
    """Weights after 1,200 steps of Adam, in the last 1,100 of which half the inputs are dark, and first moments."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))
    adam = torch.optim.Adam(network.parameters(), lr=0.01)
    light = torch.ones(20)
    for step in range(1200):
        if step == 100:
            light[10:] = 0
        adam.zero_grad()
        network(torch.rand(16, 20) * light).square().sum().backward()
        adam.step()
    moments: list[Tensor] = [state["exp_avg"] for state in adam.state.values()]
    return [parameter.detach() for parameter in network.parameters()], moments


def denormal(values: Tensor) -> int:
    return int(((values != 0) & (values.abs() < torch.finfo(values.dtype).tiny)).sum())


def test_weights_are_the_same_bits_without_them() -> None:
    usual, moments = trained()
    assert denormal(moments[0]) > 100  # or there would be nothing to flush
    with flushed_denormals():
        flushed, zeros = trained()
    assert sum(denormal(moment) for moment in zeros) == 0
    assert all(torch.equal(one, other) for one, other in zip(usual, flushed, strict=True))


class ReachedError(Exception):
    """The work has begun."""


@pytest.mark.parametrize(
    ("module", "function", "within", "arguments"),
    [
        (launch, "start", "check", 2),
        (launch, "resume", "settled", 3),
        (agents, "start", "check", 2),
        (agents, "resume", "check", 3),
        (trial, "_attempt", "conduct", 5),
        (evaluation, "evaluate_checkpoint", "build_algorithm", 5),
    ],
)
def test_whatever_trains_in_this_process_flushes_them_from_its_beginning(
    module: Any, function: str, within: str, arguments: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def work(*_: object, **__: object) -> None:
        found.append(kept())
        raise ReachedError

    monkeypatch.setattr(module, within, work)
    with pytest.raises(ReachedError):
        getattr(module, function)(*(MagicMock() for _ in range(arguments)))
    assert found == [0]
    assert kept() == 1000


def test_a_worker_of_ray_train_flushes_them_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def work(_: object) -> None:
        found.append(kept())
        raise ReachedError

    monkeypatch.setattr(ray_runtime, "RayRuntime", work)
    monkeypatch.setattr(ray_runtime, "keep_freed_memory", lambda: None)  # which is for the whole process

    def worker() -> None:
        with pytest.raises(ReachedError):
            ray_runtime._work({"monitor": None})

    thread = threading.Thread(target=worker)  # as Ray Train's are: what it sets is gone with it
    thread.start()
    thread.join()
    assert found == [0]
    assert kept() == 1000
