"""Files on disks and in object stores: open, read ranges with retries, write atomically."""
