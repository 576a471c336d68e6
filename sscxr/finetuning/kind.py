"""What each task of a fine-tuning provides, so that no other module compares tasks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.data.rows import Rows
from sscxr.finetuning.finetune import Split, Task
from sscxr.models.inference import Input

if TYPE_CHECKING:
    from sscxr.finetuning.finetuned import Spec

Figures = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A task.

    Attributes:
        noun, verb: what a card calls its model, and what that does with the labels.
        score: the name of `Task.score`.
        shown: the figures on a card.
        by_source: whether a fine-tuning ends with the figures of each source, too.
        labels: returns a model's labels.
        build: returns the model around an encoder, drawn from torch's global generator; ValueError: sizes that do
            not fit each other.
        split: returns the rows to learn from and to test on, of the named sources or of all; it gives notes for
            the user, a line each, to the last argument.
        task: returns the task of a model on its device, and the training rows.
        begin: sets what a model takes from its training rows before the first step.
        judgeable: returns those rows by which a model of these labels can be judged, and notes.
        predict: returns a model's predictions for rows, as `evaluate` and `compare` take them; of its labels, the
            first list, it keeps those of the second.
        settings: returns the further arguments of `evaluate` and `compare`.
        evaluate: returns the figures of predictions.
        compare: returns the figures of two models' predictions, and those of the first minus those of the second.
    """

    noun: str
    verb: str
    score: str
    shown: Sequence[str]
    labels: Callable[[Config], Sequence[str]]
    build: Callable[[VisionTransformer, "Spec"], nn.Module]
    split: Callable[[Cache, Config, Sequence[str], Callable[[str], None]], Split]
    task: Callable[[Any, Cache, Config, torch.device, Rows], Task]
    judgeable: Callable[[Cache, Rows, Sequence[str]], tuple[Rows, list[str]]]
    predict: Callable[[nn.Module, Input, Cache, Rows, Sequence[str], Sequence[str]], Any]
    settings: Callable[[Config], dict[str, Any]]
    evaluate: Callable[..., Figures]  # predictions, cache, rows, labels
    compare: Callable[..., tuple[list[Figures], Figures]]  # two models' predictions, cache, rows, labels
    begin: Callable[[Any], None] = lambda task: None
    by_source: bool = False
