"""The state of a run on disk: a round trip keeps every value, and a changed bit is noticed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from maskdepth.model import ModelError
from maskdepth.model.training.state import generator_states, load_state, save_state, set_generators


def test_state_restores_the_random_generator(tmp_path: Path) -> None:
    torch.manual_seed(4)
    stored = {"position": (1, 2, 3), "history": [{"loss": 0.5}]}
    save_state(tmp_path / "last.pt", {**stored, "generators": generator_states()})
    expected = torch.rand(3)
    state = load_state(tmp_path / "last.pt")
    generators = state.pop("generators")
    assert isinstance(generators, list)
    set_generators(generators)
    assert state == stored
    assert torch.equal(torch.rand(3), expected)
    torch.save({"a": 1}, tmp_path / "last.pt")
    with pytest.raises(ModelError, match="not the state of a run"):
        load_state(tmp_path / "last.pt")


def test_a_changed_bit_of_a_state_is_refused(tmp_path: Path) -> None:
    """`torch.load` reads it as another number."""
    path, values = tmp_path / "last.pt", torch.arange(100.0)
    save_state(path, {"position": [0, 0, 0], "generators": [], "network": {"a": values}})
    content = bytearray(path.read_bytes())
    content[content.index(values.numpy().tobytes()) + 202] ^= 64
    path.write_bytes(content)
    assert not torch.equal(torch.load(path)["network"]["a"], values)
    with pytest.raises(ModelError, match=r"last.pt: .*the checksum of .* differs"):
        load_state(path)
