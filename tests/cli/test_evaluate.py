"""Evaluation in one process: metrics, files and errors. On Ray: tests/engine/test_ray_embed.py."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lafs_ray.cli.commands import execute
from lafs_ray.cli.evaluate import Request, evaluate
from lafs_ray.data.verification_pairs import write_pairs
from lafs_ray.errors import UserError
from lafs_ray.evaluation.whitening import WhiteningOptions
from tests.data.test_identification import write_ijb
from tests.data.test_ijb import write_protocol
from tests.training.faces import NO_IMAGE, ROOT, face_jpegs, run, tiny, write_face_set


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, face_set_path: str) -> str:
    """The folder of a pretraining run of one step."""
    folder = tmp_path_factory.mktemp("runs")
    run(tiny(folder, face_set_path, "duration=1 steps", "optim.warmup=0 steps"))
    return str(folder / "debug")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """20 pairs, every other one of equal pictures."""
    path = str(tmp_path_factory.mktemp("pairs") / "lfw.bin")
    jpegs = face_jpegs(40, seed=5)
    images = [jpegs[number - number % 2 if number % 4 < 2 else number] for number in range(40)]
    write_pairs(path, images, [True, False] * 10)
    return path


def results(out: Path) -> dict[str, Any]:
    return json.loads((out / "results.json").read_text())


def test_evaluate__from_the_folder_of_lfw_in_two_commands(trained: str, tmp_path: Path) -> None:
    """`lafs pairs` on a folder with a list, then `lafs evaluate`: pictures of another size to metrics."""
    lines = []
    for number, image in enumerate(face_jpegs(40, size=(250, 250), seed=6)):
        path = tmp_path / "lfw" / f"P_{number // 2}" / f"P_{number // 2}_{number % 2 + 1:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    for fold in range(10):
        lines += [f"P_{2 * fold}\t1\t2", f"P_{2 * fold}\t1\tP_{2 * fold + 1}\t2"]
    (tmp_path / "pairs.txt").write_text("10\t1\n" + "\n".join(lines) + "\n")
    out = str(tmp_path / "lfw.bin")
    execute("pairs", [str(tmp_path / "lfw"), out, "--list", str(tmp_path / "pairs.txt")])
    execute("evaluate", [trained, out, "--resize", "--out", str(tmp_path / "out")])
    assert results(tmp_path / "out")["results"][0]["num_pairs"] == 20
    with pytest.raises(UserError, match="neither --list nor --pairs"):
        execute("pairs", [str(tmp_path / "lfw"), out])


def refusal(request: Request) -> UserError:
    with pytest.raises(UserError) as error:
        evaluate(request)
    return error.value


def test_evaluate__everything_at_once(
    trained: str, pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three kinds of input, baselines, tables, results.json with its origin, a picture a curve."""
    write_protocol(tmp_path / "IJBX")
    write_face_set(tmp_path / "val.rec", 4, 3)
    request = Request(
        checkpoint=trained,
        pairs=[pairs],
        identities=[str(tmp_path / "val.rec")],
        templates=[str(tmp_path / "IJBX")],
        ks=[1, 2],
        modes=["F1N1D1", "F0N1D0"],
        baselines=True,
        out=str(tmp_path / "out"),
    )
    evaluate(request)
    printed = capsys.readouterr().out
    found = results(tmp_path / "out")
    assert (found["step"], found["color_order"], found["device"]) == (1, "rgb", "cpu")
    assert found["checkpoint"].endswith("step-00000001.pt, teacher")
    assert found["architecture"]["patch_size"] == 16
    assert found["versions"]["torch"] == torch.__version__
    one, two, three = found["results"]
    assert (one["protocol"], one["num_pairs"], one["num_same"]) == ("pairs", 20, 10)
    rows = [(row["embedding"], row["centered"]) for row in one["rows"]]
    names = ("raw pixels", "untrained network", "trained network")
    assert rows == [(name, centered) for name in names for centered in (False, True)]
    # Equal pictures have distance 0, others more: the grid's second threshold parts them.
    assert [row["AUC"] for row in one["rows"]] == [1.0] * 6
    assert (two["num_images"], two["num_identities"], two["num_excluded"]) == (12, 4, 0)
    assert set(two["rows"][0]) >= {"1-NN", "2-NN"}
    assert [row["mode"] for row in three["rows"][:4]] == ["F1N1D1", "F1N1D1", "F0N1D0", "F0N1D0"]
    assert set(three["rows"][0]) >= {"TAR@1e-06", "TAR@0.1", "AUC"}
    assert one["rows"][0]["TAR@0.1"] is three["rows"][0]["TAR@0.1"] is None
    caveat = "–: 10 different pairs carry no TAR@0.001, TAR@0.01, TAR@0.1; a FAR needs 3 / FAR of them"
    for line in (caveat, "lfw.bin: 20 pairs, 10 same", "trained network, centered", "IJBX: 8 images"):
        assert line in printed
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["results.json", "roc_IJBX.png", "roc_lfw.png"]
    assert (tmp_path / "out" / "roc_lfw.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate__whitened_rows(trained: str, pairs: str, tmp_path: Path) -> None:
    """Pixels and both networks get one whitened row each, plain; how they were fitted is stored."""
    write_face_set(tmp_path / "unlabeled.rec", 10, 3)
    whiten = WhiteningOptions(str(tmp_path / "unlabeled.rec"), "mean", 8)
    evaluate(Request(checkpoint=trained, pairs=[pairs], baselines=True, whiten=whiten, out=str(tmp_path / "out")))
    found = results(tmp_path / "out")
    assert found["whitening"] == {"faces": whiten.faces, "readout": "mean", "components": 8, "neighbors": False}
    rows = [row["embedding"] for row in found["results"][0]["rows"] if row["embedding"].endswith(", whitened")]
    assert rows == ["raw pixels, whitened", "untrained network, whitened", "trained network, whitened"]
    assert all(row["AUC"] == 1.0 for row in found["results"][0]["rows"])


def test_evaluate__identification(trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Metrics are means over the galleries; each gallery and both together are in results.json."""
    write_ijb(tmp_path / "IJBX")
    evaluate(Request(checkpoint=trained, identification=[str(tmp_path / "IJBX")], out=str(tmp_path / "out")))
    printed = capsys.readouterr().out
    assert "8 images, 2 galleries, 2 gallery_templates, 2 queries, 1 queries_without_mate" in printed
    assert "–: 1 queries without mate carry no TPIR@0.01, TPIR@0.1; a FPIR needs 3 / FPIR of them" in printed
    (found,) = results(tmp_path / "out")["results"]
    row = found["rows"][0]
    # One entry a gallery: the one query that has a mate finds it first.
    assert (row["rank-1"], row["rank-5"], row["TPIR@0.1"]) == (1.0, 1.0, None)
    assert set(row["galleries"]) == {"ijbx_1N_gallery_G1", "ijbx_1N_gallery_G2"}
    assert row["joint_gallery"]["rank-5"] == 1.0


def test_evaluate__trained_network_alone_and_the_reference_range(trained: str, tmp_path: Path) -> None:
    """Without --baselines there are two rows; half the pixel range gives other distances."""
    write_pairs(str(tmp_path / "a.bin"), face_jpegs(40), [True, False] * 10)
    pairs = str(tmp_path / "a.bin")
    request = Request(checkpoint=trained, pairs=[pairs], out=str(tmp_path / "a"))
    evaluate(request)
    evaluate(replace(request, pixel_range="reference", out=str(tmp_path / "b")))
    one, other = results(tmp_path / "a"), results(tmp_path / "b")
    assert [row["embedding"] for row in one["results"][0]["rows"]] == ["trained network"] * 2
    assert (one["pixel_range"], other["pixel_range"]) == ("training", "reference")
    assert one["results"] != other["results"]


@pytest.mark.parametrize(
    ("change", "subject", "found"),
    [
        ({"pairs": []}, "inputs", "none"),
        ({"workers": -1}, "--workers", "-1"),
        ({"pairs": ["nowhere.bin"]}, "nowhere.bin", "no such file"),
        ({"identities": ["nowhere.rec"]}, "nowhere.rec", "no such file"),
        ({"templates": ["nowhere"]}, "templates in nowhere", "0 files *_name_5pts_score.txt"),
        ({"modes": ["F1"]}, "test mode", "'F1'"),
        ({"checkpoint": "nowhere.pt"}, "nowhere.pt", "no such file"),
    ],
)
def test_evaluate__impossible_request(
    trained: str, pairs: str, change: dict[str, Any], subject: str, found: str
) -> None:
    """A request without input, or with a path that leads nowhere, is refused by name."""
    error = refusal(replace(Request(checkpoint=trained, pairs=[pairs]), **change))
    assert (error.subject, error.found) == (subject, found)


def test_evaluate__k_larger_than_the_set(trained: str, tmp_path: Path) -> None:
    """An impossible k is refused before a face is embedded, with the largest one possible."""
    write_face_set(tmp_path / "a.rec", 3, 2, replaced={0: NO_IMAGE})
    error = refusal(Request(checkpoint=trained, identities=[str(tmp_path / "a.rec")], ks=[6]))
    assert error.found == "6, for 6 images of identities with two or more"
    assert error.expected.startswith("1 to 5")


def test_evaluate__damaged_faces(trained: str, pairs: str, tmp_path: Path) -> None:
    """An image that does not decode, or has another size, is named by file and number."""
    write_face_set(tmp_path / "a.rec", 3, 2, replaced={4: NO_IMAGE})
    error = refusal(Request(checkpoint=trained, identities=[str(tmp_path / "a.rec")]))
    assert error.subject == f"{tmp_path}/a.rec, key 5"
    small = face_jpegs(1, size=(96, 112))[0]
    write_pairs(str(tmp_path / "b.bin"), [*face_jpegs(3), small, *face_jpegs(16)], [True] * 10)
    error = refusal(Request(checkpoint=trained, pairs=[str(tmp_path / "b.bin")]))
    assert (error.subject, error.found) == (f"{tmp_path}/b.bin, image 3 of pair 1", "96x112")


def test_evaluate__labels_that_are_none(trained: str, tmp_path: Path) -> None:
    """A set whose image has no identity is refused by file and key."""
    from lafs_ray.data.recordio import Header, RecordWriter, pack

    with RecordWriter(str(tmp_path / "a.rec")) as writer:
        for number, jpeg in enumerate(face_jpegs(4)):
            label = 0.5 if number == 2 else float(number // 2)
            writer.write(number, pack(Header(0, label, number), jpeg))
    error = refusal(Request(checkpoint=trained, identities=[str(tmp_path / "a.rec")]))
    assert error.subject == f"{tmp_path}/a.rec, key 2"
    assert error.found == "no identity; records without one: 1"


@pytest.mark.parametrize("name", ["results.json", "roc_lfw.png"])
def test_evaluate__files_are_there(trained: str, pairs: str, tmp_path: Path, name: str) -> None:
    """Before anything is computed, files of an earlier evaluation are refused without force."""
    (tmp_path / "lfw.bin").write_bytes(Path(pairs).read_bytes())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("earlier")
    request = Request(checkpoint=trained, pairs=[str(tmp_path / "lfw.bin")], out=str(tmp_path / "out"))
    assert "--force" in refusal(request).fix
    assert os.listdir(tmp_path / "out") == [name]
    evaluate(replace(request, force=True))
    assert sorted(os.listdir(tmp_path / "out")) == ["results.json", "roc_lfw.png"]
    assert (tmp_path / "out" / name).read_bytes() != b"earlier"


def test_evaluate__pairs_of_one_kind(trained: str, tmp_path: Path) -> None:
    """Where a rate is undefined the table has a dash and results.json null; accuracy is there."""
    write_pairs(str(tmp_path / "a.bin"), face_jpegs(20), [True] * 10)
    evaluate(Request(checkpoint=trained, pairs=[str(tmp_path / "a.bin")], out=str(tmp_path / "out")))
    row = results(tmp_path / "out")["results"][0]["rows"][0]
    assert row["AUC"] is None
    assert row["TAR@0.01"] is None
    # One pair lies further apart than the nine that chose the threshold.
    assert row["accuracy"] == pytest.approx(0.9)


class Call:
    """Pickles into a call that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (self.mark,))


def test_evaluate__checkpoint_with_code(pairs: str, tmp_path: Path) -> None:
    """A checkpoint that would call a function is refused, and the call is not made."""
    mark, path = tmp_path / "called", tmp_path / "evil.pt"
    for write in (torch.save, lambda content, name: name.write_bytes(pickle.dumps(content))):
        write({"format": 1, "step": Call(mark)}, path)
        error = refusal(Request(checkpoint=str(path), pairs=[pairs]))
        assert error.subject == str(path)
        assert error.expected == "tensors, numbers, strings, lists and dictionaries"
        assert not mark.exists()


def test_evaluate__checkpoint_of_another_kind(pairs: str, tmp_path: Path) -> None:
    """A torch file that is no checkpoint of ours, and a run without one, are named."""
    torch.save({"state_dict": torch.zeros(3)}, tmp_path / "a.pt")
    error = refusal(Request(checkpoint=str(tmp_path / "a.pt"), pairs=[pairs]))
    assert error.subject == str(tmp_path / "a.pt")
    assert error.found == "a checkpoint that was not written by lafs_ray; keys state_dict"
    (tmp_path / "config.json").write_text("{}")
    error = refusal(Request(checkpoint=str(tmp_path), pairs=[pairs]))
    assert error.found == "a run without checkpoints"


def test_job__tells_a_missing_pair_file(trained: str) -> None:
    """The command line: exit code 2, four parts, no traceback, and options as documented."""
    done = subprocess.run(
        [sys.executable, "jobs/evaluate.py", trained, "nowhere.bin", "--k", "5", "--workers", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: nowhere.bin\n  found:    no such file")
    assert "Traceback" not in done.stderr


def test_apply_network__ranges() -> None:
    """A network sees -1…1 as in training, or the reference's -0.5…0.5; mirrors are mirrored."""
    from lafs_ray.evaluation.embed import apply_network, embed_chunk

    images = np.zeros((1, 2, 2, 3), np.uint8)
    images[0, :, 1] = 255

    def flat(pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, 0].flatten(1)

    assert apply_network(flat, images).tolist() == [[-1, 1, -1, 1]]
    half = apply_network(flat, images, pixel_range="reference")
    assert half.tolist() == [[-0.5, 0.5, -0.5, 0.5]]
    assert embed_chunk(flat, images).tolist() == [[[-1, 1, -1, 1], [1, -1, 1, -1]]]
