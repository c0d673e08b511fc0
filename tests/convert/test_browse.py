"""The page of samples: what it shows, that it needs no other file, and hostile scores and names."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from maskdepth.convert.__main__ import main
from maskdepth.convert.browse import write_page
from maskdepth.convert.manifest import read_manifest, write_manifest
from maskdepth.convert.shards import Shards


class Page(HTMLParser):
    """Figures with their attributes and pictures, and whatever names something elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.figures: list[dict[str, Any]] = []
        self.elsewhere: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "figure":
            self.figures.append(named)
        if tag == "img":
            self.figures[-1] |= named
        for name in ("src", "href"):
            if not named.get(name, "data:").startswith("data:"):
                self.elsewhere.append(named[name])


def show(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


def scores_of(path: Path, index: list, iou: list, rmse: list) -> Path:
    samples = {"index": index, "mask_iou": iou, "depth_rmse": rmse}
    path.write_text(json.dumps({"samples": samples}))
    return path


def test_samples_are_spread_and_described(shards: Path, tmp_path: Path) -> None:
    result = show(shards, "--html", tmp_path / "page.html", "--samples", 9)
    assert result.output == f"{tmp_path / 'page.html'}: 9 samples\n"
    text = (tmp_path / "page.html").read_text()
    page, opened = Page(text), Shards(shards)
    assert page.elsewhere == []
    assert "http" not in text
    assert "order" not in re.findall(r'select id="(\w+)"', text)
    assert [int(figure["data-index"]) for figure in page.figures] == list(range(5, 90, 10))
    layout = opened.manifest.layout
    for figure in page.figures:
        index = np.array(int(figure["data-index"]))
        assert int(figure["data-bg"]) == layout.background_of(index)
        assert int(figure["data-fg"]) == layout.foreground_of(index)
        picture = Image.open(io.BytesIO(base64.b64decode(figure["src"].partition(",")[2])))
        found = np.asarray(picture, dtype=float)
        expected = opened.decode(int(index), "fg_bg").astype(float)
        assert found.shape == (96, 4 * 98 - 2, 3)
        assert np.abs(found[:, 98:194] - expected).mean() < 6
    write_page(shards, tmp_path / "again.html", 9)
    assert (tmp_path / "again.html").read_text() == text
    assert show(shards, "--html", tmp_path / "page.html").exit_code == 0  # replaces its own


def test_the_worst_by_mask_and_by_depth_are_shown(shards: Path, tmp_path: Path) -> None:
    iou = [0.5 + index / 100 for index in range(40)]
    rmse = [None] * 20 + [0.3 - index / 1000 for index in range(20)]
    scores = scores_of(tmp_path / "scores.json", list(range(40)), iou, rmse)
    result = show(shards, "--html", tmp_path / "p.html", "--scores", scores, "--samples", 5)
    assert result.exit_code == 0, result.output
    page = Page((tmp_path / "p.html").read_text())
    assert [figure["data-index"] for figure in page.figures] == ["0", "1", "2", "20", "21"]
    assert page.figures[0]["data-iou"] == "0.5"
    assert "data-rmse" not in page.figures[0]
    assert page.figures[3]["alt"].endswith("mask IoU 0.7000, depth RMSE 0.3000")


def test_a_name_is_no_markup(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "a <b>&$title")
    names = read_manifest(shards).backgrounds
    hostile = 'bg_001"><script>alert(1)<b>$x.jpg'
    write_manifest(copy, replace(read_manifest(shards), backgrounds=(hostile, *names[1:])))
    write_page(copy, tmp_path / "page.html", 9)
    page = Page((tmp_path / "page.html").read_text())
    assert page.tags.count("script") == 1
    assert "b" not in page.tags
    assert page.figures[0]["alt"].startswith('sample 5, bg_001"><script>alert(1)<b>$x.jpg')


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected what `train.py evaluate --scores` has written"),
        ("[]", "expected what `train.py"),
        ('{"samples": 3}', "found no scores of samples"),
        ('{"samples": {"index": [0]}}', "expected what"),
        ('{"samples": {"index": [0], "mask_iou": [NaN], "depth_rmse": [0]}}', "expected what"),
        ('{"samples": {"index": [0], "mask_iou": [-1], "depth_rmse": [0]}}', "mask_iou"),
        ('{"samples": {"index": [-1], "mask_iou": [1], "depth_rmse": [0]}}', "index"),
        ('{"samples": {"index": [0, 1], "mask_iou": [1], "depth_rmse": [0]}}', "as many of index"),
        ('{"samples": {"index": [1, 1], "mask_iou": [1, 1], "depth_rmse": [0, 0]}}', "once"),
        ('{"samples": {"index": [], "mask_iou": [], "depth_rmse": []}}', "as many of index"),
        ('{"samples": {"index": [90], "mask_iou": [1], "depth_rmse": [0]}}', "sample 90 in a fol"),
        ('{"samples": {"index": [1], "mask_iou": [null], "depth_rmse": [null]}}', "found none"),
    ],
)
def test_wrong_scores_end_in_one_line(
    shards: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "scores.json").write_text(text)
    page = tmp_path / "page.html"
    result = show(shards, "--html", page, "--scores", tmp_path / "scores.json")
    assert result.exit_code == 2
    assert message in result.output
    assert result.output.count("\n") == 1
    assert not page.exists()


def test_what_show_needs(shards: Path, tmp_path: Path) -> None:
    assert "found no file to write, expected OUT.png, --html FILE" in show(shards).output
    result = show(shards, tmp_path / "a.png", "--scores", tmp_path / "s.json")
    assert "is for the page; add --html" in result.output
    for option, files in (
        ("--samples", [tmp_path / "a.png"]),
        ("--rows", ["--html", tmp_path / "a.html"]),
    ):
        result = show(shards, *files, option, 2)
        assert (result.exit_code, f"{option} 2: is for the" in result.output) == (2, True)
        assert not list(tmp_path.iterdir())
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    result = show(shards, "--html", tmp_path / "mine.html")
    assert (result.exit_code, "was not made by show" in result.output) == (2, True)
    assert "inside" in show(shards, "--html", shards / "page.html").output


PROBE = """
<style>html { width: WIDTHpx }</style>
<script>
addEventListener("load", () => {
  const shown = () => [...document.querySelectorAll("figure:not([hidden])")];
  const numbers = () => shown().map((figure) => +figure.dataset.index);
  const choose = (id, value) => {
    document.getElementById(id).value = value;
    document.querySelector("form").dispatchEvent(new Event("change"));
  };
  const found = { first: numbers() };
  choose("order", ""); found.all = numbers();
  choose("order", "iou"); found.iou = numbers();
  choose("order", "rmse"); found.rmse = numbers();
  choose("order", ""); choose("bg", "0"); found.bg = numbers();
  choose("fg", "2"); found.both = numbers(); found.count = document.querySelector("output").value;
  choose("bg", ""); choose("fg", "");
  found.wide = document.body.scrollWidth > WIDTH
    || shown().some((figure) => figure.getBoundingClientRect().right > WIDTH);
  document.title = JSON.stringify(found);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_selects_and_sorts(shards: Path, tmp_path: Path, width: int) -> None:
    """Headless Chromium's narrowest window has 500 pixels; the page gets a phone's 390."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    index = list(range(4, 90, 9))
    iou, rmse = [(n * 7 % 10) / 10 for n in index], [(n * 3 % 10) / 10 for n in index]
    scores = scores_of(tmp_path / "scores.json", index, iou, rmse)
    write_page(shards, tmp_path / "page.html", 20, scores)
    probe = PROBE.replace("WIDTH", str(width))
    text = (tmp_path / "page.html").read_text().replace("</body>", probe + "</body>")
    (tmp_path / "page.html").write_text(text)
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={max(width, 500)},1200",
            "--virtual-time-budget=5000", "--dump-dom", (tmp_path / "page.html").as_uri(),
        ],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    match = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert match, done.stdout[:500]
    found = json.loads(match[1].replace("&quot;", '"'))
    assert found["all"] == index
    assert found["first"] == found["iou"]
    assert found["iou"] == [n for _, n in sorted(zip(iou, index, strict=True))]
    assert found["rmse"] == [
        n for _, n in sorted((-r, n) for r, n in zip(rmse, index, strict=True))
    ]
    layout = Shards(shards).manifest.layout
    on_first = [n for n in index if layout.background_of(np.array(n)) == 0]
    assert found["bg"] == on_first
    of_both = [n for n in on_first if layout.foreground_of(np.array(n)) == 2]
    assert found["both"] == of_both
    assert found["count"] == f"{len(of_both)} shown"
    assert not found["wide"], "the page is wider than the window"
