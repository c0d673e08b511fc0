"""The loop of `plain.py` with Accelerate, which starts the processes and saves the state.

    accelerate launch --num_processes 2 examples/with_accelerate.py SHARDS STATE --epochs 2

Started again, it continues where it was, with any number of processes. The loader has its rank's
share already, so it is not given to `Accelerator.prepare`. Accelerate reads states with pickle:
do not load those of others.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

sys.path.insert(0, str(Path(__file__).parents[1]))  # not needed where the project is installed

from examples.plain import Network, loss_of
from maskdepth.loaders import Loader, Preprocess, build_loader, read_layout, split_indices


def save(accelerator: Accelerator, folder: Path, loader: Loader) -> None:
    """Save a folder named by epoch and sample, then remove those before."""
    before = sorted(folder.glob("*[0-9]"))
    place = loader.state_dict()
    to = folder / f"{place['epoch']:04}-{place['seen']:09}"
    part = to.with_suffix(".part")
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        part.rename(to)
        for one in before:
            shutil.rmtree(one)
    accelerator.wait_for_everyone()


def main() -> None:
    """Train to the end of the last epoch, from the saved state if there is one."""
    parser = argparse.ArgumentParser(description="Train a network of your own on SHARDS.")
    parser.add_argument("shards", type=Path)
    parser.add_argument("state", type=Path, help="a folder")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--save-steps", type=int, default=10)
    options = parser.parse_args()
    accelerator = Accelerator()  # first: a loader asks for its rank when it is built
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network, optimizer = accelerator.prepare(network, optimizer)
    training, _ = split_indices(read_layout(options.shards), "random")
    with build_loader(
        "auto", options.shards, indices=training, batch_size=options.batch_size, drop_last=True,
        device=accelerator.device,
    ) as loader:  # fmt: skip
        accelerator.register_for_checkpointing(loader)
        saved = sorted(options.state.glob("*[0-9]"))
        if saved:
            accelerator.load_state(str(saved[-1]))
        preprocess = Preprocess(loader.backgrounds, loader.statistics, size=112)
        for epoch in range(int(loader.state_dict()["epoch"]), options.epochs):
            loader.set_epoch(epoch)
            loss = torch.tensor(torch.nan)  # the rest of an epoch may be less than a batch
            for step, batch in enumerate(loader, start=1):
                optimizer.zero_grad()
                loss = loss_of(network, preprocess(batch))
                accelerator.backward(loss)
                optimizer.step()
                is_end = loader.state_dict()["epoch"] > epoch  # also of the rest of an epoch
                if step % options.save_steps == 0 or is_end:
                    save(accelerator, options.state, loader)
            accelerator.print(f"epoch {epoch}: loss of the last batch {loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
