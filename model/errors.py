"""The error that a person can mend in a recipe, checkpoint, image or option."""

from typing import Any

import click


class ModelError(click.ClickException):
    """The message names the file or option, what was found, what was expected, what to do.

    Command lines print it on one line and end with exit code 2.
    """

    exit_code = 2


class Commands(click.Group):
    """Commands that answer a mistake in their options like any other: one line, exit code 2."""

    def invoke(self, context: click.Context) -> Any:
        """Run the command that the arguments name."""
        try:
            return super().invoke(context)
        except click.UsageError as error:
            raise ModelError(error.format_message()) from None
