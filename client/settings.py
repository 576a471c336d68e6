"""`site.yaml`: this hospital's name, the places of its files, and what a run may do here."""

import copy
import datetime
import functools
import os
import re
import resource
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import Any

from omegaconf import MISSING

from sscxr.config import Config, ConfigError, yaml_text
from sscxr.config.schema import MIXED_IMAGES, RECIPE_SECTIONS
from sscxr.errors import SscxrError
from sscxr.federation import approval, floors, wire
from sscxr.federation.join import Join, JoinError
from sscxr.files import private_folder, refuse_file, write_atomically

METRICS = ("held_out_loss", "held_out_score", "counts", "grey")
_DEFAULT_METRICS = METRICS[:3]  # a histogram of pixels is reported on purpose or not at all
STAGES = tuple(RECIPE_SECTIONS)
_PATHS = ("cache", "state", "groups", "identity", "key", "ca", "join", "socket")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEY, _CA = "node-key", "ca.crt"


class SiteError(SscxrError):
    """A failure at this site: a key of `wire.FAILURES`, and a line for the local log."""

    def __init__(self, failure: str, line: str) -> None:
        super().__init__(line)
        self.failure = failure


@dataclass
class PrivacySettings:
    """Differential privacy of what this site's training gives away about one patient.

    Attributes:
        epsilon: the most that all runs together may cost; then only training with differential privacy is allowed.
            0: no limit, and other training is allowed too.
        delta: that epsilon is stated for; below one in `patients`.
        patients: about how many patients the site trains on, a number that may be known: it sets how often a
            patient is drawn, and is reported as the number of images. 0: no such training.
        noise: the least noise, where a recipe asks for less.
    """

    epsilon: float = 0.0
    delta: float = 1e-5
    patients: int = 0
    noise: float = 0.0


@dataclass
class Limits:
    """What runs may take of this site, beside what the approved recipes fix; 0: no limit.

    Attributes:
        rounds_a_day: rounds of training in any 24 hours, of all runs together; counted by the site service.
        round_seconds: of training in a round; the run's own deadline where that is less.
    """

    rounds_a_day: int = 0
    round_seconds: float = 0.0


@dataclass
class SiteSettings:
    """The settings of `site.yaml`. Relative paths are relative to its folder; `init` writes each with a comment.

    Attributes:
        groups: a text file of patient groups, one a line, that this site is confined to; empty: all. Virtual
            sites share one cache through it.
        min_mixed: an update mixes at least so many distinct images; `schema.MIXED_IMAGES` where that is more.
        min_sites: a secure sum is of at least so many sites; `floors.MEMBERS` where that is more.
        identity: the key by which other sites know this one; see `client.identity`.
        approved: digests of the recipes that may run here, see `sscxr.federation.approval`; none: nothing may.
        socket: where the site service listens; empty: there is none.
        key, superlink, ca, join: how this site reaches the server; read by `sscxr doctor`.
    """

    name: str = MISSING
    cache: str = MISSING
    state: str = MISSING
    groups: str = ""
    device: str = ""
    threads: int = 0
    memory_gb: float = 0.0
    stages: list[str] = field(default_factory=lambda: ["pretrain"])
    metrics: list[str] = field(default_factory=lambda: list(_DEFAULT_METRICS))
    min_cell: int = 10
    min_images: int = 0
    min_mixed: int = 20
    min_sites: int = 3
    approved: list[str] | None = field(default_factory=list)
    paused: bool = False
    limits: Limits = field(default_factory=Limits)
    identity: str = ""
    socket: str = ""
    key: str = ""
    superlink: str = ""
    ca: str = ""
    join: str = ""
    privacy: PrivacySettings = field(default_factory=PrivacySettings)


def read_settings(file: Path) -> SiteSettings:
    """Read a `site.yaml`.

    Raises:
        SiteError: the file is unreadable, has an unknown key or an invalid value, or lacks a key.
    """
    settings = copy.deepcopy(_parsed(file, _content(file)))
    for name in _PATHS:
        value = getattr(settings, name)
        if value:
            setattr(settings, name, str(file.parent / value))
    return settings


def _content(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise SiteError("settings", f"{file}: a folder; name the file in it, {file / 'site.yaml'}") from None
    except OSError as error:
        raise SiteError("settings", f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SiteError("settings", f"{file}: not readable as YAML ({type(error).__name__})") from None


@functools.lru_cache(maxsize=512)  # a simulation reads its sites at every message
def _parsed(file: Path, text: str) -> SiteSettings:
    try:
        settings = yaml_text.load(SiteSettings, text, foreign=False)
        wire.check_name(settings.name, "site")
    except (yaml_text.YamlError, wire.WireError) as error:
        raise SiteError("settings", f"{file}: {str(error).splitlines()[0]}") from None
    problem = _problem(settings)
    if problem:
        raise SiteError("settings", f"{file}: {problem}")
    return settings


def _problem(settings: SiteSettings) -> str:
    for key, known in (("stages", STAGES), ("metrics", METRICS)):
        strange = [name for name in getattr(settings, key) if name not in known]
        if strange:
            return f"{key}: {strange[0]!r} is not known; choose from: {', '.join(known)}"
    strange = [text for text in settings.approved or [] if not _DIGEST.fullmatch(text)]
    if strange:
        return f"approved: {strange[0][:80]!r} is not the 64 hex digits that `sscxr site approve` writes"
    lowest = {"min_mixed": 0, "min_sites": 0, "threads": 0, "memory_gb": 0, "min_cell": 1, "min_images": 0}
    for key, least in lowest.items():
        if not getattr(settings, key) >= least:
            return f"{key}={getattr(settings, key)}: at least {least}"
    for key in ("rounds_a_day", "round_seconds"):
        if not getattr(settings.limits, key) >= 0:
            return f"limits.{key}={getattr(settings.limits, key)}: at least 0"
    return _privacy_problem(settings.privacy)


def _privacy_problem(privacy: PrivacySettings) -> str:
    for key in ("epsilon", "patients", "noise"):
        if not 0 <= getattr(privacy, key) <= 1e9:
            return f"privacy.{key}={getattr(privacy, key)}: at least 0, and finite"
    if not 0 < privacy.delta * max(privacy.patients, 1) < 1:
        return (
            f"privacy.delta={privacy.delta:g}: above 0, and below one in privacy.patients={privacy.patients}, or "
            "it would allow one patient to be given away"
        )
    if privacy.epsilon and not privacy.patients:
        return "privacy.epsilon is set without privacy.patients: state about how many patients this site trains on"
    return ""


# In the site's state: the name that the coordinator registered; cannot be a run's folder.
REGISTERED = "_registered"


def check_registered(settings: SiteSettings, name: str) -> None:
    """Check the name that the coordinator registered, and record a different one for the doctor.

    Raises:
        SiteError: it registered the site's key under another name.
    """
    note = Path(settings.state) / REGISTERED
    if name == settings.name:
        note.unlink(missing_ok=True)
        return
    wire.check_name(name, "the registered name")
    private_folder(note.parent)
    write_atomically(note, name.encode())
    raise SiteError(
        "name",
        f"site.yaml has name: {settings.name}, the coordinator registered this site's key as {name}: agree on "
        "one, and change site.yaml or have the key registered again",
    )


def check_allowed(settings: SiteSettings, config: Config) -> None:
    """Check that this hospital allows what the run asks for.

    Raises:
        SiteError: "paused", or "not allowed" with the setting that forbids it.
    """
    if settings.paused:
        raise SiteError("paused", "this site is paused: paused=true in site.yaml")
    if config.run.stage not in settings.stages:
        raise SiteError(
            "not allowed", f"the run asks for {config.run.stage}, site.yaml allows stages={settings.stages}"
        )
    if settings.privacy.epsilon and not config.privacy.noise:
        raise SiteError(
            "not allowed",
            f"the run trains without differential privacy (privacy.noise=0), site.yaml has privacy.epsilon="
            f"{settings.privacy.epsilon:g}",
        )
    if 0 < settings.threads < config.run.threads:
        raise SiteError(
            "not allowed",
            f"the run asks for run.threads={config.run.threads}, site.yaml allows threads={settings.threads}",
        )


def check_approved(settings: SiteSettings, config: Config) -> None:
    """Check that this hospital has approved the recipe.

    Raises:
        SiteError: "not approved", with the settings that differ from the recipe of the site's join file.
    """
    if approval.digest(config) in (settings.approved or []):
        return
    known = None
    try:
        if settings.join:
            known = approval.settings_of(Join.read(settings.join).recipe)
    except (JoinError, ConfigError):
        pass  # the error below then names fewer settings
    try:
        approval.check(config, settings.approved or [], known)
    except approval.NotApprovedError as error:
        raise SiteError("not approved", str(error)) from None


def check_mixed(settings: SiteSettings, config: Config, images: int, round_number: int) -> None:
    """Check that each update of the run mixes enough of a site's images.

    Raises:
        SiteError: "few images" or "not allowed".
    """
    problem = floors.problem(config)
    if problem:
        raise SiteError("not allowed", problem)
    least = max(settings.min_mixed, MIXED_IMAGES)
    if images < least:
        raise SiteError(
            "few images",
            f"{images} images to train on, an update must mix {least} (min_mixed in site.yaml)",
        )
    mixed = min(floors.least_mixed(config, images), floors.least_mixed(config, images, round_number))
    if mixed < least:
        raise SiteError(
            "not allowed",
            f"an update would mix {mixed} of the {images} images, site.yaml asks for min_mixed={least}: "
            f"federation.local_epochs={config.federation.local_epochs:g} or the batch is too small",
        )


def approve(file: Path, join: Path) -> str:
    """Add the recipe of a join file to those that a `site.yaml` approves, and return its digest.

    Raises:
        SiteError, JoinError, ConfigError: a file cannot be read or extended, or the recipe is invalid.
    """
    invitation, before = Join.read(join), read_settings(file)
    config = approval.settings_of(invitation.recipe)
    problem = floors.problem(config)
    if problem:
        raise ConfigError(f"{join}: {problem}")
    own = approval.digest(config)
    if own in (before.approved or []):
        return own
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = approval.pinned(_content(file), own, f"{invitation.federation}, {config.run.stage}, {today}")
    after = copy.deepcopy(_parsed(file, text))
    was = copy.deepcopy(_parsed(file, _content(file)))
    was.approved = [*(was.approved or []), own]
    if sorted(after.approved or []) != sorted(was.approved) or replace(after, approved=None) != replace(
        was, approved=None
    ):
        raise SiteError("settings", f"{file}: cannot be extended; add this line below `approved:`: - {own}")
    file.write_text(text, encoding="utf-8")  # in place, which keeps its owner and permissions
    return own


def limit_memory(settings: SiteSettings) -> None:
    """Limit this process to the site's `memory_gb` of main memory; beyond it an allocation fails."""
    if settings.memory_gb:
        bound, hard = int(settings.memory_gb * 1e9), resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)  # the machine may allow even less
        resource.setrlimit(resource.RLIMIT_DATA, (bound, hard))


def init(folder: Path, *, name: str, cache: str = "cache", join: Path | None = None) -> Path:
    """Write a commented `site.yaml`, a node key (P-384) and the server's CA.

    Args:
        folder: made if absent; its other files are kept.
        name: the site's name, as the coordinator registers it.
        cache: the prepared cache; relative to the folder.
        join: the coordinator's join file.

    Returns:
        The settings file.

    Raises:
        SiteError, ExistsError: a file already exists.
        JoinError, WireError: an invalid join file or name.
    """
    wire.check_name(name, "site")
    refuse_file(folder)
    invitation = Join.read(join) if join else None
    file, key = folder / "site.yaml", folder / _KEY
    for path in (file, key, key.with_suffix(".pub")):
        if path.exists():
            raise SiteError("settings", f"{path} already exists; remove it, or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    written = ""
    if invitation and join:
        written = "join.yaml"
        if join.resolve() != (folder / written).resolve():
            (folder / written).write_bytes(join.read_bytes())
        if invitation.ca:
            (folder / _CA).write_text(invitation.ca, encoding="utf-8")
    _write_key(key)
    values = {
        "name": name,
        "cache": cache,
        "superlink": invitation.superlink if invitation else "",
        "ca": _CA if invitation and invitation.ca else "",
        "join": written,
    }
    template = Template((Path(__file__).parent / "site.template.yaml").read_text(encoding="utf-8"))
    text = template.substitute({key: _scalar(value) for key, value in values.items()})
    file.write_text(text, encoding="utf-8")
    return file


def _scalar(value: Any) -> str:
    return yaml_text.dump([value]).removeprefix("- ").rstrip("\n")


def _write_key(file: Path) -> None:
    # Imported here: the ClientApp reads settings at every message and never makes a key.
    from cryptography.hazmat.primitives import serialization as forms
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())  # the curve that Flower's node authentication requires
    private = key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption())
    public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as handle:
        handle.write(private)
    file.with_suffix(".pub").write_bytes(public + b"\n")
