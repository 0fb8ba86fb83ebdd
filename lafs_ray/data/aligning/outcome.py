"""What became of the photos, in words."""

from __future__ import annotations

from collections.abc import Iterator

from lafs_ray.data.aligning.parts import Counts
from lafs_ray.data.detection.attempts import FaceRules


def describe(counts: Counts, rules: FaceRules) -> Iterator[str]:
    """Describe an aligning line by line.

    Args:
        counts: of all parts.
        rules: which faces were kept.
    """
    aligned = counts.statuses.get("aligned", 0)
    yield f"{_count(counts.faces, 'face')} of {aligned} of {_count(counts.photos, 'photo')}"
    kept = {"largest": "the largest was kept", "central": "the most central was kept", "every": "every one was kept"}
    lines = {
        "no face": (counts.statuses.get("no face", 0), ""),
        "too small": (counts.statuses.get("too small", 0), f"less than {rules.min_eye_px:g} pixels between the eyes"),
        "low score": (counts.statuses.get("low score", 0), f"below {rules.min_score:g}"),
        "unreadable": (counts.statuses.get("unreadable", 0), ""),
        "several faces": (counts.several, kept[rules.choice]),
        "found by the second search": (counts.second_search, "with a border"),
        "turned as EXIF says": (counts.turned, ""),
    }
    for name, (count, detail) in lines.items():
        if count:
            yield f"  {name}: {count}" + (f" ({detail})" if detail else "")


def _count(count: int, unit: str) -> str:
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"
