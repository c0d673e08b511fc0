"""A checkpoint whose writer is killed at each call: the old file or the new one, whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from maskdepth.model.files import replace_bytes
from tests.kills import kill_at_each_call

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def test_a_checkpoint_write_is_killed_at_each_call(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    old, new = bytes(5000), b"1" * 7000
    found = []
    path.write_bytes(old)
    for _ in kill_at_each_call(lambda: replace_bytes(path, new)):
        found.append(path.read_bytes())
        replace_bytes(path, old)  # over whatever the kill has left
        assert [one.name for one in tmp_path.iterdir()] == ["last.pt"]
    assert path.read_bytes() == new
    # Created, half written, opened to be synchronised, renamed; then the folder.
    assert found == sorted(found)
    assert set(found) == {old, new}
    assert found.count(old) >= 3
