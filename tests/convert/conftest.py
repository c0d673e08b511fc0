"""What the tests of `compose` share."""

from pathlib import Path

import pytest
from PIL import Image

from maskdepth.convert.dataset.compose import compose
from tests.composites import SMALL, person_pixels, save


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    dataset = tmp_path_factory.mktemp("built-in") / "data"
    compose(dataset, workers=0, **SMALL)
    return dataset


@pytest.fixture
def people(tmp_path: Path) -> Path:
    folder = tmp_path / "people"
    save(folder / "one.png", person_pixels())
    save(folder / "two.png", person_pixels(200, 350))
    palette = Image.fromarray(person_pixels()).convert("RGBA").quantize(8)
    palette.save(folder / "three.png", transparency=palette.getpixel((0, 0)))
    save(folder / "four.png", person_pixels(), "LA")
    return folder
