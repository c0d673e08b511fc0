"""Free memory of a device."""

from __future__ import annotations

from pathlib import Path

import torch

from maskdepth.loaders.memory import _left_in_groups, free_bytes


def test_free_memory_of_this_machine() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**63


def test_limit_of_the_control_groups(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    assert _left_in_groups(tmp_path, own) == 2**63  # no such file: no limit is known
    own.write_text("1:name=systemd:/other\n0::/jobs/7\n")
    group = tmp_path / "jobs" / "7"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("700\n")
    (group / "memory.stat").write_text("anon 300\ninactive_file 250\nactive_file 100\n")
    (group / "memory.max").write_text("max\n")
    assert _left_in_groups(tmp_path, own) == 2**63
    (group / "memory.max").write_text("1000\n")
    assert _left_in_groups(tmp_path, own) == 1000 - 700 + 250
    for name, content in (("max", "900"), ("current", "800"), ("stat", "inactive_file 250")):
        (group.parent / f"memory.{name}").write_text(content + "\n")
    assert _left_in_groups(tmp_path, own) == 900 - 800 + 250
