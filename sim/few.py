"""The run's encoder with few labels, beside the untrained one and encoders that `probe.beside` names."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from sscxr import stages
from sscxr.config import Config
from sscxr.data.cache.cache import Cache
from sscxr.evaluation.few import few_labels
from sscxr.evaluation.tasks import Task
from sscxr.models.inference import Input
from sscxr.predict import neighbours
from sscxr.training.device import set_up

THIS, UNTRAINED = "this encoder", "untrained"


def rows(
    cache: Cache, config: Config, shared: Mapping[str, Tensor], tasks: Sequence[Task]
) -> list[dict[str, Any]]:
    """Return a row for each label and encoder: JSON types, for `few.json`; none if `probe.few_labels` is 0.

    Each has `cohort`, `label`, `per_class`, `draws`, `encoder`, `auroc` and `gain` over the untrained encoder, both
    {value, low, high}; the untrained one has no gain.

    Args:
        shared: the run's averaged tensors.
        tasks: what its probes predict.
    """
    settings, data = config.probe, config.data
    if not settings.few_labels or not tasks:
        return []
    start = stages.of(config).parts().shared()
    wants = Input(config.encoder.img_size, data.mean, data.std, settings.batch_size, set_up(config))
    encoders: dict[str, tuple[nn.Module, Input]] = {
        name: (stages.of(config).encoder(tensors).to(wants.device).eval(), wants)
        for name, tensors in ((THIS, shared), (UNTRAINED, start))
    }
    for name in settings.beside:
        embedder = neighbours.open_embedder(name)
        encoders[name] = (embedder.encoder, embedder.input)
    found = few_labels(
        encoders,
        cache,
        tasks,
        reference=UNTRAINED,
        per_class=settings.few_labels,
        resamples=settings.resamples,
        seed=config.run.seed,
    )
    return [
        {
            "cohort": one.cohort,
            "label": one.label,
            "per_class": one.per_class,
            "draws": one.draws,
            "encoder": name,
            "auroc": asdict(area),
            "gain": asdict(one.gain[name]) if name in one.gain else None,
        }
        for one in found
        for name, area in one.auroc.items()
    ]
