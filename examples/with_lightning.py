"""The network and the loss of `plain.py` with Lightning, which has the loop and saves the state.

    python examples/with_lightning.py SHARDS STATE --epochs 2 --processes 2

Started again, it continues where it was, with any number of processes, at the samples that had not
been seen. Lightning saves the state of the loader with its own, and does not shard it again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

sys.path.insert(0, str(Path(__file__).parents[1]))  # not needed where the project is installed

from examples.plain import Network, loss_of
from maskdepth.loaders import Batch, Loader, Preprocess, build_loader, read_layout, split_indices


class Masks(LightningModule):
    """Trains `Network` on the training split of a shard folder."""

    def __init__(self, shards: Path, batch_size: int) -> None:
        super().__init__()
        self.shards, self.batch_size = shards, batch_size
        self.network = Network()

    def train_dataloader(self) -> Loader:
        """In each process: a loader asks for its rank when it is built."""
        training, _ = split_indices(read_layout(self.shards), "random")
        loader = build_loader(
            "auto", self.shards, indices=training, batch_size=self.batch_size, drop_last=True,
            device=self.device,
        )  # fmt: skip
        self.preprocess = Preprocess(loader.backgrounds, loader.statistics, size=112)
        return loader

    def training_step(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch."""
        return loss_of(self.network, self.preprocess(batch))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning counts batches, the loader samples: let its counters fit today's processes."""
        loops = checkpoint["loops"]["fit_loop"]
        (place,) = loops["state_dict"]["combined_loader"]
        batch = self.batch_size * self.trainer.world_size
        left = (place["samples"] - place["seen"]) // batch if place["seen"] else 0
        done = place["samples"] // batch - left
        counters = loops["epoch_loop.batch_progress"]["current"]
        shift = done - counters["ready"]
        for name in ("ready", "started", "processed", "completed"):
            counters[name] += shift

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Of the network alone."""
        return torch.optim.SGD(self.network.parameters(), lr=0.1, momentum=0.9)


def main() -> None:
    """Train to the end of the last epoch, from the saved state if there is one."""
    parser = argparse.ArgumentParser(description="Train a network of your own on SHARDS.")
    parser.add_argument("shards", type=Path)
    parser.add_argument("state", type=Path, help="a folder")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--save-steps", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    seed_everything(0)
    saving = ModelCheckpoint(
        options.state, save_last=True, every_n_train_steps=options.save_steps,
        save_on_train_epoch_end=True, enable_version_counter=False,
    )  # fmt: skip
    trainer = Trainer(
        max_epochs=options.epochs, devices=options.processes, callbacks=[saving], logger=False,
        strategy="ddp" if options.processes > 1 else "auto", enable_model_summary=False,
    )  # fmt: skip
    last = options.state / "last.ckpt"
    module = Masks(options.shards, options.batch_size)
    trainer.fit(module, ckpt_path=str(last) if last.exists() else None)


if __name__ == "__main__":
    main()
