"""From a hospital's files to the site cache that training reads."""
