"""Aligning: photos to faces of 112 × 112, as a packed set or as a list of five points each.

Photos are split into parts of up to 512. `photos` finds and aligns the faces of one photo, `parts` writes those of a
part into one Parquet file, atomically, so that an interrupted job continues with the missing parts. Then `lists` writes
their points as a list, or `source` hands the aligned faces to the packer. `session` runs both, `outcome` describes what
became of the photos, `sheet` shows some of them.
"""
