"""Links among the files that a list names: none may lead out of the folder that the list is of."""

import os

from probe_datasets.formats.files import DataError, safe_path

__all__ = ["LinkCheck"]


class LinkCheck:
    """Looks for links that leave a folder, at about one system call for each path.

    Folders on the way to a file are resolved once; files themselves only where they are links.

    Args:
        folder: what nothing may leave; it may itself be a link.
        source: the list, for the message.
    """

    def __init__(self, folder: str | os.PathLike[str], source: str | os.PathLike[str]) -> None:
        self.folder, self.source = os.fspath(folder), source
        self._parents: dict[str, str | None] = {"": None}

    def problem(self, relative: str) -> str | None:
        """Why the path of a list cannot be opened; None where it can, or where nothing is there.

        Args:
            relative: a path below the folder, which `check_relative` let pass.
        """
        parent = relative.rpartition("/")[0]
        if parent not in self._parents:
            self._parents[parent] = self._leaves(parent)
        found = self._parents[parent]
        if found is None and os.path.islink(os.path.join(self.folder, relative)):
            found = self._leaves(relative)
        return found

    def _leaves(self, relative: str) -> str | None:
        try:
            safe_path(self.folder, relative, source=self.source)
        except DataError as error:
            return str(error)
        return None
