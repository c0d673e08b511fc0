"""Muon: orthogonal updates of filter banks, Adam for the rest, and a state that can be restored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from maskdepth.model import DualDecoderUNet
from maskdepth.model.recipe import RECIPES
from maskdepth.model.training.optimizer import Muon, load_optimizer, make_optimizer, orthogonalized
from maskdepth.model.training.state import generator_states, load_state, save_state


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9), st.floats(1e-4, 1e4))
def test_singular_values_become_nearly_one(rows: int, columns: int, seed: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Of full rank: close to a part of the identity.
    matrix = torch.eye(rows, columns) + 0.1 * torch.randn(rows, columns, generator=generator)
    found = orthogonalized(matrix * size)
    left, values, right = torch.linalg.svd(found, full_matrices=False)
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.linalg.norm(left @ right - u @ v) < 0.05


def trained(steps: int, folder: Path, restored_after: int | None = None) -> list[Tensor]:
    """The parameters of a small network after some steps, interrupted once if wanted."""
    torch.manual_seed(0)
    network = DualDecoderUNet(2).place("cpu")  # channels_last
    images = torch.rand(2, 2, 3, 16, 16)

    def make() -> Muon:
        return Muon(network.trained_parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)

    optimizer = make()
    for step in range(steps):
        if step == restored_after:
            state = {"position": (0, 0, 0), "optimizer": optimizer.state_dict()}
            save_state(folder / "last.pt", {**state, "generators": generator_states()})
            optimizer = make()
            load_optimizer(optimizer, load_state(folder / "last.pt")["optimizer"])
            momenta = (one.get("momentum") for one in optimizer.state.values())
            banks = [m for m in momenta if m is not None and min(m.shape[1:]) > 1]
            assert banks
            assert all(m.is_contiguous(memory_format=torch.channels_last) for m in banks)
        mask, depth = network(images[0], images[1])
        optimizer.zero_grad()
        (mask.square().mean() + depth.square().mean()).backward()
        optimizer.step()
    return [parameter.detach() for parameter in network.parameters()]


def test_a_state_restored_from_its_file_gives_the_same_weights(tmp_path: Path) -> None:
    complete, resumed = trained(4, tmp_path), trained(4, tmp_path, restored_after=2)
    for one, other in zip(complete, resumed, strict=True):
        assert torch.equal(one, other)


def test_banks_of_one_shape_are_made_orthogonal_each_on_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    several = torch.randn(3, 4, 18, generator=generator) * torch.tensor([[[1.0]], [[9]], [[0.1]]])
    each = torch.stack([orthogonalized(matrix) for matrix in several])
    torch.testing.assert_close(orthogonalized(several), each)


def test_the_first_step_of_both_kinds() -> None:
    bank, bias = torch.nn.Parameter(torch.zeros(2, 3, 1, 1)), torch.nn.Parameter(torch.zeros(2))
    optimizer = Muon([bank, bias], lr=0.1, momentum=0.9, weight_decay=0)
    bank.grad = torch.tensor([[3.0, 0, 0], [0, 1, 0]]).view_as(bank)
    bias.grad = torch.tensor([5.0, -0.1])
    optimizer.step()
    # Any singular value is within 0.7..1.2 of an orthogonal update; Adam's first step is its rate.
    moved = bank.detach().view(2, 3)
    assert (moved[:, 2] == 0).all()
    assert -0.12 < moved[0, 0] < -0.06
    assert -0.12 < moved[1, 1] < -0.06
    torch.testing.assert_close(bias.detach(), torch.tensor([-0.01, 0.01]), atol=1e-6, rtol=0)


def test_parameters_without_a_gradient_are_kept() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 2, 3, 3))
    optimizer = Muon([parameter], lr=0.1, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(2, 2, 3, 3))
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)


def test_sgd_stays_the_default() -> None:
    recipe = RECIPES["original"]
    assert recipe.optimizer == "sgd"
    found = make_optimizer(DualDecoderUNet(2), recipe, recipe.stages[0])
    assert isinstance(found, torch.optim.SGD)


def test_weights_decay_by_the_rate_as_decoupled_from_the_gradient() -> None:
    bank, bias = torch.ones(2, 2, 3, 3), torch.ones(4)
    for parameter in (bank, bias):
        parameter.grad = torch.zeros_like(parameter)
    Muon([bank, bias], lr=0.1, momentum=0.9, weight_decay=0.02).step()
    for parameter in (bank, bias):
        torch.testing.assert_close(parameter, torch.full_like(parameter, 1 - 0.1 * 0.02))
