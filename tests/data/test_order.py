"""The order of streamed samples, against a walk along the line of groups that is written out here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.data.order import PooledOrder, scattered
from heliostat_algorithms.randomness import permutation


def order_of(sizes: list[int], batch_size: int, *, shards: int = 4, pool: int = 2, minibatches: int = 1, seed: int = 0):
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return PooledOrder(starts, shards=shards, pool=pool, batch_size=batch_size, minibatches=minibatches, seed=seed)


def walked(sizes: list[int], shards: int, pool: int, seed: int, epoch: int) -> list[list[int]]:
    """The samples of each shard, sample by sample."""
    first = np.concatenate([[0], np.cumsum(sizes)])
    line = [
        (group, sample)
        for group in permutation(f"{seed}:groups:{epoch}", len(sizes)).tolist()
        for sample in range(first[group], first[group + 1])
    ]
    length, found = len(line) // shards, []
    for shard in range(shards):
        stretch = line[shard * length : (shard + 1) * length]
        groups = list(dict.fromkeys(group for group, _ in stretch))
        samples = []
        for number, start in enumerate(range(0, len(groups), pool)):
            rows = [sample for group, sample in stretch if group in groups[start : start + pool]]
            samples += [rows[i] for i in permutation(f"{seed}:pool:{epoch}:{shard}:{number}", len(rows)).tolist()]
        found.append(samples)
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=30),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(1, 5),
    st.integers(1, 2),
    st.integers(1, 3),
)
def test_order_is_the_one_that_is_documented(sizes, shards, pool, minibatches, rows):
    batch_size = shards * rows
    if batch_size * minibatches > sum(sizes):
        return
    order = order_of(sizes, batch_size, shards=shards, pool=pool, minibatches=minibatches, seed=5)
    assert order.steps_per_epoch == sum(sizes) // (batch_size * minibatches)
    for epoch in range(2):
        expected = walked(sizes, shards, pool, 5, epoch)
        for step in range(order.steps_per_epoch):
            wanted = []
            for batch in range(step * minibatches, (step + 1) * minibatches):
                for shard in expected:
                    wanted += shard[batch * rows : (batch + 1) * rows]
            found = order.indices(epoch * order.steps_per_epoch + step)
            assert found.tolist() == wanted


def test_an_epoch_visits_each_sample_at_most_once_and_another_one_in_another_order():
    order = order_of([5, 6, 5, 6, 6, 5] * 8, 16)
    epochs = [
        np.concatenate([order.indices(e * order.steps_per_epoch + s) for s in range(order.steps_per_epoch)])
        for e in range(3)
    ]
    for epoch in epochs:
        assert len(np.unique(epoch)) == len(epoch) == 264 // 16 * 16
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(np.sort(epochs[0]), np.sort(epochs[1]))  # others are left out
    assert not np.array_equal(order.indices(0), order_of([5, 6, 5, 6, 6, 5] * 8, 16, seed=1).indices(0))


def test_any_step_is_the_same_without_those_before_it():
    one, other = order_of([7] * 40, 8), order_of([7] * 40, 8)
    steps = list(range(2 * one.steps_per_epoch))
    inside = [one.indices(step) for step in steps]
    for step in reversed(steps):
        np.testing.assert_array_equal(other.indices(step), inside[step])


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_worker_takes_from_the_groups_of_its_own_shards(workers):
    groups, size = 64, 8
    order = order_of([size] * groups, 16, shards=4, pool=2)
    read = [set() for _ in range(workers)]
    for step in range(order.steps_per_epoch):
        for worker, rows in enumerate(np.split(order.indices(step), workers)):
            read[worker] |= set((rows // size).tolist())
    assert [len(each) for each in read] == [groups // workers] * workers
    assert set.union(*read) == set(range(groups))


def test_shards_that_do_not_divide_the_batch_give_way_to_their_common_divisor():
    assert order_of([4] * 9, 6, shards=4).shards == math.gcd(4, 6) == 2
    assert order_of([4] * 9, 5, shards=4).shards == 1


def test_groups_are_mixed_within_pools():
    order = order_of([10] * 32, 8, shards=2, pool=4)
    first = np.concatenate([order.indices(step) for step in range(10)])  # a pool of each shard: 40 samples
    assert len(np.unique(first // 10)) == 8
    assert not np.array_equal(first[:4], np.sort(first[:4]))


def test_scattered_is_a_permutation_that_stays_within_pools():
    starts = np.arange(0, 101, 10)
    order = scattered(starts, pool=2, seed=3)
    assert sorted(order.tolist()) == list(range(100))
    for window in np.split(order, 5):
        assert len(np.unique(window // 10)) == 2
    assert not np.array_equal(order, scattered(starts, pool=2, seed=4))
