"""The commands run end to end on a small data set, and keep their raw figures."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from maskdepth import train
from maskdepth.benchmarks.__main__ import main
from maskdepth.benchmarks.compose import compare
from maskdepth.benchmarks.estimate import work
from maskdepth.benchmarks.harness.contender import _on_device
from maskdepth.benchmarks.harness.images import Images
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.benchmarks.harness.ours import our_contenders
from maskdepth.benchmarks.harness.results import CaseResult, read_result
from maskdepth.benchmarks.harness.timing import interleave
from maskdepth.convert.dataset.compose import compose
from maskdepth.convert.errors import DataError
from maskdepth.convert.pack import pack
from maskdepth.convert.source import read_source
from maskdepth.loaders import read_layout, split_indices
from maskdepth.model.recipe import Stage
from maskdepth.model.unet import PARTS
from tests.benchmarks.running import run_benchmark


def measure(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_benchmark(tmp_path, *arguments).read_text())
    assert found["machine"]["device"] == "cpu"
    assert found["machine"]["gpu"] is None
    return found


@pytest.mark.slow
def test_convert_and_codecs(
    dataset: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskdepth.benchmarks.convert.interleave", partial(interleave, warmup=0))
    found = measure(tmp_path, "convert", dataset, "--samples", 20, "--repeats", 1, "--workers", 1)
    assert {"ours, FFCV file", "floor: read and decode"} <= set(found["cases"])
    for case in found["cases"].values():
        assert [repeat["samples"] for repeat in case["repeats"]] == [20]
    assert found["arguments"]["samples"] == "20"
    assert found["sizes"]["webdataset_bytes"] > 0
    found = measure(tmp_path, "codecs", shards, "--samples", 5, "--repeats", 1)
    assert found["cases"]["run lengths"]["figures"]["bytes"] > 0
    found = measure(tmp_path, "decode", shards, "--samples", 5, "--repeats", 1)
    sizes = {name: case["figures"]["bytes"] for name, case in found["cases"].items()}
    assert sizes["fg_bg, difference"] < sizes["fg_bg, jpeg"] / 2
    assert sizes["depth, difference-luma"] < sizes["depth, jpeg-luma"]


@pytest.mark.slow
def test_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maskdepth.benchmarks.compose.interleave", partial(interleave, warmup=0))
    one = ["--backgrounds", 1, "--foregrounds", 1, "--repeats", 1, "--workers", 0]
    found = measure(tmp_path, "compose", *one, "--scratch", tmp_path)
    assert found["arguments"]["samples"] == "40"
    assert {case["repeats"][0]["samples"] for case in found["cases"].values()} == {40}
    loop = found["cases"]["Pillow loop, reads the background for each paste"]
    assert loop["figures"] == {"largest_difference_levels": 0, "mask_pixels_that_differ": 0}
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_compose_refuses_a_loop_of_other_images(dataset: Path, tmp_path: Path) -> None:
    source = read_source(dataset)
    other = Path(shutil.copytree(dataset, tmp_path / "other"))
    assert compare(source, read_source(other))["largest_difference_levels"] == 0
    path = other / source.paths(3)[0].relative_to(dataset)
    shutil.copy(source.paths(4)[0], path)
    with pytest.raises(DataError, match="the loop's images are not ours: levels differ by up to"):
        compare(source, read_source(other))


@pytest.mark.slow
@pytest.mark.usefixtures("forked_contenders")
def test_loader(shards: Path, tmp_path: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    found = measure(tmp_path, "loader", shards, "--samples", 40, "--repeats", 1)
    assert found["arguments"]["samples"] == "40"
    for case in found["cases"].values():
        assert [repeat["samples"] for repeat in case["repeats"]] == [40]
    assert {"ours, FFCV", "ours, DALI, float", "floor: libjpeg-turbo alone"} <= set(found["cases"])
    assert found["cases"]["ours, FFCV"]["figures"]["largest_difference_levels"] == 0
    assert found["cases"]["ours, FFCV, cold cache"]["figures"]["dropped_bytes"] > 0
    # Decoding everything in advance is reported apart, and no one is compared with it.
    assert found["cases"]["ours, resident"]["figures"]["open_s"] > 0
    assert "ours, resident" not in found["ours"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_contenders")
def test_peers(dataset: Path, shards: Path, tmp_path: Path) -> None:
    only = [part for name in ("ours, DALI", "Pillow +", "stock DALI") for part in ("--only", name)]
    options = ("--samples", 60, "--repeats", 1, "--slow-share", 3, "--batch-size", 16, *only)
    found = measure(tmp_path, "peers", dataset, shards, *options)
    assert not found["skipped"]
    samples = {name: case["repeats"][0]["samples"] for name, case in found["cases"].items()}
    assert samples.pop("Pillow + DataLoader, 4 images, float") == 20
    assert len(samples) == 5
    assert set(samples.values()) == {60}


def test_step_and_epoch(shards: Path, tmp_path: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    small = ("--width", 2, "--size", 48, "--batch-size", 2, "--repeats", 1)
    found = measure(tmp_path, "step", shards, "--steps", 1, *small)
    assert set(found["ours"]) == {f"{kind} stage, ours" for kind in ("depth", "mask", "joint")}
    assert {"joint stage, ours with a camera", "joint stage, ours with Muon"} <= set(found["cases"])
    options = ("--samples", 20, "--stage", "mask", "--amp", "off")
    found = measure(tmp_path, "epoch", shards, *options, *small)
    assert found["arguments"]["samples"] == "20"
    assert found["arguments"]["amp"] == "off (float32)"
    training = found["cases"]["mask 48: training"]
    assert training["repeats"][0]["samples"] == 14
    assert {"data_wait_s", "forward_s", "stall", "cpu_compute_share"} <= set(training["figures"])
    of_a_gpu = {"stream_share", "kernel_share", "host_to_device_s", "device_used_gib", "mfu"}
    assert not of_a_gpu & set(training["figures"])
    assert "under_load_samples_per_s" not in found["cases"]["mask 48: loader"]["figures"]
    assert found["machine"]["accelerator"] is None
    assert found["skipped"] == {}
    assert found["cases"]["mask 48: validation"]["repeats"][0]["samples"] == 6


@pytest.mark.slow
@pytest.mark.usefixtures("forked_contenders")
def test_parity_on_a_cpu_is_exact(
    shards: Path, tmp_path: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("ffcv")
    found = measure(tmp_path, "parity", shards)
    levels = {
        name: case["figures"]["largest_difference_levels"] for name, case in found["cases"].items()
    }
    assert levels["ours, FFCV"] == levels["ours, DALI"] == levels["ours, resident"] == 0
    assert levels["ours, FFCV, float"] < 0.01


def test_parity_reports_every_contender_and_fails(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = CaseResult(figures={"largest_difference_levels": 0.0})

    def race(contenders: list[Any], *_: object, **__: object) -> tuple[Any, Any]:
        first, *others = (contender.name for contender in contenders)
        return {first: right}, dict.fromkeys(others, "differs by 9 levels")

    monkeypatch.setattr("maskdepth.benchmarks.loader.race", race)
    out = tmp_path / "parity.json"
    done = CliRunner().invoke(main, ["parity", str(shards), "--json", str(out)])
    assert done.exit_code == 2
    assert "resident: differs by 9 levels" in done.output.splitlines()[-1]
    found = read_result(out)
    assert len(found.cases) == 1
    assert "differs by 9 levels" in found.skipped.values()


def test_hardware_needs_a_gpu(dataset: Path, shards: Path) -> None:
    result = CliRunner().invoke(main, ["hardware", str(dataset), str(shards)])
    assert result.exit_code == 2
    assert "only a GPU" in result.output


@pytest.mark.slow
def test_recipes(shards: Path, tmp_path: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    small = ("--minutes", 0.02, "--width", 2, "--points", 1, "--samples", 5)
    found = measure(tmp_path, "recipes", shards, "--recipe", "demo", *small)
    (at_the_end,) = (name for name in found["cases"] if name.startswith("demo, "))
    assert set(found["cases"][at_the_end]["figures"]) == {"mask_iou", "depth_rmse"}
    assert found["cases"]["no network"]["figures"]["mask_iou"] > 0.5


def test_speedrun(shards: Path, tmp_path: Path, need_engine: Callable[[str], None]) -> None:
    need_engine("ffcv")
    small = ("--seeds", 2, "--width", 2, "--batch-size", 30, "--points", 2, "--samples", 5)
    found = measure(tmp_path, "speedrun", shards, "--recipe", "demo", "--limit", 1e-6, *small)
    assert float(found["arguments"]["target_iou"]) >= 0.9368
    assert {"amp", "threads"} <= set(found["arguments"])
    cases = [case for name, case in found["cases"].items() if name.startswith("demo, seed ")]
    assert {case["parameters"]["seed"] for case in cases} == {0, 1}
    assert all(case["parameters"]["reached"] == 0 for case in cases)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("speedrun", ("--recipe", "fast", "--recipe", "fast"), "found fast twice, expected"),
        ("speedrun", ("--batch-size", 99), "found 63 training samples, expected at least 99"),
        ("recipes", ("--batch-size", 99), "found 63 training samples, expected at least 99"),
    ],
)
def test_trainings_are_refused_before_they_begin(
    shards: Path,
    command: str,
    options: tuple[object, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("speedrun", "recipes"):
        monkeypatch.setattr(
            f"maskdepth.benchmarks.{module}.baselines", lambda data: pytest.fail("begun")
        )
    result = CliRunner().invoke(main, [command, str(shards), *map(str, options)])
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1


def test_quality_equals_evaluate(shards: Path, tmp_path: Path) -> None:
    recipe, folder = tmp_path / "recipe.json", tmp_path / "run"
    stage: dict[str, Any] = {"size": 32, "batch_size": 30, "lr": 0.01, "trains": list(PARTS)}
    recipe.write_text(json.dumps({"name": "one", "width": 2, "stages": [stage]}))
    run_train("fit", shards, folder, "--recipe", recipe, "--split", "bg", "--amp", "off")
    weights = folder / "best.safetensors"
    scores = json.loads(run_train("evaluate", shards, weights, "--amp", "off", "--json"))["scores"]
    cases = measure(tmp_path, "quality", folder, "--camera", "none", "--camera", 2)["cases"]
    case = cases["run"]
    assert set(cases) == {"run", "run, camera none", "run, camera 2"}
    assert cases["run, camera none"]["figures"]["mask_iou"] == case["figures"]["mask_iou"]
    assert case["parameters"]["split"] == "bg"
    assert case["figures"]["mask_iou"] == scores["network"]["mask_iou"]
    assert case["figures"]["rule_mask_iou"] == scores["difference"]["mask_iou"]
    assert case["figures"]["rule_depth_rmse"] == scores["background_depth"]["depth_rmse"]
    figures, trained = case["figures"], Stage(**stage)
    with (folder / "metrics.csv").open() as lines:
        (epoch,) = csv.DictReader(lines)
    assert figures["training_cpu_min"] == float(epoch["epoch_cpu_s"]) / 60
    assert figures["training_samples"] == len(split_indices(read_layout(shards), "bg")[0])
    pflop = figures["training_samples"] * work(trained, width=2) / 1e6
    assert figures["training_pflop"] == pytest.approx(pflop)
    few = measure(tmp_path, "quality", folder, "--samples", 4)
    assert few["arguments"] == {"samples": "4", "device": "cpu"}
    assert few["cases"]["run"]["parameters"]["validation_samples"] == 4
    refused = CliRunner().invoke(main, ["quality", str(folder), "--shards", str(shards)])
    assert refused.exit_code == 2
    assert "the data that" in refused.output
    others, packed = tmp_path / "others", tmp_path / "packed"
    compose(others, backgrounds=2, foregrounds=2, placements=10, size=96, workers=0, progress=False)
    pack(others, packed, workers=0, progress=False)
    scored = measure(tmp_path, "quality", folder, "--shards", packed)
    assert scored["arguments"] == {"samples": "all", "shards": "packed", "device": "cpu"}
    about = scored["cases"]["run"]["parameters"]
    assert (about["split"], about["validation_samples"]) == ("random", 12)
    broken = {"stage\n": "found 0 epochs of 1", "stage\n1\n": "expected stage, train_samples"}
    for text, reason in broken.items():
        (folder / "metrics.csv").write_text(text)
        refused = CliRunner().invoke(main, ["quality", str(folder)])
        assert refused.exit_code == 2
        assert reason in refused.output


def run_train(*arguments: object) -> str:
    done = CliRunner().invoke(train.main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["step", "SHARDS", "--size", "100"], "--size: size must be a multiple of 8"),
        (["step", "SHARDS", "--batch-size", "1000"], "--batch-size 1000: found 90 samples"),
        (["step", "SHARDS", "--amp", "float16"], "'float16' is not one of"),
        (["parity", "SHARDS", "--device", "foo"], "--device foo: not a device"),
        (["codecs", "SHARDS", "--json", "."], "found a folder, expected the name of a file"),
        (["codecs", "SHARDS", "--json", "notes.txt"], "exists and is no result of codecs"),
        (["codecs", "SHARDS", "--json", "step.json"], "is no result of codecs"),
        (["gpu-check", "mine", "--device", "cpu"], "not the folder of an earlier gpu-check"),
        (["loader", "nowhere"], "nowhere"),
        (["compare", "a", "b"], "Error"),
        (["loader", "SHARDS", "--batch-size", "65537"], "65537 is not in the range 1<=x<=65536"),
        (["speedrun", "SHARDS", "--batch-size", "65537"], "65537 is not in the range 1<=x<=65536"),
        (["speedrun", "SHARDS", "--width", "1025"], "1025 is not in the range 1<=x<=1024"),
        (["loader", "SHARDS", "--threads", "4097"], "4097 is not in the range 1<=x<=4096"),
        (["loader"], "Missing argument 'SHARDS'"),
        (["quality", "SHARDS"], "found a shard folder, expected a RUN_DIR, which `train.py"),
        (["quality", "nowhere"], "nowhere: found nothing, expected a RUN_DIR"),
        (["report", "SHARDS"], "found a shard folder, expected results of `python -m benchmarks`"),
        (["compare", "SHARDS", "SHARDS"], "found a shard folder, expected results"),
    ],
)
def test_mistakes_are_reported_in_one_line(
    arguments: list[str], reason: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    kept = [tmp_path / name for name in ("notes.txt", "mine/notes.txt", "step.json")]
    for path in kept:
        path.write_text('{"benchmark": "step"}')
    done = CliRunner().invoke(main, [str(shards) if a == "SHARDS" else a for a in arguments])
    assert done.exit_code == 2
    assert done.output.startswith("Error: ")
    assert reason in done.output
    assert len(done.output.splitlines()) == 1
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    assert {path.read_text() for path in kept} == {'{"benchmark": "step"}'}


def test_only_pixels_decoded_on_a_gpu_may_differ(shards: Path) -> None:
    """nvJPEG differs from libjpeg; the other engines decode on the CPU for any device."""
    loading = {"repeats": 1, "batch_size": 8, "threads": 1}
    for device, allowed in (("cpu", 0.0), ("cuda", 8.0)):
        found = our_contenders(shards, Loading(device=device, **loading))
        levels = {contender.options["engine"]: contender.levels for contender in found}
        assert levels.pop("ffcv", 0.0) == levels.pop("resident") == 0.0
        assert levels == {"dali": allowed}


def test_images_are_moved_to_the_device() -> None:
    def epochs(number: int) -> Any:
        pixels = torch.zeros(2, 3, 4, 4)
        yield from (Images(pixels, pixels, pixels, pixels, torch.arange(2)), 5)

    images, count = _on_device(epochs, torch.device("meta"), 0)
    assert isinstance(images, Images)
    assert {field.device.type for field in images} == {"meta"}
    assert count == 5
