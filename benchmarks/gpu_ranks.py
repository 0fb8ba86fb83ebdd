"""One of two ranks of `gpu_proof`'s collectives: DDP over gloo on one device, and NCCL with a group of one.

python -m torch.distributed.run --standalone --nproc-per-node=2 -m benchmarks.gpu_ranks cuda
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from benchmarks.fake_step import random_batch
from benchmarks.gpu_stages import training_of
from lafs_ray.training.train_step import train_step


def main(device: str) -> None:
    """Train two steps on other images each, and compare the weights."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    training, config = training_of(device, 2)
    training.network, training.rank = DistributedDataParallel(training.network), rank
    for number in range(2):
        batch = random_batch(config, 2 * number + rank)
        train_step(training, replace(batch, step=number), training.hparams(number) | {"lr": 1e-3})
    mine = torch.cat([each.detach().flatten() for each in training.task.trainable.parameters()])
    low, high = mine.clone(), mine.clone()
    dist.all_reduce(low, dist.ReduceOp.MIN)
    dist.all_reduce(high, dist.ReduceOp.MAX)
    assert torch.equal(low, high), "the ranks' weights differ"
    dist.destroy_process_group()
    if device == "cuda" and rank == 0:
        store = dist.HashStore()
        dist.init_process_group("nccl", store=store, rank=0, world_size=1)
        one = torch.ones(8, device=device)
        dist.all_reduce(one)
        assert one.sum().item() == 8
        dist.destroy_process_group()
    if rank == 0:
        print(f"equal weights of {len(mine):,} numbers on two ranks", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
