"""The settings of a run by name, type and range; `configs/default.yaml` has their values, with unit or reason.

A run's settings act on a hospital's images, so values are refused that would reveal images instead of learning: too
few images or patches in a step, rates and bounds that make AdamW another rule (docs/privacy.md has measurements).

The section of a self-supervised method is stated beside the method, in `sscxr/objectives`.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from sscxr.config.fields import ABOVE_ZERO, betas, choice, number, pair
from sscxr.errors import SscxrError

MAX_TOTAL_WEIGHT = 2**25 - 1  # images in one round's average: the most that the server's integer sum holds
# The least images in a step at a site, ours: the smallest number at which an inversion recovers pictures that are
# as close to other images as to those that were trained on (tests/client/test_inversion.py).
MIXED_IMAGES = 8
PARTITIONS = ("natural", "iid", "dirichlet", "quantity", "natural-dirichlet", "file")


class ConfigError(SscxrError):
    """A setting cannot be used; one line names it and states what to do."""


# Settings of the section `privacy` that belong to the recipe: they decide what an update contains.
RECIPE_PRIVACY = ("noise", "clip", "per_patient")
# Sections that must be the same at every site and at the server, so that updates can be averaged; by stage.
RECIPE_SECTIONS = {
    "pretrain": ("data", "encoder", "augment", "pretrain"),  # and the method's own
    "classify": ("data", "encoder", "finetune", "classify"),
    "segment": ("data", "encoder", "finetune", "segment"),
}


@dataclass
class RunConfig:
    name: str = MISSING
    stage: str = choice(*RECIPE_SECTIONS)
    seed: int = number(0, 2**31 - 1)
    threads: int = number(1, 1024)
    compile: str = choice("auto", "true", "false")
    device: str = MISSING
    deterministic: bool = MISSING


@dataclass
class DataConfig:
    cache_size: int = number(16, 4096)
    laterals: bool = MISSING
    test_share: float = number(0, 0.5)
    mean: float = number(0, 1)
    std: float = number(0.01, 10)


@dataclass
class EncoderConfig:
    name: str = MISSING
    img_size: int = number(8, 4096)
    patch_size: int = number(1, 512)
    in_chans: int = number(1, 1)
    depth: int | None = number(1, 256)
    drop_path: float = number(0, 0.9)
    start: str | None = MISSING


@dataclass
class AugmentConfig:
    crop_scale: list[float] = pair(0.05, 1)
    crop_ratio: list[float] = pair(0.1, 10)
    flip: float = number(0, 1)
    brightness: float = number(0, 1)
    contrast: float = number(0, 1)
    blur: float = number(0, 1)


@dataclass
class PretrainConfig:
    objective: str = MISSING
    batch_size: int = number(MIXED_IMAGES, 2**16)
    accumulate: int = number(1, 2**16)
    checkpointing: bool = MISSING
    views: int = number(1, 16)
    positives: str = choice("image", "patient")
    order: str = choice("shuffled", "sources")
    optimiser: str = choice("adamw", "mt-adamw", "muon")
    lr: float = number(1e-7, 0.5)
    min_lr: float = number(0, 0.5)
    warmup: float = number(0, 0.1)
    betas: list[float] = betas()
    weight_decay: float = number(0, 1)
    weight_decay_end: float = number(0, 1)
    clip: float = number(0.01, 1e4)
    clip_per_tensor: bool = MISSING
    amp: str = choice("auto", "bf16", "fp32")


@dataclass
class FinetuneConfig:
    img_size: int = number(0, 4096)
    epochs: int = number(1, 10**5)
    min_steps: int = number(0, 10**7)
    patience: int = number(0, 10**5)
    val_share: float = number(0, 0.5)
    batch_size: int = number(1, 2**16)
    frozen: bool = MISSING
    lr: float = number(1e-7, 0.5)
    min_lr: float = number(0, 0.5)
    warmup: float = number(0, 0.5)
    betas: list[float] = betas()
    weight_decay: float = number(0, 1)
    layer_decay: float = number(0.1, 1)
    drop_path: float = number(0, 0.9)
    clip: float = number(0.01, 1e4)
    amp: str = choice("auto", "bf16", "fp32")
    rotate: float = number(0, 45)
    shift: float = number(0, 0.5)
    scale: list[float] = pair(0.1, 10)
    flip: float = number(0, 1)
    brightness: float = number(0, 1)
    contrast: float = number(0, 1)


@dataclass
class ClassifyConfig:
    labels: list[str] = MISSING
    per_class: int = number(0, 10**7)
    pool: str = choice("mean", "cls")
    balance: bool = MISSING
    smoothing: float = number(0, 0.5)
    specificity: float = number(0.01, 0.999)


@dataclass
class SegmentConfig:
    feature_size: int = number(4, 256)


@dataclass
class ServerOptimiserConfig:
    name: str = choice("fedavg", "nesterov", "fedadam", "adamw")
    lr: float = number(ABOVE_ZERO, 100)
    momentum: float = number(0, 0.999)


@dataclass
class FederationConfig:
    rounds: int = number(1, 99_999)  # a checkpoint's name has five digits
    local_epochs: float = number(1e-3, 10**5)
    sites: list[str] = MISSING
    quorum: float = number(ABOVE_ZERO, 1)
    deadline: float = number(ABOVE_ZERO, 30 * 86400)
    start_timeout: float = number(0, 30 * 86400)
    retries: int = number(0, 1000)
    uplink: str = choice("fp32", "fp16", "int8")
    # Not int8: weights are sent whole every time, and no later message corrects a rounding error.
    downlink: str = choice("fp32", "fp16")
    share_head: bool | None = MISSING
    sends: str = choice("update", "gradients")
    moments: str | None = choice("local", "first", "second", "second-means", "both")
    align: float = number(0, 1)
    rule: str = choice("mean", "trimmed", "median")
    weights: str = choice("images", "root", "equal")
    max_images: int = number(1, MAX_TOTAL_WEIGHT)
    max_update_norm: float = number(ABOVE_ZERO, 1e9)
    weight_cap: float = number(0, 1e6)
    clip_updates: float = number(0, 1e6)
    keep_checkpoints: int = number(1, 10**6)
    evaluate_every: int = number(0, 10**6)
    secure: bool = MISSING
    threshold: float = number(0.5, 0.999)
    members: dict[str, str] = MISSING
    server: ServerOptimiserConfig = MISSING


@dataclass
class PrivacyConfig:
    min_cell: int = number(1, 10**6)
    noise: float = number(0, 1e4)
    clip: float = number(ABOVE_ZERO, 1e4)
    per_patient: int = number(1, 1000)


@dataclass
class ProbeConfig:
    neighbours: int = number(1, 10**5)
    resamples: int = number(1, 10**6)
    min_cases: int = number(1, 10**6)
    batch_size: int = number(1, 2**16)
    cohorts: dict[str, list[str]] = MISSING
    few_labels: int = number(0, 10**5)
    beside: list[str] = MISSING


@dataclass
class SimConfig:
    partition: str = choice(*PARTITIONS)
    by: str = choice("source", "hospital", "age", "sex", "view")
    label: str | None = MISSING
    file: str | None = MISSING
    alpha: float = number(1e-3, 1e6)
    uncertain: str = choice("ignore", "zeros", "ones")
    train_on_test: bool = MISSING
    phantoms: int = number(1, 10**6)
    test_phantoms: float = number(0, 0.9)


@dataclass
class Config:
    run: RunConfig = MISSING
    data: DataConfig = MISSING
    encoder: EncoderConfig = MISSING
    augment: AugmentConfig = MISSING
    pretrain: PretrainConfig = MISSING
    finetune: FinetuneConfig = MISSING
    classify: ClassifyConfig = MISSING
    segment: SegmentConfig = MISSING
    federation: FederationConfig = MISSING
    privacy: PrivacyConfig = MISSING
    probe: ProbeConfig = MISSING
    sim: SimConfig = MISSING

    @property
    def pretrains(self) -> bool:
        """Return whether the stage learns without labels."""
        return "pretrain" in RECIPE_SECTIONS[self.run.stage]

    @property
    def learning(self) -> PretrainConfig | FinetuneConfig:
        """Return the section with the stage's training settings."""
        return self.pretrain if self.pretrains else self.finetune

    @property
    def optimiser(self) -> str:
        """Return the kind of the stage's optimiser, as `pretrain.optimiser` names them."""
        return self.pretrain.optimiser if self.pretrains else "adamw"

    @property
    def moments(self) -> str:
        """Return which of the optimiser's moments are averaged; by the stage if the settings do not decide it."""
        updates = self.pretrains and self.federation.sends == "update"
        return self.federation.moments or ("both" if updates else "local")

    @property
    def recipe_sections(self) -> tuple[str, ...]:
        """Return the sections that must be the same everywhere; of the methods only the run's own."""
        own = (self.pretrain.objective,) if self.pretrains else ()
        return RECIPE_SECTIONS[self.run.stage] + own

    def section(self, name: str) -> Any:
        """Return a section by its name; None if there is none."""
        return getattr(self, name, None)
