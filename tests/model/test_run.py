"""A run's state: resumed with another precision, and never written once it is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from maskdepth.convert.errors import OptionError
from maskdepth.model import DualDecoderUNet, ModelError
from maskdepth.model.checkpoint import ChannelStatistics, load_network
from maskdepth.model.contract import Batch, Inputs
from maskdepth.model.metrics import Scores
from maskdepth.model.pictures import draw_curves
from maskdepth.model.precision import Precision
from maskdepth.model.recipe import RECIPES, Recipe, Stage
from maskdepth.model.training.config import DataConfig, RunConfig, read_config
from maskdepth.model.training.progress import Elapsed
from maskdepth.model.training.run import Run
from maskdepth.model.training.state import Position, StageState, generator_states, save_state
from maskdepth.model.training.trainer import StageTrainer

DEMO = RECIPES["demo"]
SAVED: StageState = {
    "optimizer": {}, "scaler": {}, "running": torch.zeros(3), "elapsed": (0.0, 0.0, 0.0, 0),
}  # fmt: skip


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of the demo recipe in its first stage."""
    config = RunConfig(data=DataConfig(shards="shards"), recipe=DEMO, width=1)
    return Run(config=config, folder=tmp_path / "run")


@pytest.fixture
def trainer() -> StageTrainer:
    """A trainer of the first stage, after one batch of loss 1."""

    def no_data(batch: Batch, epoch: int = 0, bg: Tensor | None = None) -> Inputs:
        raise AssertionError("these tests train on no further batch")

    trainer = StageTrainer(
        network=DualDecoderUNet(1),
        recipe=DEMO,
        stage=DEMO.stages[0],
        preprocess=no_data,
        precision=Precision(dtype=None, scale=False),
    )
    trainer.running.add(torch.ones(()), 4)
    return trainer


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (True, True)])
def test_a_stage_is_resumed_with_another_amp(
    trainer: StageTrainer, before: bool, after: bool
) -> None:
    """The state of a disabled scaler is empty, and an enabled one cannot load that."""
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, enabled=before)
    state = trainer.state(Elapsed(1.0, 2.0, 0.5, 4))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, enabled=after)
    trainer.load_state(state)
    expected = {(False, True): 2, (True, False): 1, (True, True): 8}[before, after]
    assert trainer.scaler.get_scale() == expected
    assert trainer.running.read("here") == 1
    assert Elapsed._make(state["elapsed"]).cpu_s == 2


def test_an_optimiser_of_other_parameters_is_not_resumed(trainer: StageTrainer) -> None:
    state = trainer.state(Elapsed(1.0, 2.0, 0.5, 4))
    fewer = list(trainer.network.parameters())[:1]
    state["optimizer"] = torch.optim.SGD(fewer, lr=0.1).state_dict()
    with pytest.raises(ModelError, match=r"does not fit the network.*start a new run"):
        trainer.load_state(state)


def test_infinite_weights_are_found_before_the_loss_shows_them(trainer: StageTrainer) -> None:
    assert trainer.check_finite("stage 1", 1) == 1
    with torch.no_grad():
        trainer.network.mask_decoder.outc.weight.fill_(math.inf)
    assert trainer.running.read("stage 1") == 1
    with pytest.raises(ModelError, match="stage 1, step 7: the largest weight became inf; lower"):
        trainer.check_finite("stage 1", 7)


def test_an_infinite_validation_loss_replaces_no_weights(run: Run, trainer: StageTrainer) -> None:
    scores = Scores(samples=1, mask_bce=math.nan, depth_l1=0.5)
    with pytest.raises(ModelError, match="stage 1, epoch 1: the validation loss became nan"):
        run.finish_epoch({}, scores, trainer.network, {}, trainer.state(Elapsed()))
    assert not run.folder.exists()
    assert run.history == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2**63}, "^seed must be at most"),
        ({"seed": -1}, "seed must be at least 0, found -1"),
        ({"workers": 0}, "workers must be at least 1, found 0"),
        ({"workers": 10**9}, "workers must be at most 4096"),
        ({"width": 10**6}, "width must be at most 1024, found 1000000"),
        ({"save_minutes": -1.0}, "save_minutes must be at least 0"),
        ({"save_minutes": math.inf}, "save_minutes must be a finite number, found inf"),
        ({"validation": 1.0}, "validation must be below 1.0, found 1.0"),
        ({"amp": "fp8"}, "amp: expected one of auto, off"),
    ],
)
def test_a_configuration_is_checked_when_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RunConfig.from_options({"shards": "shards", "recipe": DEMO, **change})


@pytest.mark.parametrize(
    "text",
    [
        b"", b"[]", b'{"config": 3, "versions": {}}', b"[" * 100_000, b'{"config": {"data": {}}}',
        b"\xff",
    ],
)  # fmt: skip
def test_a_damaged_configuration_ends_in_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelError, match=r"config.json: not the configuration of a run") as caught:
        read_config(tmp_path / "config.json")
    assert len(caught.value.message) < 400


def saved_state(run: Run, trainer: StageTrainer) -> dict[str, Any]:
    """The state of the run within its first stage, as it is on the disk."""
    row = {"stage": 1, "train_loss": math.nan, "mask_iou": None}
    return {
        "network": trainer.network.state_dict(), "position": (0, 1, 2), "history": [row],
        "steps": 3, "best": {"score": 0.5, "stage": 0, "epoch": 0},
        "within_stage": trainer.state(Elapsed(1.0, 2.0, 0.5, 4)), "generators": generator_states(),
    }  # fmt: skip


def restored(run: Run, trainer: StageTrainer, state: dict[str, Any]) -> None:
    run.folder.mkdir(exist_ok=True)
    (run.folder / "best.safetensors").touch()
    save_state(run.folder / "last.pt", state)
    run.restore(trainer.network)
    assert run.stage_state is not None
    trainer.load_state(run.stage_state)


def test_a_state_is_restored(run: Run, trainer: StageTrainer) -> None:
    state = saved_state(run, trainer)
    restored(run, trainer, state)
    assert (run.position, run.steps, run.best) == (Position(0, 1, 2), 3, state["best"])
    assert run.elapsed == Elapsed(1.0, 2.0, 0.5, 4)
    assert [type(value) for value in run.history[0].values()] == [int, float, type(None)]


def test_dali_stream_changes_its_ranks_between_epochs_alone(
    run: Run, trainer: StageTrainer
) -> None:
    state = saved_state(run, trainer) | {"counted": {"samples": 8, "first": 0, "ranks": 1}}
    run.record(data=run.config.data.changed(engine="dali-stream"), world_size=2, started_on=1)
    with pytest.raises(ModelError, match=r"within an epoch on 1 ranks, found 2.*until the epoch"):
        restored(run, trainer, state)
    restored(run, trainer, state | {"position": (0, 1, 0)})
    assert run.position == Position(0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(position=(9, 0, 0)), "position: the recipe has no stage 10"),
        (lambda s: s.update(position=(0, 99, 0)), "position"),
        (lambda s: s.update(position=(0, -1, 0)), "position, entry 2|position"),
        (lambda s: s.update(position="abc"), "position must be a list"),
        (lambda s: s.update(history=[]), "history: expected one row for each epoch"),
        (lambda s: s.update(history=[{"stage": [1]}]), "history, entry 1, stage"),
        (lambda s: s.update(steps=-1), "steps must be at least 0"),
        (lambda s: s.update(best={"score": math.nan, "stage": 0, "epoch": 0}), "best: score must"),
        (lambda s: s.update(best={"score": 0.5, "stage": 7, "epoch": 0}), "best: of a stage"),
        (lambda s: s.update(within_stage=None), "within_stage: expected at"),
        (lambda s: s.update(generators=[]), "generators must be 1 or more"),
        (lambda s: s.update(generators=[torch.zeros(3)]), "generators: not states"),
        (lambda s: s.update(network={}), "weights do not fit the network"),
        (lambda s: s.update(network=5), "network must be a table"),
        (lambda s: s["network"].pop("encoder.inc.1.num_batches_tracked"), "is missing"),
        (lambda s: s["within_stage"].update(elapsed=(1.0,)), "elapsed"),
        (
            lambda s: s["within_stage"].update(running=torch.zeros(1)),
            "running: found",
        ),
        (lambda s: s["within_stage"].update(scaler={"scale": "x"}), "scaler, scale"),
        (lambda s: s["within_stage"].update(optimizer={}), "missing key 'state'"),
        (lambda s: s["within_stage"]["optimizer"].update(param_groups=[]), "parameters are others"),
        (
            lambda s: s["within_stage"]["optimizer"].update(state={0: {"momentum": torch.ones(2)}}),
            "the state of parameter 0 is another",
        ),
        (lambda s: s.update(extra=1), "unknown key 'extra'"),
    ],
)
def test_a_damaged_state_ends_in_one_line(
    run: Run, trainer: StageTrainer, change: Callable[[dict], object], message: str
) -> None:
    state = saved_state(run, trainer)
    change(state)
    with pytest.raises(ModelError, match=message) as caught:
        restored(run, trainer, state)
    assert "\n" not in caught.value.message


def test_a_formula_in_the_name_of_a_recipe(tmp_path: Path) -> None:
    draw_curves(tmp_path / "curves.png", [{"train_loss": 1.0}], r"recipe $\frac{")
    assert (tmp_path / "curves.png").stat().st_size > 0


TWO_PARTS = Recipe(
    name="two parts",
    stages=(
        Stage(size=16, batch_size=2, lr=0.1, trains=("encoder", "depth"), epochs=3),
        Stage(size=24, batch_size=2, lr=0.1, trains=("encoder", "depth"), epochs=2),
        Stage(size=24, batch_size=2, lr=0.1, trains=("encoder", "mask", "depth"), epochs=3),
    ),
)


def test_the_best_weights_are_those_of_the_lowest_loss_of_the_last_kind_of_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskdepth.model.training.run.draw_curves", lambda *_: None)
    config = RunConfig(data=DataConfig(shards="shards"), recipe=TWO_PARTS, width=1)
    run = Run(config=config, folder=make(tmp_path / "run"))
    network = DualDecoderUNet(1)
    statistics = dict.fromkeys(("bg", "fg_bg"), ChannelStatistics((0.5,) * 3, (0.2,) * 3))
    # Mask BCE, depth L1, and the number of the epoch, from 1, whose weights are the best then.
    # The mask counts only where it trains, and other sizes or parts are not compared.
    epochs = [
        (9.0, 0.4, 1), (9.0, 0.2, 2), (0.1, 0.3, 2),
        (9.0, 0.9, 4), (0.0, 0.9, 4),
        (0.5, 0.5, 6), (0.6, 0.3, 7), (0.2, 0.7, 7),
    ]  # fmt: skip
    for number, (mask_bce, depth_l1, best) in enumerate(epochs, 1):
        with torch.no_grad():
            network.depth_decoder.outc.get_parameter("bias").fill_(number)
        scores = Scores(samples=1, mask_bce=mask_bce, depth_l1=depth_l1)
        run.finish_epoch({"stage": 1}, scores, network, statistics, SAVED)
        run.writer.wait()
        found = load_network(run.folder / "best.safetensors")
        assert found.network.depth_decoder.outc.get_parameter("bias").item() == best
        assert (found.info.scores or {})["depth_l1"] == epochs[best - 1][1]
        assert found.info.size == (16 if best < 4 else 24)
    assert run.finished
    again = Run(config=config, folder=run.folder)
    again.restore(network)
    assert again.best == run.best == {"score": pytest.approx(0.9), "stage": 2, "epoch": 1}


def test_a_state_is_due_after_the_minutes_since_the_last_one(
    run: Run, trainer: StageTrainer
) -> None:
    now = 100.0
    run = Run(config=run.config, folder=make(run.folder), clock=lambda: now)
    interval = 60 * run.config.save_minutes
    now += interval - 1
    assert not run.save_due()
    now += 1
    assert run.save_due()
    run.save(Position(0, 0, 3), trainer.network, trainer.state(Elapsed()))
    assert not run.save_due()
    now += interval
    assert run.save_due()
    run.writer.close()
    other = Run(config=run.config, folder=run.folder, first=False, clock=lambda: now)
    now += interval
    assert not other.save_due()
