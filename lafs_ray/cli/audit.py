"""`lafs audit`: a set checked by its embeddings, and the files that the audit writes."""

from __future__ import annotations

import logging
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from lafs_ray.audit.findings import SCHEMA, exclusion_list
from lafs_ray.audit.nearest import Apply
from lafs_ray.audit.page import audit_page
from lafs_ray.audit.session import Audit, run_audit
from lafs_ray.data.io import filesystem
from lafs_ray.data.packing.session import apply_in_process
from lafs_ray.errors import ConfigError
from lafs_ray.messages import show

FILES = ("audit.html", "findings.parquet", "exclude.csv")


@dataclass(frozen=True, kw_only=True)
class AuditRequest:
    """Options of an audit.

    Args:
        embeddings: Parquet file of the training set.
        against: those of test sets.
        out: folder for the results.
        no_faces: whether the pictures stay unread.
        exact: whether an approximate search is refused.
        scratch: folder for temporary files; None: the system's.
        workers: Ray tasks that search; 0: this process.
        force: whether the files of an earlier audit may be replaced.
    """

    embeddings: str
    against: Sequence[str] = ()
    out: str
    no_faces: bool = False
    exact: bool = False
    scratch: str | None = None
    workers: int = 0
    force: bool = False


def audit_command(options: Namespace) -> None:
    """Run `lafs audit`."""
    audit(AuditRequest(**vars(options)))


def audit(request: AuditRequest) -> None:
    """Audit, write audit.html, findings.parquet and exclude.csv, and print the counts.

    Raises:
        UserError: an error in the request, or in a file.
    """
    if request.workers < 0:
        raise ConfigError("--workers", found=str(request.workers), expected="0 or more", fix="0 needs no Ray")
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    inputs = (request.embeddings, *request.against)
    for name in FILES:
        filesystem.require_output(filesystem.join(request.out, name), force=request.force, inputs=inputs)
    filesystem.require_writable(request.out)
    if request.scratch is not None:
        filesystem.require_writable(request.scratch)
    with tempfile.TemporaryDirectory(prefix="lafs-audit-", dir=request.scratch) as folder:
        found = run_audit(
            request.embeddings,
            request.against,
            folder,
            _apply(request.workers),
            read_faces=not request.no_faces,
            exact=request.exact,
        )
        _write(request.out, found)
    for one in found.findings:
        show(f"{len(one):8,}  {one.kind}  {one.second.name if one.second is not one.first else ''}".rstrip())
    if any(threshold is None for threshold in found.thresholds.values()):
        show("the embedding separates these identities too little: labels and shared identities are not claimed")
    show(f"{', '.join(FILES)} in {request.out}; nothing was deleted")


def _apply(workers: int) -> Apply:
    if workers == 0:
        return apply_in_process
    # Imported here: without workers, Ray need not be installed.
    from lafs_ray.engine.ray_tasks import apply_on_ray

    return apply_on_ray(workers)


def _write(out: str, found: Audit) -> None:
    table = pa.concat_tables([SCHEMA.empty_table(), *(one.table() for one in found.findings)])
    excluded = exclusion_list(found.findings)
    with filesystem.atomic_write(filesystem.join(out, FILES[1])) as file:
        pq.write_table(table, file)
    with filesystem.atomic_write(filesystem.join(out, FILES[2])) as file:
        csv.write_csv(excluded, file)
    with filesystem.atomic_write(filesystem.join(out, FILES[0])) as file:
        file.write(audit_page(found))
