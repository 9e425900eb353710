from __future__ import annotations

import numpy as np
import pytest
import torch

from heliostat_algorithms.heads.projection import ProjectionHead


def randomised(layers: int) -> ProjectionHead:
    """A float64 head whose parameters are all far from where they begin."""
    torch.manual_seed(layers)
    head = ProjectionHead(6, 5, 4, layers).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


def reference(head: ProjectionHead, x: np.ndarray, layers: int) -> np.ndarray:
    state = {name: tensor.detach().numpy() for name, tensor in head.state_dict().items()}
    depth = len(head.linears)
    for number in range(layers):
        x = x @ state[f"linears.{number}.weight"].T
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * state[f"norms.{number}.weight"]
        if number < depth - 1:
            x = np.maximum(x + state[f"norms.{number}.bias"], 0)
    return x


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projections_follow_the_official_head(layers: int) -> None:
    head = randomised(layers)
    x = torch.randn(7, 6, dtype=torch.float64)
    np.testing.assert_allclose(head(x).detach().numpy(), reference(head, x.numpy(), layers), rtol=1e-9, atol=1e-12)
    assert head(x).shape == (7, 4)


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_fine_tuning_may_start_in_the_middle(stop: int) -> None:
    head = randomised(3)
    x = torch.randn(7, 6, dtype=torch.float64)
    found = head(x, layers=stop).detach()
    np.testing.assert_allclose(found.numpy(), reference(head, x.numpy(), stop), rtol=1e-9, atol=1e-12)
    assert found.shape[1] == [6, 5, 5, 4][stop]


def test_no_layer_has_a_bias_but_the_inner_normalisations() -> None:
    assert [name for name, _ in ProjectionHead(6, 5, 4, 3).named_parameters()] == [
        "linears.0.weight",
        "linears.1.weight",
        "linears.2.weight",
        "norms.0.weight",
        "norms.0.bias",
        "norms.1.weight",
        "norms.1.bias",
        "norms.2.weight",
    ]


def test_weights_begin_small() -> None:
    torch.manual_seed(0)
    for linear in ProjectionHead(300, 200, 100).linears:
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.03)


def test_layers_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ProjectionHead(6, 5, 4, 0)
    for layers in (-1, 3):
        with pytest.raises(ValueError, match="has 2 layers"):
            ProjectionHead(6, 5, 4)(torch.zeros(2, 6), layers=layers)
