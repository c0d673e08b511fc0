"""`depth` at size: killed and resumed, by several ranks, with one scale, of backgrounds alone."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.dataset import depth_run
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.dataset.depth import (
    DepthOptions,
    estimate,
    estimate_backgrounds,
    write_backgrounds,
    write_depth,
)
from maskdepth.convert.dataset.depth_inputs import LONGEST_SIDE, list_composites, list_photos
from maskdepth.convert.dataset.networks import ranks as ranks_module
from maskdepth.convert.dataset.networks.model import DepthModel, ModelOptions
from maskdepth.convert.dataset.photos import open_depth
from maskdepth.convert.dataset.plan import make_plan, plan_metadata
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.progress import Progress, duration
from maskdepth.convert.source import Metadata, read_metadata
from tests.depth_networks import (
    OFFSET,
    RED,
    SIDE,
    needs_transformers,
    save_onnx,
    save_pt2,
    save_transformers,
    write_composites,
)
from tests.kills import kill_at_each_call
from tests.trees import tree

pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def red(images: list[np.ndarray]) -> list[np.ndarray]:
    """Depth is how red a pixel is, 2 to 3."""
    return [2 + image[..., 0] / np.float32(255) for image in images]


MODEL = DepthModel("a/model", red, "metric", at_once=2)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depth_run, "BATCHES_OF_A_PART", 1)


def options(**changes: Any) -> DepthOptions:
    return DepthOptions(**{"batch_size": 2, "progress": False, **changes})


@pytest.mark.parametrize("stretch", ["image", "dataset"])
def test_killed_at_calls_that_change_files(tmp_path: Path, small_parts: None, stretch: Any) -> None:
    """And with maps that are replaced: at any time, the old ones or the new ones are complete."""
    data = write_composites(tmp_path / "data", 6)
    write_depth(list_composites(data), DepthModel("old", red, "inverse"), options())
    before = tree(data)
    truth_folder = Path(shutil.copytree(data, tmp_path / "truth"))
    write_depth(list_composites(truth_folder), MODEL, options(stretch=stretch))
    truth = tree(truth_folder)
    maps = {name for name in truth if name.startswith("fg_bg_depth/")}
    states = set()

    def run() -> None:
        is_new = not (data / "fg_bg_depth.partial").exists()  # by another model than the old maps
        how = options(stretch=stretch, resume=True, force=is_new)
        write_depth(list_composites(data), MODEL, how)

    for _ in kill_at_each_call(run, first=4, step=7):
        now = tree(data)
        is_new = maps <= now.keys() and all(now[name] == truth[name] for name in maps)
        is_old = all(now.get(name) == before[name] for name in before)
        states.add("new" if is_new else "old" if is_old else "moved")
        run()
        assert {name: c for name, c in tree(data).items() if name != ".fg_bg_depth.job"} == truth
        shutil.rmtree(data)
        shutil.copytree(tmp_path / "truth", data, ignore=lambda *_: ["fg_bg_depth"])
        for name, content in before.items():
            (data / name).parent.mkdir(exist_ok=True, parents=True)
            (data / name).write_bytes(content)
    assert {"old", "new"} <= states


def test_killed_right_before_dataset_json_is_in_its_place(tmp_path: Path) -> None:
    data = write_composites(tmp_path / "data", 4)
    metadata = write_depth(list_composites(data), MODEL, options())
    (data / "dataset.json").rename(data / "fg_bg_depth/dataset.json")
    assert list_composites(data).metadata == metadata
    before = tree(data)
    never = DepthModel("a/model", lambda _: pytest.fail("nothing is left to do"), "metric")
    assert write_depth(list_composites(data), never, options(resume=True)) == metadata
    assert tree(data) == before


def save(kind: str, folder: Path) -> str:
    """The name of a tiny network of a kind."""
    if kind in ("depth_anything", "dpt"):
        return str(save_transformers(folder / kind, kind))
    path = folder / f"red.{kind}"
    return str(save_pt2(path) if kind == "pt2" else save_onnx(path))


KINDS = [
    "pt2",
    "onnx",
    pytest.param("depth_anything", marks=[needs_transformers, pytest.mark.slow]),
    pytest.param("dpt", marks=[needs_transformers, pytest.mark.slow]),
]


ON_CPU = ModelOptions(predicts="depth", device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_real_network_is_killed_and_resumed(
    tmp_path: Path, small_parts: None, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depth_run, "_READERS", 0)  # one thread, so that parts end one by one
    monkeypatch.setattr("maskdepth.convert.dataset.networks.device.available_cores", lambda: 1)
    path = save(kind, tmp_path)
    truth, data = (write_composites(tmp_path / name) for name in ("truth", "data"))
    quiet: dict[str, Any] = {"model": ON_CPU, "batch_size": 2, "progress": False}
    estimate(truth, path, **quiet)
    parts, finished = data / "fg_bg_depth.partial/parts", set()
    for _ in kill_at_each_call(lambda: estimate(data, path, **quiet, resume=True), 40, 4):
        finished.add(len(list(parts.glob("*.json"))))
    assert len(finished) > 2, "what is killed is continued, and killed again"
    assert tree(data) == tree(truth)


def test_finished_parts_are_not_predicted_again(tmp_path: Path, small_parts: None) -> None:
    data = write_composites(tmp_path / "data")
    seen: list[int] = []

    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        seen.append(len(images))
        if len(seen) == 4:
            raise DataError("a GPU is lost")
        return red(images)

    failing = DepthModel("a/model", predict, "metric", at_once=1)
    with pytest.raises(DataError, match="a GPU is lost"):
        write_depth(list_composites(data), failing, options())
    done = len(list((data / "fg_bg_depth.partial/parts").glob("part-*.json")))
    assert 0 < done < 6
    with pytest.raises(DataError, match="an unfinished run left this; --resume continues it"):
        write_depth(list_composites(data), MODEL, options())
    with pytest.raises(DataError, match=r"was begun with other arguments .*\(stretch\)"):
        write_depth(list_composites(data), MODEL, options(resume=True, stretch="dataset"))
    (data / "fg_bg/bg_001/img_0001.jpg").touch()  # its part is made again
    seen[:] = [0] * 4
    write_depth(list_composites(data), failing, options(resume=True))
    assert len(seen) - 4 in (6 - done, 6 - done + 1)
    assert not (data / "fg_bg_depth.partial").exists()


def test_after_a_corrupt_composite_the_work_is_kept(tmp_path: Path, small_parts: None) -> None:
    """Packing again takes seconds; predicting again may take a day."""
    data = write_composites(tmp_path / "data")
    bad = data / "fg_bg/bg_002/img_0006.jpg"
    content = bad.read_bytes()
    bad.write_bytes(b"")
    one = DepthModel("a/model", red, "metric", at_once=1)
    with pytest.raises(RecordError, match=r"record 11, fg_bg .*img_0006\.jpg\): .*empty file"):
        write_depth(list_composites(data), one, options())
    assert any((data / "fg_bg_depth.partial/parts").glob("*.json"))
    bad.write_bytes(content)
    write_depth(list_composites(data), one, options(resume=True))
    assert len(list((data / "fg_bg_depth").rglob("*.jpg"))) == 12


def test_threads_end_soon_after_a_failure(tmp_path: Path) -> None:
    data, failed = write_composites(tmp_path / "data", 16), threading.Event()
    after: list[int] = []

    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        if failed.is_set():
            after.append(len(images))
            time.sleep(0.5)  # as a network takes
        failed.set()
        raise DataError("no memory")

    with pytest.raises(DataError, match="no memory"):
        write_depth(
            list_composites(data), DepthModel("x", predict, "metric"), options(batch_size=1)
        )
    assert len(after) <= 2  # of 15: what another thread had begun
    assert not (data / "fg_bg_depth.partial").exists()


def as_rank(rank: int, count: int, port: int, action: Callable[[], object]) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    action()


def run_ranks(count: int, action: Callable[[], object]) -> list[int | None]:
    """The exit codes of as many processes, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=as_rank, args=(r, count, port, action)) for r in range(count)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout=120)
    return [rank.exitcode for rank in ranks]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_write_what_one_writes(tmp_path: Path, small_parts: None, kind: str) -> None:
    path = save(kind, tmp_path)
    truth, data = (write_composites(tmp_path / name) for name in ("truth", "data"))
    made: dict[str, Any] = {
        "model": ON_CPU, "batch_size": 2, "stretch": "dataset", "progress": False,
    }  # fmt: skip
    estimate(truth, path, **made)
    assert run_ranks(2, lambda: estimate(data, path, **made)) == [0, 0]
    assert tree(data) == tree(truth)


def test_an_error_of_one_rank_ends_all(
    tmp_path: Path, small_parts: None, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_composites(tmp_path / "data")
    (data / "fg_bg/bg_001/img_0003.jpg").write_bytes(b"")  # in part 1, of rank 1
    path = save("onnx", tmp_path)

    def action() -> None:
        arguments = ["depth", str(data), "--model", path, "--batch-size", "2", "--device", "cpu"]
        main([*arguments, "--predicts", "depth"])

    assert run_ranks(2, action) == [2, 2]
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Error")]
    first, second = sorted(errors)
    assert first.startswith("Error: another rank has ended; fix what it says, and run again with")
    assert second.startswith(f"Error: record 2, fg_bg ({data}")
    assert run_ranks(2, lambda: main(["depth", str(tmp_path), "--model", path])) == [2, 2]
    output = capfd.readouterr().err
    assert output.count("Error") == 1, output  # the first rank's


def test_half_an_environment_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with (
        pytest.raises(DataError, match="found RANK or WORLD_SIZE without the other"),
        ranks_module.joined(),
    ):
        pass


def levels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path), float)[..., 0]


@pytest.mark.parametrize("predicts", ["metric", "inverse", "depth"])
def test_one_scale_gives_the_values_back(tmp_path: Path, small_parts: None, predicts: Any) -> None:
    data = write_composites(tmp_path / "data")
    model = DepthModel("a/model", red, predicts)
    metadata = write_depth(list_composites(data), model, options(stretch="dataset"))
    scale = Metadata.from_json(read_metadata(data)).depth_scale
    assert scale is not None
    assert metadata["depth_scale"] == scale.model_dump()
    assert scale.unit == ("metres" if predicts == "metric" else "none")
    files = sorted((data / "fg_bg").rglob("*.jpg"))
    values = [2 + np.asarray(Image.open(file), float)[..., 0] / 255 for file in files]
    ends = min(map(np.min, values)), max(map(np.max, values))
    assert (scale.near, scale.far) == pytest.approx(ends[::-1] if predicts == "inverse" else ends)
    for file, value in zip(files, values, strict=True):
        depth = levels(data / "fg_bg_depth" / file.relative_to(data / "fg_bg"))
        found = scale.near + (scale.far - scale.near) * depth / 255
        assert abs(found - value).mean() < 0.02, "more than the loss of JPEG"
    metadata = write_depth(list_composites(data), model, options(force=True))
    assert "depth_scale" not in metadata, "each map has a scale of its own again"


def test_a_stated_range_needs_one_pass_and_clips(tmp_path: Path) -> None:
    data, calls = write_composites(tmp_path / "data", 4), []

    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        calls.append(len(images))
        return red(images)

    made = options(stretch="dataset", value_range=(2.4, 2.5))
    metadata = write_depth(list_composites(data), DepthModel("x", predict, "metric"), made)
    assert sum(calls) == 4
    assert metadata["depth_scale"] == {"near": 2.4, "far": 2.5, "unit": "metres"}
    depth = levels(data / "fg_bg_depth/bg_001/img_0001.jpg")
    value = 2 + levels(data / "fg_bg/bg_001/img_0001.jpg") / 255
    assert depth[value < 2.35].mean() < 8
    assert depth[value > 2.55].mean() > 247


@pytest.mark.parametrize(
    "scale",
    [[1, 2], {"near": 1.0}, {"near": 2.0, "far": 1.0, "unit": "metres"},
     {"near": 1.0, "far": 2.0, "unit": "feet"}, {"near": "1", "far": 2.0, "unit": "none"}],
)  # fmt: skip
def test_scale_of_a_file_is_checked(tmp_path: Path, scale: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"depth_scale": scale}))
    with pytest.raises(DataError, match=r"dataset\.json: depth_scale"):
        read_metadata(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Of three sizes and formats, one of them larger than the largest map."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name, size in (("a.png", (60, 40)), ("b.jpg", (40, 60)), ("c.webp", (2100, 30))):
        ramp = np.linspace(0, 255, size[0])[None, :, None].repeat(size[1], 0).repeat(3, 2)
        noise = rng.integers(0, 3, ramp.shape)
        Image.fromarray(np.clip(ramp + noise, 0, 255).astype(np.uint8)).save(folder / name)
    return folder


def test_backgrounds_alone_are_what_compose_takes(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "depths"
    model = save_onnx(tmp_path / "red.onnx")
    arguments = [str(photos), "--of", "backgrounds", "--out", str(out), "--model", str(model)]
    made = [*arguments, "--predicts", "metric", "--device", "cpu", "--normalise", "none"]
    done = CliRunner().invoke(main, ["depth", *made, "--stretch", "dataset"])
    assert done.exit_code == 0, done.output
    assert (
        f"{out}: 3 depth maps by {model}, which predicts metres (larger is farther)" in done.output
    )
    assert sorted(path.name for path in out.iterdir()) == [".depth.json", "a.png", "b.png", "c.png"]
    with Image.open(out / "c.png") as image:
        assert image.size == (LONGEST_SIDE, round(30 * LONGEST_SIDE / 2100))
    about = json.loads((out / ".depth.json").read_text())
    near, far = about["depth_scale"]["near"], about["depth_scale"]["far"]
    assert (near, far) == pytest.approx((OFFSET, OFFSET + RED), abs=0.1)
    depth = open_depth(out / "a.png", photos / "a.png", SIDE)
    assert depth.shape == (SIDE, SIDE)
    columns = (near + (far - near) * depth / 65535).mean(axis=0)
    expected = OFFSET + RED * (10 + 40 * (np.arange(SIDE) + 0.5) / SIDE) / 60
    assert abs(columns - expected).max() < 0.1
    cutout = np.zeros((20, 10, 4), np.uint8)
    cutout[2:, 2:] = 255
    (tmp_path / "cutouts").mkdir()
    Image.fromarray(cutout).save(tmp_path / "cutouts/one.png")
    (photos / "c.webp").unlink()
    made_of = compose(
        tmp_path / "data", bg=photos, fg=tmp_path / "cutouts", bg_depth=out, placements=2, size=32,
        workers=0, progress=False,
    )  # fmt: skip
    assert (made_of["samples"], made_of["depth"]) == (4, "estimated")
    assert made_of["depth_model"] == about["depth_model"]
    (out / ".depth.json").write_text('{"format": "maskdepth-depth", "version": 2}')
    with pytest.raises(DataError, match=r"\.depth\.json: version must be 1, found 2; estimate"):
        plan_metadata(make_plan(bg=photos, bg_depth=out, placements=2))
    done = CliRunner().invoke(main, ["depth", *made])
    assert "depths: exists already; --force replaces it" in done.output
    (out / "notes.txt").touch()
    done = CliRunner().invoke(main, ["depth", *made, "--force"])
    assert "found notes.txt, which `depth` has not written" in done.output


def test_backgrounds_of_a_data_set_and_of_nothing(tmp_path: Path, photos: Path) -> None:
    data = write_composites(tmp_path / "data", 4)
    write_backgrounds(list_photos(data), tmp_path / "out", MODEL, options())
    names = ["bg_001.png", "bg_002.png"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == names
    before = tree(tmp_path)
    for folder, out, message in (
        (tmp_path / "no", tmp_path / "x", "no such folder; expected a folder of photos"),
        (photos, photos / "depth", "is inside .*photos, which is read"),
        (photos, data, "found a folder or file that is no finished folder of `depth --of"),
    ):
        with pytest.raises(DataError, match=message):
            estimate_backgrounds(folder, out, "x.onnx")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (5400, "1 h 30 min"),
     (200_000, "2 d 7 h")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_log_files_have_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with Progress("depth", 400, "images") as progress:
        progress.add(100, kept=True)
        now[0] += 29
        progress.add(50)
        now[0] += 1
        progress.add(50)
        progress.add(50)
        now[0] += 30
        progress.add(150)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "depth: 200 of 400 images, 60 s left",  # 100 in 30 s
        "depth: 400 of 400 images",
    ]
    with Progress("depth", 1, "images", shown=False) as progress:
        now[0] += 60
        progress.add(1)
    assert capsys.readouterr().err == ""


def test_a_finished_run_is_not_resumed_with_other_options(tmp_path: Path) -> None:
    data = write_composites(tmp_path / "data", 4)
    write_depth(list_composites(data), MODEL, options(stretch="dataset"))
    before = tree(data)
    message = r"is finished, with other options \(batch_size, stretch\), .* --force makes all maps"
    with pytest.raises(DataError, match=message):
        write_depth(list_composites(data), MODEL, options(batch_size=3, resume=True))
    assert tree(data) == before
    made = write_depth(list_composites(data), MODEL, options(resume=True, force=True))
    assert made["depth_model"]["stretch"] == "image"
    other = DepthModel("b/model", red, "metric")  # without --resume, estimates replace estimates
    assert write_depth(list_composites(data), other, options())["depth_model"]["name"] == "b/model"
