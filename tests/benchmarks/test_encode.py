"""The profile of a conversion names every step and the whole."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.encode import WHOLE


def test_steps_and_whole(dataset: Path, tmp_path: Path) -> None:
    out = tmp_path / "encode.json"
    command = ["encode", str(dataset), "--samples", "5", "--repeats", "1", "--json", str(out)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["cpu_us_per_sample"]
    assert len(found) == 12
    assert all(us > 0 for us in found.values())
    assert found[WHOLE] > found["decode fg_bg"]
    assert "| cut depth to luma |" in result.output
