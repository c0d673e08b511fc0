"""The command lines and the code of README and docs: parsed, and those of the guide run."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import maskdepth.benchmarks.__main__ as benchmarks
import maskdepth.convert.__main__ as convert
from maskdepth import train
from maskdepth.convert.dataset.networks.model import DepthModel, ModelOptions
from maskdepth.convert.errors import Command
from maskdepth.model.recipe import RECIPES, load_recipe
from tests.pictures import texture
from tests.tiny import leave_out_pictures

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS = {"train.py": train.main, "convert": convert.main, "benchmarks": benchmarks.main}
INSTALLED = {"train": train.main, "convert": convert.main, "bench": benchmarks.main}


def blocks(document: Path, language: str = "") -> list[str]:
    """The fenced blocks of a document in a language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    return [text for name, text in found if name == language]


def lines(document: Path) -> Iterator[list[str]]:
    """The words of each command line of a document, without comments."""
    for block in blocks(document):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(
                r"(python|torchrun|nsys|make|pip|docker|maskdepth|[A-Z_]+=\S+ python|\.ci/run)\b",
                line,
            ):
                yield shlex.split(line, comments=True)


def program_of(words: list[str]) -> tuple[click.Group, list[str]] | None:
    """The program of ours that a command line runs, and the arguments; None if it is another.

    After the command `maskdepth`, or an image of that name, programs have their installed names.
    """
    if words[0] in ("docker", "maskdepth"):
        image = next(n for n, word in enumerate(words) if re.fullmatch(r"maskdepth(:\w+)?", word))
        name = next(iter(words[image + 1 :]), "")
        return (INSTALLED[name], words[image + 2 :]) if name in INSTALLED else None
    place = next((place for place, word in enumerate(words) if word in PROGRAMS), None)
    return None if place is None else (PROGRAMS[words[place]], words[place + 1 :])


def id_of(value: object) -> str:
    return " ".join(value) if isinstance(value, list) else str(value)


COMMANDS = [line for document in DOCUMENTS for line in lines(document) if program_of(line)]
MADE = [line for document in DOCUMENTS for line in lines(document) if line[0] == "make"]


def test_documents_have_commands() -> None:
    assert len(COMMANDS) > 30
    assert {program_of(line)[0] for line in COMMANDS} == set(PROGRAMS.values())  # type: ignore[index]
    assert {line[1] for line in MADE} >= {"demo", "test", "install", "gpu-check"}


@pytest.mark.parametrize("line", COMMANDS, ids=id_of)
def test_command_line_is_understood(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Command, options, choices and recipe exist; nothing runs."""
    monkeypatch.chdir(tmp_path)
    found = program_of(line)
    assert found is not None
    group, (name, *arguments) = found
    command = group.get_command(click.Context(group), name)
    assert command is not None, f"no command {name}"
    context = command.make_context(name, arguments)
    recipes = context.params.get("recipe", ())
    for recipe in (recipes,) if isinstance(recipes, str) else recipes:
        assert recipe in RECIPES or recipe.endswith((".toml", ".json"))


def test_every_command_takes_an_option_once_and_shows_its_range() -> None:
    for group in PROGRAMS.values():
        for name in group.list_commands(click.Context(group)):
            command = group.get_command(click.Context(group), name)
            assert isinstance(command, Command), name
            assert "<=None" not in command.get_help(click.Context(command)), name


@pytest.mark.parametrize("line", MADE, ids=id_of)
def test_make_target_exists(line: list[str]) -> None:
    line = line[: line.index("&&")] if "&&" in line else line
    done = subprocess.run([*line, "--dry-run"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MENTIONED = sorted(
    {
        " ".join(text.split())
        for document in DOCUMENTS
        for text in re.findall(
            r"`((?:python -m (?:convert|benchmarks)|(?:python )?train\.py) [^`]*)`",
            document.read_text(),
        )
        if document.name != "CHANGELOG.md"  # of all versions
    }
)


@pytest.mark.parametrize("text", MENTIONED)
def test_mentioned_commands_and_options_exist(text: str) -> None:
    """In the text, where arguments are left out."""
    found = program_of(shlex.split(text.replace("|", " ")))
    assert found is not None
    group, words = found
    names = [word for word in words if re.fullmatch(r"[a-z][a-z-]+", word)]
    command = group.get_command(click.Context(group), names[0]) if names else None
    assert command is not None, "no such command"
    known = {name for parameter in command.params for name in (*parameter.opts, "--help")}
    known |= {name for parameter in command.params for name in parameter.secondary_opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_is_valid(document: Path) -> None:
    for number, block in enumerate(blocks(document, "python")):
        compile(block, f"{document.name}, block {number}", "exec")


def test_recipe_of_the_guide_is_read(tmp_path: Path) -> None:
    (recipe,) = blocks(ROOT / "docs/guide.md", "toml")
    (tmp_path / "mine.toml").write_text(recipe)
    assert load_recipe(str(tmp_path / "mine.toml")).name == "mine"


SMALL = {
    "compose --pack": "--backgrounds 1 --foregrounds 4 --placements 2 --size 32 --workers 0",
    "compose data": "--backgrounds 4 --foregrounds 2 --placements 4 --size 32 --workers 0",
    "compose mine": "--placements 4 --size 32 --workers 0",
    "compose original": "--workers 0",
    "check": "--workers 0",
    "pack": "--workers 0",
    "verify": "--workers 0",
    "fit": "--recipe tiny.json --width 2 --device cpu --amp off --loader dali",
    "evaluate": "--device cpu --loader dali",
    "predict": "--device cpu",
}
"""Start of a command -> options, so that it runs on little data, in this process, on a CPU."""
TINY = '{"name": "tiny", "stages": [{"size": 16, "batch_size": 4, "lr": 0.01, "trains": %s}]}'


def replace_options(arguments: list[str], options: list[str]) -> list[str]:
    """The arguments with these options, each a name and a value, in place of those of that name."""
    named = dict(zip(options[::2], options[1::2], strict=True))
    kept = [
        word
        for before, word in zip(["", *arguments], arguments, strict=False)
        if word not in named and before not in named
    ]
    return [*kept, *options]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the guide takes for granted, and a depth model."""
    monkeypatch.chdir(tmp_path)
    leave_out_pictures(monkeypatch)
    photos = ("photos/a.jpg", "photos/b.jpg", "empty/one.jpg", "people/one.jpg")
    for name in (*photos, "street.jpg", "street_with_person.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(texture(48, 64)).save(name)
    alpha = np.pad(np.full((36, 16, 1), 255, np.uint8), ((2, 2), (2, 2), (0, 0)))
    Path("cutouts").mkdir()
    Image.fromarray(np.concatenate([texture(40, 20), alpha], 2)).save("cutouts/person.png")
    Path("tiny.json").write_text(TINY % '["encoder", "mask", "depth"]')

    def load(name: str, options: ModelOptions) -> DepthModel:
        return DepthModel(name, lambda images: [image[..., 0] for image in images], "inverse")

    monkeypatch.setattr("maskdepth.convert.dataset.depth.load_model", load)
    return tmp_path


@pytest.mark.slow
def test_the_guide_runs_as_it_is_written(workplace: Path) -> None:
    """Every command in its order; of the many `fit` lines the first and `--resume`."""
    ran: list[str] = []
    for words in lines(ROOT / "docs/guide.md"):
        found = program_of(words)
        if words[0] != "python" or found is None:
            continue
        program, arguments = found
        text = " ".join(arguments)
        if text.startswith("fit") and Path("run").exists() and "--resume" not in arguments:
            continue
        more = next((small for start, small in SMALL.items() if text.startswith(start)), "")
        if "--resume" in arguments:
            more = ""
        result = CliRunner().invoke(program, replace_options(arguments, more.split()))
        assert result.exit_code == 0, f"{text}: {result.output}"
        ran.append(arguments[0])
    assert [*dict.fromkeys(ran)] == [
        "compose", "depth", "show", "check", "pack", "verify", "inspect", "fit", "evaluate",
        "predict", "export",
    ]  # fmt: skip
    written = ["shadow.png", "sheet.png", "network.pt2", "out/one_mask.png"]
    assert [name for name in written if not Path(name).is_file()] == []
    (of_readme,) = blocks(ROOT / "README.md", "python")
    exec(compile(of_readme.replace("SHARDS", "shards"), "README.md", "exec"), {})
    blocks_of_guide = blocks(ROOT / "docs/guide.md", "python")
    first, own = [block for block in blocks_of_guide if " in loader:" in block]
    names: dict[str, Any] = {"first_epoch": 9, "train": lambda inputs: None}
    exec(compile(first, "guide.md", "exec"), names)
    with names["build_loader"]("dali", "shards", batch_size=4) as names["loader"]:
        exec(compile(own, "guide.md", "exec"), names)
        assert names["state"]["loader"] == {**names["loader"].state_dict(), "epoch": 10}
