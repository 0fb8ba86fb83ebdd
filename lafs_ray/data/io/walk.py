"""Walk folders of users: each folder once, without what other programs leave behind, and nothing in silence.

Passed over are names that begin with a dot, the folders of macOS, Synology, QNAP and Windows, and links to folders that
were entered already, which may form a circle. What was passed over is counted with examples.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pyarrow import fs

from lafs_ray.data.io import reading
from lafs_ray.data.io.retries import read_error, retry_transient
from lafs_ray.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp")
"""Endings of image files for all commands, in any case."""

# Besides names that begin with a dot: what archives of macOS, network disks and Windows put beside the user's files.
_FOREIGN = frozenset(
    (
        *("__MACOSX", "@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot"),
        *("$RECYCLE.BIN", "System Volume Information", "lost+found", "Thumbs.db", "desktop.ini"),
    )
)
_HIDDEN, _OF_OTHERS, _ENTERED = "hidden (a leading dot)", "of other programs", "a folder entered already"
_DEAD, _IRREGULAR = "a link that leads nowhere", "a device, pipe or socket"
_EXAMPLES = 3

Kind = Literal["file", "dead link", "irregular"]


@dataclass(frozen=True)
class Entry:
    """A file below a folder.

    Args:
        name: relative to the folder.
        kind: a dead link is a link that leads nowhere; irregular are devices, pipes and sockets.
        size: in bytes; 0 unless it is a file.
        modified_ns: modification time in ns; 0 unless it is a file.
    """

    name: str
    kind: Kind
    size: int = 0
    modified_ns: int = 0


@dataclass
class PassedOver:
    """Names that were passed over, counted by reason.

    Args:
        endings: names without one of them are not counted; empty: all are.
    """

    endings: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count a name."""
        if not self.endings or name.endswith(self.endings):
            self.counts[reason] = self.counts.get(reason, 0) + 1
            if len(known := self.examples.setdefault(reason, [])) < _EXAMPLES:
                known.append(name)

    def add_entry(self, entry: Entry) -> None:
        """Count a file that is not used because of its kind or its ending."""
        ending = os.path.splitext(entry.name)[1].lower()
        reasons = {"dead link": _DEAD, "irregular": _IRREGULAR}
        self.add(reasons.get(entry.kind, f"ending {ending}" if ending else "no ending"), entry.name)

    def lines(self) -> list[str]:
        """Return a line for each reason, the most frequent first."""
        lines = []
        for reason, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            named = ", ".join(map(printable, self.examples[reason]))
            more = ", …" if count > len(self.examples[reason]) else ""
            lines.append(f"passed over, {reason}: {count} ({named}{more})")
        return lines


def printable(name: str) -> str:
    r"""Return a name with `\xe9` for bytes that are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def require_text(folder: str, name: str) -> None:
    """Check that a name is UTF-8: Arrow, Parquet and JSON hold no others.

    Raises:
        DataError: it is not.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{printable(folder)}: {printable(name)}",
            found="a name that is not UTF-8",
            expected="file and folder names in UTF-8",
            fix="rename it; for names in Latin-1: convmv -f latin1 -t utf8 -r --notest FOLDER",
        ) from None


def is_foreign(name: str) -> bool:
    """Return whether a file or folder of this name is none of the user's data."""
    return name.startswith(".") or name in _FOREIGN


def walk(folder: str, passed_over: PassedOver, *, depth: int | None = None) -> Iterator[Entry]:
    """Find all files below a folder, in no particular order.

    Links to folders are followed last, unless they lead to a folder that was entered, or to one around it.

    Args:
        folder: path or URI.
        passed_over: counts the names that are passed over.
        depth: levels of folders to enter, 1: this folder alone; None: all.

    Raises:
        DataError: a folder cannot be read.
    """
    store, path = reading.resolve(folder)
    if isinstance(store, fs.LocalFileSystem):
        yield from _walk_disk(path, passed_over, depth)
        return
    selector = fs.FileSelector(path, recursive=depth != 1)
    foreign: set[str] = set()
    for info in retry_transient(lambda: store.get_file_info(selector), folder):
        name = info.path.removeprefix(path.rstrip("/") + "/")
        parts = name.split("/")
        level = next((level for level, part in enumerate(parts) if is_foreign(part)), None)
        if level is not None:
            top = "/".join(parts[: level + 1])
            if top not in foreign:
                foreign.add(top)
                passed_over.add(_HIDDEN if parts[level].startswith(".") else _OF_OTHERS, top)
        elif info.type == fs.FileType.File and (depth is None or len(parts) <= depth):
            yield Entry(name, "file", int(info.size), int(info.mtime_ns or 0))


def _walk_disk(root: str, passed_over: PassedOver, depth: int | None) -> Iterator[Entry]:
    entered, above = set[tuple[int, int]](), os.path.realpath(root)
    while above not in ("", os.path.dirname(above)):
        entered.add(_identity(above))
        above = os.path.dirname(above)
    pending, links = [""], list[str]()
    while pending or links:
        folder = pending.pop() if pending else heapq.heappop(links)
        if folder and (identity := _identity(os.path.join(root, folder))) in entered:
            passed_over.add(_ENTERED, folder)
            continue
        if folder:
            entered.add(identity)
        try:
            with os.scandir(os.path.join(root, folder)) as entries:
                found = list(entries)
        except OSError as error:
            raise read_error(printable(os.path.join(root, folder)), error) from error
        for entry in found:
            name = os.path.join(folder, entry.name)
            if is_foreign(entry.name):
                passed_over.add(_HIDDEN if entry.name.startswith(".") else _OF_OTHERS, name)
            elif os.path.isdir(entry.path):  # `entry.is_dir` raises for a link to itself.
                if depth is not None and name.count("/") + 1 >= depth:
                    continue
                if entry.is_symlink():
                    heapq.heappush(links, name)
                else:
                    pending.append(name)
            else:
                yield _file(entry, name)


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise read_error(printable(folder), error) from error
    return status.st_dev, status.st_ino


def _file(entry: os.DirEntry[str], name: str) -> Entry:
    try:
        status = entry.stat()
    except OSError:
        return Entry(name, "dead link")
    if not entry.is_file():
        return Entry(name, "irregular")
    return Entry(name, "file", status.st_size, status.st_mtime_ns)


def is_dead_link(uri: str) -> bool:
    """Return whether a path is a link that leads nowhere, such as to a disk that is not mounted."""
    path = reading.local_path(uri)
    return path is not None and os.path.islink(path) and not os.path.exists(path)


def require_no_dead_link(uri: str) -> None:
    """Check that a path is no link that leads nowhere, which would look like a missing file.

    Raises:
        DataError: it is one.
    """
    if is_dead_link(uri):
        target = os.readlink(reading.local_path(uri) or uri)
        raise DataError(
            uri,
            found=f"a link that leads nowhere ({printable(target)})",
            expected="a file",
            fix="mount the disk that the link leads to, or remove the link",
        )


def find_images(folder: str) -> tuple[list[Entry], PassedOver]:
    """Find the image files below a folder, sorted by folder, then by name; dead links are among them.

    Raises:
        DataError: a folder cannot be read, or a name is not UTF-8.
    """
    passed_over, images = PassedOver(), list[Entry]()
    for entry in walk(folder, passed_over):
        if entry.kind != "irregular" and entry.name.lower().endswith(IMAGE_ENDINGS):
            require_text(folder, entry.name)
            images.append(entry)
        else:
            passed_over.add_entry(entry)
    # "/" would sort "a-b/1" before "a/1".
    images.sort(key=lambda entry: entry.name.split("/"))
    return images, passed_over
