"""What a federation trains: the stages, and pretraining at one site."""
