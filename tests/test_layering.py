"""Data flows one way: these tests fail if a module imports from a later layer.

Run them alone with `python -m pytest tests/test_layering.py`. CONTRIBUTING.md explains the rule.
"""

import ast
import configparser
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("convert", "loaders", "model", "train", "benchmarks")

# Modules, with their submodules, that a file must not import, by the start of its path.
FORBIDDEN = {
    "convert/": "torch torchvision torchmetrics kornia loaders model train benchmarks",
    "loaders/": "convert model train benchmarks",
    "model/": "convert loaders train benchmarks",
    "train.py": "convert benchmarks",
    "benchmarks/": "",
}
# Exceptions to FORBIDDEN.
ALLOWED = {
    "convert/dataset/networks/": "torch",
    "model/": (
        "convert.errors convert.files convert.found convert.images convert.interrupts "
        "convert.limits convert.outputs convert.program convert.schema"
    ),
    "train.py": "convert.outputs convert.program",
    "loaders/": (
        "convert.codecs convert.errors convert.interrupts convert.jpeg.difference "
        "convert.jpeg.record convert.jpeg.streaming convert.layout convert.limits "
        "convert.manifest convert.moments convert.program convert.schema convert.shards "
        "convert.storage convert.workers"
    ),
    "loaders/folder.py": "convert.names convert.source",
    "loaders/engines/reference.py": "convert.files convert.names convert.source",
    "loaders/engines/ffcv.py": "convert.beton",
    "loaders/engines/dali_stream.py": "convert.files convert.tarshards",
}
# Only these files import an engine.
ENGINES = {
    "ffcv": ("loaders/engines/ffcv.py", "benchmarks/"),
    "nvidia": ("loaders/engines/dali.py", "benchmarks/"),
}


def imported_names(source: str, path: str) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every import: absolute, relative or by `import_module`.

    `from a import b` counts as `a.b`, whether b is a module or not. Names in maskdepth are without
    it, as the folders are.
    """
    for line, name in _imported_names(source, path):
        yield line, name.removeprefix("maskdepth.")


def _imported_names(source: str, path: str) -> Iterator[tuple[int, str]]:
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            stem = [*above, *([node.module] if node.module else [])]
            yield from ((node.lineno, ".".join([*stem, alias.name])) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            name = getattr(node.args[0], "value", None)
            if called in ("import_module", "__import__") and isinstance(name, str):
                yield node.lineno, name


def within(name: str, modules: str) -> bool:
    """Whether a dotted name is one of the modules (separated by spaces) or is inside one."""
    return any(name == m or name.startswith(m + ".") for m in modules.split())


def violations(source: str, path: str) -> list[str]:
    """One line for each forbidden import of the file at this path (relative, with /)."""
    forbidden, allowed = (
        " ".join(names for start, names in table.items() if path.startswith(start))
        for table in (FORBIDDEN, ALLOWED)
    )
    found = []
    for line, name in imported_names(source, path):
        homes = ENGINES.get(name.split(".")[0])
        if within(name, forbidden) and not within(name, allowed):
            found.append(f"{path}:{line}: imports {name}, which its layer must not")
        elif homes and not path.startswith(homes):
            found.append(f"{path}:{line}: imports {name}; only {', '.join(homes)} may")
    return found


def layer_files() -> list[Path]:
    """Every Python file of the program, without the tests."""
    files = [ROOT / "train.py"]
    for layer in LAYERS:
        files += sorted((ROOT / layer).rglob("*.py"))
    return files


@pytest.mark.parametrize("file", layer_files(), ids=lambda file: str(file.relative_to(ROOT)))
def test_no_file_imports_from_a_later_layer(file):
    assert violations(file.read_text(), file.relative_to(ROOT).as_posix()) == []


def test_no_file_imports_an_old_name():
    files = (file for file in repository_files() if file.suffix == ".py")
    used = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in files
        for line, name in _imported_names(file.read_text(), file.relative_to(ROOT).as_posix())
        if within(name, " ".join(LAYERS)) and file.parent != ROOT / "maskdepth"
    ]
    assert used == []


def test_every_python_file_belongs_to_a_layer():
    others = {
        file.relative_to(ROOT).parts[0]
        for file in repository_files()
        if file.suffix == ".py" and "docs" not in file.parts
    } - {"maskdepth", *LAYERS, "train.py", "examples", "tests"}
    assert not others, f"these belong to no layer: {sorted(others)}"


def test_modules_do_not_import_each_other_in_a_circle():
    paths = {file: file.relative_to(ROOT).with_suffix("") for file in layer_files()}
    modules = {".".join(path.parts).removesuffix(".__init__") for path in paths.values()}
    graph = {}
    for file, path in paths.items():
        names = {name for _, name in imported_names(file.read_text(), f"{path}.py")}
        module = ".".join(path.parts).removesuffix(".__init__")
        parents = {name.rpartition(".")[0] for name in names - modules}
        graph[module] = (names | parents) & modules - {module}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"these modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("convert/pack.py", "import torch"),
        ("convert/pack.py", "import torch.nn as nn"),
        ("convert/pack.py", "def late():\n    from maskdepth.loaders.batch import Batch"),
        ("convert/pack.py", "from ..loaders import batch"),
        ("convert/pack.py", "from ffcv.fields import RGBImageField"),
        ("loaders/engines/dali.py", "import maskdepth.convert"),
        ("loaders/engines/dali.py", "from maskdepth.convert import compose"),
        ("loaders/engines/dali.py", "from maskdepth.convert.source import read"),
        ("loaders/engines/dali.py", "import ffcv"),
        ("loaders/engines/ffcv.py", "from nvidia import dali"),
        ("loaders/batch.py", "import importlib\nimportlib.import_module('nvidia.dali.fn')"),
        ("loaders/batch.py", "import maskdepth.train"),
        ("model/unet.py", "from maskdepth.loaders import Batch"),
        ("model/unet.py", "from maskdepth.convert.manifest import FIELDS"),
        ("train.py", "from maskdepth.convert import manifest"),
        ("train.py", "import maskdepth.benchmarks.report"),
        ("train.py", "if TYPE_CHECKING:\n    import ffcv"),
    ],
)
def test_checker_reports_a_violation(path, source):
    (line,) = violations(source, path)
    assert line.startswith(f"{path}:{len(source.splitlines())}: imports ")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "convert/pack.py",
            "from maskdepth.convert.manifest import FIELDS\nfrom . import codecs\nimport numpy",
        ),
        ("convert/pack.py", "import torchlike, benchmarks_of_others"),
        ("loaders/engines/ffcv.py", "from maskdepth.convert import codecs\nimport ffcv, torch"),
        ("loaders/engines/ffcv.py", "from .ffcv import build\nfrom . import dali"),
        (
            "loaders/engines/dali.py",
            "import nvidia.dali.fn\nfrom maskdepth.convert.errors import DataError",
        ),
        ("loaders/engines/reference.py", "from maskdepth.convert.source import read"),
        (
            "train.py",
            "from maskdepth.loaders import Batch\nfrom maskdepth.model import DualDecoderUNet",
        ),
        (
            "benchmarks/loader.py",
            "import maskdepth.convert.dataset.compose, loaders, model, train, ffcv, nvidia.dali",
        ),
    ],
)
def test_checker_accepts_allowed_imports(path, source):
    assert violations(source, path) == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("maskdepth.convert.__main__", "torch"),
        ("maskdepth.__main__", "torch"),
        ("maskdepth.loaders", "ffcv"),
        ("maskdepth.loaders", "nvidia.dali"),
    ],
)
def test_import_loads_only_what_it_needs(module, unwanted):
    """The rule at run time, which also finds indirect imports."""
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr or f"import {module} also loads {unwanted}"


def repository_files() -> list[Path]:
    """Tracked files, and new ones that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git cannot list the files: {error}")
    files = (ROOT / name for name in names.decode().split("\0") if name)
    return [file for file in files if file.is_file()]


# A home or working folder of one machine. "a/home/b" and "~/work/x" are not absolute paths.
MACHINE_PATH = re.compile(rb"(?<![\w.~$})/-])/(?:root|work|Users|home/\w+)/")


def test_no_file_names_a_path_of_one_machine():
    named = {
        str(file.relative_to(ROOT)): match[0]
        for file in repository_files()
        if (match := MACHINE_PATH.search(file.read_bytes()))
    }
    assert not named, f"found paths of one machine, expected relative ones: {named}"


def test_machine_path_is_recognised():
    for folder in (b"root", b"work", b"home/anna"):
        assert MACHINE_PATH.search(b"see '/" + folder + b"/x.py'")
    for text in (b"frame/work/x", b"../work/x", b"$(HOME)/work/x", b"~/work/x", b"and/or"):
        assert not MACHINE_PATH.search(text)


def test_constraints_are_names_and_versions_and_cover_the_requirements():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", pin)] == []
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"].split()
    for extra in ("ffcv", "ffcv-needs", "dali-cu13", "dali-cu12", "test"):
        wanted += setup["options.extras_require"][extra].split()
    names = {re.split(r"[\[<>=]", requirement)[0].lower() for requirement in wanted}
    assert names - {pin.split("==")[0].lower() for pin in pins} == {"maskdepth"}
