"""The notebook: all of its cells run, with small sizes, and it stops at a command that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "colab.ipynb"
SMALL = """
SOURCE = ""
BACKGROUNDS, FOREGROUNDS, PLACEMENTS, SIZE = 3, 2, 2, 32
RECIPE = "tiny.toml"
SCORED = 2
"""
TINY = """
name = "tiny"
width = 2
[[stages]]
size = 16
batch_size = 4
lr = 0.01
trains = ["encoder", "mask", "depth"]
"""
PICTURES = 4  # samples, curves, predictions and a pair


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def parameters_of(notebook: Any) -> Any:
    (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", ()))
    return cell


def run(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a notebook in a folder, with the command and the modules of this checkout."""
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the kernel of this environment
    client = nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()


def test_outputs_are_not_stored() -> None:
    notebook = read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell for cell in code if cell.outputs or cell.execution_count] == []


@pytest.mark.slow
def test_all_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read()
    cell = parameters_of(notebook)
    before: dict[str, object] = {}
    after: dict[str, object] = {}
    exec(cell.source, before)
    exec(SMALL, after)
    assert before.keys() == after.keys()  # nothing keeps its size
    cell.source = SMALL
    (tmp_path / "tiny.toml").write_text(TINY)
    run(notebook, tmp_path, monkeypatch)
    outputs = [output for c in notebook.cells for output in c.get("outputs", ())]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == PICTURES
    text = "".join(output.get("text", "") for output in outputs)
    assert "mask IoU" in text
    assert (tmp_path / "predicted").is_dir()


def test_commands_need_no_backend_of_a_notebook() -> None:
    code = "from maskdepth.convert import program; program.begin(); import matplotlib.figure"
    environment = {**os.environ, "MPLBACKEND": "module://of.another.environment"}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, check=True)


def test_a_command_that_fails_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = read()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    failing = nbformat.v4.new_code_cell("!maskdepth convert check {SIZE}")
    notebook.cells = [*code[:2], failing]
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="exit code 2: maskdepth conv"):
        run(notebook, tmp_path, monkeypatch)
    assert "no such folder" in "".join(output.get("text", "") for output in failing.outputs)
