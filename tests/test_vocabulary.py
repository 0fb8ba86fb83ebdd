"""The vocabulary of CONTRIBUTING.md: words that were replaced do not come back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("lafs_ray", "jobs", "configs", "docs", "README.md", "CONTRIBUTING.md")
KINDS = {".py", ".md", ".yaml", ".json", ""}

# Identifiers, whole words.
IDENTIFIERS = (
    *("Probe", "Probes", "probe", "probes", "Wish", "Wishes", "wish", "take_wish", "Vote"),
    *("Cut", "Cropper", "timed_cut", "ViewCutter", "token_cut", "labelled_cut", "CropActor"),
    *("deal_steps", "Portion", "portion", "portions", "OrderPlan"),
    *("Judged", "Judge", "judge", "judged", "hold", "guards", "Watch", "learning_state"),
    *("starvation", "starving", "StartWeights", "held_out", "Room", "tidy", "spared"),
    *("foresee", "require_lasting", "lottery_numbers", "MixupShares", "draw_views", "ViewDraws"),
    *("nuisance", "Nuisance", "LandmarkFinder", "complain"),
)
PATTERNS = (r"judge_\w+", r"dealt? (?:it )?out")
PHRASES = (
    *("asked to do out of turn", "agree upon a wish", "and dealt out again"),
    *("stopped early", "at which expense", "looks after a run", "will do while"),
    *("is drawn from now on", "writes and speaks", "in any company", "on any day"),
    *("told rightly", "would be a lie", "Mistakes told", "Who works where", "Do not put strangers"),
    *("eats", "mistakes in the configuration", "mistake in the configuration"),
    *("mend the keys", "lower the keys", "found: another file", "in its subfolders alone"),
    *("a name that is free", "without blanks", "encoded anew", "do not fit"),
    *("holds nothing else", "written at the", "broken off", "it reports"),
    *("deviation of embeddings", "norm of the center"),
)
BRITISH = (
    *("colour", "centre", "centring", "grey", "solaris", "normalis", "initialis", "serialis"),
    *("regularis", "optimis", "neighbour", "labelled", "behaviour", "quantis", "licence"),
    *("recognis", "randomis", "judgement", "materialis", "summaris", "synchronis"),
)
# Documents of the authors that a reader of the repository cannot open.
SOURCES = ("METHOD.md", "DESIGN.md", "HOUSE.md", "RAY notes", "RAY.md", "golden README", "../shared")


def texts() -> Iterator[tuple[str, int, str]]:
    """Each line of the package, the jobs, the configurations and the documentation."""
    for place in PLACES:
        path = ROOT / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix in KINDS and "__pycache__" not in file.parts:
                for number, line in enumerate(file.read_text().splitlines(), 1):
                    yield str(file.relative_to(ROOT)), number, line


def found(pattern: str, flags: int = 0) -> list[str]:
    """Where a pattern stands, but for the table in CONTRIBUTING.md of what was replaced."""
    return [
        f"{name}:{number}: {match.group(0)}"
        for name, number, line in texts()
        for match in re.finditer(pattern, line, flags)
    ]


def test_vocabulary__no_replaced_identifier() -> None:
    """Whole words that have been replaced stand nowhere."""
    words = "|".join((*map(re.escape, IDENTIFIERS), *PATTERNS))
    assert found(rf"(?<![\w-])(?:{words})(?![\w-])") == []


def test_vocabulary__no_replaced_phrase() -> None:
    """Phrases that have been replaced stand nowhere."""
    assert found("|".join(map(re.escape, PHRASES)), re.IGNORECASE) == []


def test_vocabulary__american_spelling() -> None:
    """Identifiers, keys and prose are spelled as in American English."""
    assert found("|".join(BRITISH), re.IGNORECASE) == []


def test_vocabulary__no_source_outside_the_repository() -> None:
    """What is cited can be opened: a paper, the released code, a file of this repository."""
    assert found("|".join(map(re.escape, SOURCES))) == []
