"""The Python interface, for scripts and notebooks: `import lafs_ray` exports it."""
