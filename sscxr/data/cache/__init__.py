"""The site cache: its tables and images, written atomically, read as of one moment."""
