"""Embed a folder of aligned faces, or a .rec, into a Parquet file.

python jobs/embed.py runs/lafs faces/train.rec embeddings.parquet --flip
"""

import argparse
import logging
from collections.abc import Sequence
from functools import partial

from lafs_ray.cli.main import require_persistent_path, run
from lafs_ray.data.eval_sets import open_images
from lafs_ray.data.io import filesystem
from lafs_ray.evaluation.embed import apply_network
from lafs_ray.evaluation.embedding_file import Decoding, with_flip, write_embeddings
from lafs_ray.messages import show
from lafs_ray.models.checkpoints.safetensors_file import describe_network
from lafs_ray.training.checkpoint.inference import inference_device, load_for_inference


def main(arguments: Sequence[str]) -> None:
    """Write OUT, name damaged faces on stderr, and print the counts."""
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run directory, a checkpoint, or a weights file")
    parser.add_argument("faces", help="a folder of image files, or .rec files as data.path")
    parser.add_argument("out", help="the Parquet file")
    parser.add_argument("--flip", action="store_true", help="add the mirror image's embedding")
    parser.add_argument("--color-order", choices=["rgb", "bgr"], default="rgb")
    parser.add_argument("--resize", action="store_true", help="scale square images to 112x112")
    parser.add_argument("--max-bad-records", type=int, default=100, metavar="N")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=64, help="faces at once (64)")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    options = parser.parse_args(arguments)
    require_persistent_path("OUT", options.out)
    filesystem.require_output(options.out, force=options.force, inputs=(options.faces, options.checkpoint))
    logging.getLogger("lafs_ray").setLevel(logging.INFO)
    device, source = inference_device(options.device), open_images(options.faces)
    weights = load_for_inference(options.checkpoint)
    network = weights.embedder().to(device)
    embed = partial(apply_network, network, device=device, batch_size=options.batch_size)
    metadata = {
        **describe_network(weights),
        "faces": filesystem.absolute(options.faces),
        "faces_color_order": options.color_order,
        "flip_test": str(options.flip).lower(),
        "resized": str(options.resize).lower(),
        "vector": "float32, not normalized",
    }
    outcome = write_embeddings(
        options.out,
        source,
        with_flip(embed) if options.flip else embed,
        Decoding(options.color_order, options.resize, options.max_bad_records),
        metadata,
    )
    size, width = filesystem.file_size(options.out), metadata["embedding_dim"]
    show(
        f"{options.out}: {outcome.num_rows:,} faces, vectors of {width}, {size:,} bytes; "
        f"{len(outcome.left_out)} left out"
    )


if __name__ == "__main__":
    raise SystemExit(run(main, interrupted="interrupted; nothing was written"))
