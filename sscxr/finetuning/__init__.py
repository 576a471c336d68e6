"""Fine-tuning: its tasks and loop, the model's folder and card, and its evaluation on a cache."""
