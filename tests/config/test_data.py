"""One set or several: what a configuration may say."""

from __future__ import annotations

from typing import Any

import pytest

from lafs_ray.config.finetune import FinetuneConfig
from lafs_ray.config.landmarks import LandmarkConfig
from lafs_ray.config.loader import Section, apply_overrides, load, resolve
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import ConfigError

PRESET = "configs/pretrain/debug.yaml"
MIX = "data.mix=[{path: /a, share: 0.7}, {path: /b, share: 1, color_order: bgr}]"


def test_mix__on_the_command_line_replaces_the_path_of_the_file_and_back() -> None:
    config = load(PretrainConfig, PRESET, [MIX, "data.mix.0.share=2", "data.color_order=rgb"])
    assert config.data.path is None
    assert [(one.path, one.share, one.color_order) for one in config.data.sets] == [("/a", 2, "rgb"), ("/b", 1, "bgr")]
    stored = config.model_dump(mode="json")
    assert resolve(PretrainConfig, stored, "again") == config
    again = resolve(PretrainConfig, apply_overrides(stored, {"data.path": "/c"}), "again")
    assert [(one.path, one.share) for one in again.data.sets] == [("/c", 1)]


def test_overrides__of_nested_settings_replace_the_alternative_too() -> None:
    """As a sweep's command line does, whose settings lie in a section."""
    tree = {"settings": {"data": {"path": "a", "chunk_records": 1}}}
    assert apply_overrides(tree, {"settings.data.mix": [1]}) == {"settings": {"data": {"chunk_records": 1, "mix": [1]}}}
    assert tree["settings"]["data"]["path"] == "a"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.path=null"], "data: path or mix is required"),
        (["data.path=/c", MIX], "data: path is /c, and mix is given as well; leave out one of the two"),
        (["data.mix=[{path: /a, share: 0}]"], r"data\.mix\.0\.share: 0 - input should be greater than 0"),
        (["data.mix=[{path: /a, share: -1}]"], r"data\.mix\.0\.share: -1"),
        (["data.mix=[{path: /a, share: true}]"], r"data\.mix\.0\.share: True"),
        (["data.mix=[{path: /a, shar: 1}]"], r"data\.mix\.0\.shar: unknown key; did you mean 'share'\?"),
        (["data.mix=[]"], r"data\.mix: \[\]"),
        (["data.mix=[{path: /a, share: 1}, {path: /a, share: 2}]"], "mix: /a is named 2 times"),
        (
            ["data.mix=[{path: /a, share: 1}, {path: /b, share: 1e-5}]"],
            r"mix\.1\.share: 1e-05 of 1\.00001 is less than 1",
        ),
        ([MIX, "data.mix.0.landmarks=/c"], r"data\.mix\.0\.landmarks: /c, but landmarks\.source=per_view uses none"),
        ([MIX, "landmarks.source=cached", "landmarks.weights=/w", "landmarks.cache=/c"], "each set has its own"),
        ([MIX, "landmarks.source=cached", "landmarks.weights=null"], r"data\.mix\.0\.landmarks: required"),
    ],
)
def test_mix__that_is_impossible_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(PretrainConfig, PRESET, settings)


@pytest.mark.parametrize(
    ("kind", "tree", "message"),
    [
        (FinetuneConfig, {"data": {"mix": [{"path": "a", "share": 1, "landmarks": "c"}]}}, "uses no cached landmarks"),
        (LandmarkConfig, {"data": {"path": "a"}}, r"landmarks\.cache: required"),
        (LandmarkConfig, {"data": {"mix": [{"path": "a", "share": 1}]}}, r"data\.mix\.0\.landmarks: required"),
    ],
)
def test_landmarks_of_sets__go_with_the_kind_of_run(kind: type[Section], tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(kind, {"run": {"name": "x"}, **tree}, "test")
