"""What a pretraining run has learnt: curves, landmarks on faces, pair accuracy, in one folder.

python jobs/report.py demo/runs/lafs demo/faces/train.rec demo/faces/pairs.bin demo/report
"""

import argparse
from collections.abc import Sequence

import numpy as np

from lafs_ray.data import storage
from lafs_ray.data.faces import decode_image, open_faces
from lafs_ray.data.sources import open_pairs
from lafs_ray.engine.evaluate import judge_pairs, local_embedding
from lafs_ray.engine.job import run
from lafs_ray.evaluation.embed import apply_network
from lafs_ray.evaluation.figures import as_png, landmark_overlay, learning_curves
from lafs_ray.training.meter import read_metrics
from lafs_ray.training.trained import read_trained


def main(arguments: Sequence[str]) -> None:
    """Write curves.png, landmarks.png and accuracy.txt, and print the last."""
    parser = argparse.ArgumentParser(description=str(__doc__))
    for name in ("run", "faces", "pairs", "out"):
        parser.add_argument(name)
    options = parser.parse_args(arguments)
    trained = read_trained(options.run)
    network = trained.embedder()
    embeddings = {
        "before pretraining": local_embedding(trained.embedder(trained=False)),
        "after pretraining": local_embedding(network),
    }
    faces = open_faces(options.faces)
    some = faces.read(np.linspace(0, faces.num_images - 1, 18).astype(np.int64))
    images = np.stack([decode_image(data, colour_order="rgb") for data in some.images])
    landmarks = apply_network(network.landmark_cnn, images)
    curves = learning_curves(read_metrics(storage.join(options.run, "metrics.jsonl")))
    judged = judge_pairs(open_pairs(options.pairs), embeddings, raw_pixels=True)
    text = f"{judged}\n"
    for name, content in (
        ("curves.png", as_png(curves)),
        ("landmarks.png", as_png(landmark_overlay(images, landmarks))),
        ("accuracy.txt", text.encode()),
    ):
        with storage.atomic_write(storage.join(options.out, name)) as file:
            file.write(content)
    print(f"{text}curves.png and landmarks.png are in {options.out}")


if __name__ == "__main__":
    raise SystemExit(run(main, interrupted="interrupted; nothing was written"))
