"""What a setting may be, beyond its type; each answer repeats the value.

A run's settings reach a hospital's images, so no value is allowed that learns nothing and reads: too few images or
patches in a step, rates and bounds that turn AdamW into something else (docs/privacy.md has the measurements).
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from sscxr.config.schema import RECIPE_SECTIONS, Config

# Runs' and sites' names become file names and table cells.
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_TOTAL_WEIGHT = 2**25 - 1  # images in one round's average: what the server's integer sum holds

# What a step at a site mixes at least, ours: the smallest at which what an inversion recovers is as close to other
# images as to those that were trained on (tests/client/test_inversion.py).
MIXED_IMAGES = 8
GRID = 4  # patches a side

_TINY = 1e-12  # stands for "above 0"
# Lowest and highest value of every number, both allowed.
NUMBERS: dict[str, tuple[float, float]] = {
    "run.seed": (0, 2**31 - 1),
    "run.threads": (1, 1024),
    "data.cache_size": (16, 4096),
    "data.test_share": (0, 0.5),
    "data.mean": (0, 1),
    "data.std": (0.01, 10),
    "encoder.img_size": (8, 4096),
    "encoder.patch_size": (1, 512),
    "encoder.in_chans": (1, 1),
    "encoder.depth": (1, 256),
    "encoder.drop_path": (0, 0.9),
    "augment.crop_scale": (0.05, 1),
    "augment.crop_ratio": (0.1, 10),
    "augment.flip": (0, 1),
    "augment.brightness": (0, 1),
    "augment.contrast": (0, 1),
    "augment.blur": (0, 1),
    "pretrain.batch_size": (MIXED_IMAGES, 2**16),
    "pretrain.accumulate": (1, 2**16),
    "pretrain.views": (1, 16),
    "pretrain.lr": (1e-7, 0.5),
    "pretrain.min_lr": (0, 0.5),
    "pretrain.warmup": (0, 0.1),
    "pretrain.weight_decay": (0, 1),
    "pretrain.weight_decay_end": (0, 1),
    "pretrain.clip": (0.01, 1e4),
    "finetune.img_size": (0, 4096),
    "finetune.epochs": (1, 10**5),
    "finetune.min_steps": (0, 10**7),
    "finetune.patience": (0, 10**5),
    "finetune.val_share": (0, 0.5),
    "finetune.batch_size": (1, 2**16),
    "finetune.lr": (1e-7, 0.5),
    "finetune.min_lr": (0, 0.5),
    "finetune.warmup": (0, 0.5),
    "finetune.weight_decay": (0, 1),
    "finetune.layer_decay": (0.1, 1),
    "finetune.drop_path": (0, 0.9),
    "finetune.clip": (0.01, 1e4),
    "finetune.rotate": (0, 45),
    "finetune.shift": (0, 0.5),
    "finetune.scale": (0.1, 10),
    "finetune.flip": (0, 1),
    "finetune.brightness": (0, 1),
    "finetune.contrast": (0, 1),
    "classify.per_class": (0, 10**7),
    "classify.smoothing": (0, 0.5),
    "classify.specificity": (0.01, 0.999),
    "segment.feature_size": (4, 256),
    "gmml.drop_budget": (0.05, 0.95),
    "gmml.alien_budget": (0.05, 0.95),
    "gmml.max_block": (0.05, 1),
    "gmml.align": (1, 512),
    "gmml.blocks": (1, 256),
    "gmml.head_layers": (0, 64),
    "federation.rounds": (1, 99_999),  # a checkpoint's name has five digits
    "federation.local_epochs": (1e-3, 10**5),
    "federation.quorum": (_TINY, 1),
    "federation.deadline": (_TINY, 30 * 86400),
    "federation.start_timeout": (0, 30 * 86400),
    "federation.retries": (0, 1000),
    "federation.max_images": (1, MAX_TOTAL_WEIGHT),
    "federation.max_update_norm": (_TINY, 1e9),
    "federation.weight_cap": (0, 1e6),
    "federation.clip_updates": (0, 1e6),
    "federation.keep_checkpoints": (1, 10**6),
    "federation.evaluate_every": (0, 10**6),
    "federation.server.lr": (_TINY, 100),
    "federation.server.momentum": (0, 0.999),
    "privacy.min_cell": (1, 10**6),
    "probe.neighbours": (1, 10**5),
    "probe.resamples": (1, 10**6),
    "probe.min_cases": (1, 10**6),
    "probe.batch_size": (1, 2**16),
    "sim.alpha": (1e-3, 1e6),
    "sim.phantoms": (1, 10**6),
}
# Of AdamW's two: with less memory than this it is not AdamW, and a step shows its gradient.
BETAS = ((0.5, 0.99), (0.9, 0.9999))
CHOICES: dict[str, tuple[str, ...]] = {
    "run.stage": tuple(RECIPE_SECTIONS),
    "run.compile": ("auto", "true", "false"),
    "pretrain.objective": ("gmml",),
    "pretrain.amp": ("auto", "bf16", "fp32"),
    "finetune.amp": ("auto", "bf16", "fp32"),
    "classify.pool": ("mean", "cls"),
    "gmml.kinds": ("noise", "zeros", "alien"),
    "federation.uplink": ("fp32", "fp16", "int8"),
    # Not int8: weights are sent whole every time, and no later message makes up for a rounding error.
    "federation.downlink": ("fp32", "fp16"),
    "federation.server.name": ("fedavg", "nesterov"),
    "sim.partition": ("natural", "iid", "dirichlet", "quantity", "natural-dirichlet", "file"),
    "sim.by": ("source", "hospital", "age", "sex", "view"),
    "sim.uncertain": ("ignore", "zeros", "ones"),
}
_PAIRS = (
    "augment.crop_scale",
    "augment.crop_ratio",
    "finetune.scale",
    "gmml.drop_budget",
    "gmml.alien_budget",
)


def problem(config: Config) -> str:
    """The first setting that cannot be used, in one line; empty where all can."""
    return next(_problems(config), "")


def _problems(config: Config) -> Iterator[str]:
    for key, (low, high) in NUMBERS.items():
        value = _get(config, key)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not (math.isfinite(number) and low <= number <= high):
                above = "above 0" if low == _TINY else f"at least {low:g}"
                yield f"{key}={value}: {above}, at most {high:.12g}"
    for key, known in CHOICES.items():
        value = _get(config, key)
        for name in value if isinstance(value, list) else [value]:
            if name not in known:
                yield f"{key}={name!r} is none of {', '.join(known)}"
    for key in _PAIRS:
        value = _get(config, key)
        if len(value) != 2 or value[0] > value[1]:
            yield f"{key}={value}: give two numbers, the lower first"
    if (config.sim.partition == "file") != (config.sim.file is not None):
        yield "sim.partition=file and sim.file go together: --partition FILE.csv sets both"
    yield from _names(config)
    yield from _shapes(config)
    yield from _rounds(config)


def _names(config: Config) -> Iterator[str]:
    sites = config.federation.sites
    for key, name in [("run.name", config.run.name), *(("federation.sites", site) for site in sites)]:
        if not PLAIN_NAME.fullmatch(name):
            yield f"{key} has {name[:80]!r}: use 1 to 64 letters, digits, dots, dashes or underscores"
    if len(set(sites)) != len(sites):
        yield f"federation.sites={sites}: a site is named twice"


def _shapes(config: Config) -> Iterator[str]:
    encoder, gmml = config.encoder, config.gmml
    if encoder.img_size % encoder.patch_size:
        yield f"encoder.img_size={encoder.img_size} is not a multiple of encoder.patch_size={encoder.patch_size}"
    for key, size in (("encoder", encoder.img_size), ("finetune", config.finetune.img_size)):
        if size and size // encoder.patch_size < GRID:
            yield (
                f"{key}.img_size={size} has fewer than {GRID} x {GRID} patches of "
                f"encoder.patch_size={encoder.patch_size}: an update could show them; lower encoder.patch_size"
            )
    if encoder.img_size % gmml.align:
        yield f"gmml.align={gmml.align} does not divide encoder.img_size={encoder.img_size}"
    if gmml.max_block * encoder.img_size <= gmml.align:
        yield (
            f"gmml.max_block={gmml.max_block} of {encoder.img_size} px is no longer than gmml.align={gmml.align} px"
        )
    if not gmml.blocks:
        yield "gmml.blocks is empty: name the encoder blocks whose outputs are averaged"
    if not gmml.kinds:
        yield "gmml.kinds is empty: name at least one kind of corruption"
    for section in ("pretrain", "finetune"):
        yield from _steps(section, _get(config, section))
    if config.finetune.img_size % encoder.patch_size:
        yield (
            f"finetune.img_size={config.finetune.img_size} is not a multiple of "
            f"encoder.patch_size={encoder.patch_size}"
        )


def _steps(section: str, settings: Any) -> Iterator[str]:
    """What AdamW is given."""
    betas = settings.betas
    if len(betas) != 2:
        yield f"{section}.betas={betas} wants two numbers"
    elif not all(low <= beta <= high for beta, (low, high) in zip(betas, BETAS, strict=True)):
        (least, most), (slowest, longest) = BETAS
        yield (
            f"{section}.betas={betas}: the first at least {least}, at most {most}; the second at least {slowest}, "
            f"at most {longest}"
        )
    if settings.min_lr > settings.lr:
        yield f"{section}.min_lr={settings.min_lr} is above {section}.lr={settings.lr}; lower it"


def _rounds(config: Config) -> Iterator[str]:
    federation = config.federation
    if federation.server.name == "nesterov" and not federation.server.momentum:
        yield "federation.server.momentum=0 makes nesterov plain fedavg; give one above 0, such as 0.5"
    if len(federation.sites) * federation.max_images > MAX_TOTAL_WEIGHT:
        yield (
            f"{len(federation.sites)} sites of up to federation.max_images={federation.max_images} are more than "
            f"{MAX_TOTAL_WEIGHT} images, which is all that the sum can hold; lower federation.max_images"
        )


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
