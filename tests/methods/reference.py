"""Settings of the released code."""

from __future__ import annotations

from typing import Any

REFERENCE: dict[str, Any] = {
    "student_temp": 0.1,
    "center_momentum": 0.9,
    "freeze_last_layer_epochs": 1,
    "teacher_dropout": True,
    "centering": "mean",
    "koleo": 0.0,
}
