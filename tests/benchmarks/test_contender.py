"""Contenders are checked before they are timed; those that are wrong or die are left out."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from maskdepth.benchmarks.harness.contender import (
    Contender,
    Epochs,
    Isolated,
    Unavailable,
    _serve,
    race,
    reason_of,
)
from maskdepth.benchmarks.harness.images import Images, Scale, Truth, WrongImages, check, read_truth
from maskdepth.benchmarks.harness.options import Loading
from maskdepth.convert.shards import Shards
from maskdepth.loaders import build_loader

SCALE = Scale(mask_threshold=1)


@contextmanager
def open_images(loading: Loading, damage: str = "") -> Iterator[Epochs]:
    """Ten samples of 4 x 4, with one kind of damage or none."""
    if damage == "import":
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401
    if "prints" in damage:
        os.write(2, b"of a library\n")

    def epoch(number: int) -> Iterator[Images]:
        if damage == "dies":
            os._exit(3)
        yield from images(damage)

    yield epoch


def images(damage: str = "") -> Iterator[Images]:
    for start in (0, 5):
        index = torch.arange(start, start + 5)
        pixels = index.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4).clone()
        mask = (pixels[:, :1] > 3).to(torch.uint8)
        if "pixel" in damage and start:
            pixels[2, 1, 3, 3] += 1
        if damage == "mask":
            mask[0, 0, 0, 0] ^= 1
        if damage == "missing":
            index = index.clamp(max=8)
        yield Images(pixels, pixels, mask, pixels[:, :1], index)


def truth() -> Truth:
    pixels = np.arange(10, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 3, 4, 4), np.uint8)
    mask = (pixels[:, :1] > 3).astype(np.uint8)
    return Truth(index=np.arange(10), bg=pixels, fg_bg=pixels, mask=mask, depth=pixels[:, :1])


def test_correct_images_pass() -> None:
    found = check(images(), np.arange(10), truth(), SCALE, 0, 0)
    assert found == {"largest_difference_levels": 0, "mask_pixels_that_differ": 0}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("pixel", "up to 1 levels"), ("mask", "2 of 160 mask pixels"), ("missing", "1 of 10 samples")],
)
def test_wrong_images_are_refused(damage: str, reason: str) -> None:
    with pytest.raises(WrongImages, match=reason):
        check(images(damage), np.arange(10), truth(), SCALE, 0, 0)


@pytest.mark.parametrize("field", ["bg", "fg_bg", "depth"])
def test_values_that_are_no_numbers_are_refused(field: str) -> None:
    batches = [batch._replace(**{field: getattr(batch, field).float()}) for batch in images()]
    getattr(batches[1], field)[3, 0, 2, 2] = math.nan
    with pytest.raises(WrongImages, match="up to nan levels"):
        check(batches, np.arange(10), truth(), SCALE, 0.5, 0)


def test_differences_within_the_tolerance_pass() -> None:
    assert check(images("pixel"), np.arange(10), truth(), SCALE, 1, 0)
    assert check(images("mask"), np.arange(10), truth(), SCALE, 0, 2 / 160)


def test_an_empty_epoch_is_refused() -> None:
    with pytest.raises(WrongImages, match="10 of 10"):
        check([], np.arange(10), truth(), SCALE, 0, 0)


def contender(name: str, damage: str = "") -> Contender:
    return Contender(
        name=name,
        opens=open_images,
        loading=Loading(repeats=1, batch_size=5, threads=1, device="cpu"),
        options={"damage": damage},
        expected=np.arange(10),
        scale=SCALE,
    )


@pytest.mark.usefixtures("forked_contenders")
def test_a_race_times_correct_contenders_and_reports_why_others_are_skipped() -> None:
    field = [contender(name, name) for name in ("import", "dies", "pixel")]
    kept: list[int] = []
    cases, skipped = race(
        [contender("right"), *field], truth(), replace(contender("right").loading, repeats=2),
        optional=True, after_round=lambda cases, _: kept.append(len(cases["right"].repeats)),
    )  # fmt: skip
    assert kept == [1, 2]
    assert [repeat.samples for repeat in cases["right"].repeats] == [10, 10]
    assert set(cases) == {"right"}
    thread = cases["right"].thread_us_per_sample
    assert thread is not None
    assert 0 < thread.median < math.inf
    for repeat in cases["right"].repeats:
        assert repeat.thread_cpu_s is not None
        assert repeat.thread_cpu_s <= repeat.cpu_s + 0.02  # two clocks of different precision
    assert "no_such_library" in skipped["import"]
    assert skipped["dies"] == "its process ended with code 3"
    assert "up to 1 levels" in skipped["pixel"]


def test_what_a_missing_library_needs_is_said() -> None:
    for module, extra in (("litdata.streaming", "peers"), ("streaming", "peers-streaming")):
        error = ModuleNotFoundError(f"No module named '{module}'", name=module)
        package = module.partition(".")[0]
        expected = f"{package} is not installed: pip install 'maskdepth[{extra}]'"
        assert reason_of(error) == expected
    other = ModuleNotFoundError("No module named 'a.b'", name="a.b")
    assert reason_of(other) == "ModuleNotFoundError: No module named 'a.b'"
    assert reason_of(ValueError("first\nlast: x")) == "last: x"
    assert reason_of(ValueError()) == "ValueError: ValueError"


def test_a_contender_that_is_not_optional_must_not_fail() -> None:
    with pytest.raises(Unavailable, match=r"mine: .*up to 1 levels"):
        race([contender("mine", "pixel")], truth(), contender("mine").loading)


def test_truth_equals_what_the_reference_loader_decodes(dataset: Path, shards: Path) -> None:
    chosen = np.array([0, 31, 89])
    found = read_truth(Shards(shards), chosen)
    with build_loader("reference", dataset, batch_size=3, indices=chosen, shuffle=False) as loader:
        (batch,) = loader.epoch(0)
        assert np.array_equal(found.bg, loader.backgrounds.gather(batch.index).numpy())
    for name in ("fg_bg", "mask", "depth"):
        assert np.array_equal(getattr(found, name), getattr(batch, name).numpy()), name


@pytest.mark.slow
def test_repeated_records_show_the_same_images(
    shards: Path, tmp_path: Path, need_engine: Callable[[str], None]
) -> None:
    need_engine("ffcv")
    from maskdepth.benchmarks.harness.repeated import write_repeated

    assert write_repeated(shards, tmp_path / "many", 1003) == 1000
    options = {"batch_size": 200, "shuffle": False, "rank": 0, "world_size": 1}
    with (
        build_loader("ffcv", shards, **options) as few,  # type: ignore[arg-type]
        build_loader("ffcv", tmp_path / "many", **options) as many,  # type: ignore[arg-type]
    ):
        (expected,) = few.epoch(0)
        for background, batch in enumerate(many.epoch(0)):
            shown = 18 * background + torch.arange(200) % 18
            for name in ("fg_bg", "mask", "depth"):
                assert torch.equal(getattr(batch, name), getattr(expected, name)[shown])
        assert background == 4


def test_a_process_that_is_interrupted_while_it_opens_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    context, blocked = Mock(), set[int]()
    pipe, process = Mock(), context.Process.return_value
    process.start.side_effect = lambda: blocked.update(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    pipe.poll.side_effect = SystemExit(143)
    process.is_alive.return_value = True
    context.Pipe.return_value = (pipe, Mock())
    monkeypatch.setattr("maskdepth.benchmarks.harness.contender._CONTEXT", context)
    with pytest.raises(SystemExit):
        Isolated(Mock())
    pipe.close.assert_called_once_with()
    process.kill.assert_called_once_with()
    assert signal.SIGINT in blocked  # which the process inherits: the parent alone handles Ctrl-C


def test_a_process_whose_parent_was_interrupted_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("_print_to", "torch.set_num_threads"):  # of the process of a contender
        monkeypatch.setattr(f"maskdepth.benchmarks.harness.contender.{name}", lambda *_: None)
    pipe = Mock()
    pipe.send.side_effect = BrokenPipeError
    _serve(pipe, contender("ours"), str(tmp_path / "log"))
    assert pipe.send.call_count == 2


@pytest.mark.usefixtures("forked_contenders")
def test_what_a_library_prints_is_shown_if_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with Isolated(contender("prints", "prints")) as isolated:
        isolated.run()
    assert capfd.readouterr() == ("", "")
    with (
        pytest.raises(Unavailable, match="up to 1 levels"),
        Isolated(contender("prints", "prints, pixel")) as isolated,
    ):
        isolated.check(truth())
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("of a library\n")
    assert "WrongImages" in err  # its traceback
    with pytest.raises(Unavailable, match="No module named 'no_such_library'"):
        Isolated(contender("import", "import"))
    assert capfd.readouterr() == ("", "")


def test_libraries_start_processes_as_in_a_program_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    methods: list[str] = []

    @contextmanager
    def opens(loading: Loading, damage: str) -> Iterator[Epochs]:
        methods.append(multiprocessing.get_start_method())
        yield lambda number: ()

    monkeypatch.setattr("maskdepth.benchmarks.harness.contender._print_to", lambda log: None)
    pipe = Mock()
    pipe.recv.side_effect = EOFError
    multiprocessing.set_start_method("spawn", force=True)  # as in a process that was spawned
    try:
        _serve(pipe, replace(contender("theirs"), opens=opens), os.devnull)
    finally:
        multiprocessing.set_start_method(None, force=True)
    assert methods == multiprocessing.get_all_start_methods()[:1]
