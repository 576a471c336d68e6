"""The site cache: its tables and images, written atomically, read as of one moment."""

FORMAT_VERSION = 1  # stated here for `federation.wire`, which does not need what opens a cache
