from __future__ import annotations

import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heliostat.data import ImageData, Loader
from heliostat.data.loader import sequential
from heliostat.errors import InputError


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_batch_holds_the_samples_of_its_indices(toy):
    data = toy(100)
    loader = Loader(data, batch_size=16, seed=1)
    batch = loader.batch(3)
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == {
        "image": (torch.uint8, (16, 3, 2, 4)),
        "label": (torch.int64, (16,)),
        "index": (torch.int64, (16,)),
    }
    np.testing.assert_array_equal(batch["index"], loader.indices(3))
    for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
        assert image.unique().tolist() == [int(index)]
        assert int(label) == int(index) % 7


def test_no_labels_no_label(toy):
    assert set(Loader(toy(8, labels=False), batch_size=4, seed=0).batch(0)) == {"image", "index"}


def test_epoch_visits_each_sample_at_most_once_and_leaves_others_out_each_time(toy):
    loader = Loader(toy(103), batch_size=20, seed=5)
    assert (loader.steps_per_epoch, loader.dropped_per_epoch) == (5, 3)
    left_out = []
    for epoch in range(4):
        seen = np.concatenate([loader.indices(epoch * 5 + step) for step in range(5)])
        assert len(set(seen.tolist())) == 100
        left_out.append(frozenset(range(103)) - set(seen.tolist()))
    assert len(set(left_out)) > 1


def test_seeds_and_epochs_have_orders_of_their_own(toy):
    orders = {
        tuple(Loader(toy(50), batch_size=50, seed=seed).indices(epoch).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


def test_any_step_in_any_order_gives_the_same_batch(toy):
    data = toy(60)
    forward = Loader(data, batch_size=8, seed=2)
    batches = [forward.batch(step) for step in range(21)]
    for step in (20, 3, 13, 3, 0, 7, 6):
        assert same(forward.batch(step), batches[step])
        assert same(Loader(data, batch_size=8, seed=2).batch(step), batches[step])


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 12])
def test_workers_share_the_same_global_batch(toy, world_size):
    data = toy(40)
    whole = Loader(data, batch_size=12, seed=9)
    for step in (0, 2, 5):
        parts = [Loader(data, batch_size=12, seed=9, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert [row for part in parts for row in part.rows()] == list(range(12))
        joined = [part.batch(step) for part in parts]
        assert same({key: torch.cat([part[key] for part in joined]) for key in joined[0]}, whole.batch(step))


def test_whole_data_as_one_batch(toy):
    loader = Loader(toy(10), batch_size=10, seed=0)
    assert (loader.steps_per_epoch, loader.dropped_per_epoch) == (1, 0)
    assert sorted(loader.indices(7).tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size", "message"),
    [
        (10, 11, 1, "has 10 samples; at most 10 is possible"),
        (11, 12, 4, "at most 8 is possible"),
        (3, 4, 4, "cannot even give each of the 4 workers one"),
        (100, 10, 4, "by 4 workers; 8 or 12 can"),
        (100, 3, 4, "by 4 workers; 4 can"),
        (100, 0, 1, "by 1 workers; 1 can"),
        (100, -4, 4, "by 4 workers; 4 can"),
    ],
)
def test_impossible_batches_say_what_is_possible(toy, count, batch_size, world_size, message):
    with pytest.raises(InputError, match=message):
        Loader(toy(count), batch_size=batch_size, seed=0, world_size=world_size)


def test_ranks_and_steps_outside_are_refused(toy):
    with pytest.raises(ValueError, match="rank"):
        Loader(toy(8), batch_size=4, seed=0, rank=2, world_size=2)
    with pytest.raises(ValueError, match="count from 0"):
        Loader(toy(8), batch_size=4, seed=0).indices(-1)
    with pytest.raises(ValueError, match="rank"):
        next(sequential(toy(8), batch_size=4, rank=-1, world_size=2))
    with pytest.raises(InputError, match="at least 1"):
        next(sequential(toy(8), batch_size=0))


def test_read_only_data_gives_writable_batches_without_a_warning(toy):
    data = toy(20)
    assert not data.images.flags.writeable
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = Loader(data, batch_size=20, seed=0)
        batch = loader.batch(0)
        again = next(sequential(data, batch_size=20))
    for values in batch.values():
        values.zero_()
    again["image"].zero_()
    assert data.images.max() == 19
    assert sorted(loader.batch(0)["index"].tolist()) == list(range(20))  # the order was not touched either


def test_batch_copies_its_rows_only(toy):
    data = toy(400_000)  # 9.6 MB
    loader = Loader(data, batch_size=4, seed=0)
    loader.batch(0)
    tracemalloc.start()
    try:
        loader.batch(1)
        next(sequential(data, batch_size=4))
        _, peak = tracemalloc.get_traced_memory()  # bytes; numpy reports its arrays
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


@given(count=st.integers(1, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 9), labels=st.booleans())
def test_sequential_gives_every_sample_once_in_order(count, batch_size, world_size, labels):
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    numbers = np.arange(count) if labels else None
    data = ImageData(images=images, labels=numbers, classes=("x",) * count if labels else (), name="toy")
    parts = [
        list(sequential(data, batch_size=batch_size, rank=rank, world_size=world_size)) for rank in range(world_size)
    ]
    batches = [batch for part in parts for batch in part]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(count))
    assert torch.cat([batch["image"].flatten() for batch in batches]).tolist() == list(range(count))
    if labels:
        assert torch.cat([batch["label"] for batch in batches]).tolist() == list(range(count))
    sizes = [sum(len(batch["index"]) for batch in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(1 <= len(batch["index"]) <= batch_size for batch in batches)


@pytest.mark.accelerator
def test_batches_reach_the_gpu(toy):
    if not torch.cuda.is_available():
        pytest.skip("copies to a GPU can only be seen where torch finds one")
    data = toy(100)
    here, there = Loader(data, batch_size=16, seed=1), Loader(data, batch_size=16, seed=1, device="cuda")
    for step in range(12):
        batch = there.batch(step)
        assert all(value.is_cuda for value in batch.values())
        assert same({key: value.cpu() for key, value in batch.items()}, here.batch(step))
