"""All readers as targets of `structures.py`: one file in, "read" or "refused"; anything else is a finding.

A reader may refuse with a `UserError` of at most 8,000 characters.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.loader import load, parse_overrides, resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.config.yaml_text import read_yaml, write_yaml
from lafs_ray.data import ijb, landmark_cache
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.landmark_template import read_template
from lafs_ray.data.packing.lists import read_list
from lafs_ray.data.points_table import PointsTable
from lafs_ray.errors import UserError
from lafs_ray.models.checkpoints.architecture import Architecture
from lafs_ray.models.checkpoints.safetensors_file import NetworkWeights, encode_weights, read_weights
from lafs_ray.models.checkpoints.state_dicts import PublishedState
from lafs_ray.models.fvit import FViTSize
from lafs_ray.training.checkpoint.checkpoint_file import load_checkpoint
from lafs_ray.training.checkpoint.inference import open_checkpoint
from lafs_ray.training.checkpoint.metrics_log import read_lines
from lafs_ray.training.checkpoint.run_description import read_description
from lafs_ray.training.monitoring.status import read_status
from lafs_ray.tuning.sweep_dir import TrialDir
from tests.data.shards import tar_bytes
from tests.fuzz import containers, inputs, structures, targets
from tests.fuzz.structures import Mutator

_ROOT = Path(__file__).parents[2]
_MEMORY_DISK = "/dev/shm"


@functools.cache
def _folder(_: int) -> Path:
    return Path(tempfile.mkdtemp(prefix="lafs-fuzz-", dir=_MEMORY_DISK if os.path.isdir(_MEMORY_DISK) else None))


def clean_up() -> None:
    """Delete this process's files."""
    shutil.rmtree(_folder(os.getpid()), ignore_errors=True)


def _reads(name: str, read: Callable[[str], object]) -> Callable[[bytes], str]:
    """A target that writes its input under a name and reads that."""

    def target(data: bytes) -> str:
        path = _folder(os.getpid()) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return _outcome(lambda: read(str(path)))

    return target


def _outcome(read: Callable[[], object]) -> str:
    try:
        read()
    except UserError as error:
        text = str(error)
        assert len(text) < 8000, "a message at length"
        return "refused"
    return "read"


def _run_folder(path: str) -> object:
    return json.loads(read_status(str(Path(path).parent)).as_json(), parse_constant=_no_json)


def _no_json(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def _lines(path: str) -> None:
    lines, left_out = read_lines(path)
    assert all(type(line["step"]) is int for line in lines)
    assert all(text.isprintable() for text in left_out)


def _points(path: str) -> None:
    for rows in PointsTable(path).rows():
        assert np.isfinite(rows.landmarks).all()


_TYPES = {"str": "f" * 8, "int": 2}
_FIELDS = {field.name: _TYPES.get(str(field.type), "rgb") for field in dataclasses.fields(landmark_cache.CacheKey)}
_KEY = landmark_cache.CacheKey(**_FIELDS)  # type: ignore[arg-type]
_KEY = dataclasses.replace(_KEY, images=3, num_landmarks=2)
_PART = landmark_cache.Part("part-00000-of-00001.safetensors", 0, 3)


def _part(path: str) -> None:
    if landmark_cache.read_entry(str(Path(path).parent), _KEY, _PART) is None:
        raise UserError("a part", found="damage", expected="a part", fix="make it again")


def _stamp(path: str) -> None:
    folder = str(Path(path).parent)
    (Path(folder) / _PART.name).write_bytes(_part_bytes())
    cache = landmark_cache.open_landmarks(folder, _KEY, "lafs cache-landmarks RUN SET")
    assert cache.read(np.array([2, 0])).shape == (2, 2, 2)


@functools.cache
def _part_bytes() -> bytes:
    folder = tempfile.mkdtemp()
    landmarks = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    landmark_cache.write_part(folder, _KEY, _PART, np.arange(3), landmarks)
    return (Path(folder) / _PART.name).read_bytes()


def _stamp_bytes() -> bytes:
    folder = tempfile.mkdtemp()
    (Path(folder) / _PART.name).write_bytes(_part_bytes())
    entry = landmark_cache.read_entry(folder, _KEY, _PART)
    assert entry is not None
    landmark_cache.write_stamp(folder, _KEY, [entry], {"checkpoint": "a.pt"})
    return (Path(folder) / landmark_cache.STAMP).read_bytes()


def _yaml(path: str) -> None:
    resolve(PretrainConfig, read_yaml(path), path)


def _override(data: bytes) -> str:
    return _outcome(lambda: parse_overrides([data.decode("utf-8", "replace")]))


def _saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def _checkpoints() -> list[bytes]:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    own = {
        "format": 1,
        "kind": "PretrainConfig",
        "step": 3,
        "config": {"a": [1]},
        "faces": "f",
        "model": network.state_dict(),
    }
    own |= {"method": {"teacher": network.state_dict()}, "landmarks": None, "optimizer": optimizer.state_dict()}
    published = {"teacher": {"backbone.cls_token": torch.arange(3.0)}, "lr": np.float64(0.5), "epoch": 4}
    return [_saved(own), _saved(published), _saved(published, legacy=True), _saved([network.weight.T])]


def _weights() -> list[bytes]:
    found = []
    for size in (FViTSize(8, 1, 2, 4, 8), None):
        cnn = "mobilenetv3" if size is None else None
        architecture = Architecture(4, size, 2 if size else None, cnn, 0.05, grid=size is not None)
        network = architecture.build_transformer() if size else torch.nn.Linear(2, 2)
        found.append(encode_weights(NetworkWeights(architecture, PublishedState(network.state_dict()), "a.pt")))
    return [data for data in found if len(data) < 1 << 16]


def _tables(columns: Mapping[str, pa.Array]) -> list[bytes]:
    found = []
    for options in (
        {},
        {"compression": "zstd", "row_group_size": 2},
        {"use_dictionary": False, "data_page_version": "2.0"},
    ):
        buffer = io.BytesIO()
        pq.write_table(pa.table(dict(columns)), buffer, **options)
        found.append(buffer.getvalue())
    return found


def _npy() -> list[bytes]:
    found = []
    for dtype in ("f4", "f8", "i4"):
        buffer = io.BytesIO()
        np.save(buffer, (np.arange(8).reshape(4, 2) * 9).astype(dtype))
        found.append(buffer.getvalue())
    return found


def _configs() -> list[bytes]:
    path = _ROOT / "configs/pretrain"
    tree = load(PretrainConfig, str(path / "debug.yaml"), ["data.path=a.rec"]).model_dump(mode="json")
    return [write_yaml(tree).encode(), (path / "lafs.yaml").read_bytes(), (path / "debug.yaml").read_bytes()]


def _descriptions() -> list[bytes]:
    found = []
    for kind, name in ((PretrainConfig, "pretrain/debug"), (FinetuneConfig, "finetune/debug")):
        config: Any = load(kind, str(_ROOT / f"configs/{name}.yaml"), ["data.path=a.rec"])  # type: ignore[type-var]
        content = {
            "kind": kind.__name__,
            "faces": "f" * 32,
            "config": config.model_dump(mode="json"),
            "landmarks": None,
        }
        found.append(
            json.dumps({**content, "length": {"steps_per_epoch": 5, "total_steps": 12, "save_every": 3}}).encode()
        )
    return found


_REPORT = {"step": 3, "epoch": 0, "loss": 1.5, "lr": 0.1, "images_per_s": 9.0, "wait_share": 0.1, "kl": None}
_LINES = [
    b"".join(json.dumps({**_REPORT, "step": step}).encode() + b"\n" for step in range(1, 5)),
    b'{"step": 1, "pair_accuracy": 0.5, "eval_s": 2}\n{"step": 2, "pair_accuracy": null}\n',
    b'{"step": 1, "kind": "damaged record", "text": "a.rec, record 3"}\n',
]
_REPORT_OF_TRIAL = {"report": 1, "seed": 0, "step": 2, "value": 0.5, "objective": 0.5, "seconds": 1.5}
_TRIAL = json.dumps(
    {"number": 0, "settings": {"optim.lr": 0.1}, "status": "running", "reports": [_REPORT_OF_TRIAL] * 3}
).encode()
_LIST = [b"path,label,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\na/1.jpg,3,1,2,3,4,5,6,7,8,9,10\nb.png,4,1.5,2,3,4,5,6,7,8,9,11\n"]
_LIST += [b"a/1.jpg,anna\nb/2.jpg,ben\nb/3.jpg,\n", "\ufeffPath,Label\nä.jpg,1\n".encode(), b"a.jpg\nb.jpg\n"]
_TABLE = {"path": pa.array(["a.jpg", "b.jpg", "a.jpg", "c.png"]), "label": pa.array([1, 2, None, 3])}
_POINTS = {"key": pa.array([0, 1, 2]), "landmarks": pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32()))}
_XY = {"x": pa.array([1.0, 90.0, 3.0, 50.0]), "y": pa.array([5, 6, 7, 80])}
_IJB = {"image": pa.string(), "template": pa.int64(), "media": pa.int64()}


def _template(path: str) -> None:
    read_template(path, 4)


def _ijb(path: str) -> None:
    ijb.read_list(path, _IJB)


def _set(path: str) -> None:
    faces = open_faces(path)
    rows = faces.read(np.arange(faces.num_images))
    assert all(bool(image) != bool(error) for image, error in zip(rows.images, rows.errors, strict=True))
    assert np.array_equal(
        faces.labels()[[not error for error in rows.errors]], rows.label[[not e for e in rows.errors]]
    )


def _tars() -> list[bytes]:
    members = [("a/1.jpg", b"1" * 700), ("a/1.cls", b"mia"), ("2.png", b"two"), ("2.json", b'{"label": 3, "x": [1]}')]
    long = [("f" * 150 + "/1.jpg", b"1"), ("3.jpg", b"x" * 5000), ("3.cls", b"7")]
    return [tar_bytes(members), tar_bytes(long), tar_bytes(members + long, tarfile.GNU_FORMAT)]


Target = tuple[Callable[[bytes], str], tuple[Mutator, ...], Callable[[], list[bytes]]]


def _own(name: str, *mutators: Mutator) -> Target:
    return targets.TARGETS[name], mutators, lambda: inputs.seeds(name)


_IMAGES = {
    "image": pa.array(
        [{"bytes": b"one" * 9, "path": "a"}, {"bytes": None, "path": "b"}, {"bytes": b"3", "path": None}]
    ),
    "label": pa.array(["x", None, "y"]),
}
_S = structures
TARGETS: dict[str, Target] = {
    **{name: _own(name, containers.records) for name in ("frames", "records", "indexed_set")},
    **{name: _own(name, _S.cells) for name in ("index", "record_and_index")},
    "manifest": _own("manifest", _S.json_tree),
    "pairs": _own("pairs", containers.opcodes),
    "image": _own("image"),
    "yaml": (_reads("a.yaml", _yaml), (_S.yaml_tree,), _configs),
    "override": (
        _override,
        (_S.yaml_tree, _S.cells),
        lambda: [b"optim.lr=1e-3", b"views.crop_area=[0.4, 1]", b"run={name: a}"],
    ),
    "metrics": (_reads("metrics.jsonl", _lines), (_S.json_lines,), lambda: _LINES),
    "warnings": (_reads("warnings.jsonl", _lines), (_S.json_lines,), lambda: _LINES),
    "eval": (_reads("eval.jsonl", _lines), (_S.json_lines,), lambda: _LINES),
    "description": (_reads("config.json", lambda path: _description(path)), (_S.json_tree,), _descriptions),
    "status": (_reads("run/config.json", _run_folder), (_S.json_tree,), _descriptions),
    "trial": (
        _reads("trial/trial.json", lambda path: TrialDir(str(Path(path).parent)).read()),
        (_S.json_tree,),
        lambda: [_TRIAL],
    ),
    "csv": (_reads("a.csv", read_list), (_S.cells,), lambda: _LIST),
    "parquet": (_reads("a.parquet", read_list), (containers.footer,), lambda: _tables(_TABLE)),
    "tar": (_reads("a.tar", _set), (containers.tar_headers,), _tars),
    "images": (_reads("i.parquet", _set), (containers.footer,), lambda: _tables(_IMAGES)),
    "points": (_reads("p.parquet", _points), (containers.footer,), lambda: _tables(_POINTS)),
    "template_npy": (_reads("t.npy", _template), (_S.cells,), _npy),
    "template_csv": (_reads("t.csv", _template), (_S.cells,), lambda: [b"x,y\n1,2\n90,3\n4,80\n5,6\n"]),
    "template_parquet": (
        _reads("t.parquet", lambda path: read_template(path, 4)),
        (containers.footer,),
        lambda: _tables(_XY),
    ),
    "ijb": (_reads("ijb.txt", _ijb), (_S.cells,), lambda: [b"1.jpg 1 2\n2.jpg 1 3\n", b"1.jpg,4,5\n2.jpg,6,7\n"]),
    "cache_part": (_reads(f"c/{_PART.name}", _part), (containers.headed,), lambda: [_part_bytes()]),
    "cache_stamp": (_reads(f"d/{landmark_cache.STAMP}", _stamp), (_S.json_tree,), lambda: [_stamp_bytes()]),
    "checkpoint": (_reads("step.pt", load_checkpoint), (containers.members,), _checkpoints),
    "published": (_reads("a.pth", open_checkpoint), (containers.members,), _checkpoints),
    "weights": (_reads("a.safetensors", read_weights), (containers.headed,), _weights),
}


def _description(path: str) -> None:
    try:
        read_description(str(Path(path).parent))
    except ValueError as error:
        raise UserError("config.json", found=str(error), expected="a run", fix="none") from None
