"""Draws generated faces with numpy and OpenCV alone: who (`identity`), how (`capture`), picture.

`canvas` knows polygons and soft tones, `features` paints eyes to mouth, `head` the whole frontal
head, and `picture` turns it in space, lights it and photographs it. `lafs_ray.synthetic.datasets`
writes the pictures as training sets and pair files.
"""
