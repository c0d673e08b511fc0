"""The error that a user can fix: in a recipe, a checkpoint, an image or an option."""

import click

from maskdepth.convert.errors import one_line


class ModelError(click.ClickException):
    """The message names the file or option, what was found, what was expected, what to do.

    Command lines print it on one line and end with exit code 2.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))
