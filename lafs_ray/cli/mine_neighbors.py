"""`lafs mine-neighbors`: pairs of faces of a set that probably show one person, without labels."""

from __future__ import annotations

import logging
from argparse import Namespace
from functools import partial

from lafs_ray.cli.persistent_path import require_persistent_path
from lafs_ray.data.bad_records import parse_max_bad
from lafs_ray.data.eval_sets import RecordImages, color_order_of
from lafs_ray.data.face_set import open_faces
from lafs_ray.data.io import filesystem
from lafs_ray.data.neighbor_pairs import write_neighbors
from lafs_ray.errors import ConfigError
from lafs_ray.evaluation.embed import apply_network
from lafs_ray.evaluation.embedding_file import Decoding, with_flip
from lafs_ray.evaluation.mined_pairs import NUM_NEIGHBORS, max_faces, mine_set
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.safetensors_file import describe_network
from lafs_ray.training.checkpoint.inference import inference_device, load_for_inference


def mine_job(options: Namespace) -> None:
    """Write OUT, name damaged faces on stderr, and print the counts.

    Raises:
        UserError: the network or the set cannot be read, or no pair was found.
    """
    require_persistent_path("OUT", options.out)
    filesystem.require_output(options.out, force=options.force, inputs=(options.faces, options.checkpoint))
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    if not 1 <= options.min_shared <= NUM_NEIGHBORS:
        raise ConfigError(
            "--min-shared",
            found=str(options.min_shared),
            expected=f"1 to {NUM_NEIGHBORS}, the neighbors of a face",
            fix="choose another --min-shared",
        )
    max_bad = parse_max_bad("--max-bad-records", options.max_bad_records)
    device = inference_device(options.device)
    # As a run opens it: faces are named by their numbers.
    faces = open_faces(filesystem.absolute(options.faces))
    filesystem.require_writable(filesystem.parent(options.out))
    source = RecordImages(options.faces, faces)
    weights = load_for_inference(options.checkpoint)
    if weights.architecture.whitened_dim is None:
        show(f"warning: {options.checkpoint} is not whitened (lafs whiten): perhaps few of its pairs show one person")
    embed = with_flip(partial(apply_network, weights.embedder().to(device), device=device))
    most = max_bad.of(min(source.num_images, max_faces(device)))
    decoding = Decoding(color_order_of(source, options.color_order), max_bad_records=most)
    pairs, compared = mine_set(source, embed, decoding, options.min_shared, device)
    details = {
        **describe_network(weights),
        "min_shared": options.min_shared,
        "faces": filesystem.absolute(options.faces),
    }
    write_neighbors(options.out, pairs, faces.fingerprint, faces.num_images, details)
    count = len(pairs.others) // 2
    of_set = f" of {faces.num_images:,}" if compared < faces.num_images else ""
    show(f"{options.out}: {count:,} pairs of {len(pairs.faces):,} faces, among {compared:,}{of_set}")
