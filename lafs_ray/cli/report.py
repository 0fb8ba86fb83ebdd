"""`lafs report`: metric curves, landmarks and pair accuracy of a pretraining run."""

from __future__ import annotations

from argparse import Namespace

import numpy as np

from lafs_ray.data.eval_sets import open_pairs
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.images import decode_image
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.embed import apply_network
from lafs_ray.evaluation.plots import as_png, landmark_overlay, learning_curves
from lafs_ray.evaluation.protocols import evaluate_pairs, local_embedding
from lafs_ray.messages import show
from lafs_ray.training.checkpoint.inference import load_for_inference
from lafs_ray.training.checkpoint.metrics_log import read_metrics


def write_report(options: Namespace) -> None:
    """Write curves.png, accuracy.txt and, of a network with landmarks, landmarks.png; print the accuracy."""
    files = {name: filesystem.join(options.out, name) for name in ("curves.png", "landmarks.png", "accuracy.txt")}
    for uri in files.values():
        filesystem.require_output(uri, force=options.force, inputs=[options.pairs])
    trained = load_for_inference(options.run)
    network = trained.embedder()
    embeddings = {
        "before training": local_embedding(trained.embedder(trained=False)),
        "after training": local_embedding(network),
    }
    faces = open_faces(options.faces)
    pictures = {}
    if network.landmark_cnn is not None:
        some = faces.read(np.linspace(0, faces.num_images - 1, 18).astype(np.int64))
        images = np.stack([decode_image(data, color_order="rgb") for data in some.images])
        landmarks = apply_network(network.landmark_cnn, images)
        pictures["landmarks.png"] = as_png(landmark_overlay(images, landmarks))
    curves = learning_curves(read_metrics(filesystem.join(options.run, "metrics.jsonl")))
    result = evaluate_pairs(open_pairs(options.pairs), embeddings, raw_pixels=True)
    text = f"{result}\n"
    pictures["curves.png"] = as_png(curves)
    for name, content in {**pictures, "accuracy.txt": text.encode()}.items():
        with filesystem.atomic_write(files[name]) as file:
            file.write(content)
    show(f"{text}{' and '.join(sorted(pictures))} in {options.out}")
