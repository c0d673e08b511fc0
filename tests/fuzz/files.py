"""The files that are mutated, as the program writes them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskdepth.convert.encoding import write_part
from maskdepth.convert.manifest import MANIFEST
from maskdepth.convert.parts import Part
from maskdepth.convert.source import read_source
from maskdepth.model import DualDecoderUNet
from maskdepth.model.checkpoint import NetworkInfo, save_weights
from maskdepth.model.precision import Precision
from maskdepth.model.recipe import RECIPES
from maskdepth.model.training.config import DataConfig, RunConfig, write_config
from maskdepth.model.training.progress import Elapsed
from maskdepth.model.training.state import generator_states, save_state
from maskdepth.model.training.trainer import StageTrainer
from maskdepth.model.unet import original_name
from tests.pictures import jpeg_bytes
from tests.tiny import make_dataset
from tests.tiny_shards import write_tiny_shards

RESULTS = Path(__file__).parents[2] / "docs" / "results"


class Files:
    """All of them, made once in a folder; for each, its bytes or its values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        write_tiny_shards(self.shards, backgrounds=3, samples_per_bg=4)
        self.manifest = (self.shards / MANIFEST).read_bytes()
        (folder / "data").mkdir()
        self.data = make_dataset(folder / "data")
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (32, 40, 3), np.uint8)
        gray = self.pixels[..., 0]
        mask = np.where(np.indices(gray.shape)[1] < 20, np.uint8(255), np.uint8(0))
        self.jpegs = {
            "fg_bg": jpeg_bytes(self.pixels), "mask": jpeg_bytes(mask), "depth": jpeg_bytes(gray)
        }  # fmt: skip
        self.results = {path.stem: path.read_bytes() for path in RESULTS.glob("*.json")}
        self._write_part()
        self._write_checkpoints()
        self._write_run()

    def _write_part(self) -> None:
        """Of an unfinished pack."""
        self.parts, self.part = self.folder / "parts", Part(0, 0, 8)
        self.parts.mkdir()
        codecs = {"ffcv": {"fg_bg": "jpeg", "mask": "runs", "depth": "jpeg-luma"}}
        write_part(read_source(self.data), codecs, {}, self.part, self.parts)
        self.part_record = self.part.path(self.parts, "json").read_bytes()

    def _write_checkpoints(self) -> None:
        """Ours, and one with the names of the original."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = DualDecoderUNet(1)
        statistics = dict.fromkeys(("bg", "fg_bg"), ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
        scores = {"mask_iou": 0.5, "depth_l1": None}
        self.info = NetworkInfo.from_json(
            {"width": 1, "size": 16, "depth_loss": "l1", "statistics": statistics, "scores": scores}
        )
        weights = self.network.state_dict()
        self.checkpoint = self.folder / "best.safetensors"
        save_weights(self.checkpoint, weights, self.info)
        self.weights = self.checkpoint.read_bytes()
        theirs = io.BytesIO()
        torch.save({original_name(name): value for name, value in weights.items()}, theirs)
        self.theirs = theirs.getvalue()

    def _write_run(self) -> None:
        """A run in its second epoch."""
        self.config = RunConfig(
            data=DataConfig(shards=str(self.shards)), recipe=RECIPES["small"], width=1
        )
        self.trainer = StageTrainer(
            network=self.network, recipe=self.config.recipe, stage=self.config.recipe.stages[0],
            preprocess=lambda batch, epoch=0, bg=None: batch,
            precision=Precision(dtype=None, scale=False),
        )  # fmt: skip
        self.run = self.folder / "run"
        self.run.mkdir()
        write_config(self.run / "config.json", self.config)
        (self.run / "best.safetensors").touch()
        self.state: dict[str, Any] = {
            "network": dict(self.network.state_dict()), "position": [0, 1, 2], "steps": 3,
            "counted": {"samples": 4, "first": 0, "ranks": 1},
            "history": [{"stage": 1, "epoch": 1, "train_loss": 0.5, "mask_iou": None}],
            "best": {"score": 0.5, "stage": 0, "epoch": 0},
            "within_stage": dict(self.trainer.state(Elapsed(1.0, 2.0, 0.5, 4))),
            "generators": generator_states(),
        }  # fmt: skip
        save_state(self.run / "last.pt", self.state)
        self.last = (self.run / "last.pt").read_bytes()


@contextmanager
def files() -> Iterator[Files]:
    """`Files` in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        yield Files(Path(folder))
