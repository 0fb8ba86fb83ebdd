"""The command line of `lafs`: help, examples, presets, settings, completion."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lafs_ray.cli.commands import COMMANDS, build_parser, execute
from lafs_ray.cli.lafs import lafs
from lafs_ray.config import presets
from lafs_ray.config.loader import read_yaml
from lafs_ray.data.detection.attempts import FaceRules
from lafs_ray.errors import ConfigError
from tests.data.aligning.test_session import write_photos
from tests.data.detection.photos import mtcnn, mtcnn_folder
from tests.training.faces import ROOT

__all__ = ["mtcnn", "mtcnn_folder"]

SHORT = ["duration=2 steps", "optim.warmup=1 steps", "batch_size=8"]


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments__have_help(name: str) -> None:
    """Every argument of every command has a help text, and every command an example."""
    actions = build_parser(name, f"lafs {name}")._actions
    assert [action.dest for action in actions if not action.help] == []
    assert COMMANDS[name].examples


def test_align__help_has_the_defaults() -> None:
    """The help, which imports nothing, has the limits that apply."""
    text = build_parser("align", "lafs align").format_help()
    assert f"eyes (default {FaceRules.min_eye_px:g})" in text
    assert f"face (default {FaceRules.min_score:g})" in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_examples__run(
    tmp_path: Path, mtcnn: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The examples of the help run as they stand, one after the other, in an empty folder; runs with fewer steps."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", ["0.png", "1.png"])
    for name, command in COMMANDS.items():
        for example in command.examples:
            is_run = name in ("pretrain", "finetune", "train-landmarks") and "--dry-run" not in example
            # Half a minute, which tests/models/checkpoints/test_export.py takes.
            argv = shlex.split(example.replace(",onnx", ""))
            lafs([name, *argv, *(SHORT if is_run else [])])
    assert "state       finished (all 2 steps)" in capsys.readouterr().out


def run_and_list_imports(*arguments: str) -> str:
    """What `lafs` prints with arguments, and a last line with the heavy packages that it imported."""
    program = f"import sys; from lafs_ray.__main__ import main; sys.argv = {['lafs', *arguments]}\ntry: main()\n"
    heavy = "{'torch', 'ray', 'optuna', 'numpy', 'pydantic'}"
    program += f"except SystemExit: pass\nprint(sorted({heavy} & set(sys.modules)))"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_help__is_quick() -> None:
    """Help lists every command, and imports neither torch nor Ray nor pydantic; `lafs config` only the last."""
    printed = run_and_list_imports("--help")
    assert printed.endswith("\n[]\n")
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert run_and_list_imports("config", "optim.lr").endswith("\n['pydantic']\n")


def test_lafs__unknown_command() -> None:
    """A misspelled command is named, with the one that was meant."""
    with pytest.raises(ConfigError, match="lafs pretrian") as caught:
        lafs(["pretrian", "debug"])
    assert caught.value.fix == "did you mean pretrain?"


def test_version__names_what_results_depend_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The version has torch, Ray and the CPU's kernels."""
    lafs(["--version"])
    printed = capsys.readouterr().out
    assert printed.startswith("lafs_ray ")
    assert all(word in printed for word in (" torch ", " ray ", "CPU: ", "kernels for "))


def test_presets__are_the_files_of_configs() -> None:
    """Each YAML under configs/ for a task is a preset of that task, with a summary."""
    for task in presets.TASKS:
        files = sorted(path.stem for path in (ROOT / "configs" / task).glob("*.yaml"))
        assert presets.names(task) == files
        assert len(files) >= 2
        assert all(presets.summary(task, name).endswith(".") for name in files)


def test_config_file__presets_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is a preset, a path is a file; `configs/…` of the checkout works in any folder."""
    monkeypatch.chdir(tmp_path)
    debug = str(ROOT / "configs" / "pretrain" / "debug.yaml")
    assert presets.config_file("pretrain", "debug") == debug
    assert presets.config_file("pretrain", "configs/pretrain/debug.yaml") == debug
    assert presets.config_file("pretrain", "mine/debug.yaml") == "mine/debug.yaml"
    (tmp_path / "debug").mkdir()
    assert presets.config_file("pretrain", "debug") == debug
    (tmp_path / "configs" / "pretrain").mkdir(parents=True)
    mine = tmp_path / "configs" / "pretrain" / "debug.yaml"
    mine.write_text("batch_size: 8")
    assert read_yaml(presets.config_file("pretrain", "configs/pretrain/debug.yaml")) == {"batch_size": 8}


def test_config_file__unknown_name() -> None:
    """A misspelled preset is named, with all that there are."""
    with pytest.raises(ConfigError, match="neither a preset nor a file") as caught:
        presets.config_file("finetune", "few_shots")
    assert caught.value.fix == "did you mean few_shot?"
    assert "part_fvit" in caught.value.expected


def test_config__key_section_and_part(capsys: pytest.CaptureFixture[str]) -> None:
    """A key is explained with default and choices; a section and a part of a name list theirs."""
    execute("config", ["model.size"])
    heading = "model.size  (pretrain, finetune, landmarks: default base; one of base, small, shallow, tiny)"
    assert heading in capsys.readouterr().out
    execute("config", ["head", "--job", "pretrain"])
    listed = [line.split(" ")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert listed == ["head.num_prototypes", "head.hidden_dim", "head.bottleneck_dim"]
    execute("config", ["warmup"])
    assert "dino.teacher_temp.warmup_epochs  (pretrain" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="optim.lrr"):
        execute("config", ["optim.lrr"])


def completed(line: str) -> list[str]:
    """What bash offers for the last word of a command line."""
    words = shlex.split(line) + ([""] if line.endswith(" ") else [])
    program = f"compopt() {{ :; }}; COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _lafs"
    script = subprocess.run([sys.executable, "-m", "lafs_ray", "completion", "bash"], capture_output=True, text=True)
    text = f"{script.stdout}\n{program}; echo ${{COMPREPLY[@]}}"
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lafs pre", ["pretrain"]),
        ("lafs pretrain deb", ["debug"]),
        ("lafs pretrain debug optim.l", ["optim.lr="]),
        ("lafs pack --shard", ["--shards", "--shard-size"]),
        ("lafs config optim.cl", ["optim.clip_grad"]),
    ],
)
def test_completion__bash(line: str, expected: list[str]) -> None:
    """Bash completes commands, presets, keys and options."""
    assert completed(line) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion__is_valid(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The script parses in its shell."""
    execute("completion", [shell])
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
