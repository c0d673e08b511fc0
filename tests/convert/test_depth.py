"""Depth maps by a model: their form, all or nothing, and tiny real models."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from maskdepth.convert.__main__ import main
from maskdepth.convert.dataset import depth
from maskdepth.convert.dataset.depth import DepthOptions, estimate, write_depth
from maskdepth.convert.dataset.depth_inputs import list_composites
from maskdepth.convert.dataset.depth_maps import encode_map, range_of, resize
from maskdepth.convert.dataset.networks.model import DepthModel, Predicts
from maskdepth.convert.errors import DataError, RecordError
from maskdepth.convert.source import read_source
from tests.pictures import jpeg_bytes, smooth
from tests.trees import tree

HEIGHT, WIDTH = 48, 64
QUIET = DepthOptions(progress=False)
FORCED = DepthOptions(force=True, progress=False)


def red(images: list[np.ndarray]) -> list[np.ndarray]:
    """A predictor whose depth is how red a pixel is, 2 to 3."""
    return [2 + image[..., 0] / np.float32(255) for image in images]


def fake(predict=red, predicts: Predicts = "metric") -> DepthModel:
    made = (("library", "none 1.0"),)
    return DepthModel(name="a/model", predict=predict, predicts=predicts, made=made)


def encode(depth: np.ndarray, predicts: Predicts, size: tuple[int, int]) -> bytes:
    """A map that is stretched to its own range."""
    resized = resize(depth, size)
    return encode_map(resized, range_of(resized, predicts))


def gray(data: bytes) -> np.ndarray:
    """Luma of a depth map, which must be stored as RGB and be gray."""
    image = Image.open(io.BytesIO(data))
    pixels = np.asarray(image)
    assert image.mode == "RGB"
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """2 backgrounds with 3 composites each, masks, and no depth."""
    folder = tmp_path / "dataset"
    for name in ("bg_001", "bg_002"):
        for kind in ("bg", f"fg_bg/{name}", f"fg_bg_mask/{name}"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / f"bg/{name}.jpg").write_bytes(jpeg_bytes(smooth(HEIGHT, WIDTH)))
        for sample in range(1, 4):
            seed = 10 * int(name[-1]) + sample
            channels = [smooth(HEIGHT, WIDTH, 3 * seed + c) for c in range(3)]
            picture = jpeg_bytes(np.stack(channels, axis=-1))
            (folder / f"fg_bg/{name}/img_{sample:04d}.jpg").write_bytes(picture)
            mask = jpeg_bytes((channels[0] > 128).astype(np.uint8) * 255)
            (folder / f"fg_bg_mask/{name}/img_{sample:04d}.jpg").write_bytes(mask)
    return folder


@pytest.fixture
def finished(bare: Path) -> Path:
    """The same with depth maps that `dataset.json` calls true."""
    write_depth(list_composites(bare), fake(), QUIET)
    (bare / "dataset.json").write_text('{"depth": "true", "samples_per_fg": 3}')
    return bare


def test_maps_are_a_data_set_that_can_be_packed(bare: Path) -> None:
    before = tree(bare)
    metadata = write_depth(
        list_composites(bare), fake(), DepthOptions(batch_size=4, progress=False)
    )
    source = read_source(bare)  # names and counts agree
    assert source.layout.samples == 6
    assert source.metadata == metadata
    assert {name: data for name, data in tree(bare).items() if name in before} == before
    assert {path.name for path in bare.iterdir()} == {
        *("bg", "fg_bg", "fg_bg_mask", "fg_bg_depth", "dataset.json")
    }
    for index in range(6):
        fg_bg, _, path = source.paths(index)
        redness = np.asarray(Image.open(fg_bg))[..., 0].astype(float)
        expected = (redness - redness.min()) * 255 / np.ptp(redness)
        found = gray(path.read_bytes()).astype(float)
        assert found.shape == (HEIGHT, WIDTH)
        assert abs(found - expected).mean() < 3, "more than the loss of JPEG"


def test_dataset_json_describes_the_depth(finished: Path) -> None:
    composites = list_composites(finished)
    metadata = write_depth(composites, fake(predicts="inverse"), FORCED)
    assert json.loads((finished / "dataset.json").read_text()) == metadata
    assert metadata == {
        "depth": "estimated",
        "samples_per_fg": 3,
        "depth_model": {
            "name": "a/model",
            "predicts": "inverse",
            "library": "none 1.0",
            "batch_size": 2,
            "stretch": "image",
            "images": 6,
        },
    }


@pytest.mark.parametrize("size", [1, 4, 100])
def test_model_sees_all_composites_with_any_batch_size(bare: Path, size: int) -> None:
    seen: list[np.ndarray] = []
    sizes: list[int] = []

    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        seen.extend(images)
        sizes.append(len(images))
        return red(images)

    write_depth(list_composites(bare), fake(predict), DepthOptions(batch_size=size, progress=False))
    files = sorted((bare / "fg_bg").rglob("*.jpg"))
    expected = sorted(np.asarray(Image.open(file)).tobytes() for file in files)
    assert sorted(image.tobytes() for image in seen) == expected
    assert sorted(sizes) == {1: [1] * 6, 4: [2, 4], 100: [6]}[size]


def test_near_is_dark_for_both_kinds_of_prediction() -> None:
    distance = np.linspace(1, 9, 64 * 64, dtype=np.float32).reshape(64, 64)
    metric = gray(encode(distance, "metric", (64, 64)))
    inverse = gray(encode(-3 * distance + 5, "inverse", (64, 64)))
    assert metric[0, 0] <= 2
    assert metric[-1, -1] >= 253
    assert np.array_equal(metric, inverse)


def test_flat_and_small_predictions() -> None:
    assert (gray(encode(np.full((8, 8), 7.0), "inverse", (8, 8))) == 0).all()
    ramp = np.linspace(0, 1e-9, 5)[None].repeat(3, axis=0)
    large = gray(encode(ramp, "metric", (24, 40)))
    assert large.shape == (24, 40)
    assert large[:, 0].max() <= 3
    assert large[:, -1].min() >= 252


def test_jpeg_has_the_form_of_composed_depth(finished: Path, dataset: Path) -> None:
    """Quantisation and subsampling are those of the maps that `compose` writes."""
    ours = JpegImageFile(next((finished / "fg_bg_depth").rglob("*.jpg")))
    theirs = JpegImageFile(next((dataset / "fg_bg_depth").rglob("*.jpg")))
    assert ours.quantization == theirs.quantization
    assert ours.layer == theirs.layer
    assert ours.mode == theirs.mode


def no_model(name: str, *_: object) -> DepthModel:
    raise DataError(f"{name}: no such model")


@pytest.mark.parametrize(
    ("metadata", "about"),
    [('{"depth": "true"}', "true, of drawn"), ('{"depth": "given"}', "given"), ("{}", "not known")],
)
def test_depth_maps_are_replaced_only_by_force(
    finished: Path, metadata: str, about: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finished / "dataset.json").write_text(metadata)
    before = tree(finished)
    monkeypatch.setattr(depth, "load_model", no_model)
    with pytest.raises(DataError, match="wrong: no such model"):
        estimate(finished, "wrong", progress=False)
    monkeypatch.setattr(depth, "load_model", lambda *_, **__: fake(predicts="inverse"))
    message = rf"fg_bg_depth: found depth maps \({about}.*\), which estimates of a/model would repl"
    with pytest.raises(DataError, match=message):
        estimate(finished, "a/model", progress=False)
    assert tree(finished) == before
    estimate(finished, "a/model", force=True, progress=False)
    after = tree(finished)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {
        name for name in after if name.startswith(("fg_bg_depth/", "dataset.json"))
    }


def test_a_background_may_have_any_name(bare: Path) -> None:
    """No name of a background is that of the folder in which replaced maps are kept."""
    for path in sorted(bare.rglob("bg_001*"), reverse=True):
        path.rename(path.with_name(path.name.replace("bg_001", "replaced")))
    for _ in range(2):
        write_depth(list_composites(bare), fake(), QUIET)
        maps = {name for name in tree(bare) if name.startswith("fg_bg_depth/")}
        composites = {name for name in tree(bare) if name.startswith("fg_bg/")}
        assert {name.replace("_depth", "", 1) for name in maps} == composites


def test_the_sequence_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compose` with photos writes a prior, which `depth` replaces, as often as it is run."""
    for name, mode, size in (("photos", "RGB", (64, 48)), ("cutouts", "RGBA", (9, 24))):
        (tmp_path / name).mkdir()
        image = Image.fromarray(smooth(size[1], size[0])).convert(mode)
        if mode == "RGBA":
            image.putpixel((0, 0), (0, 0, 0, 0))
        image.save(tmp_path / name / "one.png")
    lines = (Path(__file__).parents[2] / "docs/guide.md").read_text().splitlines()
    photos, estimated = (
        next(line for line in lines if line.startswith(f"python -m convert {start}"))
        .partition("#")[0]
        .split()[3:]
        for start in ("compose mine", "depth mine")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(depth, "load_model", lambda *_, **__: fake())
    done = CliRunner().invoke(
        main, [*photos, "--placements", "2", "--size", "32", "--workers", "0"]
    )
    assert "depth: prior" in done.output
    for _ in range(2):
        done = CliRunner().invoke(main, estimated)
        assert (done.exit_code, "2 depth maps" in done.output) == (0, True), done.output
    assert read_source(tmp_path / "mine").metadata["depth"] == "estimated"


def test_link_to_depth_maps_is_refused(finished: Path, tmp_path: Path) -> None:
    (finished / "fg_bg_depth").rename(tmp_path / "elsewhere")
    (finished / "fg_bg_depth").symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    with pytest.raises(DataError, match=r"fg_bg_depth: is a link, .*; remove the link"):
        write_depth(list_composites(finished), fake(), DepthOptions(force=True, progress=False))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(b"no image"), "not a JPEG"),
        (lambda path: path.write_bytes(path.read_bytes()[:400]), "fix or replace"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: Image.new("CMYK", (WIDTH, HEIGHT)).save(path), "a CMYK JPEG"),
        (lambda path: (path.unlink(), path.mkdir()), "found a folder"),
    ],
    ids=["other", "cut", "empty", "cmyk", "folder"],
)
@pytest.mark.parametrize("folder", ["bare", "finished"])
def test_unreadable_composite_is_named_and_nothing_changes(
    request: pytest.FixtureRequest, folder: str, spoil, reason: str
) -> None:
    dataset = request.getfixturevalue(folder)
    path = dataset / "fg_bg/bg_002/img_0002.jpg"
    spoil(path)
    before = tree(dataset), sorted(dataset.iterdir())
    composites = list_composites(dataset)
    with pytest.raises(RecordError, match=reason) as caught:
        write_depth(composites, fake(), DepthOptions(batch_size=2, force=True, progress=False))
    assert (caught.value.index, caught.value.field, caught.value.where) == (4, "fg_bg", str(path))
    assert (tree(dataset), sorted(dataset.iterdir())) == before


@pytest.mark.parametrize("error", [DataError("a GPU is full"), KeyboardInterrupt()])
def test_failing_model_leaves_nothing(finished: Path, error: BaseException) -> None:
    before = tree(finished)

    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        if len(images) == 2:
            raise error
        return red(images)

    composites = list_composites(finished)
    with pytest.raises(type(error)):
        write_depth(
            composites, fake(predict), DepthOptions(batch_size=4, force=True, progress=False)
        )
    assert tree(finished) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_prediction_that_is_not_finite_is_refused(bare: Path, value: float) -> None:
    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        maps = red(images)
        maps[1][3, 3] = value
        return maps

    with pytest.raises(RecordError, match=r"record 1, depth .*img_0002\.jpg.*not finite"):
        write_depth(list_composites(bare), fake(predict), QUIET)
    assert not (bare / "fg_bg_depth").exists()


def test_full_disk_is_one_clear_error(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    before, composites = tree(finished), list_composites(finished)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=r"partial: No space left on device; fix that"):
        write_depth(composites, fake(), FORCED)
    assert tree(finished) == before


@pytest.mark.parametrize("existing", [True, False])
def test_after_a_failed_renaming_the_old_maps_are_there_and_the_new_ones_kept(
    finished: Path, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not existing:
        shutil.rmtree(finished / "fg_bg_depth")
    before, composites = tree(finished), list_composites(finished)
    work, rename = finished / "fg_bg_depth.partial", Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path == work:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        with pytest.raises(
            DataError, match=r"Input/output error; fix that and run again with --res"
        ):
            write_depth(composites, fake(), FORCED)
    now = tree(finished)
    assert {name: now[name] for name in now if not name.startswith(work.name)} == before
    options = DepthOptions(force=existing, resume=True, progress=False)
    metadata = write_depth(composites, fake(None), options)  # nothing is left to predict
    assert metadata["depth"] == read_source(finished).metadata["depth"] == "estimated"
    assert not work.exists()


def test_maps_that_were_written_meanwhile_are_kept(bare: Path) -> None:
    composites = list_composites(bare)

    def predict(images: list[np.ndarray]) -> list[np.ndarray]:
        (bare / "fg_bg_depth").mkdir(exist_ok=True)
        (bare / "fg_bg_depth/mine.txt").write_text("mine")
        return red(images)

    message = (
        r"fg_bg_depth: exists already; .*the finished folder of depth maps is .*partial: --res"
    )
    with pytest.raises(DataError, match=message):
        write_depth(composites, fake(predict), QUIET)
    assert tree(bare / "fg_bg_depth") == {"mine.txt": b"mine"}


def test_files_of_a_user_among_the_maps_are_kept(finished: Path) -> None:
    (finished / "fg_bg_depth/bg_001/note.txt").touch()
    with pytest.raises(DataError, match=r"found bg_001/note\.txt, which `depth` has not written"):
        write_depth(list_composites(finished), fake(), FORCED)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: (d / "bg").rename(d / "backs"), r"bg: no such folder"),
        (lambda d: (d / "fg_bg").rename(d / "composites"), r"fg_bg/bg_001: no such folder"),
        (lambda d: [p.unlink() for p in (d / "bg").iterdir()], r"bg: found no images"),
        (
            lambda d: [p.unlink() for p in (d / "fg_bg/bg_002").iterdir()],
            r"fg_bg/bg_002: found no images",
        ),
        (lambda d: (d / "bg/bg_001.jpg").unlink(), r"bg_001: found a folder without a background"),
        (lambda d: (d / "fg_bg/bg_001/note.txt").touch(), r"note\.txt: found a file that is not"),
        (lambda d: (d / "dataset.json").write_text("[]"), r"dataset\.json: expected a table"),
    ],
    ids=["no-bg", "no-fg_bg", "empty-bg", "empty-group", "stray-group", "stray-file", "json"],
)
def test_unusable_folder_is_refused_before_a_model_is_loaded(
    bare: Path, spoil, message: str
) -> None:
    spoil(bare)
    before = tree(bare)
    with pytest.raises(DataError, match=message):
        estimate(bare, "no/such-model", progress=False)
    assert tree(bare) == before


def test_without_transformers_the_error_says_what_to_install(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = CliRunner().invoke(main, ["depth", str(bare), "--model", "a/model"])
    assert done.exit_code == 2
    assert "pip install 'maskdepth[depth]'" in done.output
    assert len(done.output.splitlines()) == 1
    assert not (bare / "fg_bg_depth").exists()
