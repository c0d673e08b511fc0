"""Depth networks of each kind: what they predict, in which direction, and what is refused."""

from __future__ import annotations

import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.dataset.networks.archive import safe_archive
from maskdepth.convert.dataset.networks.device import find_amp, find_device
from maskdepth.convert.dataset.networks.directions import direction
from maskdepth.convert.dataset.networks.load import load_model
from maskdepth.convert.dataset.networks.model import MEANING, ModelOptions
from maskdepth.convert.errors import DataError, OptionError
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

SAVE: dict[str, Callable[[Path], Path]] = {"red.pt2": save_pt2, "red.onnx": save_onnx}


def run(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["depth", *map(str, arguments)])
    assert done.exit_code == code, done.output
    if code:
        assert len(done.output.splitlines()) == 1, done.output
    return done.output


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", SAVE)
@pytest.mark.parametrize("normalise", ["imagenet", "half", "none"])
def test_exported_file_predicts_what_its_formula_says(
    tmp_path: Path, image: np.ndarray, name: str, normalise: Any
) -> None:
    SAVE[name](tmp_path / name)
    options = ModelOptions(predicts="metric", device="cpu", normalise=normalise)
    model = load_model(str(tmp_path / name), options)
    found = model.predict([model.prepare(image)] * 3)
    mean, std = {"imagenet": (0.485, 0.229), "half": (0.5, 0.5), "none": (0, 1)}[normalise]
    expected = OFFSET + RED * (image[..., 0] / 255 - mean) / std
    assert len(found) == 3
    assert all(np.allclose(one, expected, atol=1e-4) for one in found)
    assert all(one.dtype == np.float32 for one in found)


@pytest.mark.parametrize("name", ["one.pt2", "one.onnx"])
def test_exported_file_of_one_image_at_a_time(tmp_path: Path, image: np.ndarray, name: str) -> None:
    path = tmp_path / name
    save_pt2(path, any_batch=False) if name == "one.pt2" else save_onnx(path, batch=1)
    model = load_model(str(path), ModelOptions(predicts="depth", device="cpu"))
    first, second = model.predict([model.prepare(image), model.prepare(image[::-1].copy())])
    assert np.array_equal(first, second[::-1])


def test_exported_file_of_any_size_needs_one(tmp_path: Path, image: np.ndarray) -> None:
    path = save_pt2(tmp_path / "any.pt2", any_size=True)
    with pytest.raises(DataError, match=r"any\.pt2: takes images of any size; give --input-size"):
        load_model(str(path), ModelOptions(predicts="depth", device="cpu"))
    options = ModelOptions(predicts="depth", device="cpu", input_size=48)
    model = load_model(str(path), options)
    assert model.predict([model.prepare(image)])[0].shape == (48, 48)
    assert dict(model.made)["input"] == "48x48, imagenet"


@pytest.mark.parametrize("name", SAVE)
def test_command_with_an_exported_file(tmp_path: Path, name: str) -> None:
    data = write_composites(tmp_path / "data", 4)
    path = SAVE[name](tmp_path / name)
    output = run(data, "--model", path, "--device", "cpu", "--predicts", "inverse")
    assert f"{path}: inverse depth (larger is nearer), as --predicts says; dark will be" in output
    assert (
        f"{data}: 4 depth maps by {path}, which predicts inverse depth (larger is nearer)" in output
    )
    made = json.loads((data / "dataset.json").read_text())["depth_model"]
    assert (made["predicts"], made["device"], made["amp"]) == ("inverse", "cpu", "off")
    assert len(made["revision"]) == 64
    redness = np.asarray(Image.open(data / "fg_bg/bg_001/img_0001.jpg"), float)[..., 0]
    depth = np.asarray(Image.open(data / "fg_bg_depth/bg_001/img_0001.jpg"), float)[..., 0]
    assert np.corrcoef(redness.ravel(), depth.ravel())[0, 1] < -0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "red.pt2"], "not known what this file predicts; give --predicts inverse"),
        (["--model", "no.pt2"], "no.pt2: no such file"),
        (["--model", "folder.onnx"], "found a folder, expected a regular file"),
        (["--model", "text.pt2", "--predicts", "depth"], "text.pt2: no network that is safe to l"),
        (["--model", "text.onnx", "--predicts", "depth"], "text.onnx: cannot be loaded as a depth"),
        (["--model", "gray.onnx", "--predicts", "depth"], "found an input of anyx1x32x32,"),
        (["--model", "five.onnx", "--predicts", "depth"], "found an input of 5x3x32x32, expected"),
        (
            ["--model", "red.pt2", "--predicts", "depth", "--input-size", "64"],
            "red.pt2: takes images of 32x32, found --input-size 64",
        ),
        (["--model", "red.pt2", "--predicts", "depth", "--amp", "fp16"], "fp16: is for a GPU"),
        (["--model", "red.onnx", "--predicts", "depth", "--amp", "bf16"], "its own precision"),
        (["--model", "red.onnx", "--predicts", "depth", "--device", "tpu"], "device tpu: expected"),
        (["--model", "x/y", "--input-size", "64"], "--input-size: is for .pt2 and .onnx files"),
        (["--model", "red.pt2", "--range", "1", "2"], "--range: is for --stretch dataset"),
        (
            ["--model", "red.pt2", "--predicts", "metric", "--stretch", "dataset",
             "--range", "2", "1"],
            "--range: found 2 1, expected NEAR below FAR, as the model's values are metric",
        ),
        (["--model", "red.pt2", "--range", "0", "inf", "--stretch", "dataset"],
         "--range: expected two finite numbers"),
        (["--model", "red.pt2", "--out", "maps"], "--of backgrounds and --out belong together"),
        (["--model", "red.pt2", "--of", "backgrounds"], "belong together: give both, or neither"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_composites(Path("data"), 2)
    model = arguments[1]
    if model.startswith("red"):
        SAVE[model](Path(model))
    Path("folder.onnx").mkdir()
    for name in ("text.pt2", "text.onnx"):
        Path(name).write_text("no network")
    if model == "gray.onnx":
        save_onnx(Path(model), channels=1)
    if model == "five.onnx":
        save_onnx(Path(model), batch=5)
    assert message in run("data", *arguments, code=2)
    assert not Path("data/fg_bg_depth").exists()


@pytest.mark.parametrize(
    ("name", "config", "predicts"),
    [
        ("x", {"model_type": "dpt"}, "inverse"),
        ("x", {"model_type": "dpt", "backbone_config": SimpleNamespace(model_type="beit")},
         "inverse"),
        ("x", {"model_type": "dpt", "backbone_config": SimpleNamespace(model_type="dinov2")}, None),
        ("x", {"model_type": "depth_anything", "depth_estimation_type": "relative"}, "inverse"),
        ("x", {"model_type": "depth_anything", "depth_estimation_type": "metric"}, "metric"),
        ("x", {"model_type": "zoedepth"}, "metric"),
        ("x", {"model_type": "depth_pro"}, "metric"),
        ("x", {"model_type": "glpn"}, "metric"),
        ("x", {"model_type": "new"}, None),
        ("depth-anything/DA3-SMALL", {"model_type": "new"}, "depth"),
        ("nets/Depth_Anything_V3.onnx", None, "depth"),
        ("DA3METRIC-LARGE.pt2", None, "depth"),
        ("nets/depth_anything_v2_vits.onnx", None, "inverse"),
        ("depth-anything-v2-metric-indoor.pt2", None, "metric"),
        ("Metric/depth_anything_v2.pt2", None, "inverse"),
        ("dpt_swin2_tiny_256.onnx", None, "inverse"),
        ("midas_v21_small.onnx", None, "inverse"),
        ("ZoeDepth_NK.onnx", None, "metric"),
        ("depth_pro.onnx", None, None),
        ("model.onnx", None, None),
    ],
)  # fmt: skip
def test_direction(name: str, config: dict | None, predicts: Any) -> None:
    made = None if config is None else SimpleNamespace(**config)
    assert direction(name, made, "depth") == ("depth", "as --predicts says")
    if predicts is not None:
        assert direction(name, made, None)[0] == predicts
        return
    with pytest.raises(DataError, match=r"it is not known what .* predicts; give --predicts inv"):
        direction(name, made, None)


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of a .pt2 file with other members; None leaves one out."""
    copy = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            content = change(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return copy


class Attack:
    """A pickle that leaves a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return Path.touch, (self.mark,)


def change_program(change: Callable[[dict], object]) -> Callable[[str, bytes], bytes]:
    def apply(name: str, content: bytes) -> bytes:
        if not name.startswith("models/"):
            return content
        program = json.loads(content)
        change(program)
        return json.dumps(program).encode()

    return apply


def test_what_torch_would_run_is_left_out(tmp_path: Path) -> None:
    """Pickles of sample inputs and guards, which are Python: torch runs both."""
    mark, path = tmp_path / "mark", save_pt2(tmp_path / "red.pt2")
    code = f"__import__('pathlib').Path({str(mark)!r}).touch() is None"
    guarded = rewritten(path, change_program(lambda program: program["guards_code"].append(code)))
    pixels = torch.zeros(2, 3, SIDE, SIDE)
    torch.export.load(guarded).module()(pixels)
    assert mark.exists(), "otherwise this attack is none"
    mark.unlink()
    torch.export.load(safe_archive(guarded)).module()(pixels)
    assert not mark.exists()
    attack = pickle.dumps(Attack(mark))
    pickled = rewritten(path, lambda n, c: attack if n.startswith("data/sample_inputs/") else c)
    assert torch.export.load(safe_archive(pickled)).module()(pixels).shape == (2, SIDE, SIDE)
    assert not mark.exists()


def first_node(program: dict) -> dict[str, Any]:
    return program["graph_module"]["graph"]["nodes"][0]


def spoil_shape(program: dict) -> None:
    values = program["graph_module"]["graph"]["tensor_values"]["pixels"]
    values["sizes"][0]["as_expr"]["expr_str"] = "__import__('os').system('true')"


HOSTILE: dict[str, tuple[Callable[[dict], object], str]] = {
    "function": (
        lambda p: first_node(p).update(target="torch.hub.load"),
        "operator 'torch.hub",
    ),
    "file": (
        lambda p: first_node(p).update(target="torch.ops.aten.from_file.default"),
        "the operator 'torch.ops.aten.from_file",
    ),
    "shape": (spoil_shape, "the shape"),
    "name": (
        lambda p: p["graph_module"]["graph"]["inputs"][-1]["as_tensor"].update(name="x=print()"),
        "name 'x=print",
    ),
    "argument": (
        lambda p: first_node(p)["inputs"][0].update(name="input, **print()"),
        "name 'input, ",
    ),
    "function as an argument": (
        lambda p: first_node(p)["inputs"][0].update(arg={"as_operator": "torch.hub.load"}),
        "the operator 'torch.hub",
    ),
    "annotation": (
        lambda p: p["graph_module"]["graph"]["inputs"][-1]["as_tensor"].update(name="x:y"),
        "name 'x:y'",
    ),
    "type": (
        lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(
            out_spec=json.dumps([1, {"type": "os.x", "context": "null", "children_spec": []}])
        ),
        "inputs or outputs in a 'os.x'",
    ),
    "missing": (lambda p: p.pop("graph_module"), "graph_module"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_program_is_refused(tmp_path: Path, kind: str) -> None:
    change, message = HOSTILE[kind]
    path = rewritten(save_pt2(tmp_path / "red.pt2"), change_program(change))
    with pytest.raises(DataError, match=r"changed\.pt2: no network that is safe to load") as caught:
        safe_archive(path)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    path = save_pt2(tmp_path / "red.pt2")

    def use_pickle(name: str, content: bytes) -> bytes:
        return content.replace(b'"use_pickle": false', b'"use_pickle": true')

    with pytest.raises(DataError, match="is a pickle"):
        safe_archive(rewritten(path, use_pickle))
    for extra in ("data/aotinductor/model/x.so", "data/constants/opaque_obj_0", "../x", "code.py"):
        copy = rewritten(path, lambda _, content: content)
        with zipfile.ZipFile(copy, "a") as archive:
            archive.writestr(f"red/{extra}", b"")
        with pytest.raises(DataError, match="which no network needs"):
            safe_archive(copy)
    copy = rewritten(path, lambda _, content: content)
    with zipfile.ZipFile(copy, "a") as archive:
        archive.writestr("red/MODELS/model.json", b"{}")
    with pytest.raises(DataError, match="two members of one name"):
        safe_archive(copy)
    copy = rewritten(path, lambda _, content: content)
    with zipfile.ZipFile(copy, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("red/data/weights/weight_9", bytes(10**6))
    with pytest.raises(DataError, match="a member is compressed"):
        safe_archive(copy)
    data = path.read_bytes()
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        copy.write_bytes(data[:cut])
        with pytest.raises(DataError, match="safe to load"):
            safe_archive(copy)


def leaves(value: Any) -> list[tuple[Any, Any]]:
    """Every place in nested tables and lists: what holds it, and its key."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += leaves(value[key])
    return found


def test_any_damage_is_an_error_of_one_line(tmp_path: Path, image: np.ndarray) -> None:
    """Or none: much of a file does not matter."""
    rng = random.Random(0)
    pt2, onnx = save_pt2(tmp_path / "red.pt2"), save_onnx(tmp_path / "red.onnx")
    others: list[Any] = [None, 0, -1, 2**70, "", "x", [], {}, 1.5, True]

    def damaged(number: int) -> Path:
        if number % 2:
            data = bytearray(onnx.read_bytes())
            data[rng.randrange(len(data))] = rng.randrange(256)
            path = tmp_path / "damaged.onnx"
            path.write_bytes(data)
            return path

        def change(program: dict) -> None:
            holder, key = rng.choice(leaves(program))
            holder[key] = rng.choice(others)

        return rewritten(pt2, change_program(change))

    errors: list[str] = []
    for number in range(60):
        try:
            model = load_model(str(damaged(number)), ModelOptions(predicts="depth", device="cpu"))
            model.predict([model.prepare(image)] * 2)
        except DataError as error:
            errors.append(error.message)
    assert len(errors) > 30
    assert not any("\n" in error for error in errors)


def test_safe_archive_computes_the_same(tmp_path: Path) -> None:
    path = save_pt2(tmp_path / "red.pt2")
    pixels = torch.rand(3, 3, SIDE, SIDE)
    found, expected = (torch.export.load(f).module()(pixels) for f in (safe_archive(path), path))
    assert torch.equal(found, expected)


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_amp("auto", torch.device("cpu")) == find_amp("off", torch.device("cpu")) == "off"
    assert find_amp("auto", torch.device("cuda")) == "fp16"
    for name in ("meta", "gpu", "cuda:99"):
        with pytest.raises(DataError, match=f"device {name}: "):
            find_device(name)
    with pytest.raises(OptionError, match="expected 8 to 4096"):
        ModelOptions(input_size=1)


@needs_transformers
@pytest.mark.slow  # importing transformers takes long
@pytest.mark.parametrize(
    ("kind", "predicts"), [("depth_anything", "inverse"), ("dpt", "inverse"), ("glpn", "metric")]
)
def test_model_of_transformers(tmp_path: Path, kind: str, predicts: str) -> None:
    data = write_composites(tmp_path / "data", 6)
    folder = save_transformers(tmp_path / kind, kind)
    command = [data, "--model", folder, "--device", "cpu"]
    output = run(*command, "--batch-size", "4")
    assert f"by its configuration ({kind})" in output
    assert f"6 depth maps by {folder}, which predicts {MEANING[predicts]}" in output

    def maps() -> list[np.ndarray]:
        files = sorted((data / "fg_bg_depth").rglob("*.jpg"))
        return [np.asarray(Image.open(file), float)[..., 0] for file in files]

    found = maps()
    assert {one.shape for one in found} == {(SIDE, SIDE)}
    assert all(one.min() <= 15 and one.max() >= 240 for one in found)
    run(*command, "--predicts", "depth" if predicts == "inverse" else "inverse")
    turned = maps()
    assert all(abs(255.0 - a - b).mean() < 3 for a, b in zip(found, turned, strict=True)), (
        "the same model with the opposite meaning of its values"
    )


@needs_transformers
@pytest.mark.slow
@pytest.mark.parametrize("content", [None, '{"model_type": "vit"}', "no JSON"])
def test_a_folder_without_a_depth_model_is_refused(tmp_path: Path, content: str | None) -> None:
    data, folder = write_composites(tmp_path / "data", 2), tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_text(content)
    assert "model: cannot be loaded as a depth model" in run(data, "--model", folder, code=2)
    assert not (data / "fg_bg_depth").exists()
