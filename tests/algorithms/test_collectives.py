from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from heliostat_algorithms.collectives import gather_rows, mean_over_workers, rank, sum_over_workers, world_size

WORLD, ROWS, COLUMNS = 3, 2, 4


def rows_of(worker: int) -> Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(worker), dtype=torch.float64)


def weights_of(worker: int) -> Tensor:
    """What a worker's loss makes of each gathered element: different on each worker."""
    generator = torch.Generator().manual_seed(100 + worker)
    return torch.randn(WORLD * ROWS, COLUMNS, generator=generator, dtype=torch.float64)


def communicate() -> dict[str, Any]:
    x = rows_of(rank()).requires_grad_()
    gathered = gather_rows(x)
    (weights_of(rank()) * gathered**2).sum().backward()
    result = {"rank": rank(), "world": world_size(), "gathered": gathered.detach(), "gather_gradient": x.grad}

    y = rows_of(rank()).requires_grad_()
    total = sum_over_workers(y)
    (weights_of(rank())[:ROWS] * total**2).sum().backward()
    result |= {"sum": total.detach(), "sum_gradient": y.grad, "sum_input": y.detach()}

    transposed = rows_of(rank()).T  # neither contiguous itself nor in its gradient
    z = transposed.detach().requires_grad_()
    (gather_rows(z).T * torch.ones(COLUMNS * WORLD, dtype=torch.float64)).sum().backward()
    result |= {"gathered_transposed": gather_rows(transposed), "transposed_gradient": z.grad}

    images = torch.full((1, 2, 3, 3), float(rank()))
    result |= {"gathered_images": gather_rows(images)}

    metric = torch.tensor(float(rank()), requires_grad=True)
    mean = mean_over_workers(metric)
    return result | {"mean": mean, "mean_has_gradient": mean.requires_grad, "metric": metric.detach()}


def test_workers_exchange_values_and_gradients(on_workers: Any) -> None:
    results = on_workers(communicate, WORLD)
    x = np.stack([rows_of(worker).numpy() for worker in range(WORLD)])
    weights = np.stack([weights_of(worker).numpy() for worker in range(WORLD)])
    everything, total = x.reshape(-1, COLUMNS), x.sum(axis=0)
    # Derivatives of the sum of all workers' losses.
    gather_gradient = (2 * weights.sum(axis=0) * everything).reshape(x.shape)
    sum_gradient = 2 * weights[:, :ROWS].sum(axis=0) * total
    for worker, result in enumerate(results):
        assert (result["rank"], result["world"]) == (worker, WORLD)
        np.testing.assert_array_equal(result["gathered"].numpy(), everything)
        np.testing.assert_allclose(result["gather_gradient"].numpy(), gather_gradient[worker], rtol=1e-13)
        np.testing.assert_allclose(result["sum"].numpy(), total, rtol=1e-13)
        np.testing.assert_allclose(result["sum_gradient"].numpy(), sum_gradient, rtol=1e-13)
        np.testing.assert_array_equal(result["sum_input"].numpy(), x[worker])  # the argument is not written to
        np.testing.assert_array_equal(result["gathered_transposed"].numpy(), np.concatenate([rows.T for rows in x]))
        np.testing.assert_array_equal(result["transposed_gradient"].numpy(), np.full((COLUMNS, ROWS), WORLD))
        assert result["gathered_images"][:, 1, 2, 0].tolist() == [0, 1, 2]
        assert result["mean"].item() == 1.0
        assert result["metric"].item() == worker
        assert not result["mean_has_gradient"]


def test_one_process_is_a_world_of_its_own() -> None:
    assert (rank(), world_size()) == (0, 1)


@pytest.mark.parametrize("collective", [gather_rows, sum_over_workers])
def test_collectives_are_the_identity_in_one_process(collective: Any) -> None:
    x = rows_of(0).requires_grad_()
    y = collective(x)
    (weights_of(0)[:ROWS] * y).sum().backward()
    assert torch.equal(y, x)
    assert x.grad is not None
    assert torch.equal(x.grad, weights_of(0)[:ROWS])


def test_a_metric_loses_its_gradient_in_one_process() -> None:
    metric = torch.tensor(0.5, requires_grad=True)
    assert mean_over_workers(metric).item() == 0.5
    assert not mean_over_workers(metric).requires_grad
