"""Output paths that Ray would delete with an uploaded working directory."""

from __future__ import annotations

from lafs_ray.config.paths import absolute
from lafs_ray.errors import ConfigError

_UPLOADED = "/runtime_resources/working_dir_files/"


def require_persistent_path(key: str, uri: str) -> None:
    """Refuse to write where Ray unpacked the uploaded working directory of a job.

    Args:
        key: the setting or argument of the path.
        uri: the path.

    Raises:
        ConfigError: it lies there; Ray deletes that folder after the job.
    """
    if _UPLOADED in absolute(uri):
        raise ConfigError(
            key,
            found=f"{uri}, below the folder that `ray job submit --working-dir` made on the head",
            expected="a path that remains after the job and that all nodes can access",
            fix="give a URI such as s3://bucket/runs, or the absolute path of a shared folder",
        )
