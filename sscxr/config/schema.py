"""The settings of a run by name and type; `configs/default.yaml` has their values, each with its unit or reason."""

from dataclasses import dataclass

from omegaconf import MISSING

from sscxr.errors import SscxrError


class ConfigError(SscxrError):
    """A setting that cannot be used: one line that names it and says what to do."""


# What must be the same at every site and at the server for an update to mean the same thing, by stage.
RECIPE_SECTIONS = {
    "pretrain": ("data", "encoder", "augment", "pretrain", "gmml"),
    "classify": ("data", "encoder", "finetune", "classify"),
    "segment": ("data", "encoder", "finetune", "segment"),
}


@dataclass
class RunConfig:
    name: str = MISSING
    stage: str = MISSING
    seed: int = MISSING
    threads: int = MISSING
    compile: str = MISSING
    device: str = MISSING
    deterministic: bool = MISSING


@dataclass
class DataConfig:
    cache_size: int = MISSING
    laterals: bool = MISSING
    test_share: float = MISSING
    mean: float = MISSING
    std: float = MISSING


@dataclass
class EncoderConfig:
    name: str = MISSING
    img_size: int = MISSING
    patch_size: int = MISSING
    in_chans: int = MISSING
    depth: int | None = MISSING
    drop_path: float = MISSING
    start: str | None = MISSING


@dataclass
class AugmentConfig:
    crop_scale: list[float] = MISSING
    crop_ratio: list[float] = MISSING
    flip: float = MISSING
    brightness: float = MISSING
    contrast: float = MISSING
    blur: float = MISSING


@dataclass
class GMMLConfig:
    kinds: list[str] = MISSING
    drop_budget: list[float] = MISSING
    alien_budget: list[float] = MISSING
    max_block: float = MISSING
    align: int = MISSING
    centre_bias: bool = MISSING
    blocks: list[int] = MISSING
    head_layers: int = MISSING
    corrupted_only: bool = MISSING


@dataclass
class PretrainConfig:
    objective: str = MISSING
    batch_size: int = MISSING
    accumulate: int = MISSING
    checkpointing: bool = MISSING
    views: int = MISSING
    lr: float = MISSING
    min_lr: float = MISSING
    warmup: float = MISSING
    betas: list[float] = MISSING
    weight_decay: float = MISSING
    weight_decay_end: float = MISSING
    clip: float = MISSING
    clip_per_tensor: bool = MISSING
    amp: str = MISSING


@dataclass
class FinetuneConfig:
    img_size: int = MISSING
    epochs: int = MISSING
    min_steps: int = MISSING
    patience: int = MISSING
    val_share: float = MISSING
    batch_size: int = MISSING
    frozen: bool = MISSING
    lr: float = MISSING
    min_lr: float = MISSING
    warmup: float = MISSING
    betas: list[float] = MISSING
    weight_decay: float = MISSING
    layer_decay: float = MISSING
    drop_path: float = MISSING
    clip: float = MISSING
    amp: str = MISSING
    rotate: float = MISSING
    shift: float = MISSING
    scale: list[float] = MISSING
    flip: float = MISSING
    brightness: float = MISSING
    contrast: float = MISSING


@dataclass
class ClassifyConfig:
    labels: list[str] = MISSING
    per_class: int = MISSING
    pool: str = MISSING
    balance: bool = MISSING
    smoothing: float = MISSING
    specificity: float = MISSING


@dataclass
class SegmentConfig:
    feature_size: int = MISSING


@dataclass
class ServerOptimiserConfig:
    name: str = MISSING
    lr: float = MISSING
    momentum: float = MISSING


@dataclass
class FederationConfig:
    rounds: int = MISSING
    local_epochs: float = MISSING
    sites: list[str] = MISSING
    quorum: float = MISSING
    deadline: float = MISSING
    start_timeout: float = MISSING
    retries: int = MISSING
    uplink: str = MISSING
    downlink: str = MISSING
    share_head: bool | None = MISSING
    max_images: int = MISSING
    max_update_norm: float = MISSING
    weight_cap: float = MISSING
    clip_updates: float = MISSING
    keep_checkpoints: int = MISSING
    evaluate_every: int = MISSING
    server: ServerOptimiserConfig = MISSING


@dataclass
class PrivacyConfig:
    min_cell: int = MISSING


@dataclass
class ProbeConfig:
    neighbours: int = MISSING
    resamples: int = MISSING
    min_cases: int = MISSING
    batch_size: int = MISSING
    cohorts: dict[str, list[str]] = MISSING


@dataclass
class SimConfig:
    partition: str = MISSING
    by: str = MISSING
    label: str | None = MISSING
    file: str | None = MISSING
    alpha: float = MISSING
    uncertain: str = MISSING
    train_on_test: bool = MISSING
    phantoms: int = MISSING


@dataclass
class Config:
    run: RunConfig = MISSING
    data: DataConfig = MISSING
    encoder: EncoderConfig = MISSING
    augment: AugmentConfig = MISSING
    pretrain: PretrainConfig = MISSING
    gmml: GMMLConfig = MISSING
    finetune: FinetuneConfig = MISSING
    classify: ClassifyConfig = MISSING
    segment: SegmentConfig = MISSING
    federation: FederationConfig = MISSING
    privacy: PrivacyConfig = MISSING
    probe: ProbeConfig = MISSING
    sim: SimConfig = MISSING

    @property
    def pretrains(self) -> bool:
        """Whether the stage learns without labels."""
        return "pretrain" in RECIPE_SECTIONS[self.run.stage]

    @property
    def learning(self) -> PretrainConfig | FinetuneConfig:
        """The section by which the stage trains."""
        return self.pretrain if self.pretrains else self.finetune
