"""The lines of `metrics.jsonl` as TensorBoard's event files, in `<run>/tensorboard/`."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lafs_ray.data.io import filesystem, reading
from lafs_ray.errors import ConfigError


def require_tensorboard() -> Any:
    """Return the package that writes event files.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import tensorboardX
    except ImportError:
        raise ConfigError(
            "log.tensorboard",
            found="true, but the package tensorboardX is not installed",
            expected="a Python with lafs_ray's extra `tensorboard`",
            fix="pip install 'lafs-ray[tensorboard]' (in a checkout: pip install -e "
            "'.[tensorboard]'), or set log.tensorboard=false; metrics.jsonl has the same metrics",
        ) from None
    return tensorboardX


class TensorBoardLog:
    """Event files of one run; each start adds one.

    For an object store they are written to a temporary folder, and uploaded by `flush`.

    Args:
        uri: the folder.
        first_step: where the run continues; TensorBoard drops what it knows of later steps.

    Raises:
        ConfigError: the package is not installed.
    """

    def __init__(self, uri: str, first_step: int) -> None:
        self._uri = uri
        self._stack = contextlib.ExitStack()
        folder = reading.local_path(uri)
        self._is_remote = folder is None
        if folder is None:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._folder = Path(folder)
        self._before = set(self._folder.glob("*"))
        self._writer = require_tensorboard().SummaryWriter(
            folder,
            purge_step=first_step + 1 if first_step else None,
            # The package names a file by its second and overwrites what has the name; TensorBoard reads files by name,
            # and drops later steps of those that it has read by then.
            filename_suffix=f".{time.time_ns()}",
        )

    def write(self, line: Mapping[str, Any]) -> None:
        """Add the metrics of one report, each under its own name."""
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, line["step"])

    def flush(self) -> None:
        """Make sure that the files are stored.

        Raises:
            DataError: the storage refuses them.
        """
        self._writer.flush()
        if not self._is_remote:
            return
        for path in set(self._folder.glob("*")) - self._before:
            with filesystem.atomic_write(filesystem.join(self._uri, path.name)) as file:
                file.write(path.read_bytes())

    def close(self) -> None:
        """Flush, and end the writing thread."""
        self._writer.close()
        self.flush()
        self._stack.close()
