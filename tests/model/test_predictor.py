"""Prediction and export: preprocessing as in training, results at the size of the input."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from maskdepth.convert.errors import DataError
from maskdepth.convert.outputs import is_output
from maskdepth.loaders import Backgrounds, Batch, Layout, Preprocess
from maskdepth.model import DualDecoderUNet, ModelError
from maskdepth.model.checkpoint import ChannelStatistics, NetworkInfo
from maskdepth.model.inference import predict
from maskdepth.model.inference.export import export_network
from maskdepth.model.inference.pairs import Pair, pair_images, require_usable
from maskdepth.model.inference.predict import naming_rest, predict_files
from maskdepth.model.inference.predictor import Predictor, input_size, resize
from maskdepth.model.pictures import Example, draw_curves, draw_predictions
from tests.pictures import jpeg_bytes, texture

PHOTOS = Path(__file__).parents[3] / "shared/seed_samples"

INFO = NetworkInfo(
    width=2,
    size=32,
    depth_loss="l1",
    statistics={
        "bg": ChannelStatistics((0.1, 0.2, 0.3), (0.2, 0.25, 0.3)),
        "fg_bg": ChannelStatistics((0.4, 0.5, 0.6), (0.3, 0.35, 0.4)),
    },
)


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(DualDecoderUNet(2), INFO)


def _pixels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("stored", [(32, 32), (64, 64), (80, 48), (24, 24), (24, 96)])
def test_same_result_as_preprocess_and_network(
    predictor: Predictor, stored: tuple[int, int]
) -> None:
    height, width = stored
    bg, fg_bg = (torch.from_numpy(_pixels(*stored, seed=s)).permute(2, 0, 1)[None] for s in (0, 1))
    layout = Layout(height=height, width=width, group_starts=np.array([0, 1]), samples_per_fg=None)
    gray = torch.zeros(1, 1, *stored, dtype=torch.uint8)
    preprocess = Preprocess(Backgrounds(bg, layout), INFO.statistics, size=32)
    inputs = preprocess(Batch(fg_bg, gray, gray, torch.zeros(1, dtype=torch.int64)))
    with torch.no_grad():
        mask_logits, depth = predictor.network(inputs.bg, inputs.fg_bg)
        ours = predictor(resize(bg, (32, 32)), resize(fg_bg, (32, 32)))
    torch.testing.assert_close(ours[0], mask_logits.sigmoid())
    torch.testing.assert_close(ours[1], depth.clamp(0, 1))


@pytest.mark.parametrize(
    ("photo", "expected"),
    [((900, 1600), (160, 288)), ((1600, 900), (288, 160)), ((700, 700), (160, 160)),
     ((100, 103), (160, 168)), ((100, 102), (160, 160)), ((50, 400), (160, 1280))],
)  # fmt: skip
def test_the_network_sees_photos_in_their_proportions(
    photo: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert input_size(*photo, 160) == expected
    (height, width), (rows, columns) = photo, expected
    assert abs(rows / columns * width / height - 1) <= 4 / 160


def test_a_part_of_a_wide_photo_is_seen_as_if_it_was_alone(predictor: Predictor) -> None:
    bg, fg_bg = (_pixels(128, 128, seed) for seed in (0, 1))
    wide_bg, wide_fg_bg = (np.concatenate([x, x[:, :64]], axis=1) for x in (bg, fg_bg))
    part = predictor.inputs_of(wide_bg, wide_fg_bg, input_size(128, 192, 32))
    for one, other in zip(part, predictor.inputs_of(bg, fg_bg, (32, 32)), strict=True):
        assert one.shape == (1, 3, 32, 48)
        torch.testing.assert_close(one[..., :32], other)
    assert [result.shape for result in predictor.predict_image(wide_bg, wide_fg_bg)] == [
        (128, 192)
    ] * 2


def test_results_have_the_size_of_the_input(predictor: Predictor, tmp_path: Path) -> None:
    for name, seed in (("bg", 0), ("fg_bg", 1)):
        Image.fromarray(_pixels(50, 70, seed)).save(tmp_path / f"{name}.png")
    out = tmp_path / "out"
    pairs = pair_images(str(tmp_path / "bg.png"), str(tmp_path / "fg_bg.png"))
    ((paths, note),) = predict_files(predictor, pairs, out)
    assert "70x50 pixels, too few to align (expected 9,216 or more); bg is used as it is" in note
    mask, depth = (np.asarray(Image.open(path)) for path in paths[:2])
    assert mask.shape == depth.shape == (50, 70)
    assert set(np.unique(mask)) <= {0, 255}
    assert Image.open(paths[2]).format == "PNG"
    assert sorted(out.iterdir()) == sorted(paths)
    assert [p.name for p in paths] == [f"fg_bg_{k}.png" for k in ("mask", "depth", "side_by_side")]


def test_unequal_or_unreadable_images_are_named(predictor: Predictor, tmp_path: Path) -> None:
    valid, other, text = tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"
    Image.fromarray(_pixels(40, 40)).save(valid)
    Image.fromarray(_pixels(40, 48)).save(other)
    text.write_text("not an image")
    line = tmp_path / "line.png"
    Image.fromarray(_pixels(10, 90)).save(line)
    for bg, fg_bg, message in (
        (valid, other, "48x40, but .* is 40x40"),
        (line, line, "line.png: found 90x10, expected at most 8 times"),
        (valid, text, r"c\.png: found no readable image"),
        (tmp_path / "none.png", valid, "no such file"),
    ):
        with pytest.raises((DataError, ModelError), match=message):
            list(predict_files(predictor, pair_images(str(bg), str(fg_bg)), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_errors_of_odd_names_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "a\nb"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"a\\nb: found no image") as caught:
        pair_images(str(folder), str(folder))
    assert "\n" not in caught.value.message
    (folder / "x").touch()
    with pytest.raises(DataError, match=r"a\\nb/x: found a file, .* order is CHECKPOINT OUT_DIR"):
        predict.require_results([], folder / "x")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One background and three photos, in folders empty and people."""
    for seed, name in enumerate(("empty/bg", "people/a", "people/b", "people/c")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(_pixels(40, 40, seed)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_all_problems_of_headers_are_found_before_the_network_runs(photos: Path) -> None:
    (photos / "people/a.png").write_bytes(b"")
    Image.fromarray(_pixels(40, 48)).save(photos / "people/c.png")
    pairs = pair_images(str(photos / "empty"), str(photos / "people"))
    with pytest.raises(DataError) as caught:
        require_usable(pairs)
    first, a, c = caught.value.message.splitlines()
    assert first == "2 problems; nothing was predicted"
    assert "a.png: found an empty file" in a
    assert "c.png is 48x40, but" in c
    (photos / "empty/bg.png").unlink()
    with pytest.raises(ModelError, match="empty: found no image"):
        pair_images(str(photos / "empty"), str(photos / "people"))


def test_irregular_files_among_photos_are_all_listed(photos: Path) -> None:
    for name in ("a", "c"):
        (photos / f"people/{name}.png").unlink()
        os.mkfifo(photos / f"people/{name}.png")
    for name in ("._b.png", ".DS_Store", "Thumbs.db"):
        (photos / "people" / name).write_text("of a file manager")
    pairs = pair_images(str(photos / "empty"), str(photos / "people"))
    assert [pair.name for pair in pairs] == ["a", "b", "c"]
    with pytest.raises(DataError) as caught:
        require_usable(pairs)
    _, *found = caught.value.message.splitlines()
    assert all("found a named pipe" in line for line in found)
    assert len(found) == 2


def test_a_pair_that_cannot_be_used_does_not_stop_the_others(
    predictor: Predictor, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resume` does what is left, and what was made of something else."""
    picture = predict._png(_pixels(1, 1))  # drawing one takes long
    monkeypatch.setattr(predict, "predictions_png", lambda *_: picture)
    damaged, out = photos / "people/b.jpg", photos / "out"
    (photos / "people/b.png").unlink()
    whole = jpeg_bytes(_pixels(40, 40))
    damaged.write_bytes(whole[:-300])
    pairs = pair_images(str(photos / "empty"), str(photos / "people"))
    require_usable(pairs)  # its header is whole
    with pytest.raises(DataError, match=r"b\.jpg: .*; expected a complete, readable image"):
        list(predict_files(predictor, pairs, out))
    assert len(list(out.iterdir())) == 6
    damaged.write_bytes(whole)

    def again(**options: Any) -> list[str]:
        """The pairs that are not left out."""
        found = predict_files(predictor, pairs, out, resume=True, **options)
        return [pair.name for pair, p in zip(pairs, found, strict=True) if "already" not in p.note]

    assert again() == ["b"]
    assert again() == []
    assert again(threshold=0.25) == again(align=False) == again() == ["a", "b", "c"]
    Image.fromarray(_pixels(40, 40, 9)).save(photos / "people/c.png")
    (out / "a_mask.png").unlink()
    assert again() == ["a", "c"]
    (out / "b_depth.png").unlink()
    assert again() == ["b"]
    predictor.network.state_dict()["encoder.inc.0.weight"].add_(1e-6)
    assert again() == ["a", "b", "c"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, DataError("x")])
def test_what_is_done_is_named_at_an_interrupt(
    predictor: Predictor, photos: Path, error: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = pair_images(str(photos / "empty"), str(photos / "people"))

    def predict_one() -> None:
        with naming_rest(pairs, photos / "out") as done:
            done.append(next(predict_files(predictor, pairs, photos / "out")))
            raise error

    with pytest.raises((KeyboardInterrupt, SystemExit, DataError)):
        predict_one()
    rest = "1 of 3 pairs are done, 2 not; the same command with --resume does the rest"
    assert capsys.readouterr().err == f"{photos}/out: {rest}\n"


def test_results_beside_the_photos_are_not_taken_for_photos(
    predictor: Predictor, tmp_path: Path
) -> None:
    """OUT_DIR is the folder of the photos, and the command is run twice."""
    for name, seed in (("bg", 0), ("a", 1), ("b", 2)):
        folder = tmp_path / ("empty" if name == "bg" else "people")
        folder.mkdir(exist_ok=True)
        Image.fromarray(_pixels(40, 40, seed)).save(folder / f"{name}.png")
    people = tmp_path / "people"
    for pattern in (str(people), f"{people}/*.png"):
        pairs = pair_images(str(tmp_path / "empty"), pattern)
        assert [pair.name for pair in pairs] == ["a", "b"]
        assert len(list(predict_files(predictor, pairs, people))) == 2
        assert len(list(people.iterdir())) == 2 + 2 * 3


def test_no_photo_is_replaced(predictor: Predictor, tmp_path: Path) -> None:
    """A photo that has the name of another's result: nothing is written, not even the first."""
    for name, seed in (("a", 0), ("b", 1), ("b_mask", 2)):
        Image.fromarray(_pixels(40, 40, seed)).save(tmp_path / f"{name}.png")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    pairs = pair_images(str(tmp_path / "a.png"), f"{tmp_path}/*.png")
    with pytest.raises(DataError, match=r"b_mask\.png: is an input of this command"):
        list(predict_files(predictor, pairs, tmp_path))
    with pytest.raises(DataError, match=r"b_mask\.png: exists and was not made by predict"):
        list(predict_files(predictor, pairs[:2], tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_photos_of_16_bits_give_the_same_masks(predictor: Predictor, tmp_path: Path) -> None:
    gray = _pixels(40, 40)[..., 0]
    for name, pixels in (("narrow", gray), ("wide", gray.astype(np.uint16) * 257)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    narrow, wide = (
        Pair(name, tmp_path / "narrow.png", tmp_path / f"{name}.png").read()[1]
        for name in ("narrow", "wide")
    )
    assert np.array_equal(narrow, wide)


def test_export_reproduces_the_network(predictor: Predictor, tmp_path: Path) -> None:
    for _ in range(2):  # the second time it replaces its own file
        assert export_network(predictor, tmp_path / "net.pt2") < 1e-5
    about = dict.fromkeys(("threshold", "size"), "")
    module = torch.export.load(tmp_path / "net.pt2", extra_files=about).module()
    assert (about["threshold"], about["size"]) == ("0.5", "32")
    assert is_output(tmp_path / "net.pt2", "export")
    pixels = 255 * torch.rand(2, 5, 3, 32, 32)
    for ours, theirs in zip(module(*pixels), predictor(*pixels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_onnx_reproduces_the_network(
    predictor: Predictor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed (extra `export`)")
    import onnxruntime

    noted = logging.getLogger("torch.onnx._internal.exporter._registration")
    noted.addHandler(caplog.handler)
    with warnings.catch_warnings(record=True) as said:
        assert export_network(predictor, tmp_path / "net.onnx") < 1e-4
    noted.removeHandler(caplog.handler)
    assert not [one for one in said if "LeafSpec" in str(one.message)]
    assert not [one for one in caplog.records if one.name == noted.name]
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert is_output(tmp_path / "net.onnx", "export")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    axes = [value.shape for value in (*session.get_inputs(), *session.get_outputs())]
    assert axes == [["batch", channels, 32, 32] for channels in (3, 3, 1, 1)]
    about = session.get_modelmeta().custom_metadata_map
    assert (about["size"], about["threshold"]) == ("32", "0.5")
    assert "0 near, 1 far" in about["outputs"]
    assert "RGB in 0..255" in about["inputs"]
    assert about["normalisation"] == "inside the model"
    pixels = 255 * torch.rand(2, 5, 3, 32, 32)
    feeds = {"bg": pixels[0].numpy(), "fg_bg": pixels[1].numpy()}
    with torch.no_grad():
        expected = predictor(*pixels)
    for ours, theirs in zip(session.run(["mask", "depth"], feeds), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-3, atol=1e-4)


def test_export_is_checked_on_the_given_images(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is wrong on one of these images only is an error."""
    Image.fromarray(np.full((40, 40, 3), 255, dtype=np.uint8)).save(tmp_path / "white.png")
    pairs = pair_images(str(tmp_path / "white.png"), str(tmp_path / "white.png"))
    real = predictor.forward

    def wrong_on_white(bg: torch.Tensor, fg_bg: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mask, depth = real(bg, fg_bg)
        return mask + (bg.mean() > 254), depth

    monkeypatch.setattr("maskdepth.model.inference.export._write_pt2", lambda *_: wrong_on_white)
    monkeypatch.setattr(
        "maskdepth.model.inference.export.replace_file", lambda path, write: write(path)
    )
    assert export_network(predictor, tmp_path / "net.pt2") < 1e-5
    with pytest.raises(ModelError, match="differs from the network by 1"):
        export_network(predictor, tmp_path / "net.pt2", pairs)


@pytest.mark.parametrize("output", [0, 1])
def test_an_export_whose_results_are_no_numbers_is_refused(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: int
) -> None:
    def exported(bg: torch.Tensor, fg_bg: torch.Tensor) -> tuple[torch.Tensor, ...]:
        results = predictor(bg, fg_bg)
        results[output][1, 0, 3, 3] = float("nan")
        return results

    def write_nothing(_: Predictor, path: Path) -> object:
        path.touch()
        return exported

    monkeypatch.setattr("maskdepth.model.inference.export._write_pt2", write_nothing)
    with pytest.raises(ModelError, match="differs from the network by nan"):
        export_network(predictor, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"{PHOTOS} with real photos does not exist")
def test_export_on_real_photos(predictor: Predictor, tmp_path: Path) -> None:
    names = zip(
        sorted((PHOTOS / "bg").iterdir()), sorted((PHOTOS / "fg_bg").iterdir()), strict=True
    )
    pairs = [Pair(fg_bg.stem, bg, fg_bg) for bg, fg_bg in names]
    assert export_network(predictor, tmp_path / "net.pt2", pairs) < 1e-5
    results = list(predict_files(predictor, pairs, tmp_path / "out"))
    assert sum(len(paths) for paths, _ in results) == 3 * len(pairs) == 15
    assert not any("Warning" in note for _, note in results)


def test_threshold(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(_pixels(32, 32)).save(tmp_path / "a.png")
    pairs = pair_images(str(tmp_path / "a.png"), str(tmp_path / "a.png"))
    mask, _ = predictor.predict_image(*pairs[0].read())
    for threshold in (0.3, float(np.median(mask)), 0.9):
        ((paths, _),) = predict_files(predictor, pairs, tmp_path / "out", threshold=threshold)
        assert np.array_equal(np.asarray(Image.open(paths[0])) == 255, mask > threshold)


def test_a_pair_that_moved_is_aligned(predictor: Predictor, tmp_path: Path) -> None:
    bg = texture(160, 160)
    photo = np.roll(bg, (5, -6), axis=(0, 1)) // 4 * 3
    noise = _pixels(160, 160, 2)
    images = {"bg": bg, "moved": photo, "other": texture(160, 160, 1), "noise": noise}
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")

    def predict(fg_bg: str, **options: bool) -> tuple[str, np.ndarray]:
        pairs = pair_images(str(tmp_path / "bg.png"), str(tmp_path / f"{fg_bg}.png"))
        ((paths, note),) = predict_files(predictor, pairs, tmp_path / "out", **options)
        return note, np.asarray(Image.open(paths[2]))

    note, plain = predict("moved", align=False)
    assert "4.9% of the width" in note
    assert "bg is used as it is\nWarning: moved by more than 1% of the width; leave out" in note
    note, aligned = predict("moved")
    assert note.endswith("; aligned")
    assert not np.array_equal(plain, aligned)
    assert "may not show the same place" in predict("other")[0]
    assert "found no movement between bg and fg_bg; bg is used as it is" in predict("noise")[0]
    assert "\nWarning: bg and fg_bg are the same image" in predict("bg")[0]


def test_export_needs_a_known_suffix_and_the_extra(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"expected \.pt2 or \.onnx"):
        export_network(predictor, tmp_path / "net.pth")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ModelError, match="ONNX needs onnx"):
        export_network(predictor, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("height", "width"), [(90, 160), (160, 90), (80, 80)])
def test_the_picture_has_the_binary_mask_and_no_blank_borders(
    tmp_path: Path, height: int, width: int
) -> None:
    """Red images and a mask of ones: below the titles nothing but gaps between panels is white."""
    red = np.full((height, width, 3), (200, 0, 0), np.uint8)
    mask, depth = np.ones((height, width), bool), np.zeros((height, width))
    mask[: height // 2] = False
    draw_predictions(tmp_path / "x.png", [Example(red, red, mask, depth)], "predict")
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    inside = np.asarray((abs(pixels - (200, 0, 0)) < 3).all(axis=2))
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    assert inside[rows[0] : rows[-1] + 1].all(axis=0).sum() == len(columns)  # two full panels
    assert abs(len(columns) / 2 / len(rows) / (width / height) - 1) < 0.02
    row = pixels[rows[0] + len(rows) // 4]  # through the upper half, where the mask is 0
    assert (row == 255).all(axis=1).sum() < 0.06 * len(row)
    black = (row < 9).all(axis=1).sum()
    assert abs(black / len(columns) - 1) < 0.05  # half of the mask is 0, and all of the depth


def test_pictures_are_written(tmp_path: Path) -> None:
    image, gray = _pixels(16, 16), np.zeros((8, 8))
    example = Example(bg=image, fg_bg=image, mask=gray, depth=gray, target_mask=gray)
    draw_predictions(tmp_path / "grid.png", [example, example], "title")
    draw_curves(tmp_path / "one.png", [{"stage": 1, "train_loss": 0.5, "mask_iou": None}], "title")
    rows = [{"stage": s, "train_loss": 1 / s, "mask_iou": 0.1 * s} for s in (1, 1, 2)]
    draw_curves(tmp_path / "three.png", rows, "title")
    for name in ("grid.png", "one.png", "three.png"):
        assert Image.open(tmp_path / name).width > 300


def test_figures_of_curves_are_beside_the_titles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not on the lines, which they would cross."""
    figures: list[Figure] = []

    def keep(figure: Figure, command: str) -> bytes:
        figures.append(figure)
        return b""

    monkeypatch.setattr("maskdepth.model.pictures._png", keep)
    draw_curves(tmp_path / "curves.png", [{"stage": 1, "train_loss": 0.5, "mask_iou": None}], "x")
    loss, iou, _ = figures[0].axes
    assert (loss.get_title("right"), len(loss.texts)) == ("last 0.5000", 0)
    assert (iou.get_title("right"), iou.texts[0].get_text()) == ("", "not trained so far")


def test_a_pixel_is_of_the_person_above_the_threshold(predictor: Predictor, tmp_path: Path) -> None:
    torch.nn.init.zeros_(predictor.network.mask_decoder.outc.weight)  # a probability of 0.5
    torch.nn.init.zeros_(predictor.network.mask_decoder.outc.get_parameter("bias"))
    Image.fromarray(texture(40, 40)).save(tmp_path / "photo.png")
    Image.fromarray(texture(40, 40, 1)).save(tmp_path / "empty.png")
    pairs = pair_images(str(tmp_path / "empty.png"), str(tmp_path / "photo.png"))
    for threshold, expected in ((0.5, 0), (0.49, 255)):
        ((paths, _),) = predict_files(predictor, pairs, tmp_path / "out", threshold=threshold)
        with Image.open(paths[0]) as mask:
            assert (np.asarray(mask) == expected).all()
