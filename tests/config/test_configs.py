from pathlib import Path

import pytest
from pydantic import BaseModel

from docs.config_docs import describe
from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import Section, load, resolve, section_at
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import ConfigError
from lafs_ray.training.tasks.pretrain import view_settings
from lafs_ray.tuning.config import SweepConfig

ROOT = Path(__file__).parents[2]
# Those of clusters are Ray's and Kubernetes': tests/cluster/test_manifests.py.
FILES = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.parent.name != "cluster")
KINDS = {"pretrain": PretrainConfig, "finetune": FinetuneConfig, "landmarks": LandmarkConfig, "sweep": SweepConfig}
MINIMAL = {"run": {"name": "x"}, "data": {"path": "a.rec"}, "landmarks": {"weights": "untrained"}}


def pretrain(**changes) -> PretrainConfig:
    tree = {**MINIMAL, **changes}
    return resolve(PretrainConfig, tree, "test")


def finetune(**changes) -> FinetuneConfig:
    return resolve(FinetuneConfig, {"run": {"name": "x"}, "data": {"path": "a.rec"}, **changes}, "")


def test_configs__are_all_found():
    assert len(FILES) >= 14, "a recursive glob that shrinks would check nothing"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_config__loads_and_says_how_it_was_run(path):
    load(KINDS[path.parent.name], str(path))
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("Command:" in line for line in header)
    assert any("Hardware:" in line for line in header)


def sections(kind: type[Section]) -> list[type[Section]]:
    inner = [section_at(kind, [name]) for name in kind.model_fields]
    return [kind, *(s for child in inner if child for s in sections(child))]


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_field__is_documented(kind: type[BaseModel]):
    found = sections(kind)
    assert len(found) >= 7
    for section in found:
        for name, info in section.model_fields.items():
            assert info.description, f"{section.__name__}.{name}"


def test_documentation__is_what_the_code_says():
    assert (ROOT / "docs" / "config.md").read_text() == describe()


def test_presets__differ_where_the_released_code_deviates():
    lafs = load(PretrainConfig, str(ROOT / "configs/pretrain/lafs.yaml"))
    reference = load(PretrainConfig, str(ROOT / "configs/pretrain/reference.yaml"))
    assert (lafs.landmarks.replacement, reference.landmarks.replacement) == (False, True)
    assert (lafs.dino.teacher_dropout, reference.dino.teacher_dropout) == (False, True)
    assert lafs.dino.teacher_temp.start < lafs.dino.teacher_temp.end
    assert reference.dino.teacher_temp.start > reference.dino.teacher_temp.end
    # 82 images on each of two GPUs, as published
    assert reference.micro_batch == 82
    assert reference.head.num_prototypes == 100_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"landmarks": {}}, "landmarks.weights: required"),
        ({"landmarks": {"weights": "untrained", "local_tokens": 197}}, "197 of 196 landmarks .* without replacement"),
        ({"head": {"num_prototypes": 0}}, "head.num_prototypes: 0"),
        ({"compute": {"workers": 3}}, "1024 is not a multiple of 3 workers × 1 micro-batches = 3"),
        ({"landmarks": {"source": "grid", "local_tokens": 35}}, "square number"),
        (
            {"landmarks": {"source": "template"}, "model": {"num_landmarks": 195}},
            "square grid; set 169 or 196, or name",
        ),
        ({"landmarks": {"source": "template", "local_tokens": 197}}, "197 of 196 landmarks .* without replacement"),
        ({"landmarks": {"source": "per_view", "weights": "a", "template": "b.npy"}}, "but landmarks.source=per_view"),
        ({"landmarks": {"source": "grid"}, "model": {"num_landmarks": 100}}, r"\(112 // 8\)² = 196"),
        ({"compute": {"device": "cpu"}, "crops": {"device": "cuda"}}, "crops.device: cuda needs compute.device=cuda"),
        ({"duration": "20 epochs"}, "dino.teacher_temp.warmup_epochs: 30 of a run of 20 epochs"),
        ({"duration": "0.5 run"}, "duration"),
        ({"views": {"crop_area": [0.9, 0.2]}}, "crop_area"),
        ({"run": {"name": "a/b"}}, "run.name"),
    ],
)
def test_impossible_values__are_refused_with_key_and_numbers(changes, message):
    with pytest.raises(ConfigError, match=message):
        pretrain(**changes)


@pytest.mark.parametrize("local_tokens", [36, 197])
def test_local_tokens__without_local_views_any_number_is_valid(local_tokens: int) -> None:
    """A model of fewer landmarks than the default of local tokens needs no setting for views that it does not have."""
    template = {"source": "template", "local_tokens": local_tokens}
    config = pretrain(landmarks=template, model={"num_landmarks": 25}, views={"num_local": 0})
    assert view_settings(config.model, config.views, config.landmarks).num_views == 2


GRID, TEMPLATE = {"source": "grid"}, {"source": "template"}
STRONG = {"strength": 1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": {"path": "a", "subset": {"images_per_identity": 2, "fraction": 0.1}}},
            r"data\.subset: images_per_identity, fraction: both given",
        ),
        ({"data": {"path": "a", "subset": {}}}, "images_per_identity, fraction: neither given"),
        (
            {"data": {"path": "a", "subset": {"images_per_identity": 2, "order": "head"}}},
            "order: head goes with fraction",
        ),
        (
            {"data": {"path": "a", "subset": {"fraction": 0.1, "short_identities": "drop"}}},
            "short_identities: goes with images_per_identity",
        ),
        ({"data": {"path": "a", "subset": {"fraction": 1.5}}}, "data.subset.fraction: 1.5"),
        ({"regularizer": STRONG}, "regularizer.strength: 1, but there is no trained landmark CNN"),
        (
            {"regularizer": STRONG, "start": {"transformer": "a", "landmarks": "untrained"}},
            "regularizer.strength: 1, but there is no trained landmark CNN",
        ),
        (
            {"landmarks": GRID, "regularizer": STRONG, "start": {"transformer": "a"}},
            "landmarks.source=grid has no landmarks; set it to 0",
        ),
        ({"landmarks": GRID, "start": {"landmarks": "runs/x"}}, "start.landmarks: runs/x, but landmarks.source=grid"),
        ({"landmarks": GRID, "model": {"num_landmarks": 100}}, r"\(112 // 8\)² = 196"),
        ({"landmarks": GRID, "freeze": {"landmarks": "1 run"}}, "freeze.landmarks: 1 run, but landmarks.source=grid"),
        ({"landmarks": TEMPLATE, "start": {"landmarks": "runs/x"}}, "runs/x, but landmarks.source=template"),
        ({"landmarks": TEMPLATE, "freeze": {"landmarks": "1 run"}}, "1 run, but landmarks.source=template"),
        (
            {"landmarks": TEMPLATE, "regularizer": STRONG, "start": {"transformer": "a"}},
            "no landmark CNN to regularize",
        ),
        ({"landmarks": TEMPLATE, "model": {"num_landmarks": 50}}, "square grid; set 49 or 64"),
        ({"landmarks": {"template": "b.npy"}}, "b.npy, but landmarks.source=cnn"),
        (
            {"mixup": {"probability": 0.1}, "batch_size": 6, "compute": {"workers": 2}},
            "a micro-batch has 3: batch_size 6 over 2 workers × 1 micro-batches",
        ),
        ({"regularizer": {"table": [["0.5 run", 1], ["0.2 run", 2]]}}, "table: 0.2 run comes after 0.5 run"),
        ({"regularizer": {"table": [["0.5 run", -1]]}}, "table: a weight is negative"),
        ({"optim": {"layer_decay": 1.1}}, "optim.layer_decay: 1.1"),
        ({"augmentation": {"rand_augment": 10}}, "augmentation.rand_augment: 10"),
    ],
)
def test_finetuning__impossible_values_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        finetune(**changes)


def test_finetuning__settings_survive_being_written():
    config = finetune(
        start={"transformer": "runs/lafs"},
        regularizer={"strength": 2, "table": [["8 epochs", 1000], ["0.5 run", 0.11]]},
        data={"path": "a.rec", "subset": {"images_per_identity": 4, "seed": 3}},
    )
    assert resolve(FinetuneConfig, config.model_dump(mode="json"), "") == config


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("compute.cpus_per_worker=100000", "less than or equal to 4096"),
        ("ingest.actors_per_worker=100000", "less than or equal to 4096"),
        ("model.num_landmarks=100000", "less than or equal to 4096"),
        ("head.num_prototypes=1000000000000", "× bottleneck_dim 64 × 5 copies × 4 bytes = 1,280,000 GB"),
        ("head.hidden_dim=1000000", "× 5 copies × 4 bytes = 20,000 GB"),
    ],
)
def test_config__absurd_sizes(setting: str, words: str) -> None:
    """Sizes that no machine has are refused before anything is allocated, with the arithmetic."""
    with pytest.raises(ConfigError) as raised:
        load(PretrainConfig, str(ROOT / "configs/pretrain/debug.yaml"), [setting])
    assert words in raised.value.found
