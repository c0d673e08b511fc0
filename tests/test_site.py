"""The documents build as a site without warnings, and its pages fit on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maskdepth import loaders

ROOT = Path(__file__).parents[1]
PHONE = 390
PROBE = """
<style>html { width: WIDTHpx }</style>
<script>
addEventListener("load", () => {
  const images = [...document.images].filter((image) => image.getBoundingClientRect().width > 0);
  document.title = JSON.stringify({
    broken: images.filter((image) => !image.naturalWidth).map((image) => image.src),
    wide: document.querySelector("article").getBoundingClientRect().right > WIDTH,
  });
});
</script>
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_interface_of_the_loaders_is_on_its_page(site: Path) -> None:
    page = (site / "api" / "loaders.html").read_text()
    shown = set(re.findall(r'id="maskdepth\.loaders\.(\w+)"', page))
    constants = {"Commands", "ENGINES", "SPLITS"}
    assert set(loaders.__all__) - constants <= shown


def test_arguments_in_docstrings_are_lists(site: Path) -> None:
    page = (site / "api" / "loaders.html").read_text()
    assert "<li><code>shards</code>: folder that <code>pack</code> wrote" in page


def test_links_to_files_of_the_repository_lead_to_pages(site: Path) -> None:
    index, guide = ((site / name).read_text() for name in ("index.html", "guide.html"))
    assert 'href="guide.html#1-a-data-set"' in index
    assert 'href="contributing.html"' in guide
    assert 'href="examples/plain.py"' in guide
    assert (site / "examples" / "plain.py").read_bytes() == (
        ROOT / "examples" / "plain.py"
    ).read_bytes()


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(r'(?:src="|<link [^>]*href=")https?://[^"]*')
    found = {path.name: loads.findall(path.read_text()) for path in site.rglob("*.html")}
    assert len(found) > 10
    assert {name: some for name, some in found.items() if some} == {}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["index.html", "comparison.html"])
def test_a_page_fits_on_a_phone(site: Path, page: str, tmp_path: Path) -> None:
    """Wide tables scroll by themselves. Headless Chromium's narrowest window has 500 pixels."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium)")
    probed = site / f"probed-{page}"
    text, probe = (site / page).read_text(), PROBE.replace("WIDTH", str(PHONE))
    probed.write_text(text.replace("</body>", probe + "</body>"))
    command = [
        browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,2500",
        f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000", "--dump-dom", probed.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r"<title>(\{.*?\})</title>", done.stdout)
    assert match, done.stdout[:500]
    assert json.loads(match[1].replace("&quot;", '"')) == {"broken": [], "wide": False}
