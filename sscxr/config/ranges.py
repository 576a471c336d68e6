"""Checks of names, and of settings that depend on each other; `schema` has the range of each."""

import re
from collections.abc import Iterator

from sscxr.config import fields
from sscxr.config.schema import MAX_TOTAL_WEIGHT, Config
from sscxr.printable import PLAIN_NAME

FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
GRID = 4  # patches a side, at least: an update of fewer could show them


def problem(config: Config) -> str:
    """Return one line on the first setting that cannot be used; empty if all can."""
    return next(_problems(config), "")


def _problems(config: Config) -> Iterator[str]:
    yield from fields.problems(config)
    if (config.sim.partition == "file") != (config.sim.file is not None):
        yield "sim.partition=file and sim.file go together: --partition FILE.csv sets both"
    yield from _names(config)
    yield from _shapes(config)
    yield from _rounds(config)
    if config.federation.secure:
        yield from _secure(config)


def _names(config: Config) -> Iterator[str]:
    sites = config.federation.sites
    named = [("federation.sites", site) for site in sites]
    named += [("federation.members", site) for site in config.federation.members]
    for key, name in [("run.name", config.run.name), *named]:
        if not PLAIN_NAME.fullmatch(name):
            yield f"{key} has {name[:80]!r}: use 1 to 64 letters, digits, dots, dashes or underscores"
    if len(set(sites)) != len(sites):
        yield f"federation.sites={sites}: a site is named twice"


def _shapes(config: Config) -> Iterator[str]:
    encoder = config.encoder
    if encoder.img_size % encoder.patch_size:
        yield f"encoder.img_size={encoder.img_size} is not a multiple of encoder.patch_size={encoder.patch_size}"
    for key, size in (("encoder", encoder.img_size), ("finetune", config.finetune.img_size)):
        if size and size // encoder.patch_size < GRID:
            yield (
                f"{key}.img_size={size} has fewer than {GRID} x {GRID} patches of "
                f"encoder.patch_size={encoder.patch_size}: an update could show them; lower encoder.patch_size"
            )
    for name, section in (("pretrain", config.pretrain), ("finetune", config.finetune)):
        if section.min_lr > section.lr:
            yield f"{name}.min_lr={section.min_lr} is above {name}.lr={section.lr}; lower it"
    if config.finetune.img_size % encoder.patch_size:
        yield (
            f"finetune.img_size={config.finetune.img_size} is not a multiple of "
            f"encoder.patch_size={encoder.patch_size}"
        )


def _rounds(config: Config) -> Iterator[str]:
    federation = config.federation
    gradients = federation.sends == "gradients"
    if gradients != (federation.server.name == "adamw"):
        yield "federation.sends=gradients and federation.server.name=adamw go together: set both"
    if gradients and not (config.pretrains and federation.share_head):
        yield "federation.sends=gradients is for pretraining with federation.share_head=true: the server steps"
    if gradients and config.pretrain.optimiser != "adamw":
        yield "federation.sends=gradients needs pretrain.optimiser=adamw: the server steps"
    if gradients and (config.moments != "local" or federation.align):
        yield "federation.sends=gradients needs federation.moments=local and federation.align=0: the server steps"
    if federation.server.name == "nesterov" and not federation.server.momentum:
        yield "federation.server.momentum=0 makes nesterov plain fedavg; give one above 0, such as 0.5"
    count = max(len(federation.sites), len(federation.members))
    if count * federation.max_images > MAX_TOTAL_WEIGHT:
        yield (
            f"{count} sites of up to federation.max_images={federation.max_images} are more than "
            f"{MAX_TOTAL_WEIGHT} images, the most that the sum can hold; lower federation.max_images"
        )


def _secure(config: Config) -> Iterator[str]:
    """Yield a line on each setting that needs what a secure sum hides."""
    federation = config.federation
    if federation.rule != "mean":
        yield f"federation.secure=true needs federation.rule=mean: {federation.rule} needs each site's own update"
    if federation.weight_cap:
        yield (
            f"federation.secure=true needs federation.weight_cap=0, not {federation.weight_cap:g}: a site's images "
            "are not known; bound them by federation.max_images"
        )
    if federation.evaluate_every:
        yield (
            f"federation.secure=true needs federation.evaluate_every=0, not {federation.evaluate_every}: held-out "
            "figures are of single sites; the loss in training is known in sum"
        )
    if federation.uplink == "int8":
        yield "federation.secure=true needs federation.uplink=fp16 or fp32: int8 has a scale of each site's own"
    strange = [name for name, key in federation.members.items() if not FINGERPRINT.fullmatch(key)]
    if strange:
        yield (
            f"federation.members: {strange[0][:80]!r} has no fingerprint as `ssh-keygen -lf identity-key.pub` "
            "prints it (SHA256: and 43 letters)"
        )
    if len(set(federation.members.values())) != len(federation.members):
        yield "federation.members: two members have one key"
