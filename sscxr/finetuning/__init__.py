"""Fine-tuning: its tasks and loop, the model's folder and card, and its evaluation on a cache.

A task is a module of its name here, in `sscxr.stages` and in `sscxr.predict`, and a line in this list.
"""

from sscxr.finetuning import classify, segment

KINDS = {"classify": classify.KIND, "segment": segment.KIND}
