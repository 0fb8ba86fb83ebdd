"""Detection: faces and their five landmarks in photos, by optional backends.

`base` defines what a detector returns, `mtcnn` and `yunet` are the backends and `backends` opens one by name,
`attempts` searches a photo again where nothing was found, and `choose` picks the faces to keep.
"""
