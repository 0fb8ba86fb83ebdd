"""From faces in the order of their source to globally shuffled shards, in two sequential passes.

A batch wants records from everywhere, storage wants to be read in a line. One pass cannot have
both: with 40 shards, each shard's records lie 280 KB apart in a source of 7 KB records. Reading
them singly means 5.7 million requests for 40 GB: 2 hours at 20 ms on S3 with 16 at once, 1.6 hours
at 1 ms on NFS one by one; reading the gaps as well means the source 40 times. So the set is sorted
by random place:

1. *Runs* (`runs`): pieces of the source are read in a line, each record is given its place in the
   new order (`shuffle`), and what fits in memory is written as a run sorted by place.
2. *Shards* (`writing`): the next places of a shard are one contiguous span in every run. As many
   places as fit in memory are read at a time, one span a run, and written in order.

Each byte is read twice and written twice, all in a line: 160 GB for 40 GB, 13 minutes at 200 MB/s
in one process, and both passes divide over workers. With runs of 512 MB and shards of 1 GB a span
is 512 MB / 40 = 13 MB; even for 200 GB it is 2.6 MB, still worth its round trip. The place of a
record is a pure function of (seed, number of records), so bytes depend on no worker, budget or
restart.

`sources` says what can be packed, `images` what is done to an image, `folder` owns the output
folder (lock, resuming, refusals), `options` and `request` are what a user asks, `session` runs the
passes, `describing` writes what stands beside the shards, `verification` and `inspection` look at
sets.
"""
