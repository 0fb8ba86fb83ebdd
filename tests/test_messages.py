"""What reaches a terminal: no secrets, no control characters, from wherever they come."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lafs_ray.config.loader import load
from lafs_ray.config.pretrain import PretrainConfig
from lafs_ray.data.recordio import Header, RecordWriter, pack
from lafs_ray.errors import ConfigError, DataError
from lafs_ray.messages import printable
from tests.training.faces import PRETRAIN, ROOT, write_face_set


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:PW@bucket/a", "s3://…@bucket/a"),
        ("ray://name@head:10001, dead", "ray://…@head:10001, dead"),
        ("https://h/x?X-Amz-Signature=PW&region=us", "https://h/x?X-Amz-Signature=…&region=us"),
        ("gs://b/x?X-Goog-Credential=PW%40p", "gs://b/x?X-Goog-Credential=…"),
        ("https://a.blob/x?sv=2&sig=PW", "https://a.blob/x?sv=2&sig=…"),
        ("s3://b/x?endpoint_override=http%3A%2F%2Fk:PW@h", "s3://b/x?endpoint_override=http%3A%2F%2F…@h"),
        ("AWS_SECRET_ACCESS_KEY=PWPWPWPW/PW", "AWS_SECRET_ACCESS_KEY=…"),
        ('{"api_key": "PWPWPWPW"}', '{"api_key": "…"}'),
        ("Authorization: Bearer PW.PW", "Authorization: Bearer …"),
    ],
)
def test_printable__masks_secrets(text: str, shown: str) -> None:
    """Userinfo, signatures, tokens and keys are left out, wherever they stand."""
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "tokens: uint8, global [n,2,196,192]",
        "model.num_tokens=12345678",
        "class_token: float32[1,1,384]",
        "/data/a@b/train.rec?x=1",
        "s3://b/x?region=us-west-2&scheme=http",
        "token: what is that?",
        "step 3/4\n\tloss 1.0 × ü 名",
    ],
)
def test_printable__keeps_the_rest(text: str) -> None:
    """Words of the field, paths, options and other languages stay as they are."""
    assert printable(text) == text


def test_printable__values_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret variable's value is masked in any sentence; a file's name is none."""
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    assert printable("no user has 0123456789abcdef; see /home/me/key.json") == "no user has …; see /home/me/key.json"


def test_printable__control_characters() -> None:
    """All of C0 but tab and line feed, DEL, C1, overrides of the direction and broken names become escapes."""
    text = "".join(map(chr, [*range(0xA0), 0x202E, 0x2028, 0x2066, 0xDCFF]))
    shown = printable(text)
    assert [ord(c) for c in shown if not c.isprintable()] == [9, 10]
    assert "\\x1b" in shown
    assert shown.endswith("~\\x7f" + "".join(f"\\x{c:02x}" for c in range(0x80, 0xA0)) + r"\u202e\u2028\u2066\udcff")
    shown.encode()


def test_user_error__its_text_is_printable() -> None:
    """Names of files with escapes and line breaks stay in their line."""
    error = DataError("a\n\x1b[2Jb", found="s3://k:PW@b", expected="x", fix="y")
    assert str(error) == "a\\n\\x1b[2Jb\n  found:    s3://…@b\n  expected: x\n  to do:    y"


@pytest.mark.parametrize("key", ["data.path", "run.storage"])
@pytest.mark.parametrize("uri", ["s3://k:PW@b/x", "gs://b/x?X-Goog-Signature=PW", "hdfs://me:PW@h/x"])
def test_config__credentials_in_a_uri_are_refused(key: str, uri: str) -> None:
    """They would be stored in config.json and checkpoints; the message has the key, not the secret."""
    with pytest.raises(ConfigError, match="credentials in a URI") as caught:
        load(PretrainConfig, str(ROOT / PRETRAIN), [f"{key}={uri}"])
    assert key in str(caught.value)
    assert "PW" not in str(caught.value)


def job(*arguments: str | Path) -> bytes:
    """All that a command prints."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.stdout


def test_jobs__names_with_escapes(tmp_path: Path) -> None:
    """Names of files and folders, labels and metrics with escape sequences reach no terminal."""
    evil = "\x1b]0;title\x07\x9b31m\u202e"
    folder = tmp_path / f"set{evil}"
    folder.mkdir()
    write_face_set(folder / "train.rec", 2, 2)
    with RecordWriter(str(folder / "other.rec")) as writer:
        writer.write(1, pack(Header(0, 1.0, 1), evil.encode()))
    run = tmp_path / f"run{evil}"
    run.mkdir()
    (run / "config.json").write_text('{"kind": "\\u001b[31m", "config": {"run": {"name": "\\u001b[31m"}}}')
    (run / "metrics.jsonl").write_text('{"step": "\\u001b[31m"}\n')
    printed = [
        job("jobs/pack.py", "--inspect", folder / "train.rec"),
        job("jobs/pack.py", "--inspect", folder / "other.rec"),
        job("jobs/status.py", run),
        job(
            "jobs/pretrain.py",
            "configs/pretrain/debug.yaml",
            f"data.path={folder}/train.rec",
            "duration=1 steps",
            "--dry-run",
        ),
        job("jobs/pretrain.py", "configs/pretrain/debug.yaml", f"data.path={folder}/none.rec"),
    ]
    for text in printed:
        assert text
        assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f\u202e]", text.decode()), text


def test_sources__print_by_show_alone() -> None:
    """No module or job prints by itself, so all text passes `printable`."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("lafs_ray", "jobs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"(?<![\w.])print\(|sys\.std(out|err)\.write\(", line) and path.name != "messages.py"
    ]
    assert found == []
