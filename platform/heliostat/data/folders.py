"""Folders of files: a sub-folder for each class, or one flat folder without labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from heliostat.data.locations import locate
from heliostat.errors import InputError


@dataclass(frozen=True)
class Listing:
    """The files of a folder, listed but not read."""

    filesystem: Any
    path: str
    files: tuple[str, ...]
    """Sorted by class, then by name."""
    classes: tuple[str, ...]
    """The sub-folders' names, sorted; empty for a flat folder."""
    labels: tuple[int, ...]
    """Of each file, an index into ``classes``; empty for a flat folder."""
    skipped: tuple[str, ...]
    """Files whose names do not end like the wanted ones. Hidden ones are not mentioned."""


def list_folder(path: str, extensions: Collection[str], what: str) -> Listing:
    """List a folder. With sub-folders, each is a class and its files count at any depth.

    Args:
        extensions: of the wanted files, in lower case and without the dot.
        what: the word for the wanted files in messages: ``images``.

    Raises:
        InputError: it is missing, not a folder, holds none of these files, has some beside its class folders, or a
            class folder is without any.
    """
    from pyarrow import fs

    filesystem, info = locate(path)
    if info.type != fs.FileType.Directory:
        raise InputError(f"{path} is not a folder of {what}, but a file")
    try:
        listed = filesystem.get_file_info(fs.FileSelector(info.path, recursive=True))
    except OSError as error:
        raise InputError(f"{path} cannot be listed: {error}") from error
    root = info.path.rstrip("/") + "/"
    entries = [(entry, entry.path.removeprefix(root).split("/")) for entry in listed]
    entries = [(entry, parts) for entry, parts in entries if not any(part.startswith(".") for part in parts)]
    classes = sorted(parts[0] for entry, parts in entries if len(parts) == 1 and not entry.is_file)
    everything = sorted((parts, entry) for entry, parts in entries if entry.type != fs.FileType.Directory)
    wanted = [(parts, entry.path) for parts, entry in everything if entry.extension.lower() in extensions]
    skipped = tuple(entry.path for _, entry in everything if entry.extension.lower() not in extensions)
    if not wanted:
        raise InputError(f"{path} holds no {what} ({', '.join(sorted(extensions))})")
    if classes:
        if loose := [name for parts, name in wanted if len(parts) == 1]:
            raise InputError(f"{path} has class folders, but {loose[0]} lies beside them; move it into one")
        if bare := sorted(set(classes) - {parts[0] for parts, _ in wanted}):
            raise InputError(f"the class folder {root}{bare[0]} holds no {what}; remove it or fill it")
    order = {name: number for number, name in enumerate(classes)}
    return Listing(
        filesystem=filesystem,
        path=path,
        files=tuple(name for _, name in wanted),
        classes=tuple(classes),
        labels=tuple(order[parts[0]] for parts, _ in wanted) if classes else (),
        skipped=skipped,
    )
