"""Fine-tuning: its tasks and loop, the model as a folder with its card, and its judgement on a cache."""
