"""How many bad records a command may leave out: a number, or a share of all records."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lafs_ray.errors import ConfigError

_COUNT, _SHARE = re.compile(r"\d{1,18}"), re.compile(r"(\d+(?:\.\d*)?|\.\d+)(%?)")


@dataclass(frozen=True)
class MaxBad:
    """The most bad records that are allowed.

    Args:
        count: number of them; None: a share.
        share: of all records, 0 to 1.
    """

    count: int | None = 100
    share: float = 0.0

    def of(self, num_records: int) -> int:
        """Return the number that is allowed among so many records."""
        return int(self.share * num_records) if self.count is None else self.count


def parse_max_bad(option: str, text: str) -> MaxBad:
    """Parse 100, 1% or 0.01.

    Raises:
        ConfigError: it is none of them.
    """
    text = text.strip()
    if _COUNT.fullmatch(text):
        return MaxBad(int(text))
    if match := _SHARE.fullmatch(text):
        share = float(match[1]) / (100 if match[2] else 1)
        if share <= 1:
            return MaxBad(None, share)
    expected = "a number of records such as 100, or a share such as 1% or 0.01"
    raise ConfigError(option, found=repr(text), expected=expected, fix=f"correct {option}")
