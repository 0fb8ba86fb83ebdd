"""The vocabulary of CONTRIBUTING.md: words and phrases that were replaced do not come back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLACES = (
    *("lafs_ray", "jobs", "configs", "docs", "benchmarks", "tests"),
    *("README.md", "CONTRIBUTING.md", "Makefile", "cluster.yaml", "pyproject.toml"),
)
KINDS = {".py", ".md", ".yaml", ".json", ".toml", ".sh", ""}
# This list, and the tables of keys that recorded runs were made with.
NOT_SEARCHED = ("tests/test_vocabulary.py", "tests/regression/record.py")

# Whole words, `_` included: `relay` is not found in `relay_board`. A verb or noun of the field is here only in the form
# of an identifier: voting neighbors and linear probes are legitimate.
IDENTIFIERS = (
    # Online evaluation and evaluation.
    *("Probe", "Probes", "probes", "Judged", "Judge", "judge", "judges", "judged"),
    *("judging", "held_out"),
    # Requests, collectives, hooks.
    *("Wish", "Wishes", "wish", "wishes", "take_wish", "Vote", "complain", "Relay", "relay"),
    # Transforms.
    *("Cut", "Cropper", "Croppers", "cropper", "croppers", "timed_cut", "ViewCutter"),
    *("token_cut", "labelled_cut", "labeled_cut", "CropActor", "cut_ms", "cut_s"),
    *("deal_steps", "ViewDraws", "draw_views", "LandmarkFinder", "MixupShares"),
    # Groups of records.
    *("Portion", "portion", "portions", "OrderPlan", "rank_plan", "build_plan"),
    # Monitoring.
    *("Watch", "Guards", "guards", "learning_state", "starvation", "starving"),
    # Runs.
    *("StartWeights", "RunFolder", "SweepFolder", "JobInputs", "read_trained", "tidy", "spared"),
    *("Room", "foresee", "require_lasting", "lottery_numbers", "nuisance", "Nuisance"),
    "dealt",
)
PATTERNS = (
    r"_?judge_\w+",
    r"dealt? (?:it |them )?out",
    r"\w+_(?:wish|wishes|probe|portion|portions|cropper)",
    r"(?:wish|portion|portions|probe|probes)_\w+",
    # Within names, such as those of tests.
    r"\w+_(?:people|probes|judges?|foresee|tidy|spared|starvation|anew|mended)(?:_\w+)?",
)
# Regular expressions, whole words, in any case.
PHRASES = (
    *("asked to do", "agree upon", "out of turn", "deal it out", "who is stopped early"),
    *("at which expense", "looks? after", "will do while", "is drawn from now on"),
    *("writes and speaks", "speaks for", "in any company", "on any day", "told rightly"),
    *("all rightly", "would be a lie", "mistakes told", "a GPU is asked for", "a GPU eats"),
    *("who works where", "put strangers", "images a person", "an identity want"),
    *("mistakes? in the configuration", "lower the keys", "found: another file"),
    *("in its subfolders alone", "a name that is free", "without blanks", "encoded anew"),
    *("names do not fit", "holds nothing else", r"at the \d+\. try", "broken off"),
    *("running: it reports", "to 1 shards", "1 steps an epoch", "deviation of embeddings"),
    # Of the same kind.
    *("for people", "as people write", "our (?:own )?mistakes?", "(?:is|are) told"),
    *("nobody", "somebody", "whom", "anew", "mend(?:s|ed)?", "hears? of", "guilty"),
    *("people", "persons", "croppers?", "what an? (?:GPU|face) (?:eats|weighs)"),
)
# Parts of words.
BRITISH = (
    *("colour", "centre", "centring", "solaris", "normalis", "initialis", "serialis"),
    *("regularis", "optimis", "neighbour", "labelled", "labelling", "behaviour", "quantis"),
    *("licence", "recognis", "randomis", "judgement", "materialis", "summaris", "synchronis"),
    *("analyse", "minimis", "maximis", "organis", "favour"),
)
# Documents of the authors that a reader of the repository cannot open.
SOURCES = (
    "METHOD.md",
    "DESIGN.md",
    "HOUSE.md",
    "STYLE.md",
    "BRIEF.md",
    "RAY notes",
    "RAY.md",
    "golden README",
    "golden/README",
    "../shared",
    "/work/",
)
# Uses that a list of words cannot tell from the replaced ones.
LEGITIMATE = (
    # Names of the released code, which recorded cases keep.
    r"\"(?:not_)?regularised\"",
    # TinyFace's folder of query images.
    r"(?<=[\"`/ ])Probe(?=[\"`/,])",
)


def texts() -> Iterator[tuple[str, int, str]]:
    """Each line of the package, jobs, configurations, benchmarks, tests and documentation."""
    for place in PLACES:
        path = ROOT / place
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = str(file.relative_to(ROOT))
            if name in NOT_SEARCHED or not file.is_file() or file.suffix not in KINDS:
                continue
            if {"__pycache__", "golden", "recorded"} & set(file.parts):
                continue
            for number, line in enumerate(file.read_text().splitlines(), 1):
                yield name, number, line


def found(pattern: str, flags: int = 0) -> list[str]:
    """Return where a pattern stands, but for legitimate uses."""
    compiled, legitimate = re.compile(pattern, flags), re.compile("|".join(LEGITIMATE))
    return [
        f"{name}:{number}: {match.group(0)}"
        for name, number, line in texts()
        for match in compiled.finditer(legitimate.sub("", line))
    ]


def test_vocabulary__no_replaced_identifier() -> None:
    """Words that have been replaced stand nowhere, alone or as an identifier."""
    words = "|".join((*map(re.escape, IDENTIFIERS), *PATTERNS))
    assert found(rf"(?<![\w-])(?:{words})(?![\w-])") == []


def test_vocabulary__no_replaced_phrase() -> None:
    """Phrases that have been replaced stand nowhere."""
    assert found(rf"\b(?:{'|'.join(PHRASES)})\b", re.IGNORECASE) == []


def test_vocabulary__american_spelling() -> None:
    """Identifiers, keys and prose are spelled as in American English."""
    assert found("|".join(BRITISH), re.IGNORECASE) == []


def test_vocabulary__no_source_outside_the_repository() -> None:
    """What is cited can be opened: a paper, the released code, a file of this repository."""
    assert found("|".join(map(re.escape, SOURCES))) == []


@pytest.mark.parametrize(
    "line",
    ["a linear probe of the frozen network", "the k neighbors vote", "the votes of k neighbors", "relative errors"],
)
def test_vocabulary__uses_of_the_field(line: str) -> None:
    """Words that the field uses in its own sense raise no alarm."""
    words = "|".join((*map(re.escape, IDENTIFIERS), *PATTERNS))
    assert not re.search(rf"(?<![\w-])(?:{words})(?![\w-])", line)
