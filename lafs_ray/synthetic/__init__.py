"""Synthetic faces, rendered with numpy and OpenCV alone.

`identity` and `capture` sample the parameters of an image; `canvas`, `features` and `head` paint the frontal head;
`renderer` rotates, lights and captures it. `datasets` writes training sets and pair files.
"""
