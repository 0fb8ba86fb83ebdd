"""No module of a step reads a value of the device, but where named here: a GPU would wait for its host."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import lafs_ray

PACKAGE = Path(lafs_ray.__file__).parent
MODULES = [
    "methods/lafs.py",
    "methods/dino_loss.py",
    "methods/chunked_loss.py",
    "methods/supervised.py",
    "methods/mixup.py",
    "methods/optim.py",
    "models/fvit.py",
    "models/dropout.py",
    "models/kept_rows.py",
    "models/landmark_head.py",
    "models/landmark_cnn.py",
    "models/patch_sampling.py",
    "models/margin.py",
    "training/distributed.py",
    "training/monitoring/metrics.py",
    "training/monitoring/nonfinite_guard.py",
    "training/tasks/pretrain.py",
    "training/train_loop.py",
    "training/train_step.py",
    "transforms/augment_float.py",
    "transforms/device_views.py",
    "transforms/landmark_predictor.py",
    "transforms/packed_faces.py",
    "transforms/views.py",
]
READING_METHODS = {"item", "cpu", "tolist", "numpy", "nonzero", "synchronize"}
READING_FUNCTIONS = {"int", "float", "bool"}
# (module, function): why it may read.
ALLOWED = {
    ("methods/mixup.py", "MixupSchedule.__call__"): "of NumPy",
    ("methods/optim.py", "clip_each_"): "the form for CPUs",
    ("methods/optim.py", "layer_of"): "of a name",
    ("models/dropout.py", "_scaled_mask"): "the form for CPUs",
    ("training/distributed.py", "RequestReducer.all_reduce_request"): "of the step before, whose copy is done",
    ("training/distributed.py", "broadcast_from_first"): "at the start",
    ("training/distributed.py", "share_failure"): "of the host",
    ("training/monitoring/metrics.py", "Meter.report"): "at reports",
    ("training/monitoring/metrics.py", "_mean_over_ranks"): "at reports",
    ("training/monitoring/nonfinite_guard.py", "NonFiniteGuard.find_nonfinite"): "at reports and checkpoints",
    ("training/train_step.py", "step_seed"): "of NumPy",
    ("transforms/landmark_predictor.py", "keep_freed_memory"): "of the C library",
    ("transforms/views.py", "MultiViewTransform.tokens"): "on CPUs",
    ("transforms/views.py", "extract_tokens"): "on CPUs",
    ("transforms/views.py", "extract_orientations"): "on CPUs",
}


def reads(module: str) -> Iterator[tuple[str, str]]:
    """Function and expression of each call that may read a tensor."""

    def visit(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            scope = (*scope, node.name)
        if isinstance(node, ast.Call):
            called = node.func
            is_method = isinstance(called, ast.Attribute) and called.attr in READING_METHODS
            is_function = isinstance(called, ast.Name) and called.id in READING_FUNCTIONS
            if is_method or is_function:
                yield ".".join(scope), ast.unparse(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, scope)

    return visit(ast.parse((PACKAGE / module).read_text()), ())


def test_step__reads_no_tensor() -> None:
    """Every call is one of a function that is named."""
    found = {(module, *read) for module in MODULES for read in reads(module)}
    unnamed = sorted(read for read in found if read[:2] not in ALLOWED)
    assert unnamed == [], unnamed
    assert {read[:2] for read in found} == set(ALLOWED), "a name that is not needed"
