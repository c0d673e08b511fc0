"""Your own network, loss and loop with the loaders of this project, on one process or several.

    python examples/plain.py SHARDS STATE --epochs 2
    torchrun --nproc-per-node 2 examples/plain.py SHARDS STATE --epochs 2

It saves its state every few steps. Started again, it continues where it was, with any number of
processes, at the samples that had not been seen.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[1]))  # not needed where the project is installed

from maskdepth.loaders import (
    Inputs,
    Layout,
    Loader,
    Preprocess,
    build_loader,
    read_layout,
    split_indices,
)


class Network(nn.Module):
    """Predicts the mask alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 3, padding=1)
        )

    def forward(self, bg: Tensor, fg_bg: Tensor) -> Tensor:
        """Float (B, 3, S, S) each -> logits of the mask (B, 1, S, S)."""
        result: Tensor = self.layers(torch.cat([bg, fg_bg], dim=1))
        return result


def loss_of(network: nn.Module, inputs: Inputs) -> Tensor:
    """What to minimise, a scalar."""
    logits = network(inputs.bg, inputs.fg_bg)
    return functional.binary_cross_entropy_with_logits(logits, inputs.mask)


def balanced(layout: Layout, samples: np.ndarray) -> np.ndarray:
    """Weights with which every background is drawn as often, however many samples it has."""
    background = layout.background_of(samples)
    weights: np.ndarray = 1 / np.bincount(background)[background]
    return weights


def save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer, loader: Loader) -> None:
    """Save all that is needed to continue; a kill meanwhile leaves the state before."""
    state = {
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "loader": loader.state_dict(),
    }
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    part.replace(path)


def train(options: argparse.Namespace, device: torch.device, rank: int, ranks: int) -> None:
    """Train to the end of the last epoch, from the saved state if there is one."""
    torch.manual_seed(0)
    network = Network().to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    layout = read_layout(options.shards)
    training, _ = split_indices(layout, "random")
    with build_loader(
        "auto", options.shards, indices=training, batch_size=options.batch_size // ranks,
        weights=balanced(layout, training) if options.balanced else None,
        drop_last=True, device=device,
    ) as loader:  # fmt: skip
        if options.state.exists():
            state = torch.load(options.state, map_location=device, weights_only=True)
            network.load_state_dict(state["network"])
            optimizer.load_state_dict(state["optimizer"])
            loader.load_state_dict(state["loader"])
        model = DistributedDataParallel(network) if ranks > 1 else network
        preprocess = Preprocess(loader.backgrounds, loader.statistics, size=112)
        for epoch in range(int(loader.state_dict()["epoch"]), options.epochs):
            loader.set_epoch(epoch)
            loss = torch.tensor(torch.nan)  # the rest of an epoch may be less than a batch
            for step, batch in enumerate(loader, start=1):
                optimizer.zero_grad()
                loss = loss_of(model, preprocess(batch))
                loss.backward()
                optimizer.step()
                if rank == 0 and step % options.save_steps == 0:
                    save(options.state, network, optimizer, loader)
            if rank == 0:
                save(options.state, network, optimizer, loader)
                print(f"epoch {epoch}: loss of the last batch {loss:.4f}", flush=True)


def main() -> None:
    """Read the options, join the other processes, train."""
    parser = argparse.ArgumentParser(description="Train a network of your own on SHARDS.")
    parser.add_argument("shards", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--save-steps", type=int, default=10)
    parser.add_argument("--balanced", action="store_true", help="every background as often")
    options = parser.parse_args()
    rank, ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    if ranks > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    train(options, device, rank, ranks)
    if ranks > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
