from __future__ import annotations

from pathlib import Path

import pytest

from lafs_ray.config.loader import load, parse_overrides
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.errors import ConfigError


@pytest.mark.parametrize("name", ["20241128", "007", "1.10", "1e5", "true", "0x10", "lafs-2"])
def test_run_name__is_the_text_that_is_written(tmp_path: Path, name: str) -> None:
    """A date or another number is a name, digit by digit, in a file and as an override."""
    assert parse_overrides([f"run.name={name}"]) == {"run.name": name}
    (tmp_path / "a.yaml").write_text(f"run: {{name: {name}}}\ndata: {{path: a.rec}}\nlandmarks: {{source: template}}\n")
    assert load(PretrainConfig, str(tmp_path / "a.yaml"), ["batch_size=16"]).run.name == name


@pytest.mark.parametrize("text", ["[1]", "null", "1: 2", "../x"])
def test_run_name__that_is_no_name(text: str) -> None:
    """Lists, nothing and paths stay errors."""
    with pytest.raises(ConfigError):
        load(PretrainConfig, "configs/pretrain/debug.yaml", ["data.path=a.rec", f"run.name={text}"])
