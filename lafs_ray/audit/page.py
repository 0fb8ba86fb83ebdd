"""The page of an audit: what was found, with pictures to look at."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lafs_ray.audit.calibration import PRIOR
from lafs_ray.audit.findings import COPIES, FACELESS, LABELS, LEAKS, Finding
from lafs_ray.audit.leaks import SharedIdentities
from lafs_ray.audit.session import Audit, AuditedSet
from lafs_ray.audit.sheets import Faces
from lafs_ray.data.alignment_check import NO_FACE
from lafs_ray.report import html
from lafs_ray.report.charts import Axes, histogram

_PAIRS_SHOWN, _LISTED = 24, 20
# What a finding's score is, and what to do about it.
_EXPLAINED = {
    LEAKS[0]: "Equal bytes. Leave the training image out.",
    LEAKS[1]: "Similarity of the pixels, shifted and scaled; 1 is a copy. Leave the training image out.",
    LEAKS[2]: "Cosine of what was compared. The list to leave out has all images of such a training identity.",
    COPIES[0]: "Equal bytes; the later image is in the list to leave out.",
    COPIES[1]: "Similarity of the pixels; the later image is in the list to leave out.",
    FACELESS: "Correlation with a template of an aligned face: turned away, covered, displaced, or no face at all.",
    LABELS[0]: "By how much the image is more similar to the other identity (right) than to its own.",
    LABELS[1]: "How far the image lies below the usual similarity to a foreign identity: another face, or none.",
    LABELS[2]: "Cosine of the two centers: as similar as two halves of one identity.",
    LABELS[3]: "Cosine of the centers of two clusters of its images; an image of each is shown.",
}
_NOTHING_CLAIMED = (
    "The embedding does not separate identities well enough on these labels: no label and no shared identity is "
    "claimed. The pairs below are the most similar ones, to look at."
)


def audit_page(audit: Audit) -> bytes:
    """Return the HTML page."""
    train = audit.train.embedded
    tests = ", ".join(test.embedded.name for test in audit.tests) or "none"
    subtitle = f"{train.num_rows:,} images of {train.name}; test sets: {tests}. Nothing was deleted."
    faces = Faces([audit.train, *audit.tests])
    sections = [html.Section("Summary", _summary(audit))]
    sections += [html.Section("Leaks into test sets", _findings(audit, faces, LEAKS) + _ranked(audit, faces))]
    sections += [html.Section("Labels", _labels(audit, faces))]
    sections += [html.Section("Copies within the set", _findings(audit, faces, COPIES))]
    sections += [html.Section("Alignment", _alignment(audit, faces))]
    sections += [html.Section("Balance", _balance(audit.train, faces))]
    return html.page(f"Audit of {train.name}", subtitle, sections)


def _summary(audit: Audit) -> str:
    rows = [(one.kind, one.second.name if one.kind in LEAKS else "–", len(one)) for one in audit.findings]
    thresholds = [
        (name, one.value if one else None, one.found if one else None, one.false if one else None)
        for name, one in audit.thresholds.items()
    ]
    texts = []
    if not audit.thresholds:
        texts.append("The training set has no labels: labels cannot be checked, and shared identities are ranked only.")
    elif all(one is None for one in audit.thresholds.values()):
        texts.append(_NOTHING_CLAIMED)
    if audit.train.pictures is None:
        texts.append("The pictures were not read: copies were not searched for.")
    if audit.approximate:
        texts.append("Neighbors were searched approximately (inverted file): some are missed (docs/audit.md).")
    explained = (
        "A threshold is calibrated on the labels of the training set, at the least expected error if "
        f"{PRIOR:.0%} of what is compared is a fault. Found: share of true pairs above it; false: share of identities "
        "whose most similar foreign one is above it."
    )
    calibrated = html.table(["threshold", "cosine", "found", "false"], thresholds)
    return (
        html.notes(texts)
        + html.table(["finding", "test set", "count"], rows)
        + (calibrated and html.paragraph(explained, "faint") + calibrated)
    )


def _findings(audit: Audit, faces: Faces, kinds: tuple[str, ...]) -> str:
    return "".join(_finding(one, faces) for one in audit.findings if one.kind in kinds and len(one))


def _finding(one: Finding, faces: Faces) -> str:
    where = f" {one.second.name}" if one.kind in LEAKS else ""
    pairs = [
        (one.first, row, one.second, other) for row, other in zip(one.rows.tolist(), one.others.tolist(), strict=True)
    ]
    listed = one.table().slice(0, _LISTED).to_pylist()
    rows = [[_place(entry, ""), _place(entry, "other_"), entry["score"]] for entry in listed]
    more = f"The first {_LISTED} of {len(one)}; all are in findings.parquet." if len(one) > _LISTED else ""
    return (
        html.heading(f"{one.kind}{where}: {len(one):,}")
        + html.paragraph(_EXPLAINED[one.kind], "faint")
        + faces.pairs(pairs[:_PAIRS_SHOWN], one.scores.tolist())
        + "<details><summary>records</summary>"
        + html.table(["record", "other record", "score"], rows)
        + html.paragraph(more, "faint")
        + "</details>"
    )


def _place(entry: dict[str, object], prefix: str) -> str:
    key = entry[f"{prefix}key"]
    if key is None:
        return "–"
    label = entry[f"{prefix}label"]
    shard = str(entry[f"{prefix}shard"] or "").rpartition("/")[2]
    return f"{shard} {key}".strip() + (f", identity {label}" if label is not None else "")


def _ranked(audit: Audit, faces: Faces) -> str:
    """Return the most similar pairs of each test set that no threshold flags, to look at."""
    parts = []
    for test, shared in zip(audit.tests, audit.shared, strict=True):
        rest = np.flatnonzero(~shared.flagged)[:_PAIRS_SHOWN]
        pairs = [(audit.train.embedded, int(shared.train[n]), test.embedded, int(shared.test[n])) for n in rest]
        title = f"Most similar below the threshold: {test.embedded.name}"
        if not shared.flagged.any():
            title = f"Most similar, none claimed: {test.embedded.name}"
        text = f"Compared: {shared.compared}."
        if shared.by_chance >= 1:
            text += f" About {shared.by_chance:.0f} of {len(shared.scores):,} pass the threshold by chance."
        parts.append(html.heading(title) + html.paragraph(text, "faint"))
        parts.append(_curve(shared) + faces.pairs(pairs, shared.scores[rest].tolist()))
    return "".join(parts)


def _curve(shared: SharedIdentities) -> str:
    level = [] if shared.threshold is None else [(shared.threshold.value, "threshold")]
    axes = Axes("best similarity of each test identity or image", x="cosine", y="share", marks=level)
    return histogram(axes, [("test", shared.scores.tolist())])


def _labels(audit: Audit, faces: Faces) -> str:
    found = audit.train.identities
    if found is None:
        return html.paragraph("The set has no labels.")
    known = np.isfinite(found.own)
    groups = [
        ("own identity, without the image", found.own[known].tolist()),
        ("most similar other identity", found.best_other[known & (found.other >= 0)].tolist()),
    ]
    marks = [(one.value, "threshold") for one in [found.image_threshold] if one]
    chart = histogram(Axes("similarity of images to centers", x="cosine", y="share", marks=marks), groups)
    centers = [("halves of one identity", found.halves.tolist()), ("most similar other", found.nearest_score.tolist())]
    marks = [(one.value, "threshold") for one in [found.center_threshold] if one]
    both = histogram(Axes("similarity of centers", x="cosine", y="share", marks=marks), centers)
    return html.row([chart, both]) + _findings(audit, faces, LABELS)


def _alignment(audit: Audit, faces: Faces) -> str:
    """Return the verdict on the set, and the images that do not look like an aligned face."""
    pictures = audit.train.pictures
    if pictures is None:
        return ""
    warning = pictures.alignment.warning(audit.train.embedded.name)
    fits = [("", pictures.template[:, 0].tolist())]
    marks = [(NO_FACE, "listed below")]
    return (
        html.notes([warning] if warning else [])
        + html.paragraph(f"The set is {pictures.alignment.describe()}.")
        + histogram(Axes("likeness to an aligned face", x="correlation", y="share", marks=marks), fits)
        + _findings(audit, faces, (FACELESS,))
    )


def _balance(train: AuditedSet, faces: Faces) -> str:
    parts: list[str] = []
    if train.identities is not None:
        counts = train.identities.counts
        rows = [(f"{share:.0%}", int(np.quantile(counts, share))) for share in (0, 0.1, 0.25, 0.5, 0.75, 0.9, 1)]
        single = int(np.count_nonzero(counts == 1))
        parts.append(
            html.paragraph(f"{len(counts):,} identities, {counts.sum():,} labeled images; {single:,} have one image.")
            + html.row(
                [
                    histogram(
                        Axes("images of an identity", x="images", y="share of identities"), [("", counts.tolist())]
                    ),
                    html.table(["identities with at most", "images"], rows),
                ]
            )
        )
    if train.pictures is not None:
        parts.append("".join(_proxies(train, faces)))
    return "".join(parts)


def _proxies(train: AuditedSet, faces: Faces) -> Iterator[str]:
    assert train.pictures is not None, "pictures were read"
    yield html.paragraph(
        "Measured on the picture alone: sharpness is the logarithm of the variance of the Laplacian at 56×56, low for "
        "blurred and for enlarged small faces; symmetry is the correlation with the mirror image, low for turned heads "
        "and for light from one side. Neither is a pose nor a resolution.",
        "faint",
    )
    for name, values in (("sharpness", train.pictures.sharpness), ("symmetry", train.pictures.symmetry)):
        order = np.argsort(values, kind="stable")
        chart = histogram(Axes(name, x=name, y="share"), [("", values.tolist())])
        ends = [_ends(faces, train, order[:12], f"lowest {name}"), _ends(faces, train, order[-12:], f"highest {name}")]
        yield html.row([chart, *ends])


def _ends(faces: Faces, train: AuditedSet, rows: NDArray[np.int64], caption: str) -> str:
    return faces.sheet(train.embedded, rows.tolist(), caption)
