"""A site's steps of a secure sum: keys, shares, its masked update, the list of survivors, the shares that unmask.

The steps are those of `sscxr.federation.masking`. Whatever another machine gets wrong ends the step, with the
reason in this site's log; the step may then be asked for again, truly.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from client import attempt, identity
from client.attempt import Attempt
from client.settings import SiteError, SiteSettings
from client.site import Site
from sscxr.config import Config
from sscxr.federation import codecs, floors, masking, parcels, wire
from sscxr.federation.lattice import MOST_NORM, Lattice, add_mask, figures
from sscxr.federation.limits import Pace, clip, weight_of
from sscxr.federation.masking import SECRET, Advert, Keys
from sscxr.training.parts import apart


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
    fresh = Keys.fresh()
    advert = fresh.advert(site.name, identity.read(site.settings), _context(task))
    _write(site, task, attempt.begun(site.store.folder, task, fresh, site.name, advert))
    return parcels.pack(keys={site.name: advert.to_bytes()})


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


def ready(site: Site, task: wire.Task, config: Config) -> Attempt:
    """Check, before training and after it, that this attempt is at its masked update, with enough sites.

    Raises:
        SiteError: it is not.
    """
    state = _state(site, task, config, "shares")
    _check_sites(site, config, _named(task.sites), among=state.adverts)
    if not (task.norm >= 0 and task.moment_norm >= 0):
        raise SiteError("masks", f"norms to clip to of {task.norm:g} and {task.moment_norm:g}: not below 0")
    return state


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
    state, sharers = ready(site, task, config), _named(task.sites)
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


def _state(site: Site, task: wire.Task, config: Config, step: str) -> Attempt:
    check(site.settings, config)
    return attempt.after(site.store.folder, task, step)


def _write(site: Site, task: wire.Task, state: Attempt) -> None:
    state.write(site.store.folder, task.run)
