"""What a run may do at this site: its settings against `site.yaml`, before anything else is done.

Each refusal is one line with the setting, its value and what the site allows; the server gets a fixed word.
"""

import copy
import datetime
from dataclasses import replace
from pathlib import Path

from client import limits
from client.settings import SiteError, SiteSettings, content, parsed, read_settings
from sscxr.config import Config, ConfigError
from sscxr.config.schema import MIXED_IMAGES
from sscxr.federation import approval, floors, wire
from sscxr.federation.join import Join, JoinError
from sscxr.files import private_folder, write_atomically

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
    if reason := forbidden(settings, config):
        raise SiteError("not allowed", reason)


def forbidden(settings: SiteSettings, config: Config) -> str:
    """Return, in one line, what a recipe asks for that this hospital does not allow; empty if it allows all."""
    stage, objective = config.run.stage, config.pretrain.objective
    if stage not in settings.stages:
        return f"the run asks for run.stage={stage}; site.yaml allows stages={settings.stages}"
    if config.pretrains and settings.objectives and objective not in settings.objectives:
        return f"the run asks for pretrain.objective={objective}; site.yaml allows objectives={settings.objectives}"
    if settings.privacy.epsilon and not config.privacy.noise:
        return (
            "the run trains without differential privacy (privacy.noise=0); site.yaml has privacy.epsilon="
            f"{settings.privacy.epsilon:g}"
        )
    if 0 < settings.threads < config.run.threads:
        return (
            f"the run asks for run.threads={config.run.threads}; site.yaml allows threads={settings.threads}"
        )
    return floors.problem(config) or limits.of_recipe(settings.limits, config)


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


def check_rounds(settings: SiteSettings, config: Config, images: int, round_number: int) -> None:
    """Check that each update of the run mixes enough of a site's images, and that its rounds are within the limits.

    Args:
        images: how many the site trains on.

    Raises:
        SiteError: "few images" or "not allowed".
    """
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
    if reason := limits.of_rounds(settings.limits, config, images):
        raise SiteError("not allowed", reason)


def approve(file: Path, join: Path) -> str:
    """Add the recipe of a join file to those that a `site.yaml` approves, and return its digest.

    Raises:
        SiteError, JoinError, ConfigError: a file cannot be read or extended, or the recipe is invalid.
    """
    invitation, before = Join.read(join), read_settings(file)
    config = approval.settings_of(invitation.recipe)
    if reason := forbidden(before, config):
        raise ConfigError(f"{join}: {reason}")
    own = approval.digest(config)
    if own in (before.approved or []):
        return own
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    text = approval.pinned(content(file), own, f"{invitation.federation}, {config.run.stage}, {today}")
    after = copy.deepcopy(parsed(file, text))
    was = copy.deepcopy(parsed(file, content(file)))
    was.approved = [*(was.approved or []), own]
    if sorted(after.approved or []) != sorted(was.approved) or replace(after, approved=None) != replace(
        was, approved=None
    ):
        raise SiteError("settings", f"{file}: cannot be extended; add this line below `approved:`: - {own}")
    file.write_text(text, encoding="utf-8")  # in place, which keeps its owner and permissions
    return own
