"""An export to a site cache."""
