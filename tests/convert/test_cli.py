"""The converter's command line: what a person sees, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.shards import Shards
from tests.pictures import jpeg_bytes
from tests.trees import tree


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def expect_one_line(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for part in parts:
        assert part in lines[0]


@pytest.fixture
def copy(dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset, tmp_path / "data"))


def test_compose_pack_verify_inspect_show(tmp_path: Path) -> None:
    data, shards, sheet = tmp_path / "data", tmp_path / "shards", tmp_path / "sheet.png"
    size = ["--backgrounds", 2, "--foregrounds", 2, "--placements", 2, "--size", 64]
    assert run("compose", data, *size, "--workers", 0).exit_code == 0
    assert run("pack", data, shards, "--workers", 0).exit_code == 0
    result = run("verify", shards, "--source", data, "--workers", 0)
    assert (result.exit_code, result.stdout) == (0, f"{shards}: no problems\n")
    assert "backgrounds    2 (4 samples each)" in run("inspect", shards).stdout
    manifest = json.loads(run("inspect", shards, "--json").stdout)
    assert manifest["samples"] == 8
    for rows in (1, 3):  # the second time it replaces its own file
        assert run("show", shards, sheet, "--rows", rows).exit_code == 0
    with Image.open(sheet) as image:
        assert image.width > 4 * 64
        assert len(np.unique(np.asarray(image))) > 50


def test_compose_is_resumed_and_replaced(tmp_path: Path) -> None:
    data = tmp_path / "data"
    size = ["--backgrounds", 1, "--foregrounds", 1, "--placements", 2, "--size", 32]
    assert run("compose", data, *size, "--workers", 0, "--resume").exit_code == 0
    before = tree(data)
    expect_one_line(run("compose", data, *size, "--workers", 0), "exists already; --force")
    assert run("compose", data, *size, "--workers", 0, "--force").exit_code == 0
    assert tree(data) == before


def test_missing_data_set(tmp_path: Path) -> None:
    result = run("pack", tmp_path / "none", tmp_path / "shards")
    expect_one_line(result, str(tmp_path / "none"), "no such folder", "expected a data set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bogus"], "No such option '--bogus'."),
        (["unpack"], "No such command 'unpack'."),
        (["pack"], "Missing argument 'DATASET'."),
        (["pack", "data", "shards", "--format", "zip"], "'zip' is not one of 'ffcv', 'webdataset'"),
        (["verify", "shards", "--workers", "-1"], "-1 is not in the range 0<=x<=4096."),
    ],
)
def test_usage_error(arguments: list[str], message: str) -> None:
    expect_one_line(run(*arguments), message)


def test_help_without_arguments() -> None:
    assert "Commands:" in run().output


@pytest.mark.parametrize("folder", ["bg", "fg_bg", "fg_bg_mask", "fg_bg_depth"])
def test_missing_folder(copy: Path, tmp_path: Path, folder: str) -> None:
    shutil.rmtree(copy / folder)
    result = run("pack", copy, tmp_path / "shards")
    expect_one_line(result, str(copy / folder), "no such folder")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_unequal_counts(copy: Path, tmp_path: Path) -> None:
    (copy / "fg_bg_depth" / "bg_001" / "img_0003.jpg").unlink()
    result = run("pack", copy, tmp_path / "shards")
    expect_one_line(result, "fg_bg_depth/bg_001", "found 17", "expected 18", "img_0003.jpg")


def test_non_image(copy: Path, tmp_path: Path) -> None:
    path = copy / "fg_bg" / "bg_002" / "img_0005.jpg"
    path.write_text("not an image")
    result = run("pack", copy, tmp_path / "shards", "--workers", 0)
    expect_one_line(result, str(path), "record 22, fg_bg", "not a JPEG", "fix or replace")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_image_of_another_size(copy: Path, tmp_path: Path) -> None:
    path = copy / "fg_bg_mask" / "bg_002" / "img_0005.jpg"
    path.write_bytes(jpeg_bytes(np.zeros((50, 40), np.uint8)))
    result = run("pack", copy, tmp_path / "shards", "--workers", 0)
    expect_one_line(result, str(path), "found 40x50 pixels", "expected 96x96")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_stray_file(copy: Path, tmp_path: Path) -> None:
    (copy / "fg_bg" / "bg_002" / "notes.txt").write_text("hello")
    (copy / "fg_bg" / "bg_001" / ".DS_Store").write_text("left by a file manager")
    expect_one_line(run("pack", copy, tmp_path / "shards"), "notes.txt", "not a .jpg")


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_unfinished_shard_folder(shards: Path, tmp_path: Path, command: str) -> None:
    target = Path(shutil.copytree(shards, tmp_path / "shards"))
    (target / "manifest.json").unlink()
    expect_one_line(run(command, target), "not a finished shard folder", "run `python -m convert")


@pytest.mark.parametrize("command", ["compose", "pack", "verify"])
def test_too_many_workers_are_a_slip(command: str, tmp_path: Path) -> None:
    folders = [tmp_path / "in", *([tmp_path / "out"] if command == "pack" else [])]
    expect_one_line(run(command, *folders, "--workers", 10**9), "--workers", "0<=x<=4096")
    assert list(tmp_path.iterdir()) == []


def test_show_says_where_it_cannot_write(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file.png").write_text("mine")
    for name, reason in (
        ("file.png/sheet.png", "file.png is not a writable folder"),
        ("file.png", "exists and was not made by show"),
        ("sheet.jpg", "found suffix '.jpg', expected a name that ends in .png"),
    ):
        expect_one_line(run("show", shards, tmp_path / name, "--rows", 1), name, reason)
    many = run("show", shards, tmp_path / "many.png", "--rows", 10**20)
    expect_one_line(many, "--rows", "is not in the range 1<=x<=1000")
    inside = run("show", shards, shards / "new/sheet.png", "--rows", 1)
    expect_one_line(inside, "sheet.png: is inside", "which is read and would be spoiled")
    assert not (shards / "new").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["file.png"]
    assert (tmp_path / "file.png").read_text() == "mine"


def test_verify_names_the_fault_and_exits_1(shards: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(shards, tmp_path / "shards"))
    record = Shards(target, "ffcv").records[33]["depth"]
    with open(target / "samples.beton", "r+b") as file:
        file.seek(int(record["offset"]) + int(record["size"]) // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    result = run("verify", target, "--workers", 0)
    assert result.exit_code == 1
    assert "samples.beton: SHA-256 " in result.stdout
    assert "record 33, depth" in result.stdout
    assert "checksum" in result.stdout


def test_verify_wants_the_right_source(shards: Path, copy: Path) -> None:
    for folder in ("fg_bg", "fg_bg_mask", "fg_bg_depth"):
        for path in sorted((copy / folder / "bg_005").iterdir())[12:]:
            path.unlink()
    expect_one_line(run("verify", shards, "--source", copy), "json: samples is 90, found 84")
    (copy / "dataset.json").write_text("{}")
    expect_one_line(run("verify", shards, "--source", copy), "found 84 samples", "(90)")


@pytest.fixture
def unreadable(shards: Path) -> Iterator[Callable[[str], Path]]:
    """Gives shards of which we may not read one file, by name; without the rights of root."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        target = Path(shutil.copytree(shards, Path(folder) / "shards"))
        user = os.geteuid()

        def lock(name: str) -> Path:
            (target / name).chmod(0)
            if user == 0:
                os.seteuid(65534)
            return target

        yield lock
        os.seteuid(user)


SHEET = f"{tempfile.gettempdir()}/sheet.png"
"""Where every user may write; nothing is written."""


@pytest.mark.parametrize("command", ["inspect", "verify", "show"])
def test_manifest_that_may_not_be_read(unreadable: Callable[[str], Path], command: str) -> None:
    arguments = [SHEET] if command == "show" else []
    result = run(command, unreadable("manifest.json"), *arguments)
    expect_one_line(result, "manifest.json: cannot be read (Permission denied)")


@pytest.mark.parametrize("name", ["samples.beton", "samples.beton.index.npy", "backgrounds.npy"])
def test_shards_that_may_not_be_read(unreadable: Callable[[str], Path], name: str) -> None:
    shards = unreadable(name)
    result = run("show", shards, SHEET)
    expect_one_line(result, f"{name}: cannot be read (Permission denied)")
    result = run("verify", shards, "--workers", 0)
    assert result.exit_code == 1
    assert f"{shards / name}: cannot be read (Permission denied); fix that\n" in result.stdout


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "not an image"), (b"\xff\xd8\xff\xe0\0\x10JFIF", "cannot be read")]
)
def test_verify_names_a_source_that_is_no_image(
    shards: Path, copy: Path, data: bytes, reason: str
) -> None:
    (copy / "bg" / "bg_002.jpg").write_bytes(data)
    (copy / "fg_bg" / "bg_002" / "img_0003.jpg").write_bytes(data)
    result = run("verify", shards, "--source", copy, "--workers", 0)
    assert result.exit_code == 1, result.output
    problems = result.stdout.splitlines()
    assert [problem.split(" (")[0] for problem in problems] == ["background 1", "record 20, fg_bg"]
    assert all(reason in problem for problem in problems)


def test_verify_only_reads(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fail)
    assert run("verify", shards, "--workers", 0).exit_code == 0


def test_as_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "convert", "verify", str(tmp_path / "none")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        f"Error: {tmp_path / 'none'}: no such folder; expected the folder that `pack` wrote\n"
    )


def test_prints_names_that_are_not_utf_8(shards: Path, tmp_path: Path) -> None:
    target = shutil.copytree(shards, tmp_path / os.fsdecode(b"caf\xe9"))
    command = [sys.executable, "-m", "convert", "verify", str(target), "--workers", "0"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run(command, capture_output=True, env=strict, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(b"caf\\udce9: no problems\n")
