"""The commands of `lafs`, by name; each imports what it needs only when it runs."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lafs_ray.cli.arguments import data, networks, runs, training
from lafs_ray.interrupt import exit_at_once


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of `lafs`, and the job of that name in `jobs/`.

    Args:
        summary: what it does, in one line.
        arguments: adds its arguments to a parser.
        execute: `module:function`, called with the parsed arguments.
        examples: arguments that run as they stand, one after the other, with the sets and runs of other examples.
        interrupted: message for Ctrl-C.
    """

    summary: str
    arguments: Callable[[ArgumentParser], None]
    execute: str
    examples: tuple[str, ...]
    interrupted: str = "interrupted; nothing was written"


# From the beginning of the run on, `launch` says what is saved.
_BEFORE = "interrupted before the run began; the same command begins or continues it"

COMMANDS = {
    "make-faces": Command(
        summary="Render synthetic faces: a training set, verification pairs of other identities, contact sheet.",
        arguments=data.make_faces,
        execute="lafs_ray.cli.make_faces:make_faces",
        examples=("faces --identities 20 --images 10 --landmarks 196 --pairs 60 --pair-identities 10",),
        interrupted="interrupted; the same command starts over",
    ),
    "pack": Command(
        summary="Pack faces into globally shuffled shards that stream fast; verify a set; inspect .rec files.",
        arguments=data.pack,
        execute="lafs_ray.cli.pack:pack_job",
        examples=("faces/train.rec packed", "--verify packed", "--inspect faces/train.rec"),
        interrupted="interrupted; the same command continues where it stopped",
    ),
    "pairs": Command(
        summary="Make a verification file (.bin) from LFW's pairs.txt and a folder, or from a labeled set.",
        arguments=data.pairs,
        execute="lafs_ray.cli.pairs:make_pairs",
        examples=("faces/train.rec pairs.bin --pairs 40 --folds 10",),
    ),
    "align": Command(
        summary="Detect the faces of photos and align them to 112 × 112, as a packed set or as a list of points.",
        arguments=data.align,
        execute="lafs_ray.cli.align:align_job",
        examples=("photos aligned", "photos --points points.parquet"),
        interrupted="interrupted; the same command continues where it stopped",
    ),
    "pretrain": Command(
        summary="Pretrain a face transformer on unlabeled faces (LAFS or DINO-face).",
        arguments=training.pretrain,
        execute="lafs_ray.cli.train:pretrain",
        examples=(
            "debug data.path=faces/train.rec",
            "lafs data.path=packed landmarks.weights=untrained batch_size=128 --dry-run",
        ),
        interrupted=_BEFORE,
    ),
    "finetune": Command(
        summary="Train Part fViT on labeled faces: from scratch (stage 1), or from pretrained weights (stage 3).",
        arguments=training.finetune,
        execute="lafs_ray.cli.train:finetune",
        examples=(
            "debug data.path=faces/train.rec start.transformer=runs/debug",
            "full data.path=packed start.transformer=runs/debug model.size=tiny model.landmark_cnn_width=0.25 "
            "batch_size=48 --dry-run",
        ),
        interrupted=_BEFORE,
    ),
    "cache-landmarks": Command(
        summary="Compute the landmarks of every face of a set once, for pretraining with landmarks.source=cached.",
        arguments=data.cache_landmarks,
        execute="lafs_ray.cli.cache_landmarks:cache_job",
        examples=("runs/finetune_debug packed", "--from faces/landmarks-196.parquet faces/train.rec --out landmarks"),
        interrupted="interrupted; the same command continues with the missing parts",
    ),
    "train-landmarks": Command(
        summary="Train a landmark CNN on given landmarks, without identity labels: in the place of stage 1.",
        arguments=training.train_landmarks,
        execute="lafs_ray.cli.train:train_landmarks",
        examples=("cpu data.path=faces/train.rec landmarks.cache=landmarks",),
        interrupted=_BEFORE,
    ),
    "landmark-error": Command(
        summary="Measure a landmark CNN: mean distance from given landmarks, in percent of the eyes' distance.",
        arguments=data.landmark_error,
        execute="lafs_ray.cli.landmark_error:error_job",
        examples=("runs/landmarks", "runs/landmarks faces/train.rec landmarks"),
        interrupted="interrupted",
    ),
    "sweep": Command(
        summary="Tune the hyperparameters of a training run with Ray Tune; the same command continues.",
        arguments=training.sweep,
        execute="lafs_ray.cli.sweep:start_sweep",
        examples=(
            "debug settings.data.path=faces/train.rec settings.start.transformer=runs/debug "
            "'settings.model={size: tiny, landmark_cnn_width: 0.25}' objective.pairs=faces/pairs.bin "
            "confirm.pairs=null --dry-run",
        ),
        interrupted="interrupted; the table shows the results so far, and the same command continues",
    ),
    "evaluate": Command(
        summary="Evaluate a frozen network on pairs, identities, templates and in identification.",
        arguments=networks.evaluate,
        execute="lafs_ray.cli.evaluate:evaluate_command",
        examples=("runs/debug faces/pairs.bin --identities faces/train.rec --out results",),
    ),
    "inputs": Command(
        summary="Which color order and value range a checkpoint expects, by the accuracy that each gives on pairs.",
        arguments=networks.inputs,
        execute="lafs_ray.cli.inputs:print_inputs",
        examples=("runs/debug faces/pairs.bin",),
        interrupted="interrupted",
    ),
    "embed": Command(
        summary="Embed a folder of aligned faces, or a .rec, into a Parquet file.",
        arguments=networks.embed,
        execute="lafs_ray.cli.embed:embed_faces",
        examples=("runs/debug faces/train.rec embeddings.parquet --flip",),
    ),
    "whiten": Command(
        summary="Whiten a network's embeddings on faces without labels; write it with its whitening.",
        arguments=networks.whiten,
        execute="lafs_ray.cli.whiten:whiten_network",
        examples=("runs/debug faces/train.rec whitened.safetensors --components 16",),
    ),
    "mine-neighbors": Command(
        summary="Mine pairs of faces that probably show one person, without labels, for pretraining.",
        arguments=networks.mine_neighbors,
        execute="lafs_ray.cli.mine_neighbors:mine_job",
        examples=("whitened.safetensors faces/train.rec neighbors.safetensors",),
    ),
    "export": Command(
        summary="Export the face embedder of a run, checkpoint or weights file for other programs.",
        arguments=networks.export,
        execute="lafs_ray.cli.export:export_network",
        examples=("runs/debug exported --formats safetensors,timm,onnx", "runs/debug exported --formats huggingface"),
        interrupted="interrupted; the files named above are complete",
    ),
    "convert": Command(
        summary="Convert a checkpoint, published or of a run, to a weights file or to the published layout.",
        arguments=networks.convert,
        execute="lafs_ray.cli.convert:convert_checkpoint",
        examples=("runs/debug teacher.safetensors", "teacher.safetensors published.pth"),
    ),
    "status": Command(
        summary="Status of a run: state, step, loss, speed, time left, checkpoint, warnings; or the trials of a sweep.",
        arguments=runs.status,
        execute="lafs_ray.cli.status:print_status",
        examples=("runs/debug", "runs/debug --json"),
        interrupted="interrupted",
    ),
    "report": Command(
        summary="Report runs, or a sweep, on one HTML page: settings, curves, accuracy, landmarks, attention.",
        arguments=runs.report,
        execute="lafs_ray.cli.report:write_report",
        examples=(
            "runs/debug --pairs faces/pairs.bin --out report.html",
            "runs/debug runs/finetune_debug --out both.html",
        ),
    ),
    "audit": Command(
        summary="Audit a set by its embeddings: leaks into test sets, wrong labels, copies, balance.",
        arguments=runs.audit,
        execute="lafs_ray.cli.audit:audit_command",
        examples=("embeddings.parquet --out audit",),
    ),
    "config": Command(
        summary="List settings with their default and meaning, or the presets.",
        arguments=runs.config,
        execute="lafs_ray.cli.config:print_settings",
        examples=("optim.lr", "landmarks --job pretrain", "--presets"),
        interrupted="interrupted",
    ),
    "completion": Command(
        summary="Print the completion script of a shell.",
        arguments=runs.completion,
        execute="lafs_ray.cli.completion:print_script",
        examples=("bash",),
        interrupted="interrupted",
    ),
}


def build_parser(name: str, program: str) -> ArgumentParser:
    """Return the parser of a command, with its examples."""
    command = COMMANDS[name]
    examples = "\n".join(f"  {program} {one}" for one in command.examples)
    parser = ArgumentParser(
        prog=program,
        description=command.summary,
        epilog=f"examples:\n{examples}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    command.arguments(parser)
    return parser


def execute(name: str, arguments: Sequence[str], program: str | None = None) -> None:
    """Run a command in this process.

    Raises:
        UserError: an error in the arguments or in what they name.
        SystemExit: argparse refused the arguments, or printed the help.
    """
    options: Namespace = build_parser(name, program or f"lafs {name}").parse_intermixed_args(arguments)
    module, _, function = COMMANDS[name].execute.partition(":")
    with exit_at_once(COMMANDS[name].interrupted):
        command = getattr(importlib.import_module(module), function)
    command(options)
