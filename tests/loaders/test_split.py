"""Splits: the legacy one to the letter, and held-out groups that never leak."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskdepth.convert.errors import DataError
from maskdepth.convert.layout import Layout
from maskdepth.loaders.split import SPLITS, split_indices


def layout_of(sizes: list[int], samples_per_fg: int | None) -> Layout:
    starts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    return Layout(height=8, width=8, group_starts=starts, samples_per_fg=samples_per_fg)


@pytest.mark.parametrize("samples", [1000, 400_000])
def test_random_is_the_original_works_split(samples: int) -> None:
    state = np.random.get_state()
    try:
        # As the original work does it, on the global generator.
        indices = list(range(samples))
        np.random.seed(42)
        np.random.shuffle(indices)
        boundary = int(np.floor(0.3 * samples))
        legacy_train, legacy_val = indices[boundary:], indices[:boundary]
    finally:
        np.random.set_state(state)
    train, val = split_indices(layout_of([samples // 10] * 10, 40), "random")
    assert train.dtype == val.dtype == np.int64
    assert train.tolist() == legacy_train
    assert val.tolist() == legacy_val


def test_the_global_generator_is_left_alone() -> None:
    state = np.random.get_state()
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    for name in SPLITS:
        split_indices(layout_of([20] * 5, 4), name)
    assert np.random.random() == expected
    np.random.set_state(state)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    per_fg = draw(st.integers(1, 4))
    people = draw(st.lists(st.integers(2, 6), min_size=2, max_size=8))
    return layout_of([per_fg * count for count in people], per_fg)


@given(layout=layouts(), seed=st.integers(0, 2**32 - 1), share=st.floats(0.05, 0.95))
@settings(max_examples=150, deadline=None)
def test_no_group_is_on_both_sides(layout: Layout, seed: int, share: float) -> None:
    everything = np.arange(layout.samples)
    groups = {"bg": layout.background_of, "fg": layout.foreground_of}
    held_out = {}
    for name, group_of in groups.items():
        train, val = split_indices(layout, name, seed=seed, validation=share)
        assert np.array_equal(np.sort(np.concatenate((train, val))), everything)
        assert len(train)
        assert len(val)
        assert (np.diff(train) > 0).all()
        assert (np.diff(val) > 0).all()
        assert not set(group_of(train)) & set(group_of(val))
        held_out[name] = set(val.tolist())
    try:
        train, val = split_indices(layout, "both", seed=seed, validation=share)
    except DataError:
        # Unequal groups: nothing may be left that is held out, or kept, on both counts.
        kept = set(everything.tolist()) - held_out["bg"] - held_out["fg"]
        assert not held_out["bg"] & held_out["fg"] or not kept
        return
    assert set(val.tolist()) == held_out["bg"] & held_out["fg"]
    assert set(train.tolist()) == set(everything.tolist()) - held_out["bg"] - held_out["fg"]
    for group_of in groups.values():
        assert not set(group_of(train)) & set(group_of(val))


def test_shares_of_the_original_data_set() -> None:
    layout = layout_of([4000] * 100, 40)
    for name, sizes in {
        "random": (280_000, 120_000),
        "bg": (280_000, 120_000),
        "fg": (280_000, 120_000),
        "both": (196_000, 36_000),
    }.items():
        train, val = split_indices(layout, name)
        assert (len(train), len(val)) == sizes
    backgrounds = set(layout.background_of(split_indices(layout, "bg")[1]).tolist())
    people = set(layout.foreground_of(split_indices(layout, "fg")[1]).tolist())
    assert len(backgrounds) == len(people) == 30
    assert backgrounds != people


@pytest.mark.parametrize(
    ("seed", "bg", "fg"),
    [(0, {4, 6, 7}, {0, 4, 9}), (42, {0, 5, 6}, {1, 2, 3}), (2**32 - 1, {0, 5, 7}, {1, 8, 9})],
)
def test_the_groups_of_a_seed_never_change(seed: int, bg: set[int], fg: set[int]) -> None:
    # A checkpoint has the seed alone: other groups would be scored on what it was trained on.
    layout = layout_of([20] * 11, 2)
    assert set(layout.background_of(split_indices(layout, "bg", seed=seed)[1])) == bg
    assert set(layout.foreground_of(split_indices(layout, "fg", seed=seed)[1])) == fg


@pytest.mark.parametrize(
    ("groups", "share", "held_out"),
    [(5, 0.3, 2), (4, 0.3, 1), (11, 0.3, 3), (2, 0.01, 1), (3, 0.99, 2)],
)
def test_the_number_of_held_out_groups_is_rounded(groups: int, share: float, held_out: int) -> None:
    layout = layout_of([4] * groups, 2)
    _, val = split_indices(layout, "bg", validation=share)
    assert len(set(layout.background_of(val))) == held_out


def test_flips_stay_with_their_source() -> None:
    # 40 neighbours show one person: 20 as it is, then 20 flipped.
    layout = layout_of([400] * 3, 40)
    _, val = split_indices(layout, "fg")
    people = val.reshape(-1, 40)
    assert (people % 40 == np.arange(40)).all()


@pytest.mark.parametrize("name", SPLITS)
def test_the_same_seed_gives_the_same_split(name: str) -> None:
    layout = layout_of([60] * 20, 3)
    first, second = (split_indices(layout, name, seed=5) for _ in range(2))
    other = split_indices(layout, name, seed=6)
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize(
    ("sizes", "per_fg", "name", "options", "message"),
    [
        ([4, 4], 2, "people", {}, "found 'people', expected one of random, bg, fg, both"),
        ([4, 4], 2, "bg", {"validation": 0}, "found 0, expected between 0 and 1"),
        ([4, 4], 2, "bg", {"validation": 1.0}, "expected between 0 and 1"),
        ([4, 4], 2, "bg", {"validation": float("nan")}, "found nan"),
        ([4, 4], 2, "random", {"seed": -1}, "found -1"),
        ([4, 4], 2, "fg", {"seed": 2**32}, "expected 0 to 4294967295"),
        ([1, 1], 1, "random", {}, "2 samples for training and 0 for validation"),
        ([4], 2, "bg", {}, "backgrounds: found 1, expected 2 or more"),
        ([2, 2], 2, "fg", {}, "foregrounds: found 1, expected 2 or more"),
        ([4, 4], None, "fg", {}, "does not say which samples show the same foreground"),
        ([4, 4], None, "both", {}, "does not say"),
    ],
)
def test_impossible_splits_are_named(
    sizes: list[int], per_fg: int | None, name: str, options: dict, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        split_indices(layout_of(sizes, per_fg), name, **options)
