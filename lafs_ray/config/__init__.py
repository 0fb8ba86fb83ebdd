"""Every setting, typed and strict: unknown keys and impossible values fail at start.

Defaults are the `lafs` recipe; a YAML file states only differences. `key=value` on the command line and a sweep's
samples go through the same `apply_overrides`.
"""

IMAGE_SIZE = 112
"""Side of every face image that is packed, trained on or embedded, in pixels."""

MIX_PERIOD = 4096
"""Places in which each set of a mix has its share of images; shares are met within 1 / MIX_PERIOD."""
