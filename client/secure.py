"""A site's steps of a secure sum: keys, shares, its masked update, the list of survivors, the shares that unmask.

The steps are those of `sscxr.federation.masking`. Between two messages, the attempt's secrets are in one file of
the site's state. An attempt is answered once and in order, each by new keys: the file names the last attempt, and
an earlier one, or one begun anew, is refused. After the last step the secrets are deleted.
"""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from client import identity
from client.settings import SiteError, SiteSettings
from client.site import Site
from sscxr.config import Config
from sscxr.federation import codecs, floors, masking, parcels, wire
from sscxr.federation.lattice import MOST_NORM, Lattice, add_mask, figures
from sscxr.federation.limits import Pace, clip, weight_of
from sscxr.federation.masking import SECRET, Advert, Keys
from sscxr.files import private_folder, privately, write_atomically
from sscxr.training.parts import apart

_FILE = "masks.json"  # in the run's folder of the site's state

log = logging.getLogger("sscxr.site")


@dataclass(frozen=True)
class Attempt:
    """What a site keeps of one attempt.

    Attributes:
        round, attempt: which one.
        step: the last step that it answered; "unmask" at the end, without secrets.
        secrets: the fields of `Keys`.
        adverts: each site's keys, its own included.
        sharers, survivors: as the server named them.
        own_shares: the shares of its own secrets that it kept.
    """

    round: int
    attempt: int
    step: str
    secrets: dict[str, str] = field(default_factory=dict)
    adverts: dict[str, str] = field(default_factory=dict)
    sharers: list[str] = field(default_factory=list)
    survivors: list[str] = field(default_factory=list)
    own_shares: str = ""

    @property
    def keys(self) -> Keys:
        """The secrets."""
        return Keys(**{name: bytes.fromhex(value) for name, value in self.secrets.items()})

    def advert(self, name: str) -> Advert:
        """Return a site's public keys, which were checked when they came."""
        return Advert.read(bytes.fromhex(self.adverts[name]))


def check(settings: SiteSettings, config: Config) -> None:
    """Check that a secure sum of these settings hides this site's update.

    Raises:
        SiteError: "settings" or "not allowed", with the setting that is in the way.
    """
    if problem := floors.problem(config):
        raise SiteError("not allowed", problem)
    least, members = floors.threshold(config.federation), config.federation.members
    if least < settings.min_sites:
        raise SiteError(
            "not allowed",
            f"a sum of {least} sites (federation.threshold={config.federation.threshold:g} of {len(members)} "
            f"members), site.yaml asks for min_sites={settings.min_sites}",
        )
    own = identity.fingerprint(settings)
    if members.get(settings.name) != own:
        raise SiteError(
            "not allowed",
            f"federation.members has {members.get(settings.name, 'no key')} for {settings.name}, its identity "
            f"key is {own}",
        )


def keys(site: Site, task: wire.Task, config: Config) -> bytes:
    """Begin an attempt: make its keys and return the public ones, signed.

    Raises:
        SiteError: the attempt, or a later one, was begun before.
    """
    check(site.settings, config)
    file = _file(site, task)
    if file.exists():
        last = _read(file)
        if (task.round, task.attempt) <= (last.round, last.attempt):
            came = f"attempt {last.attempt + 1} at round {last.round + 1} came before"
            raise SiteError("masks", f"{_name(task)} of a secure sum: {came}")
    fresh = Keys.fresh()
    advert = fresh.advert(site.name, identity.read(site.settings), _context(task)).to_bytes()
    secrets = {name: value.hex() for name, value in asdict(fresh).items()}
    _write(site, task, Attempt(task.round, task.attempt, "keys", secrets, {site.name: advert.hex()}))
    return parcels.pack(keys={site.name: advert})


def shares(site: Site, task: wire.Task, config: Config, data: bytes) -> bytes:
    """Check the others' public keys, and return shares of this site's secrets, sealed for each of them.

    Raises:
        SiteError: too few sites, or keys that are not those of the members.
    """
    state, context = _state(site, task, config, "keys"), _context(task)
    (arrived,) = _parcel(data, "keys")
    names, members = sorted(arrived), config.federation.members
    _check_sites(site, config, names, among=members)
    if arrived[site.name].hex() != state.adverts[site.name]:
        raise SiteError("masks", "the server relays other keys of this site than it sent")
    adverts = {name: _advert(name, arrived[name], members[name], context) for name in names}
    public = {key for advert in adverts.values() for key in (advert.cipher, advert.mask)}
    if len(public) != 2 * len(names):
        raise SiteError("masks", "two sites have one key")
    secret, threshold = state.keys, floors.threshold(config.federation)
    of_mask, of_own = (
        masking.split(one, threshold, len(names)) for one in (secret.mask_seed, secret.own_seed)
    )
    each = {name: mask + own for name, mask, own in zip(names, of_mask, of_own, strict=True)}
    sealed = {
        name: masking.seal(secret, site.name, name, adverts[name].cipher, context, each[name])
        for name in names
        if name != site.name
    }
    kept = {name: advert.to_bytes().hex() for name, advert in adverts.items()}
    _write(site, task, replace(state, step="shares", adverts=kept, own_shares=each[site.name].hex()))
    return parcels.pack(sealed=sealed)


def ready(site: Site, task: wire.Task, config: Config) -> None:
    """Check, before the work of training, that this attempt is at its masked update, with enough sites.

    Raises:
        SiteError: it is not.
    """
    state = _state(site, task, config, "shares")
    _check_sites(site, config, _named(task.sites), among=state.adverts)


def masked(
    site: Site,
    task: wire.Task,
    config: Config,
    encoded: bytes,
    received: Mapping[str, Any],
    images: int,
    loss: float,
) -> bytes:
    """Return an update as the server would have decoded it, clipped here, weighted and masked, and its figures.

    Args:
        encoded: by the run's codec.
        received: the encoder that the site started from, as decoded.
        images: trained on in one epoch.
        loss: the mean over the steps.

    Raises:
        SiteError: the update is out of range, or this is not the attempt's next step.
    """
    ready(site, task, config)
    state, sharers = _state(site, task, config, "shares"), _named(task.sites)
    words, row = _words(task, config, encoded, received, images, loss)
    sent = codecs.encode(received, config.federation.downlink)
    masks = masking.bound(_context(task), sent, task.norm, task.moment_norm)
    secret = state.keys
    add_mask(words, row, masking.own_seed(secret.own_seed, site.name, masks), 1)
    for peer in sharers:
        if peer != site.name:
            seed = masking.pair_seed(secret.mask_seed, site.name, peer, state.advert(peer).mask, masks)
            add_mask(words, row, seed, 1 if site.name < peer else -1)
    _write(site, task, replace(state, step="train", sharers=sharers))
    return Lattice.of(config).pack(words, row)


def _words(
    task: wire.Task, config: Config, encoded: bytes, received: Mapping[str, Any], images: int, loss: float
) -> tuple[Any, Any]:
    """Return the clipped and weighted update, and the row of figures, both without masks."""
    federation, lattice = config.federation, Lattice.of(config)
    update = codecs.decode(encoded, federation.uplink, received)
    weights, moments = apart(update)
    size, bound = codecs.norm(weights), federation.max_update_norm * codecs.norm(apart(received)[0])
    if not size <= bound:
        raise SiteError("codec", f"the update's norm {size:.4g} is out of bounds (at most {bound:.4g})")
    if not 0 <= loss <= wire.MAX_LOSS:
        raise SiteError("loss", f"the loss {loss:g} is out of range")
    counted = min(images, federation.max_images)
    pace = Pace.of(config, counted, task.round)
    values = sum(tensor.numel() for tensor in weights.values())
    kept = clip(weights, size, pace.most(federation.clip_updates, task.norm, values))
    length = codecs.norm(moments)
    kept_moments = clip(moments, length, task.moment_norm or math.inf)
    weight = weight_of(federation.weights, counted)
    row = figures(
        weight=weight,
        images=counted,
        loss=loss * counted,
        norm=min(pace.relative(kept), MOST_NORM),
        moment_norm=min(kept_moments, MOST_NORM),
    )
    try:
        return lattice.words(update, weight), row
    except wire.WireError as error:
        raise SiteError("codec", f"the update cannot be sent: {error}") from None


def survivors(site: Site, task: wire.Task, config: Config) -> bytes:
    """Return a signature of the sites whose updates arrived; this site signs one list in an attempt.

    Raises:
        SiteError: the list is not of enough of the sites that this one has masks with.
    """
    state, names = _state(site, task, config, "train"), _named(task.sites)
    _check_sites(site, config, names, among=state.sharers)
    _write(site, task, replace(state, step="survivors", survivors=names))
    signature = masking.sign_survivors(identity.read(site.settings), _context(task), names)
    return parcels.pack(signatures={site.name: signature})


def unmask(site: Site, task: wire.Task, config: Config, data: bytes) -> bytes:
    """Return shares: of the own seeds of the survivors, of the mask seeds of those that dropped out.

    Never of both of one site: enough others must have signed the list that this site signed.

    Raises:
        SiteError: too few have, a signature is false, or shares are not those that a site sealed for this one.
    """
    state, context = _state(site, task, config, "survivors"), _context(task)
    signatures, sealed = _parcel(data, "signatures", "sealed")
    _check_sites(site, config, sorted(signatures), among=state.survivors)
    for name, signature in signatures.items():
        _refusing(
            masking.check_survivors, name, state.advert(name).identity, signature, context, state.survivors
        )
    secret, own, mask = state.keys, {}, {}
    for name in state.sharers:
        if name == site.name:
            both = bytes.fromhex(state.own_shares)
        elif name in sealed:
            cipher = state.advert(name).cipher
            both = _refusing(masking.unseal, secret, site.name, name, cipher, context, sealed[name])
        else:
            raise SiteError("masks", f"the server withholds {name}'s shares")
        if name in state.survivors:
            own[name] = both[SECRET:]
        else:
            mask[name] = both[:SECRET]
    _write(site, task, Attempt(task.round, task.attempt, "unmask"))
    return parcels.pack(own=own, mask=mask)


# ---- what a step checks


def _context(task: wire.Task) -> bytes:
    return masking.context(task.run, task.round, task.attempt, task.config, task.fingerprint)


def _named(names: str) -> list[str]:
    return sorted(names.split(",")) if names else []


def _name(task: wire.Task) -> str:
    return f"attempt {task.attempt + 1} at round {task.round + 1}"


def _check_sites(site: Site, config: Config, names: list[str], among: Mapping[str, Any] | list[str]) -> None:
    """Check that these sites are enough, differ, include this one, and are among some others."""
    least = floors.threshold(config.federation)
    if len(names) < least:
        raise SiteError("masks", f"a secure sum of {len(names)} sites, at least {least} are needed")
    if len(set(names)) != len(names) or site.name not in names or not set(names) <= set(among):
        raise SiteError("masks", "the server names sites that this step cannot have, or leaves this site out")


def _advert(name: str, data: bytes, fingerprint: str, context: bytes) -> Advert:
    advert: Advert = _refusing(Advert.read, data)
    _refusing(advert.check, name, fingerprint, context)
    return advert


def _parcel(data: bytes, *names: str) -> list[dict[str, bytes]]:
    found: list[dict[str, bytes]] = _refusing(parcels.unpack, data, *names)
    return found


def _refusing(call: Any, *given: Any) -> Any:
    """Call with these arguments; what another machine got wrong ends the step."""
    try:
        return call(*given)
    except wire.WireError as error:
        raise SiteError("masks", str(error)) from None


# ---- the attempt's file


def _file(site: Site, task: wire.Task) -> Path:
    return site.store.folder / wire.check_name(task.run, "run") / _FILE


def _state(site: Site, task: wire.Task, config: Config, step: str) -> Attempt:
    """Return the attempt, which must be this one, and at this step."""
    check(site.settings, config)
    file = _file(site, task)
    state = _read(file) if file.exists() else Attempt(-1, -1, "none")
    if (state.round, state.attempt, state.step) != (task.round, task.attempt, step):
        raise SiteError(
            "masks",
            f"a step of {_name(task)} that follows {step}; this site is at {state.step} of attempt "
            f"{state.attempt + 1} at round {state.round + 1}",
        )
    return state


def _read(file: Path) -> Attempt:
    try:
        found = json.loads(file.read_bytes())
        return Attempt(**{item.name: found[item.name] for item in fields(Attempt)})
    except (ValueError, LookupError, TypeError):
        raise SiteError("masks", f"{file} is damaged; delete it after a look at why") from None


def _write(site: Site, task: wire.Task, state: Attempt) -> None:
    """Write the attempt for this account alone; on the disk before the reply leaves."""
    file = _file(site, task)
    private_folder(file.parent)
    with privately():
        write_atomically(file, json.dumps(asdict(state)).encode())
