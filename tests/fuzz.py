"""Mutates files that the program reads as data, and reads them.

    python -m tests.fuzz --cases 5000 --seed 0

A case fails if it ends with an exception other than the program's errors, if it takes longer than
`LIMIT_S`, or if a changed file is read as something else than it says. Case N of a seed is always
the same: `--first N --cases 1` repeats it. Each file is also read as it is, because a reader that
refuses everything would pass.
"""

from __future__ import annotations

import faulthandler
import io
import json
import random
import shutil
import tempfile
import time
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

import train
from benchmarks.__main__ import main as benchmarks_main
from benchmarks.harness.results import one_line, read_result
from convert.__main__ import main as convert_main
from convert.codecs import ENCODERS
from convert.errors import DataError
from convert.images import read_rgb
from convert.manifest import MANIFEST, read_manifest
from convert.parts import Part, read_summary, write_part
from convert.placements import PLACEMENT, read_placements, write_placements
from convert.shards import Shards
from convert.source import read_metadata, read_source
from convert.verify import verify
from model import DualDecoderUNet
from model.checkpoint import (
    METADATA_KEY,
    NetworkInfo,
    load_network,
    save_weights,
)
from model.errors import ModelError
from model.precision import Precision
from model.recipe import RECIPES, load_recipe
from model.training.config import DataConfig, RunConfig, read_config, write_config
from model.training.progress import Elapsed
from model.training.run import Run
from model.training.state import generator_states, save_state
from model.training.trainer import StageTrainer
from model.unet import original_name
from tests.damage import signed_text
from tests.mutations import Unchanged, damaged, mutated, overwritten, same, to_text
from tests.pictures import jpeg_bytes
from tests.tiny import make_dataset
from tests.tiny_shards import write_tiny_shards

LIMIT_S = 20
"""Of one case, many times what each takes."""

RESULTS = Path(__file__).parent.parent / "docs" / "results"


class Failure(Exception):
    """What a case found."""


def require(value: bool, problem: str) -> None:
    if not value:
        raise Failure(problem)


def one_lines(value: Any) -> Any:
    """A result as it is read: text without control characters, large numbers as floats."""
    if isinstance(value, dict):
        return {one_line(key): one_lines(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [one_lines(entry) for entry in value]
    if type(value) is int and abs(value) > 2**53:  # may be read as the next float
        return float(value)
    return one_line(value) if isinstance(value, str) else value


def run_command(main: click.Command, *arguments: object) -> None:
    """Run a command line; its errors are raised as DataError."""
    with redirect_stderr(io.StringIO()):
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    if result.exit_code == 2:
        text = result.stderr.strip()
        require("\n" not in text and "Traceback" not in text, f"several lines: {text[:300]}")
        raise DataError(text)
    require(result.exit_code in (0, 1), f"exit code {result.exit_code}")


class Files:
    """What is mutated, made once in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        write_tiny_shards(self.shards, backgrounds=3, samples_per_bg=4)
        self.manifest = (self.shards / MANIFEST).read_bytes()
        (folder / "data").mkdir()
        self.data = make_dataset(folder / "data")
        rng = np.random.default_rng(0)
        self.pixels = rng.integers(0, 256, (32, 40, 3), np.uint8)
        self.jpeg, self.gray = jpeg_bytes(self.pixels), jpeg_bytes(self.pixels[..., 0])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = DualDecoderUNet(1)
        statistics = dict.fromkeys(("bg", "fg_bg"), ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
        scores = {"mask_iou": 0.5, "depth_l1": None}
        self.info = NetworkInfo.from_json(
            {"width": 1, "size": 16, "depth_loss": "l1", "statistics": statistics, "scores": scores}
        )
        self.config = RunConfig(
            data=DataConfig(shards=str(self.shards)), recipe=RECIPES["small"], width=1
        )
        self.trainer = StageTrainer(
            network=self.network, recipe=self.config.recipe, stage=self.config.recipe.stages[0],
            preprocess=lambda batch, epoch=0, bg=None: batch,
            precision=Precision(dtype=None, scale=False),
        )  # fmt: skip
        self.checkpoint = folder / "best.safetensors"
        save_weights(self.checkpoint, self.network.state_dict(), self.info)
        self.weights = self.checkpoint.read_bytes()
        theirs = io.BytesIO()
        weights = self.network.state_dict()
        torch.save({original_name(name): value for name, value in weights.items()}, theirs)
        self.theirs = theirs.getvalue()
        self.run = folder / "run"
        self.run.mkdir()
        write_config(self.run / "config.json", self.config)
        (self.run / "best.safetensors").touch()
        self.state = self._state()
        save_state(self.run / "last.pt", self.state)
        self.last = (self.run / "last.pt").read_bytes()
        self.results = {path.stem: path.read_bytes() for path in RESULTS.glob("*.json")}
        self.parts = folder / "parts"
        self.parts.mkdir()
        self.part = Part(0, 0, 8)
        codecs = {"ffcv": {"fg_bg": "jpeg", "mask": "runs", "depth": "jpeg-luma"}}
        write_part(read_source(self.data), codecs, {}, self.part, self.parts)
        self.part_record = self.part.path(self.parts, "json").read_bytes()

    def _save_checkpoint(self, info: Any) -> None:
        about = {"format": "maskdepth-network", "version": 2, "info": info}
        weights = {n: t.contiguous() for n, t in self.network.state_dict().items()}
        save_file(weights, self.checkpoint, {METADATA_KEY: json.dumps(about)})

    def _state(self) -> dict[str, Any]:
        """Of a run in its second epoch."""
        return {
            "network": dict(self.network.state_dict()), "position": [0, 1, 2], "steps": 3,
            "history": [{"stage": 1, "epoch": 1, "train_loss": 0.5, "mask_iou": None}],
            "best": {"score": 0.5, "stage": 0, "epoch": 0},
            "within_stage": dict(self.trainer.state(Elapsed(1.0, 2.0, 0.5, 4))),
            "generators": generator_states(),
        }  # fmt: skip

    # Each target: mutates with `rng`, reads, and raises what the program raises.

    def signed_manifest(self, rng: random.Random) -> None:
        """A manifest whose values are changed and signed again."""
        value = json.loads(self.manifest)
        del value["sha256"]
        value = mutated(rng, value)
        (self.shards / MANIFEST).write_bytes(signed_text(value))
        found = read_manifest(self.shards).to_json()
        for given in (value, found):  # either may say how large the groups are
            given.pop("samples_per_bg")
            given.pop("group_starts")
        require(same(value, found), "a manifest was read as something else")
        run_command(convert_main, "inspect", self.shards)
        Shards(self.shards)
        if rng.random() < 0.05:
            verify(self.shards, workers=0, progress=False)

    def damaged_manifest(self, rng: random.Random) -> None:
        """A manifest whose bytes are changed."""
        text = damaged(rng, self.manifest)
        (self.shards / MANIFEST).write_bytes(text)
        read_manifest(self.shards)
        require(text == self.manifest, "a changed manifest passed")

    def array(self, rng: random.Random) -> None:
        """A NumPy file or an FFCV file of a shard folder, in bytes of its start."""
        (self.shards / MANIFEST).write_bytes(self.manifest)
        name = rng.choice(("backgrounds.npy", "samples.beton.index.npy", "samples.beton"))
        path = self.shards / name
        data = path.read_bytes()
        path.write_bytes(overwritten(rng, data, 200))
        try:
            for index in range(len(opened := Shards(self.shards))):
                opened.find_corruption(index)
        finally:
            path.write_bytes(data)

    def dataset(self, rng: random.Random) -> None:
        """dataset.json."""
        value = {"samples_per_fg": 4, "depth": "estimated", "about": {"license": "x", "seed": [1]}}
        value |= {"format": "maskdepth-dataset", "version": 2}
        value["placements_table"] = {"file": "placements.npy", "bytes": 9, "sha256": "0" * 64}
        changed = mutated(rng, value)
        text = damaged(rng, to_text(value)) if rng.random() < 0.3 else to_text(changed)
        (self.data / "dataset.json").write_bytes(text)
        try:
            found = read_metadata(self.data)
            require(same(json.loads(text), found), "dataset.json was read as something else")
            read_source(self.data)
        finally:
            (self.data / "dataset.json").unlink()

    def table(self, rng: random.Random) -> None:
        """The table of samples of a data set."""
        starts, path = np.array([0, 8, 16, 24]), self.folder / "placements.npy"
        rows = np.zeros(24, PLACEMENT)
        rows["bg"], rows["scale"] = np.arange(24) // 8, 0.5
        write_placements(path, rows)
        path.write_bytes(overwritten(rng, path.read_bytes(), 128 + rows.nbytes))
        found = read_placements(path, starts, (32, 40))
        require(len(found) == 24 and bool((found["bg"] == rows["bg"]).all()), "another table")

    def part_of_pack(self, rng: random.Random) -> None:
        """The record of a part of an unfinished pack."""
        value = json.loads(self.part_record)
        del value["sha256"]
        is_signed = rng.random() < 0.5
        text = signed_text(mutated(rng, value)) if is_signed else damaged(rng, self.part_record)
        self.part.path(self.parts, "json").write_bytes(text)
        summary = read_summary(self.part, self.parts)
        found = {name: moments.model_dump() for name, moments in summary.statistics.items()}
        for name, moments in json.loads(text)["statistics"].items():
            moments = {k: v for k, v in moments.items() if k not in ("mean", "std")}
            require(same(moments, found[name]), "a part was read as something else")
        require(is_signed or text == self.part_record, "a changed part passed")

    def recipe(self, rng: random.Random) -> None:
        """A recipe in JSON or TOML."""
        value = json.loads(RECIPES["robust"].model_dump_json())
        kind = rng.randrange(3)
        if kind == 0:
            path, text = self.folder / "mine.json", to_text(mutated(rng, value))
        elif kind == 1:
            path, text = self.folder / "mine.json", damaged(rng, to_text(value))
        else:
            path, text = self.folder / "mine.toml", damaged(rng, _TOML)
        path.write_bytes(text)
        found = load_recipe(str(path)).model_dump()
        given = tomllib.loads(text.decode()) if path.suffix == ".toml" else json.loads(text)
        require(same(given, found), "a recipe was read as something else")

    def configuration(self, rng: random.Random) -> None:
        """config.json of a run."""
        value = {"config": json.loads(self.config.model_dump_json()), "versions": {"torch": "2"}}
        text = to_text(mutated(rng, value))
        text = damaged(rng, to_text(value)) if rng.random() < 0.3 else text
        path = self.folder / "config.json"
        path.write_bytes(text)
        found = read_config(path).model_dump()
        given = json.loads(text)["config"]
        given.pop("save_every", None)
        require(same(given, found), "a configuration was read as something else")

    def metadata(self, rng: random.Random) -> None:
        """The metadata of a checkpoint."""
        info = mutated(rng, json.loads(self.info.model_dump_json()))
        self._save_checkpoint(info)
        require(same(info, load_network(self.checkpoint).info.model_dump()), "other metadata")
        if rng.random() < 0.1:
            self.predict(rng)

    def weights_file(self, rng: random.Random) -> None:
        """The bytes of a checkpoint."""
        self.checkpoint.write_bytes(damaged(rng, self.weights))
        found = load_network(self.checkpoint)
        own = self.network.state_dict()
        equal = all(torch.equal(own[name], t) for name, t in found.network.state_dict().items())
        require(equal and found.info == self.info, "other weights or metadata")

    def original_weights(self, rng: random.Random) -> None:
        """A `.pth` file."""
        path = self.folder / "theirs.pth"
        path.write_bytes(damaged(rng, self.theirs))
        load_network(path)

    def last_state(self, rng: random.Random) -> None:
        """The values of last.pt."""
        state = mutated(rng, self.state)
        save_state(self.run / "last.pt", state)
        self._restore(state)

    def last_bytes(self, rng: random.Random) -> None:
        """The bytes of last.pt."""
        (self.run / "last.pt").write_bytes(damaged(rng, self.last))
        self._restore(self.state)

    def _restore(self, state: Any) -> None:
        run, network = Run(config=self.config, folder=self.run, first=False), DualDecoderUNet(1)
        with torch.random.fork_rng():
            run.restore(network)
        if run.stage_state is not None:
            self.trainer.load_state(run.stage_state)
        found = {"position": run.position, "steps": run.steps, "history": run.history}
        found |= {"best": run.best, "network": network.state_dict()}
        require(all(same(state[name], found[name]) for name in found), "another state was read")

    def result(self, rng: random.Random) -> None:
        """A result of the benchmarks, as `report` and `compare` read it."""
        name = rng.choice(sorted(self.results))
        value = json.loads(self.results[name])
        text = to_text(mutated(rng, value))
        text = damaged(rng, self.results[name]) if rng.random() < 0.2 else text
        folder = self.folder / "results"
        folder.mkdir(exist_ok=True)
        path = folder / f"{value['benchmark']}.json"
        path.write_bytes(text)
        try:
            found = json.loads(read_result(path).model_dump_json())
            require(
                same(one_lines(json.loads(text)), one_lines(found)),
                "a result was read as something else",
            )
            if any(case["repeats"] for case in found["cases"].values()):
                run_command(benchmarks_main, "compare", path, path)
            if rng.random() < 0.1:
                run_command(benchmarks_main, "report", folder)
        finally:
            shutil.rmtree(folder)

    def photo(self, rng: random.Random) -> None:
        """A photo, as `predict` and `compose` read it."""
        form = rng.choice(("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"))
        content = io.BytesIO()
        Image.fromarray(self.pixels).save(content, form)
        path = self.folder / f"photo.{form.lower()}"
        path.write_bytes(damaged(rng, content.getvalue()))
        require(read_rgb(path).dtype == np.uint8, "a photo was read as something else")

    def sample(self, rng: random.Random) -> None:
        """An image of a data set, as `pack` encodes it."""
        colour, gray = damaged(rng, self.jpeg), damaged(rng, self.gray)
        for codec, encode in ENCODERS.items():
            data = colour if codec == "jpeg" else gray
            try:
                encode(data, 32, 40)
            except ValueError as error:
                raise DataError(f"{codec}: {error}") from None

    def predict(self, rng: random.Random) -> None:
        """The command line of prediction, with a photo that may be damaged."""
        if rng.random() < 0.5:
            self.checkpoint.write_bytes(self.weights)
        for name in ("bg", "fg_bg"):
            data = self.jpeg if rng.random() < 0.5 else damaged(rng, self.jpeg)
            (self.folder / f"{name}.jpg").write_bytes(data)
        photos = ("--bg", self.folder / "bg.jpg", "--fg-bg", self.folder / "fg_bg.jpg")
        out = self.folder / "out"
        try:
            run_command(train.main, "predict", self.checkpoint, *photos, out, "--device", "cpu")
        finally:
            shutil.rmtree(out, ignore_errors=True)


_TOML = b"""
name = "mine"
width = 16
optimizer = "muon"
camera = 0.8
[[stages]]
size = 64
batch_size = 8
lr = 0.05
trains = ["encoder", "mask", "depth"]
schedule = "onecycle"
"""

Target = Callable[[Files, random.Random], None]
TARGETS: dict[str, tuple[Target, int]] = {
    "manifest, signed again": (Files.signed_manifest, 6),
    "manifest, bytes": (Files.damaged_manifest, 3),
    "arrays of shards": (Files.array, 2),
    "dataset.json": (Files.dataset, 2),
    "table of samples": (Files.table, 2),
    "part of a pack": (Files.part_of_pack, 2),
    "recipe": (Files.recipe, 4),
    "config.json": (Files.configuration, 3),
    "checkpoint, metadata": (Files.metadata, 4),
    "checkpoint, bytes": (Files.weights_file, 2),
    "checkpoint, .pth": (Files.original_weights, 1),
    "last.pt, values": (Files.last_state, 3),
    "last.pt, bytes": (Files.last_bytes, 2),
    "result": (Files.result, 4),
    "photo": (Files.photo, 4),
    "image of a data set": (Files.sample, 3),
    "predict": (Files.predict, 1),
}
"""Each target, and how often it is chosen."""


class Outcome(NamedTuple):
    """Of one case. problem: why it failed; None if it did not."""

    case: int
    target: str
    refused: bool
    problem: str | None
    seconds: float


def run_case(
    files: Files, seed: int, case: int, target: str | None = None, *, mutate: bool = True
) -> Outcome:
    """Mutate and read one file; mutate: or read it as it is."""
    rng = (random.Random if mutate else Unchanged)(f"{seed} {case}")
    weights = [weight for _, weight in TARGETS.values()]
    name = target or rng.choices(list(TARGETS), weights)[0]
    refused, problem, start = False, None, time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries, about what they then refuse
            TARGETS[name][0](files, rng)
    except (DataError, ModelError) as error:
        refused = True
        if "\n" in error.message or len(error.message) > 1500:
            problem = f"not one line: {error.message[:300]!r}"
    except Failure as error:
        problem = str(error)
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.perf_counter() - start
    return Outcome(case, name, refused, problem, seconds)


@contextmanager
def files() -> Iterator[Files]:
    """`Files` in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        yield Files(Path(folder))


@click.command()
@click.option("--cases", type=click.IntRange(min=1), default=5000, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--first", type=int, default=0, show_default=True, help="Number of the first case.")
@click.option("--target", type=click.Choice(list(TARGETS)), help="Mutate this alone.")
def main(cases: int, seed: int, first: int, target: str | None) -> None:
    """Mutate files and read them; exit code 1 if a case fails."""
    torch.set_num_threads(1)
    read, refused, failed = Counter[str](), Counter[str](), 0
    with files() as made:
        for name in TARGETS:
            outcome = run_case(made, seed, first, name, mutate=False)
            if outcome.refused or outcome.problem:
                raise DataError(f"{name}: a file that is not mutated is refused; {outcome}")
        for case in range(first, first + cases):
            faulthandler.dump_traceback_later(3 * LIMIT_S, exit=True)  # a hang
            outcome = run_case(made, seed, case, target)
            (refused if outcome.refused else read)[outcome.target] += 1
            slow = outcome.seconds > LIMIT_S
            if outcome.problem or slow:
                failed += 1
                problem = outcome.problem or f"took {outcome.seconds:.1f} s"
                click.echo(f"case {case} of seed {seed}, {outcome.target}: {problem}")
    faulthandler.cancel_dump_traceback_later()
    for name in TARGETS:
        click.echo(f"{name:24} {refused[name]:6} refused {read[name]:6} read")
    click.echo(f"{cases} cases, {failed} failed")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
