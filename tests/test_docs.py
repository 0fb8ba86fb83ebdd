"""What the documentation names exists: files, tests, links, modules and configuration keys."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import Section
from lafs_ray.config.pretrain import PretrainConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "RESULTS.md"]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))

# A file of the repository in backticks: a path, or a test's name.
PATH = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|yaml|md|sh|json))(?:::(\w+))?`")
TEST = re.compile(r"`(test_\w+\.py)(?:::(\w+))?`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Other first parts are of examples, such as `faces/train.rec`.
FOLDERS = {"lafs_ray", "tests", "docs", "configs", "benchmarks", "jobs", "face_pre_pro", "util"}
# A module in a row of the layer table of docs/design.md.
MODULE = re.compile(r"`([\w/]+\.py)`")


def documents() -> list[pytest.param]:
    return [pytest.param(path, id=path.name) for path in DOCUMENTS]


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def released_files() -> set[str]:
    """The files of the released code that docs/method.md lists."""
    text = (ROOT / "docs" / "method.md").read_text()
    section = text.split("## The released code")[1].split("### ")[0]
    return set(MODULE.findall(section))


@pytest.mark.parametrize("path", documents())
def test_paths__exist(path: Path) -> None:
    """A path in backticks is a file of the repository, from its root, or of the released code."""
    released = released_files()
    missing = [
        name
        for name, _ in PATH.findall(prose(path))
        if name not in released and not (ROOT / name).exists() and name.split("/")[0] in FOLDERS
    ]
    assert missing == []


@pytest.mark.parametrize("path", documents())
def test_tests__exist(path: Path) -> None:
    """Every `test_file.py::test_name` is there."""
    files: dict[str, list[Path]] = {}
    for file in (ROOT / "tests").rglob("test_*.py"):
        files.setdefault(file.name, []).append(file)
    named = [(name.split("/")[-1], test) for name, test in PATH.findall(prose(path)) if test]
    named += TEST.findall(prose(path))
    missing = [
        f"{name}::{test}"
        for name, test in named
        if not any(f"def {test}(" in f.read_text() or not test for f in files.get(name, []))
    ]
    assert missing == []


@pytest.mark.parametrize("path", documents())
def test_links__lead_somewhere(path: Path) -> None:
    """Every relative link names a file, and its anchor a heading of it."""
    broken = []
    for link in LINK.findall(prose(path)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("path", documents())
def test_lines__are_short(path: Path) -> None:
    """Prose has at most 120 characters a line; tables and code may have more."""
    lines = prose(path).splitlines()
    long = [line for line in lines if len(line) > 120 and not line.startswith("|")]
    assert path.name == "config.md" or long == []


def test_design__lists_every_module_once() -> None:
    """The layer table of docs/design.md has each module of the package, in its layer."""
    table = (ROOT / "docs" / "design.md").read_text().split("\n## ")[1]
    listed, layer = [], ""
    for row in table.splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if len(cells) != 3 or not MODULE.findall(cells[1]):
            continue
        layer = cells[0].strip("`") or layer
        folder = "" if layer in ("top", "bottom") else f"{layer}/"
        listed += [f"{folder}{name}" for name in MODULE.findall(cells[1])]
    package = ROOT / "lafs_ray"
    modules = [str(file.relative_to(package)) for file in package.rglob("*.py") if file.name != "__init__.py"]
    assert {"missing": sorted(set(modules) - set(listed))} == {"missing": []}
    assert {"unknown": sorted(set(listed) - set(modules))} == {"unknown": []}
    assert len(listed) == len(set(listed))


def keys(section: type[Section], prefix: str = "") -> set[str]:
    """Every dotted key of a configuration, and those of its sections."""
    found = set()
    for name, field in section.model_fields.items():
        found.add(f"{prefix}{name}")
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= keys(kind, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("path", documents())
def test_keys__exist(path: Path) -> None:
    """A dotted name in backticks that begins with a section is a key of a configuration."""
    known = keys(PretrainConfig) | keys(FinetuneConfig) | keys(LandmarkConfig)
    sections = {key for key in known if any(other.startswith(f"{key}.") for other in known)}
    named = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:[=:][^`]*)?`", prose(path))
    files = (".py", ".md", ".json", ".jsonl", ".yaml", ".npy", ".bin", ".rec", ".idx", ".csv", ".safetensors")
    missing = [
        name for name in named if name.split(".")[0] in sections and name not in known and not name.endswith(files)
    ]
    assert missing == []
