"""What a benchmark prints while it runs."""

from __future__ import annotations

import click


def print_progress(text: str) -> None:
    """Print a line on standard error, so that standard output holds results alone."""
    click.echo(text, err=True)
