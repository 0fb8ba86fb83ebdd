"""lafs_ray: landmark-based self-supervised face pretraining (LAFS, CVPR 2024) on Ray."""

__version__ = "0.1.0"
