"""Text for terminals and logs: secrets are masked, and control characters of files and names are shown as escapes.

Everything that a command prints passes `printable`, by `show` or by the handlers of `lafs_ray.engine.console`.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from types import TracebackType
from typing import TextIO

_HIDDEN = "…"
# The class token of a transformer is no secret.
_SECRET = (
    r"secret|(?<!class_)(?<!cls_)(?<!mask_)token|password|passwd|credential|signature|access_?key|api_?key|private_?key"
)
# user:password@ of a URI, which may be percent-encoded as the value of another one's query.
_USERINFO = re.compile(r"(?i)(:(?://)|%3a%2f%2f)[^\s/@'\"<>]+@")
_QUERY = re.compile(rf"(?i)([?&;](?:[\w.%-]*(?:{_SECRET})[\w.%-]*|sig|sas|auth|key|pwd)=)[^&;\s'\"<>\\]+")
# Singular: tokens are of faces.
_NAME = rf"(?:{_SECRET})(?:_?(?:access_?)?key|_?id)?"
_ASSIGNED = re.compile(rf"(?i)(\b[\w-]*{_NAME}['\"]?\s*[=:]\s*['\"]?)(?![\s/]|\d+\b)[^\s'\",;&<>…]{{8,}}")
_HEADER = re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?\w+\s+)[^\s'\",<>]+")
_SECRET_NAME = re.compile(rf"(?i){_NAME}s?$")
_SHORTEST_SECRET = 8
# C0 without tab and line feed, DEL, C1, line separators, marks and overrides of the direction, halves of surrogates.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def mask_secrets(text: str) -> str:
    """Return text without passwords, tokens and signatures: of URIs, assignments, headers, and of this environment."""
    text = _USERINFO.sub(rf"\1{_HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{_HIDDEN}", text)
    for name, value in os.environ.items():
        # Names of files are no secrets.
        if len(value) >= _SHORTEST_SECRET and _SECRET_NAME.search(name) and not value.startswith(("/", "~", ".")):
            text = text.replace(value, _HIDDEN)
    text = _HEADER.sub(rf"\1{_HIDDEN}", text)
    return _ASSIGNED.sub(rf"\1{_HIDDEN}", text)


def has_secret(uri: str) -> bool:
    """Return whether a URI contains a password, token or signature, or a user's name."""
    return bool(_USERINFO.search(uri) or _QUERY.search(uri))


def printable(text: str) -> str:
    """Return text that changes nothing on a terminal but what it shows; see `mask_secrets`."""
    return _CONTROL.sub(_escape, mask_secrets(text))


class PrintableFormatter(logging.Formatter):
    """Formatter of log records for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the `printable` line of a record."""
        return printable(super().format(record))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def show(text: object, *, file: TextIO | None = None) -> None:
    """Print a line, or several, on the standard output or another one."""
    print(printable(str(text)), file=file or sys.stdout, flush=True)


def show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback; a `sys.excepthook`."""
    show("".join(traceback.format_exception(kind, error, trace)).rstrip(), file=sys.stderr)
