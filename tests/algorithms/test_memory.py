from __future__ import annotations

import pytest
import torch
from torch import Tensor

from heliostat_algorithms.memory import Memory


def keys(first: int, count: int, dim: int = 3) -> Tensor:
    """Rows that say when they came: the n-th key of all is full of n."""
    return torch.arange(first, first + count, dtype=torch.float32).unsqueeze(1).expand(-1, dim)


def held(memory: Memory) -> list[int]:
    return [int(row[0]) for row in memory.negatives()]


@pytest.mark.parametrize(("size", "batch"), [(12, 4), (12, 5), (12, 12), (7, 3), (4, 6), (5, 17), (1, 1)])
def test_the_newest_keys_stay_each_in_its_place(size: int, batch: int) -> None:
    """The n-th key of all lies at place n mod K, whatever the batches."""
    memory = Memory(size, 3)
    places: list[int | None] = [None] * size
    start = memory.negatives()
    for step in range(9):
        memory.enqueue(keys(100 + step * batch, batch))
        for n in range(step * batch, (step + 1) * batch):
            places[n % size] = 100 + n
        found = memory.negatives()
        for place, expected in enumerate(places):
            if expected is None:
                assert torch.equal(found[place], start[place])
            else:
                assert torch.equal(found[place], torch.full((3,), float(expected)))
        assert int(memory.next) == (step + 1) * batch % size


def test_batches_of_different_sizes_follow_each_other() -> None:
    memory = Memory(5, 3)
    for first, count in ((10, 3), (13, 4), (17, 1)):
        memory.enqueue(keys(first, count))
    assert held(memory) == [15, 16, 17, 13, 14]


def test_it_begins_with_random_directions() -> None:
    torch.manual_seed(0)
    memory = Memory(4000, 16)
    directions = memory.negatives()
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(4000))
    assert directions.mean(dim=0).abs().max() < 0.02  # without preference: each mean is 0 +- 0.004
    torch.testing.assert_close(directions.T @ directions / 4000 * 16, torch.eye(16), rtol=0, atol=0.15)
    torch.manual_seed(0)
    assert torch.equal(Memory(4000, 16).negatives(), directions)


def test_what_was_given_out_does_not_change() -> None:
    memory = Memory(4, 3)
    before = memory.negatives()
    copy = before.clone()
    memory.enqueue(keys(0, 4))
    assert torch.equal(before, copy)


def test_keys_and_place_are_part_of_the_state() -> None:
    one, other = Memory(7, 3), Memory(7, 3)
    one.enqueue(keys(0, 5))
    assert set(one.state_dict()) == {"keys", "next"}
    assert list(one.parameters()) == []
    other.load_state_dict(one.state_dict())
    for memory in (one, other):
        memory.enqueue(keys(5, 5))
    assert held(one) == held(other) == [7, 8, 9, 3, 4, 5, 6]


def test_keys_keep_no_gradient_and_take_the_type_of_the_ring() -> None:
    memory = Memory(4, 3).double()
    fresh = keys(0, 2).clone().requires_grad_()
    memory.enqueue(fresh * 2)
    assert memory.negatives().dtype == torch.float64
    assert not memory.negatives().requires_grad
    assert held(memory)[:2] == [0, 2]
