"""Fingerprints of data sets, and how much of a validation split training has seen."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from maskdepth.convert.moments import Moments
from maskdepth.convert.placements import OTHER, PLACEMENT, write_placements
from maskdepth.loaders import Layout, split_indices
from maskdepth.model.training.provenance import count_seen, fingerprint, seen_note

MOMENTS = Moments(values=100, sums=(5000,), squares=(300_000,), scale=255)
# 4 backgrounds, each with 3 foregrounds of 2 samples.
LAYOUT = Layout(height=32, width=32, group_starts=np.arange(5) * 6, samples_per_fg=2)


@dataclass(frozen=True)
class Data:
    """What a loader says of its data."""

    layout: Layout = LAYOUT
    statistics: dict[str, Moments] = field(default_factory=dict)


SAME = Data(LAYOUT, {"mask": MOMENTS, "depth": MOMENTS})


def test_fingerprint_is_that_of_the_content() -> None:
    turned = Data(LAYOUT, {"depth": MOMENTS, "mask": MOMENTS})
    assert fingerprint(turned, "random") == fingerprint(SAME, "random")
    changed = [
        Data(LAYOUT, {"mask": MOMENTS, "depth": MOMENTS.changed(sums=(5001,))}),
        replace(SAME, layout=replace(LAYOUT, height=40)),
        replace(SAME, layout=replace(LAYOUT, group_starts=np.array([0, 6, 12, 17, 24]))),
    ]
    assert len({fingerprint(data, "random") for data in [SAME, *changed]}) == 4


@pytest.mark.parametrize(("split", "equal"), [("bg", True), ("fg", False), ("both", False)])
def test_samples_per_fg_count_if_the_split_holds_out_foregrounds(split: str, equal: bool) -> None:
    other = replace(SAME, layout=replace(LAYOUT, samples_per_fg=3))
    assert (fingerprint(other, split) == fingerprint(SAME, split)) is equal


def test_a_table_of_samples_counts_in_their_place(tmp_path: Path) -> None:
    rows = np.zeros(24, PLACEMENT)
    rows["bg"], rows["scale"] = np.arange(24) // 6, 0.5
    found = {}
    for name, fg in (("a", np.arange(24) % 3), ("b", np.arange(24) % 2)):
        rows["fg"] = fg
        write_placements(tmp_path / name, rows)
        layout = replace(LAYOUT, samples_per_fg=None, table=tmp_path / name)
        found[name] = replace(SAME, layout=layout)
    assert fingerprint(found["a"], "fg") != fingerprint(found["b"], "fg")
    assert fingerprint(found["a"], "bg") == fingerprint(found["b"], "bg")
    seen = count_seen(found["a"].layout, np.arange(12), np.arange(12, 24))
    assert seen == {"samples": 0, "backgrounds": 0, "foregrounds": 3}


def test_further_foregrounds_count_if_the_split_holds_out_foregrounds(tmp_path: Path) -> None:
    rows = np.zeros(24, PLACEMENT)
    rows["bg"], rows["fg"], rows["scale"] = np.arange(24) // 6, np.arange(24) % 3, 0.5
    write_placements(tmp_path / "table", rows)
    found = []
    for sample, fg in ((3, 1), (3, 2), (4, 1)):
        others = np.zeros(1, OTHER)
        others["sample"], others["fg"], others["scale"] = sample, fg, 0.5
        path = tmp_path / f"others-{sample}-{fg}"
        write_placements(path, others)
        layout = replace(LAYOUT, samples_per_fg=None, table=tmp_path / "table", others=path)
        found.append(replace(SAME, layout=layout))
    assert len({fingerprint(data, "fg") for data in found}) == 3
    assert len({fingerprint(data, "bg") for data in found}) == 1


def test_seen_samples_and_groups_are_counted() -> None:
    train, validation = np.array([0, 1, 6, 8]), np.array([1, 9, 10, 14])
    seen = count_seen(LAYOUT, train, validation)
    assert seen == {"samples": 1, "backgrounds": 2, "foregrounds": 2}
    unknown = replace(LAYOUT, samples_per_fg=None)
    assert count_seen(unknown, train, validation) == {"samples": 1, "backgrounds": 2}


@pytest.mark.parametrize(
    ("trained", "split", "note"),
    [
        ("random", "random", None),
        ("bg", "bg", None),
        ("fg", "fg", None),
        ("both", "both", None),
        # the same backgrounds and foregrounds are held out
        ("both", "bg", None),
        ("random", "bg", r"split bg were seen in training \(split random\): \d of its samples, 1"),
        ("bg", "both", "1 of its foregrounds"),
        ("fg", "both", "1 of its backgrounds"),
    ],
)
def test_a_split_that_leaks_is_reported(trained: str, split: str, note: str | None) -> None:
    train, _ = split_indices(LAYOUT, trained, seed=42, validation=0.3)
    _, validation = split_indices(LAYOUT, split, seed=42, validation=0.3)
    found = seen_note(split, trained, count_seen(LAYOUT, train, validation))
    if note is None:
        assert found is None
    else:
        assert re.search(note, found or "")


def test_unknown_data_is_reported() -> None:
    assert "not known" in (seen_note("bg", "bg", None) or "")
