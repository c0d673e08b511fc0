"""Each kind of file: how it is mutated and read, and what must hold of what was read.

A target mutates with ``rng``, reads, and raises what the program raises, or `Failure`.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from maskdepth import train
from maskdepth.benchmarks.__main__ import main as benchmarks_main
from maskdepth.benchmarks.harness.results import read_result
from maskdepth.convert.__main__ import main as convert_main
from maskdepth.convert.codecs import ENCODERS
from maskdepth.convert.errors import DataError
from maskdepth.convert.images import read_rgb
from maskdepth.convert.manifest import MANIFEST, read_manifest
from maskdepth.convert.parts import read_summary
from maskdepth.convert.placements import (
    OTHER,
    PLACEMENT,
    others_of,
    read_others,
    read_placements,
    write_placements,
)
from maskdepth.convert.shards import Shards
from maskdepth.convert.source import read_metadata, read_source
from maskdepth.convert.storage import CODECS
from maskdepth.convert.verify import verify
from maskdepth.model import DualDecoderUNet
from maskdepth.model.checkpoint import METADATA_KEY, load_network
from maskdepth.model.recipe import RECIPES, load_recipe
from maskdepth.model.training.config import read_config
from maskdepth.model.training.run import Run
from maskdepth.model.training.state import save_state
from tests.damage import signed_text
from tests.fuzz.checks import one_lines, require, run_command
from tests.fuzz.files import Files
from tests.fuzz.mutations import damaged, mutated, overwritten, same, to_text


def signed_manifest(files: Files, rng: random.Random) -> None:
    """A manifest whose values are changed and signed again."""
    value = json.loads(files.manifest)
    del value["sha256"]
    value = mutated(rng, value)
    (files.shards / MANIFEST).write_bytes(signed_text(value))
    found = read_manifest(files.shards).to_json()
    for given in (value, found):  # either may say how large the groups are
        given.pop("samples_per_bg")
        given.pop("group_starts")
    require(same(value, found), "a manifest was read as something else")
    run_command(convert_main, "inspect", files.shards)
    Shards(files.shards)
    if rng.random() < 0.05:
        verify(files.shards, workers=0, progress=False)


def damaged_manifest(files: Files, rng: random.Random) -> None:
    """A manifest whose bytes are changed."""
    text = damaged(rng, files.manifest)
    (files.shards / MANIFEST).write_bytes(text)
    read_manifest(files.shards)
    require(text == files.manifest, "a changed manifest passed")


def array(files: Files, rng: random.Random) -> None:
    """A NumPy file or an FFCV file of a shard folder, in bytes of its start."""
    (files.shards / MANIFEST).write_bytes(files.manifest)
    name = rng.choice(("backgrounds.npy", "samples.beton.index.npy", "samples.beton"))
    path = files.shards / name
    data = path.read_bytes()
    path.write_bytes(overwritten(rng, data, 200))
    try:
        for index in range(len(opened := Shards(files.shards))):
            opened.find_corruption(index)
    finally:
        path.write_bytes(data)


def dataset(files: Files, rng: random.Random) -> None:
    """dataset.json."""
    value = {"samples_per_fg": 4, "depth": "estimated", "about": {"license": "x", "seed": [1]}}
    value |= {"format": "maskdepth-dataset", "version": 2}
    has_table = rng.random() < 0.5  # which is not there, so that `read_source` would refuse it
    if has_table:
        value["placements_table"] = {"file": "placements.npy", "bytes": 9, "sha256": "0" * 64}
    changed = mutated(rng, value)
    text = damaged(rng, to_text(value)) if rng.random() < 0.3 else to_text(changed)
    (files.data / "dataset.json").write_bytes(text)
    try:
        found = read_metadata(files.data)
        require(same(json.loads(text), found), "dataset.json was read as something else")
        if not has_table:
            read_source(files.data)
    finally:
        (files.data / "dataset.json").unlink()


def table(files: Files, rng: random.Random) -> None:
    """The table of samples of a data set."""
    starts, path = np.array([0, 8, 16, 24]), files.folder / "placements.npy"
    rows = np.zeros(24, PLACEMENT)
    rows["bg"], rows["scale"] = np.arange(24) // 8, 0.5
    write_placements(path, rows)
    path.write_bytes(overwritten(rng, path.read_bytes(), 128 + rows.nbytes))
    found = read_placements(path, starts, (32, 40))
    require(len(found) == 24 and bool((found["bg"] == rows["bg"]).all()), "another table")


def others(files: Files, rng: random.Random) -> None:
    """The table of further foregrounds."""
    placements, path = np.zeros(24, PLACEMENT), files.folder / "others.npy"
    placements["fg"] = np.arange(24) % 8 // 2
    rows = np.zeros(30, OTHER)
    rows["sample"], rows["fg"], rows["scale"] = np.arange(30) * 23 // 29, 1, 0.5
    write_placements(path, rows)
    # Half of the time in the header, which says how many rows there are.
    first = 128 if rng.random() < 0.5 else 128 + rows.nbytes
    path.write_bytes(overwritten(rng, path.read_bytes(), first))
    found = read_others(path, placements, (32, 40))
    require(len(found) <= 30 and bool((found["sample"] < 24).all()), "another table")
    require(all(len(one) < 8 for one in others_of(found, range(24))), "too many people")


def part_of_pack(files: Files, rng: random.Random) -> None:
    """The record of a part of an unfinished pack."""
    value = json.loads(files.part_record)
    del value["sha256"]
    is_signed = rng.random() < 0.5
    text = signed_text(mutated(rng, value)) if is_signed else damaged(rng, files.part_record)
    files.part.path(files.parts, "json").write_bytes(text)
    summary = read_summary(files.part, files.parts)
    found = {name: moments.model_dump() for name, moments in summary.statistics.items()}
    for name, moments in json.loads(text)["statistics"].items():
        moments = {k: v for k, v in moments.items() if k not in ("mean", "std")}
        require(same(moments, found[name]), "a part was read as something else")
    require(is_signed or text == files.part_record, "a changed part passed")


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


def recipe(files: Files, rng: random.Random) -> None:
    """A recipe in JSON or TOML."""
    value = json.loads(RECIPES["robust"].model_dump_json())
    kind = rng.randrange(3)
    if kind == 0:
        path, text = files.folder / "mine.json", to_text(mutated(rng, value))
    elif kind == 1:
        path, text = files.folder / "mine.json", damaged(rng, to_text(value))
    else:
        path, text = files.folder / "mine.toml", damaged(rng, _TOML)
    path.write_bytes(text)
    found = load_recipe(str(path)).model_dump()
    given = tomllib.loads(text.decode()) if path.suffix == ".toml" else json.loads(text)
    require(same(given, found), "a recipe was read as something else")


def configuration(files: Files, rng: random.Random) -> None:
    """config.json of a run."""
    value = {"config": json.loads(files.config.model_dump_json()), "versions": {"torch": "2"}}
    text = to_text(mutated(rng, value))
    text = damaged(rng, to_text(value)) if rng.random() < 0.3 else text
    path = files.folder / "config.json"
    path.write_bytes(text)
    found = read_config(path).model_dump()
    given = json.loads(text)["config"]
    given.pop("save_every", None)
    require(same(given, found), "a configuration was read as something else")


def _save_checkpoint(files: Files, info: Any) -> None:
    about = {"format": "maskdepth-network", "version": 2, "info": info}
    weights = {n: t.contiguous() for n, t in files.network.state_dict().items()}
    save_file(weights, files.checkpoint, {METADATA_KEY: json.dumps(about)})


def metadata(files: Files, rng: random.Random) -> None:
    """The metadata of a checkpoint."""
    info = mutated(rng, json.loads(files.info.model_dump_json()))
    _save_checkpoint(files, info)
    require(same(info, load_network(files.checkpoint).info.model_dump()), "other metadata")
    if rng.random() < 0.1:
        predict(files, rng)


def weights_file(files: Files, rng: random.Random) -> None:
    """The bytes of a checkpoint."""
    files.checkpoint.write_bytes(damaged(rng, files.weights))
    found = load_network(files.checkpoint)
    own = files.network.state_dict()
    equal = all(torch.equal(own[name], t) for name, t in found.network.state_dict().items())
    require(equal and found.info == files.info, "other weights or metadata")


def original_weights(files: Files, rng: random.Random) -> None:
    """A `.pth` file."""
    path = files.folder / "theirs.pth"
    path.write_bytes(damaged(rng, files.theirs))
    load_network(path)


def last_state(files: Files, rng: random.Random) -> None:
    """The values of last.pt."""
    state = mutated(rng, files.state)
    save_state(files.run / "last.pt", state)
    _restore(files, state)


def last_bytes(files: Files, rng: random.Random) -> None:
    """The bytes of last.pt."""
    (files.run / "last.pt").write_bytes(damaged(rng, files.last))
    _restore(files, files.state)


def _restore(files: Files, state: Any) -> None:
    run, network = Run(config=files.config, folder=files.run, first=False), DualDecoderUNet(1)
    with torch.random.fork_rng():
        run.restore(network)
    if run.stage_state is not None:
        files.trainer.load_state(run.stage_state)
    found = {"steps": run.steps, "history": run.history}
    found |= {"best": run.best, "network": network.state_dict()}
    size = files.config.first_step(files.config.recipe.stages[0])
    counted = state.get("counted") or {"samples": size, "first": 0}
    stage, epoch, batch = state["position"]
    seen = counted["first"] + batch * counted["samples"]
    moved = run.position
    require(
        (stage, epoch, seen) == (moved.stage, moved.epoch, moved.first + moved.batch * size),
        "another position was read",
    )
    require(all(same(state[name], found[name]) for name in found), "another state was read")


def result(files: Files, rng: random.Random) -> None:
    """A result of the benchmarks, as `report` and `compare` read it."""
    name = rng.choice(sorted(files.results))
    value = json.loads(files.results[name])
    text = to_text(mutated(rng, value))
    text = damaged(rng, files.results[name]) if rng.random() < 0.2 else text
    folder = files.folder / "results"
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


def photo(files: Files, rng: random.Random) -> None:
    """A photo, as `predict` and `compose` read it."""
    form = rng.choice(("JPEG", "PNG", "TIFF", "GIF", "WEBP", "BMP"))
    content = io.BytesIO()
    Image.fromarray(files.pixels).save(content, form)
    path = files.folder / f"photo.{form.lower()}"
    path.write_bytes(damaged(rng, content.getvalue()))
    require(read_rgb(path).dtype == np.uint8, "a photo was read as something else")


def sample(files: Files, rng: random.Random) -> None:
    """An image of a data set, as `pack` encodes it."""
    jpegs = {name: damaged(rng, data) for name, data in files.jpegs.items()}
    for codec, encode in ENCODERS.items():
        data = jpegs[CODECS[codec].field]
        try:
            encode(data, 32, 40)
        except ValueError as error:
            raise DataError(f"{codec}: {error}") from None


def predict(files: Files, rng: random.Random) -> None:
    """The command line of prediction, with a photo that may be damaged."""
    if rng.random() < 0.5:
        files.checkpoint.write_bytes(files.weights)
    for name in ("bg", "fg_bg"):
        jpeg = files.jpegs["fg_bg"]
        data = jpeg if rng.random() < 0.5 else damaged(rng, jpeg)
        (files.folder / f"{name}.jpg").write_bytes(data)
    photos = ("--bg", files.folder / "bg.jpg", "--fg-bg", files.folder / "fg_bg.jpg")
    out = files.folder / "out"
    try:
        run_command(train.main, "predict", files.checkpoint, *photos, out, "--device", "cpu")
    finally:
        shutil.rmtree(out, ignore_errors=True)


Target = Callable[[Files, random.Random], None]
TARGETS: dict[str, tuple[Target, int]] = {
    "manifest, signed again": (signed_manifest, 6),
    "manifest, bytes": (damaged_manifest, 3),
    "arrays of shards": (array, 2),
    "dataset.json": (dataset, 2),
    "table of samples": (table, 2),
    "table of further foregrounds": (others, 2),
    "part of a pack": (part_of_pack, 2),
    "recipe": (recipe, 4),
    "config.json": (configuration, 3),
    "checkpoint, metadata": (metadata, 4),
    "checkpoint, bytes": (weights_file, 2),
    "checkpoint, .pth": (original_weights, 1),
    "last.pt, values": (last_state, 3),
    "last.pt, bytes": (last_bytes, 2),
    "result": (result, 4),
    "photo": (photo, 4),
    "image of a data set": (sample, 3),
    "predict": (predict, 1),
}
"""Each target, and how often it is chosen."""
