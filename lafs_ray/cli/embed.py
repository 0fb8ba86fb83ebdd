"""`lafs embed`: the embeddings of a set in Parquet."""

from __future__ import annotations

import logging
from argparse import Namespace
from functools import partial

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.data.bad_records import parse_max_bad
from lafs_ray.data.eval_sets import color_order_of, open_images
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.embed import apply_network
from lafs_ray.evaluation.embedding_file import Decoding, with_flip, write_embeddings
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.safetensors_file import describe_network
from lafs_ray.training.checkpoint.inference import inference_device, load_for_inference


def embed_faces(options: Namespace) -> None:
    """Write OUT, name damaged faces on stderr, and print the counts."""
    require_persistent_path("OUT", options.out)
    filesystem.require_output(options.out, force=options.force, inputs=(options.faces, options.checkpoint))
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    max_bad = parse_max_bad("--max-bad-records", options.max_bad_records)
    device, source = inference_device(options.device), open_images(options.faces)
    color_order = color_order_of(source, options.color_order)
    weights = load_for_inference(options.checkpoint)
    network = weights.embedder().to(device)
    embed = partial(apply_network, network, device=device, batch_size=options.batch_size)
    metadata = {
        **describe_network(weights),
        "faces": filesystem.absolute(options.faces),
        "faces_color_order": color_order,
        "flip_test": str(options.flip).lower(),
        "resized": str(options.resize).lower(),
        "vector": "float32, not normalized",
    }
    outcome = write_embeddings(
        options.out,
        source,
        with_flip(embed) if options.flip else embed,
        Decoding(color_order, options.resize, max_bad.of(source.num_images)),
        metadata,
    )
    size, width = filesystem.file_size(options.out), metadata["embedding_dim"]
    show(
        f"{options.out}: {outcome.num_rows:,} faces, vectors of {width}, {size:,} bytes; "
        f"{len(outcome.left_out)} left out"
    )
