"""The site cache: its tables and images, written whole, read as of one moment."""
