"""Command line of the benchmarks: `python -m benchmarks loader|peers|convert|...`."""

from __future__ import annotations

from maskdepth.convert import program

if __name__ == "__main__":
    program.begin()

from importlib import import_module

import click

from maskdepth.convert import errors

COMMANDS = (
    "batch", "codecs", "compare", "compose", "convert", "decode", "encode", "epoch", "estimate",
    "gpu-check", "hardware", "loader", "luma", "parity", "peers", "quality", "recipes", "report",
    "scaling", "simulate", "speedrun", "step", "storage",
)  # fmt: skip
"""Each is a function of a module of its name ("_" for "-"), but for those of `_MODULES`."""
_MODULES = {
    "decode": "codecs", "hardware": "peers.dali", "luma": "codecs", "parity": "loader",
    "peers": "peers.run", "report": "report.page",
}  # fmt: skip


class Commands(errors.Commands):
    """Imports a command when it is used.

    The processes of contenders import this module too, and must not load what they do not use.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        function = cmd_name.replace("-", "_")
        try:
            module = import_module(f"maskdepth.benchmarks.{_MODULES.get(cmd_name, function)}")
        except ModuleNotFoundError as error:
            return _unavailable(cmd_name, error)
        command: click.Command = getattr(module, function)
        return command


def _unavailable(command: str, error: ModuleNotFoundError) -> click.Command:
    """A command that only says which package it needs, and is listed with it."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "maskdepth"):
        raise error
    needs = f"needs {package}, which is not installed: pip install 'maskdepth[bench]'"

    @click.command(
        command, short_help=f"({needs})", add_help_option=False,
        context_settings={"ignore_unknown_options": True},
    )  # fmt: skip
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def say(arguments: tuple[str, ...]) -> None:
        raise errors.DataError(f"benchmarks {command} {needs}")

    return say


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure this project beside its alternatives, in one run."""


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
