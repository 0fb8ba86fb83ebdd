"""A report of every kind of run, of several, and of a sweep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.errors import UserError
from lafs_ray.evaluation.whitening import WhiteningOptions
from lafs_ray.report.session import ReportRequest, report_page
from lafs_ray.tuning.sweep_dir import SweepDir, TrialDir
from tests.report.browser import needs_browser, opened
from tests.test_jobs import main_of
from tests.training.faces import face_jpegs, run, tiny
from tests.training.tasks.test_landmarks import cache, regression
from tests.tuning.sweeps import sweep
from tests.tuning.test_results import trial

__all__ = ["cache"]

SHORT = ("duration=2 steps", "optim.warmup=1 steps", "log.every_steps=1")
GRID = ("landmarks.source=grid", "landmarks.weights=null", "dino.centering=sinkhorn")
PARTS = ("What it is", "How it went", "What it learned", "What it sees")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, face_set_path: str, cache: str) -> Path:
    """The folders of a LAFS, a DINO-face, a stage-1, a finetuning and a landmark run, and a pair file."""
    folder = tmp_path_factory.mktemp("runs")
    run(tiny(folder, face_set_path, *SHORT, "run.name=lafs"))
    run(tiny(folder, face_set_path, *SHORT, "run.name=dino", *GRID))
    run(tiny(folder, face_set_path, *SHORT, "run.name=stage1", kind=FinetuneConfig))
    start = (f"start.transformer={folder}/stage1", f"start.landmarks={folder}/stage1")
    run(tiny(folder, face_set_path, *SHORT, "run.name=finetune", *start, kind=FinetuneConfig))
    run(regression(folder, face_set_path, cache, "duration=2 steps", "run.name=cnn"))
    write_pairs(str(folder / "pairs.bin"), face_jpegs(40, seed=5), [True, False] * 10)
    return folder


def text_of(*names: str, folder: Path, pairs: str | None = None, whiten: WhiteningOptions | None = None) -> str:
    request = ReportRequest(runs=[str(folder / name) for name in names], pairs=pairs, whiten=whiten)
    return report_page(request).decode()


@pytest.mark.parametrize(
    ("name", "kind", "shown", "hidden"),
    [
        ("lafs", "LAFS pretraining", ("log K: uniform", "embedding std", "Landmarks", "Attention"), ("regularizer",)),
        ("dino", "DINO-face pretraining", ("log K: uniform", "Attention", "Tokens"), ("Landmarks</h3>",)),
        ("stage1", "stage 1", ("before training", "landmark spread", "accuracy in training"), ("log K: uniform",)),
        ("finetune", "finetuning", ("Training moved a landmark by",), ("log K: uniform",)),
    ],
)
def test_report__each_kind_of_run(
    runs: Path, name: str, kind: str, shown: tuple[str, ...], hidden: tuple[str, ...]
) -> None:
    """Every kind of run has all parts, without pairs; and only the charts and pictures of its own kind."""
    page = text_of(name, folder=runs)
    for text in (*PARTS, kind, "No pair file was given", "No warnings.", "Nearest neighbors", "batch_size", *shown):
        assert text in page, text
    for text in hidden:
        assert text not in page, text
    # Recorded by the run itself.
    assert "commit" in page
    assert "torch" in page
    assert "http://" not in page
    assert "https://" not in page


def test_report__landmark_regression(runs: Path) -> None:
    """A landmark CNN alone has its curves and its landmarks on faces, alone and beside a run that embeds."""
    alone = text_of("cnn", folder=runs, pairs=str(runs / "pairs.bin"))
    for text in (*PARTS, "landmark regression", "which embeds no faces", "batch_size", "landmarks: spread over"):
        assert text in alone, text
    assert "Attention" not in alone
    beside = text_of("lafs", "cnn", folder=runs, pairs=str(runs / "pairs.bin"))
    assert "lafs, centered" in beside
    assert beside.count("spread over these faces") == 2


def test_report__several_runs_with_pairs(runs: Path) -> None:
    """Runs stand beside each other with intervals, paired tests, and a caveat for what 20 pairs do not carry."""
    page = text_of("lafs", "dino", folder=runs, pairs=str(runs / "pairs.bin"))
    for text in ("lafs, centered", "dino, centered", "95 % interval", "dino − lafs", "Different identities, closest"):
        assert text in page, text
    assert "10 different pairs carry no TAR at FAR 0.001, 0.01, 0.1" in page
    assert "So few pairs leave ±0.1" in page
    assert "chance" in page


def test_report__whitened_networks(runs: Path, face_set_path: str) -> None:
    """Networks are shown whitened as well, the untrained one too, and tested against the last of them."""
    whiten = WhiteningOptions(face_set_path, "all", 8)
    page = text_of("lafs", folder=runs, pairs=str(runs / "pairs.bin"), whiten=whiten)
    for text in ("raw pixels, centered", "untrained, whitened", "lafs, whitened", "lafs, whitened − raw pixels"):
        assert text in page, text
    assert "whitened, centered" not in page
    for wrong in ({"pairs": None}, {"whiten": WhiteningOptions("nowhere", "all", 8)}):
        with pytest.raises(UserError, match=r"--whiten|nowhere"):
            text_of("lafs", folder=runs, **{"pairs": str(runs / "pairs.bin"), "whiten": whiten, **wrong})
    assert "untrained − raw pixels" not in page


def test_report__damaged_or_missing(runs: Path, tmp_path: Path) -> None:
    """A folder of something else, and faces that were given and are not there, are refused; missing ones are noted."""
    (tmp_path / "config.json").write_text("{}")
    for request in (
        ReportRequest(runs=[str(tmp_path)]),
        ReportRequest(runs=[str(tmp_path / "nowhere")]),
        ReportRequest(runs=[str(runs / "lafs")], faces="nowhere.rec"),
        ReportRequest(runs=[str(runs / "lafs")], pairs="nowhere.bin"),
    ):
        with pytest.raises(UserError):
            report_page(request)
    moved = tmp_path / "lafs"
    moved.mkdir()
    description = json.loads((runs / "lafs" / "config.json").read_text())
    description["config"]["data"]["path"] = str(tmp_path / "gone.rec")
    (moved / "config.json").write_text(json.dumps(description))
    page = text_of("lafs", folder=tmp_path)
    assert "No report has been written yet." in page
    assert "no network to show" in page


def test_report__command(runs: Path, tmp_path: Path) -> None:
    """Without --force nothing is replaced; with it the page is."""
    out = tmp_path / "report.html"
    out.write_text("earlier")
    arguments = [str(runs / "dino"), "--out", str(out)]
    with pytest.raises(UserError, match="--force"):
        main_of("report")(arguments)
    assert out.read_text() == "earlier"
    main_of("report")([*arguments, "--force"])
    assert out.read_text().startswith("<!doctype html>")


def write_sweep(folder: Path, count: int, confirmed: bool = False) -> str:
    """The folder of a sweep with this many trials, as the sweep writes it."""
    folder.mkdir(exist_ok=True)
    space = {"optim.lr": {"log_uniform": [1e-4, 1e-2]}, "mixup.alpha": {"choice": [0.1, 1.0]}}
    written = SweepDir(sweep(folder, folder / "train.rec", space=space, settings={"optim.lr": 1e-3}))
    written.claim({})
    place = Path(written.uri)
    for number in range(count):
        settings = {"optim.lr": 1e-4 * 10 ** (2 * number / count), "mixup.alpha": [0.1, 1.0][number % 2]}
        record = trial(number, "finished", 0.4, 0.4 + 0.01 * number, **settings)
        (place / "trials" / f"{number:04d}").mkdir(parents=True)
        TrialDir(str(place / "trials" / f"{number:04d}")).write(record)
    if confirmed:
        values = {"metric": "pair_accuracy", "seeds": [1, 2, 3], "winner": [0.5, 0.6, 0.7], "default": [0.5, 0.5, 0.8]}
        (place / "confirm.json").write_text(json.dumps(values))
    return str(place)


def test_report__sweep(tmp_path: Path) -> None:
    """Few trials: the winner at 0.44 is questioned, the default is drawn, and ranks stand in for an importance."""
    page = report_page(ReportRequest(runs=[write_sweep(tmp_path, 5, confirmed=True)])).decode()
    for text in ("Trial 4: pair_accuracy 0.4400", "is not above chance", "default", "rank correlation"):
        assert text in page, text
    assert "p = 1 (paired t-test): not significant" in page
    assert "5 trials are too few for an importance" in page


def test_report__sweep_of_one_trial(tmp_path: Path) -> None:
    """One trial ranks nothing, and the page says so; none has no winner."""
    page = report_page(ReportRequest(runs=[write_sweep(tmp_path / "one", 1)])).decode()
    assert "1 trials rank no keys" in page
    assert "No trial has a report." in report_page(ReportRequest(runs=[write_sweep(tmp_path / "none", 0)])).decode()


def test_status__of_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trials so far, the best first; as JSON all of their fields."""
    folder = write_sweep(tmp_path, 3)
    main_of("status")([folder])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{folder} (sweep): 3 trials started, not confirmed"
    assert [line.split()[0] for line in lines[1:]] == ["trial", "2", "1", "0"]
    main_of("status")([folder, "--json"])
    assert [one["number"] for one in json.loads(capsys.readouterr().out)] == [0, 1, 2]


@needs_browser
def test_report__in_a_browser(runs: Path, tmp_path: Path) -> None:
    """The pages of runs beside each other, and of a sweep, are shown completely, and the console stays silent."""
    everything = [str(runs / name) for name in ("lafs", "dino", "stage1", "finetune", "cnn")]
    pages = {
        "runs": report_page(ReportRequest(runs=everything, pairs=str(runs / "pairs.bin"))),
        "sweep": report_page(ReportRequest(runs=[write_sweep(tmp_path, 12)])),
    }
    for name, content in pages.items():
        (tmp_path / f"{name}.html").write_bytes(content)
        seen = opened(tmp_path / f"{name}.html")
        assert (seen["broken"], seen["unnamed"], seen["requests"]) == (0, 0, 0), name
        assert seen["drawings"] >= 4, name
        assert seen["wide"] <= 0, name
        assert seen["smallest"] >= 12, name
        assert seen["images"] >= (30 if name == "runs" else 0), name
