"""Checks of this machine: versions, the recipe's fingerprint, device, memory, threads and disk."""

import errno
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from client import sent
from client.doctor.checks import Check, failed, judged, ok, warning
from client.policy import REGISTERED, forbidden
from client.settings import SiteError, SiteSettings
from sscxr.config import Config, ConfigError
from sscxr.federation.join import Join, installed

if TYPE_CHECKING:
    import torch

GB = 1e9  # bytes, as in the join file
_SPARE = 1.5  # free memory below this multiple of the recipe's need is a warning (ours)
_BESIDE_GPU = 4.0  # GB of main memory that the client takes while it trains on a GPU (ours)
# A generation of state has the head and the moments of head and encoder, about three encoders in fp32; up to
# three generations exist while a new one is written.
_STATE_PAYLOADS = 3 * 3
_DISK_FAILED, _DISK_WARNING = 1.0, 5.0  # GB free, whatever the payload (ours)


def versions(join: Join) -> Iterator[Check]:
    """Compare versions with the coordinator's; sscxr, torch and timm must agree, or replies are refused."""
    here = installed()
    differ = [
        name for name in ("sscxr", "torch", "timm") if _plain(here[name]) != _plain(join.versions[name])
    ]
    flwr = _series(here["flwr"]) != _series(join.versions["flwr"])
    python = _series(here["python"]) != _series(join.versions["python"])
    patch = _plain(here["flwr"]) != _plain(join.versions["flwr"])
    names = [*differ, *(["flwr"] if flwr or patch else []), *(["python"] if python else [])]
    value = ", ".join(f"{name} {here[name]}" for name in (names or here))
    advice = "install the coordinator's: " + ", ".join(f"{name} {join.versions[name]}" for name in names)
    yield judged("versions", value, fails=bool(differ) or flwr, warns=bool(names), advice=advice)


def _plain(version: str) -> str:
    return version.split("+")[0]  # ignore torch's +cpu or +cu126


def _series(version: str) -> list[str]:
    return version.split(".")[:2]


def recipe(join: Join, config: Config) -> Iterator[Check]:
    """Compare this installation's fingerprint of the join file's recipe with the join file's."""
    from sscxr.config import recipe_hash
    from sscxr.federation import wire

    here = json.loads(wire.fingerprint(recipe_hash(config)))
    there = json.loads(join.fingerprint)
    parts = sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
    if parts:
        value = ", ".join(f"{name} {here.get(name)}, the run's {str(there.get(name))[:40]}" for name in parts)
        yield failed(
            "recipe",
            f"another fingerprint: {value}",
            "install the coordinator's versions, or ask for a new join file",
        )
    else:
        yield ok("recipe", f"fingerprint {here['recipe']}")


def name(settings: SiteSettings) -> Iterator[Check]:
    """Check the site's name against the registered one, if a run has reported it."""
    note = Path(settings.state) / REGISTERED
    if not note.is_file():
        return
    registered = note.read_text()
    if registered != settings.name:
        yield failed(
            "name",
            f"site.yaml has {settings.name}, the coordinator registered this key as {registered}",
            "agree on one: change name in site.yaml, or have the key registered again",
        )


def approval(join: Join, settings: SiteSettings) -> Iterator[Check]:
    """Check that the site has approved the join file's recipe."""
    from sscxr.federation import approval as approvals

    try:
        own = approvals.digest(approvals.settings_of(join.recipe))
    except ConfigError as error:
        yield failed("approval", str(error), "ask the coordinator for a new join file")
        return
    if own in (settings.approved or []):
        yield ok("approval", f"recipe {own[:12]} is approved in site.yaml")
    else:
        yield failed(
            "approval",
            f"recipe {own[:12]} is not approved: this site will refuse the run",
            "review and approve it with `sscxr site approve join.yaml`",
        )


def members(recipe: Config, settings: SiteSettings) -> Iterator[Check]:
    """Check that a secure sum lists this site's identity key, and is of enough sites; nothing without one."""
    if not recipe.federation.secure:
        return
    from client import identity, secure

    try:
        secure.check(settings, recipe)
        yield ok("members", f"{settings.name}'s identity key is listed: {identity.fingerprint(settings)}")
    except SiteError as error:
        advice = "send the coordinator identity-key.pub, and ask for a new join file"
        yield failed("members", str(error), advice)


def policy(settings: SiteSettings, config: Config) -> Iterator[Check]:
    """Check that `site.yaml` allows the recipe, and that today's rounds are not used up."""
    reason, most = forbidden(settings, config), settings.limits.rounds_a_day
    value = reason or "site.yaml allows what the recipe asks for"
    advice = "change site.yaml if the hospital agrees; otherwise this site does not take part"
    used = sent.trained_today(sent.read(Path(settings.state))) if most else 0
    if most and not reason:
        value += f"; {used} of limits.rounds_a_day={most} updates left in 24 hours"
        advice = "wait, or raise limits.rounds_a_day"
    yield judged("policy", value, fails=bool(reason), warns=0 < most <= used, advice=advice)


def device(join: Join | None, settings: SiteSettings | None, config: Config) -> Iterator[Check]:
    """Check the device that a run would use, and its free memory against the recipe's need."""
    import torch

    wanted = (settings.device if settings else "") or config.run.device
    on_gpu = torch.cuda.is_available() and wanted != "cpu"
    need = _need(join, config, torch.device("cuda" if on_gpu else "cpu"))
    if wanted.startswith("cuda") and not on_gpu:
        yield failed(
            "device", f"{wanted} is set, but no GPU is usable", "repair the driver, or set device: cpu"
        )
    elif on_gpu:
        yield from _gpu(torch.device("cuda" if wanted == "auto" else wanted).index or 0, need)
    else:
        yield ok("device", f"CPU, {platform.machine()}")
    yield from memory(free_memory() / GB, min(need, _BESIDE_GPU) if on_gpu else need, settings)


def _need(join: Join | None, config: Config, device: "torch.device") -> float:
    """Return the GB that a round takes on this device; for a fine-tuning, the join file's estimate."""
    from sscxr.stages import memory
    from sscxr.training.device import in_bf16

    if join is None or not config.pretrains:
        return join.memory_gb if join else 0.0
    return memory.of_pretraining(config, bf16=in_bf16(config.pretrain.amp, device)) / GB


def _gpu(index: int, need: float) -> Iterator[Check]:
    import torch

    if index >= torch.cuda.device_count():
        yield failed("device", f"no cuda:{index}, {torch.cuda.device_count()} GPUs here", "correct device:")
        return
    free, whole = (size / GB for size in torch.cuda.mem_get_info(index))
    value = (
        f"{torch.cuda.get_device_name(index)}, {free:.1f} of {whole:.1f} GB free, needs about {need:.1f} GB"
    )
    advice = "end what else uses the GPU, or set device: cpu"
    yield judged("device", value, fails=free < need, warns=free < _SPARE * need, advice=advice)


def memory(free: float, need: float, settings: SiteSettings | None) -> Iterator[Check]:
    """Check free and allowed main memory, GB, against the need."""
    limit = settings.memory_gb if settings else 0.0
    if 0 < limit < need:
        value = f"needs about {need:.1f} GB, site.yaml allows {limit:.1f} GB"
        yield failed("memory", value, "raise memory_gb, or do not take part in this federation")
        return
    value = f"{free:.1f} GB free" + (f", needs about {need:.1f} GB" if need else "")
    advice = "end other programs, or use a machine with more memory"
    yield judged("memory", value, fails=free < need, warns=free < _SPARE * need, advice=advice)


def free_memory() -> int:
    """Return the bytes that a new program may take: the machine's, or what the container's limit leaves."""
    kilobytes = {
        line.split(":")[0]: int(line.split()[1]) for line in _text("/proc/meminfo").splitlines() if line
    }
    if kilobytes:
        free = kilobytes.get("MemAvailable", 0) * 1024
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    if limit.isdigit() and used.isdigit():
        pairs = (line.split() for line in _text("/sys/fs/cgroup/memory.stat").splitlines())
        cached = next((int(value) for name, value in pairs if name == "inactive_file"), 0)
        free = min(free, max(0, int(limit) - int(used) + cached))
    return free


def _text(file: str) -> str:
    try:
        return Path(file).read_text().strip()
    except OSError:
        return ""


def threads(config: Config, settings: SiteSettings | None) -> Iterator[Check]:
    """Check the recipe's CPU threads against the site's limit and the cores."""
    asked, cores = config.run.threads, len(os.sched_getaffinity(0))
    limit = settings.threads if settings else 0
    value = f"the recipe runs on {asked}, this machine has {cores} core{'s' * (cores != 1)}"
    if 0 < limit < asked:
        value, advice = f"the recipe runs on {asked}, site.yaml allows {limit}", "raise threads in site.yaml"
    else:
        advice = "training will be slower than elsewhere; a machine with more cores is better"
    yield judged("threads", value, fails=0 < limit < asked, warns=asked > cores, advice=advice)


def disk(name: str, folder: Path, join: Join | None) -> Iterator[Check]:
    """Check the free space of the file system of a folder of state or runs."""
    there = _there(folder)
    if not _writable(there):
        yield failed(name, "not writable by this user", "give the client's user the right to write there")
        return
    free = shutil.disk_usage(there).free / GB
    inodes = os.statvfs(there)
    if inodes.f_files and not inodes.f_favail:
        yield failed(name, "no file can be added: the file system is out of inodes", "delete files there")
        return
    payload = max(join.payload.up_mb, join.payload.down_mb) / 1e3 if join else 0.0
    least = max(_DISK_FAILED, _STATE_PAYLOADS * payload)
    wanted = max(_DISK_WARNING, 2 * _STATE_PAYLOADS * payload)
    advice = f"free some space: at least {least:.1f} GB, better {wanted:.1f} GB"
    yield judged(name, f"{free:.3g} GB free", fails=free < least, warns=free < wanted, advice=advice)


def _there(folder: Path) -> Path:
    """Return the folder, or its nearest existing parent."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return error.errno == errno.ENOSPC  # full, which the check of free space reports


def settings_and_join(settings: SiteSettings | None, join: Join | None) -> Iterator[Check]:
    """Report the two files' main values."""
    if settings and settings.paused:
        yield warning("settings", "this site is paused", "set paused: false in site.yaml to take part")
    elif settings:
        yield ok("settings", f"site {settings.name}")
    if join:
        yield ok("join file", f"federation {join.federation}, issued {join.issued}")
    else:
        yield warning(
            "join file", "none given", "ask the coordinator for one: --join FILE, or join: in site.yaml"
        )


def cache_disk(settings: SiteSettings) -> Iterator[Check]:
    """Warn of little free space at the cache, which `sscxr prepare` adds to, if it is on another file system."""
    state, cache = Path(settings.state), Path(settings.cache)
    if cache.exists() and _there(cache).stat().st_dev != _there(state).stat().st_dev:
        free = shutil.disk_usage(cache).free / GB
        # A file system with no free space at all is read-only by design.
        warns = os.access(cache, os.W_OK) and 0 < free < _DISK_FAILED
        yield judged("cache disk", f"{free:.3g} GB free", fails=False, warns=warns, advice="free some space")
