"""A hospital's files on one side, the site cache that training reads on the other."""
