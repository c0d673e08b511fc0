"""The Dockerfile: what it takes from the repository is there, and the documents use it rightly."""

from __future__ import annotations

import re
from configparser import ConfigParser
from itertools import pairwise
from pathlib import Path

from tests.test_commands_of_documents import DOCUMENTS, lines
from tests.test_package import BUILT

ROOT = Path(__file__).parents[1]
FILE = (ROOT / "Dockerfile").read_text()
DOCKER = [line for document in DOCUMENTS for line in lines(document) if line[0] == "docker"]


def test_documented_arguments_and_folders_exist() -> None:
    known = set(re.findall(r"^ARG (\w+)=", FILE, re.MULTILINE))
    folders = set(re.search(r"install -d -o .*", FILE)[0].split()[6:-1])  # type: ignore[index]
    folders.add("/var/cache/maskdepth")
    given, mounted = set(), set()
    for line in DOCKER:
        for option, value in pairwise(line):
            if option == "--build-arg":
                given.add(value.partition("=")[0])
            if option == "-v":
                mounted.add(value.split(":")[1])
    assert "BASE" in given <= known == {"BASE", "PIP_ARGS"}
    assert mounted == folders


def test_the_context_has_what_is_built() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    copied = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert copied == {*BUILT, "constraints.txt"}


def test_packages_are_those_of_the_installation() -> None:
    needed = re.search(r"^missing_for_ffcv.*?^}", (ROOT / ".ci/install").read_text(), re.M | re.S)
    assert needed is not None
    named = set(re.findall(r"(?:echo |\|\| )?\b(g\+\+|pkg-config|lib\w+-dev)$", needed[0], re.M))
    assert named == {"g++", "pkg-config", "libturbojpeg0-dev", "libopencv-dev"}
    build, _, runtime = FILE.partition("\nFROM ${BASE}\n")
    assert named | {"python3-dev", "python3-venv"} <= set(build.split())
    assert "python3" in runtime.split()


def test_extras_exist() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = {name for found in re.findall(r"extras=([\w,-]+)", FILE) for name in found.split(",")}
    assert extras == {"ffcv-needs", "dali-cu12", "dali-cu13"}
    assert extras <= set(setup["options.extras_require"])


def test_it_is_run_by_a_user_and_names_no_index() -> None:
    assert re.findall(r"^USER (\d+)$", FILE, re.MULTILINE) == ["10001"]
    assert "--uid 10001 " in FILE
    assert "://" not in FILE
