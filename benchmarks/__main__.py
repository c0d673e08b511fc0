"""Command line of the benchmarks: `python -m benchmarks loader|peers|convert|...`."""

from __future__ import annotations

from importlib import import_module

import click

from convert import errors

COMMANDS = (
    "codecs", "compare", "convert", "decode", "encode", "epoch", "estimate", "gpu-check",
    "hardware", "loader", "luma", "parity", "peers", "quality", "recipes", "report", "scaling",
    "simulate", "speedrun", "step",
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
        module = import_module(f"benchmarks.{_MODULES.get(cmd_name, function)}")
        command: click.Command = getattr(module, function)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure this project beside its alternatives, in one run."""


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
