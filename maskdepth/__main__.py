"""Command line of an installation: `maskdepth convert|train|bench`."""

from __future__ import annotations

from maskdepth.convert import program

if __name__ == "__main__":
    program.begin()

from importlib import import_module

import click

from maskdepth import __version__
from maskdepth.convert import errors

PROGRAMS = {
    "convert": ("convert.__main__", "Compose, check, pack, verify and show a data set."),
    "train": ("train", "Train, evaluate and export the network, and predict with it."),
    "bench": ("benchmarks.__main__", "Measure loaders, training and conversion."),
}
"""Name -> module, and its line in the help: each is imported when it is used."""


class Programs(errors.Commands):
    """The three programs; the help imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(PROGRAMS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in PROGRAMS:
            return None
        command: click.Command = import_module(f"maskdepth.{PROGRAMS[cmd_name][0]}").main
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in PROGRAMS.items()])


@click.group(cls=Programs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="maskdepth")
def main() -> None:
    """Convert a data set of composites once, train on it, and measure both."""


def run() -> None:
    """Entry point of the command `maskdepth`."""
    program.begin()
    main(prog_name="maskdepth")


if __name__ == "__main__":
    main(prog_name="python -m maskdepth")
