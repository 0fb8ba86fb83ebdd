"""Packing: images in any order into globally shuffled shards, in two sequential passes.

Training needs batches from the whole set; storage is fast with sequential reads. One pass cannot do both: with 40
shards, the records of each shard lie 280 KB apart in a source of 7 KB records. Reading them one by one takes 5.7
million requests for 40 GB: 2 hours at 20 ms on S3 with 16 in parallel, 1.6 hours at 1 ms on NFS; reading the gaps too
means reading the source 40 times. So the
set is sorted by random position (an external merge sort):

1. `sorted_runs`: ranges of the sources are read in order, each record gets its position in the new
   order, and what fits in memory is written as a run sorted by position.
2. `shard_writer`: the next positions of a shard are one contiguous byte range in every run. As many
   as fit in memory are read at a time, one byte range per run, and written in order.

Each byte is read twice and written twice, sequentially: 160 GB for 40 GB, 13 minutes at 200 MB/s in
one process; both passes run on any number of workers. With runs of 512 MB and shards of 1 GB a byte range has 512 MB /
40 = 13 MB; for 200 GB still 2.6 MB, large enough for a request. The position of a record is a pure function of (seed,
number of records), so the bytes of the set do not depend on workers, memory limit or restarts.

`source_factory`, `sources` and `lists` read the input, `images` checks and aligns images, `options` plans, `pack_dir`
and `lock` own the output folder, `session` runs the passes, `integrity` and `inspection` check sets.
"""
