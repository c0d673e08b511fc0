"""Where an output is written, and how it is published: by one rename of a folder beside it.

`convert.mounted` has the destination that is a mount point.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from maskdepth.convert.contents import Content
from maskdepth.convert.files import publish_folder, replace_folder, restore_replaced
from maskdepth.convert.found import is_vacant


@dataclass(frozen=True)
class Destination:
    """A folder to be made or replaced, and the work folder that becomes it.

    path: the folder. In the methods, content: of a complete folder, which it reads; last: the file
    that is written last, so that a folder with it is complete.
    """

    path: Path

    @property
    def work(self) -> Path:
        """The work folder."""
        return self.path.with_name(f"{self.path.name}.partial")

    @property
    def job(self) -> Path:
        """The job file, while the work folder is made or published."""
        return self.path.with_name(f".{self.path.name}.job")

    @property
    def written(self) -> Path:
        """The folder that must be writable."""
        return self.path.absolute().parent

    def is_vacant(self) -> bool:
        """Whether the folder, which exists, may be replaced by any output."""
        return is_vacant(self.path)

    def is_publishing(self, last: str) -> bool:
        """Whether a complete output is being published, or was when its run was killed."""
        return False  # a rename is there or not

    def publish(self, content: Callable[[Path], Content], last: str, *, replace: bool) -> None:
        """Turn the finished work folder into the output; an error or an interrupt undoes all."""
        if self.path.is_dir() and self.is_vacant():
            for name in os.listdir(self.path):
                (self.path / name).unlink()
        if replace:
            replace_folder(self.work, self.path)
        else:
            publish_folder(self.work, self.path)

    def take_back(self, content: Callable[[Path], Content], last: str) -> None:
        """Move what a killed run has published in part back into the work folder."""

    def restore(self, last: str) -> None:
        """Move the output that a killed run was replacing back."""
        restore_replaced(self.work, self.path)
