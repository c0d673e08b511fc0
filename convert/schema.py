"""The schema of files that hold data: what each key must be, and how a mistake is reported.

A file is parsed to plain values (`parse_json`, TOML, `torch.load`), which a class derived from
`Schema` checks. Both raise ValueError with one line: key, what was expected, what was found.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence, Sized
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

T = TypeVar("T")
Items = Annotated[tuple[T, ...], Field(strict=False)]
"""A list in JSON, a tuple here."""
Pair = Annotated[tuple[T, T], Field(strict=False)]
"""A list of two."""
LARGEST = 2**63 - 1
Count = Annotated[int, Field(ge=0, le=LARGEST)]
Positive = Annotated[int, Field(ge=1, le=LARGEST)]
AnyFloat = Annotated[float, Field(allow_inf_nan=True)]

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "string_type": "a string",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "named_tuple_type": "a list or a table",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "none_required": "null",
    "literal_error": "{expected}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "string_too_short": "a string that is not empty",
    "too_short": "{min_length} or more entries",
    "too_long": "at most {max_length} entries",
    "is_instance_of": "a {class}",
}
"""What pydantic expected, by the type of its error, with the names of its context."""
_NAMES = {"dict": "table", "tuple": "list"}
_DEEPEST = 100  # tables and lists within each other
_FILE = re.compile(r"\w[\w.-]*", re.ASCII)


def _file_name(name: str) -> str:
    if not _FILE.fullmatch(name):
        raise ValueError(
            "expected the name of a file in this folder, of letters, digits, '_', '-' and '.', "
            f"found {shown(name)}"
        )
    return name


def _photo_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"expected the name of a file without its folder, found {shown(name)}")
    return name


def one_of(choices: Collection[str]) -> AfterValidator:
    """Restricts a string, in `Annotated`, to these."""

    def check(found: str) -> str:
        if found not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, found {shown(found)}")
        return found

    return AfterValidator(check)


FileName = Annotated[str, AfterValidator(_file_name)]
"""Of a file that this program wrote, in the folder of the file that names it."""
PhotoName = Annotated[str, AfterValidator(_photo_name)]
"""Of a user's file, without a folder; it may be no valid UTF-8."""


class Schema(BaseModel):
    """A table: no other keys, no infinite number, and values of exactly their type.

    A float, a string or a bool is no whole number, but a whole number is a float.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, value: object) -> object:
        """Pydantic refuses other keys too, but does not list those that are known."""
        if isinstance(value, Mapping) and cls.model_config["extra"] == "forbid":
            for key in value:
                if key not in cls.model_fields:
                    raise ValueError(
                        f"unknown key {shown(key)}; known are {', '.join(cls.model_fields)}"
                    )
        return value

    @classmethod
    def from_json(cls, value: object) -> Self:
        """From plain values; ValueError names the first key that is wrong."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ValueError(_first_problem(error)) from None

    def changed(self, **values: Any) -> Self:
        """A copy with other values, which are checked."""
        return self.from_json({**dict(self), **values})


def parse_json(text: str | bytes) -> object:
    """Plain values, all numbers finite; ValueError with the reason for anything else."""
    try:
        value = json.loads(
            text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_distinct
        )
        _check_depth(value, _DEEPEST)
    except RecursionError:
        raise ValueError("expected JSON, found tables or lists that are nested too deep") from None
    except ValueError as error:
        raise ValueError(f"expected JSON, found {error}") from None
    return value


def parse_table(text: str | bytes) -> dict[str, object]:
    """`parse_json` of a table; ValueError if it is something else."""
    value = parse_json(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected a table, found {shown(value)}")
    return value


def _check_depth(value: object, left: int) -> None:
    """RecursionError for what could be parsed but not written."""
    if isinstance(value, dict | list):
        if left == 0:
            raise RecursionError
        for entry in value.values() if isinstance(value, dict) else value:
            _check_depth(entry, left - 1)


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A table; ValueError for a key that is there twice, of which Python takes the last."""
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key {shown(twice)} twice in one table")
    return table


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {shown(text)}, which is not finite")
    return value


def shown(value: object) -> str:
    """A value in a message: one short line."""
    # Python prints a whole number only up to a length.
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if not isinstance(value, str | int | float | None):
        entries = f" of {len(value)}" if isinstance(value, Sized) else ""
        name = type(value).__name__
        return f"a {_NAMES.get(name, name)}{entries}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _first_problem(error: ValidationError) -> str:
    """The first error of pydantic as one line: table, key, what was expected and found."""
    first = error.errors(include_url=False)[0]
    path, kind, context = list(first["loc"]), first["type"], first.get("ctx", {})
    key = path.pop() if path else None
    if kind == "value_error":
        whole = () if key in (None, "[key]") else (key,)
        return _place((*path, *whole)) + str(context["error"])
    if kind == "missing":
        return f"{_place(path)}missing key {key!r}"
    expected = (
        _EXPECTED[kind].format_map(context) if kind in _EXPECTED else f"valid ({first['msg']})"
    )
    if key == "[key]":
        return f"{_place(path[:-1])}unknown key {shown(path[-1])}; expected {expected}"
    subject = "" if key is None else f"{_named(key)} must be "
    return f"{_place(path)}{subject or 'expected '}{expected}, found {shown(first['input'])}"


def _place(path: Sequence[int | str]) -> str:
    return ", ".join(map(_named, path)) + ": " if path else ""


def _named(key: int | str) -> str:
    """A key, or a number of a list counted from 1; a key may be any text of the file."""
    if isinstance(key, int):
        return f"entry {key + 1}"
    return key if key.isidentifier() or _FILE.fullmatch(key) else shown(key)
