"""Makes a file of `torch.export` safe to load: what could run code is refused or left out.

`torch.export.load` trusts its file. It unpickles sample inputs and some weights, evaluates shapes
and guards as Python, looks up any function of torch by name, and writes Python source with the
names of the graph. So `safe_archive` copies of a file only what a network needs, and checks it: raw
weights, and a graph of ATen operators whose names and shapes are plain.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskdepth.convert.errors import DataError
from maskdepth.convert.files import read_regular
from maskdepth.convert.schema import parse_table, shown

_MEMBER = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/(version|serialization_id)"
    r"|models/\w+\.json|data/(weights|constants)/((weight|tensor)_\d+|\w+_config\.json)",
    re.ASCII,
)
_LEFT_OUT = re.compile(r"extra/.*|data/sample_inputs/(\w+)\.pt", re.ASCII)
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?!from_file\b)\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|ge|le|gt|lt|and_|or_)"
    r"|torch\.sym_(int|float|max|min|not|ite|sum|sqrt)|math\.(ceil|floor|trunc|sqrt)",
    re.ASCII,
)
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|Abs|Eq|Ne|Equality|Unequality|And|Or|Not"
    r"|(Strict)?(Greater|Less)Than|floor|ceiling|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv"
    r"|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv"
    r"|IsNonOverlappingAndDenseIndicator|TruncTo(Float|Int)|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_NAME = re.compile(r"\w*", re.ASCII)
_PLAIN = re.compile(r"[\w.+:-]*", re.ASCII)
_RANGE = re.compile(r"[\w.+*/(), -]*", re.ASCII)  # keys of `range_constraints`: shapes as text
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_LONGEST = 2000  # characters of a shape
_FIX = "export the network again, as the guide describes, or use ONNX"


def safe_archive(path: Path) -> io.BytesIO:
    """A copy of a `.pt2` file that can be loaded without running code of the file.

    Raises DataError for a file of another kind, or with anything that is not plainly a network.
    """
    copy = io.BytesIO()
    try:
        with (
            zipfile.ZipFile(io.BytesIO(read_regular(path))) as found,
            zipfile.ZipFile(copy, "w") as made,
        ):
            for name, content in _checked(found):
                made.writestr(name, content)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a network in a .pt2 file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except DataError:
        raise
    # zipfile raises many kinds of exceptions on corrupt bytes, and a program may have any form.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: no network that is safe to load ({reason}); {_FIX}") from None
    copy.seek(0)
    return copy


def _checked(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    """Names and contents of what is to be loaded; ValueError for what must not be."""
    names = archive.namelist()
    if len({name.casefold() for name in names}) < len(names):
        raise ValueError("two members of one name")
    if any(one.compress_type != zipfile.ZIP_STORED for one in archive.infolist()):
        raise ValueError("a member is compressed, and torch compresses none")
    roots = {name.partition("/")[0] for name in names}
    if len(roots) != 1:
        raise ValueError("expected an archive of torch 2.8 or newer")
    for name in names:
        member = name.partition("/")[2]
        if left_out := _LEFT_OUT.fullmatch(member):
            if left_out[1]:  # must exist, and no inputs are needed
                yield name, b""
            continue
        if not _MEMBER.fullmatch(member):
            raise ValueError(f"found {shown(member)}, which no network needs")
        content = archive.read(name)
        if member.startswith("models/"):
            content = json.dumps(_plain_program(parse_table(content))).encode()
        elif member.endswith("_config.json"):
            _check_payloads(parse_table(content))
        yield name, content


def _check_payloads(config: dict[str, Any]) -> None:
    """ValueError unless all tensors are stored as raw bytes."""
    _check_strings(config)
    for name, payload in config["config"].items():
        if payload["use_pickle"] is not False:
            raise ValueError(f"{name} is a pickle")


def _plain_program(program: dict[str, Any]) -> dict[str, Any]:
    """A program without what is evaluated as Python, and without notes."""
    program["guards_code"] = []
    module = program["graph_module"]
    module["metadata"], module["treespec_namedtuple_fields"] = {}, {}
    ranges = program.pop("range_constraints")
    if not all(_RANGE.fullmatch(key) for key in ranges):
        raise ValueError("a range with another name than a shape")
    _strip_notes(program)
    _check_strings(program)
    _check_strings(list(ranges.values()))
    return {**program, "range_constraints": ranges}


def _strip_notes(value: Any) -> None:
    """Remove the notes on where nodes come from: names of modules and lines of source."""
    if isinstance(value, dict):
        if "target" in value and "metadata" in value:
            value["metadata"] = {}
        for entry in value.values():
            _strip_notes(entry)
    elif isinstance(value, list):
        for entry in value:
            _strip_notes(entry)


def _check_strings(value: Any, key: str = "") -> None:
    """ValueError for a text of a program that is not plainly a name, an operator or a shape."""
    if isinstance(value, dict):
        for name, entry in value.items():
            if not _PLAIN.fullmatch(name):
                raise ValueError(f"the name {shown(name)}")
            _check_strings(entry, name)
    elif isinstance(value, list):
        for entry in value:
            _check_strings(entry, key)
    elif isinstance(value, str):
        if key == "expr_str":
            _check_shape(value)
        elif key in ("in_spec", "out_spec"):
            _check_container(json.loads(value)[1])
        elif key in ("target", "as_operator"):
            if not _TARGET.fullmatch(value):
                raise ValueError(f"the operator {shown(value)}")
        elif key in ("name", "as_name", "forward_arg_names"):  # they are in the source of the graph
            if not _NAME.fullmatch(value):
                raise ValueError(f"{key} {shown(value)}")
        elif not _PLAIN.fullmatch(value):
            raise ValueError(f"{key} {shown(value)}")


def _check_shape(text: str) -> None:
    """ValueError unless a text has only calls of known functions with numbers and names."""
    if len(text) > _LONGEST:
        raise ValueError(f"a shape of {len(text)} characters")
    for node in ast.walk(ast.parse(text, mode="eval")):
        match node:
            case ast.Call(func=ast.Name(name)) if _FUNCTIONS.fullmatch(name):
                pass
            case ast.Name(name) if re.fullmatch(r"[a-z]+\d+|" + _FUNCTIONS.pattern, name):
                pass
            case ast.Constant(str(name)) if not _PLAIN.fullmatch(name):
                raise ValueError(f"the shape {shown(text)}")
            case (
                ast.Expression() | ast.Constant() | ast.keyword() | ast.Load() | ast.Add()
                | ast.Sub() | ast.Mult() | ast.FloorDiv() | ast.Mod() | ast.BinOp() | ast.UnaryOp()
                | ast.unaryop()
            ):  # fmt: skip
                pass
            case _:
                raise ValueError(f"the shape {shown(text)}")


def _check_container(spec: dict[str, Any]) -> None:
    """ValueError unless inputs or outputs are tensors in tuples, lists and tables."""
    if spec["type"] not in _CONTAINERS:
        raise ValueError(f"inputs or outputs in a {shown(spec['type'])}, expected tensors")
    _check_strings(json.loads(spec["context"] or "null"))
    for child in spec["children_spec"]:
        _check_container(child)
