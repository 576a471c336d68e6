"""The cryptography of a secure sum, one property each: what must agree agrees, and what was changed is refused."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client import identity
from client.settings import SiteSettings
from sscxr.federation import masking, parcels
from sscxr.federation.masking import Advert, Keys
from sscxr.federation.wire import WireError

CONTEXT = masking.context("run", 3, 1, "run: {}", "{}")
MASKS = masking.bound(CONTEXT, b"encoder", 0.5, 0.0)


def advert(name: str, keys: Keys | None = None) -> tuple[Advert, str]:
    key = Ed25519PrivateKey.generate()
    return (keys or Keys.fresh()).advert(name, key, CONTEXT), masking.fingerprint_of(key.public_key())


# ---- keys


def test_keys_are_taken_of_their_member_for_their_attempt_alone() -> None:
    made, fingerprint = advert("anna")
    other, _ = advert("anna")
    made.check("anna", fingerprint, CONTEXT)
    assert Advert.read(made.to_bytes()) == made
    for changed in (
        replace(made, cipher=other.cipher),
        replace(made, mask=other.mask),
        replace(made, cipher=made.mask, mask=made.cipher),
        replace(made, signature=other.signature),
        replace(made, identity=bytes(32)),
        other,
    ):
        with pytest.raises(WireError, match="anna's keys are"):
            changed.check("anna", fingerprint, CONTEXT)
    with pytest.raises(WireError, match="not signed"):
        made.check("bona", fingerprint, CONTEXT)
    for place, value in enumerate(("other", 4, 2, "run: {x: 1}", "{1}")):
        parts = ["run", 3, 1, "run: {}", "{}"]
        parts[place] = value
        with pytest.raises(WireError, match="not signed"):
            made.check("anna", fingerprint, masking.context(*parts))  # type: ignore[arg-type]
    with pytest.raises(WireError, match="keys of 159 bytes"):
        Advert.read(made.to_bytes()[1:])


def test_a_fingerprint_is_the_one_that_ssh_keygen_prints(tmp_path: Path) -> None:
    file = identity.made(tmp_path)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", f"{file}.pub"], capture_output=True, text=True, check=True
    ).stdout
    assert identity.fingerprint(SiteSettings(identity=str(file))) in shown.split()
    assert file.stat().st_mode & 0o777 == 0o600
    assert identity.made(tmp_path).read_bytes() == file.read_bytes()


# ---- masks


def test_two_sites_and_whoever_restores_a_seed_derive_one_mask() -> None:
    anna, bona = Keys.fresh(), Keys.fresh()
    of_anna, of_bona = masking.mask_public(anna.mask_seed), masking.mask_public(bona.mask_seed)
    seed = masking.pair_seed(anna.mask_seed, "anna", "bona", of_bona, MASKS)
    assert seed == masking.pair_seed(bona.mask_seed, "bona", "anna", of_anna, MASKS)
    for masks in (
        masking.bound(CONTEXT, b"encoder!", 0.5, 0.0),
        masking.bound(CONTEXT, b"encoder", 0.25, 0.0),
        masking.bound(CONTEXT, b"encoder", 0.5, 1.0),
        masking.bound(masking.context("run", 3, 2, "run: {}", "{}"), b"encoder", 0.5, 0.0),
    ):
        assert seed != masking.pair_seed(anna.mask_seed, "anna", "bona", of_bona, masks)


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31)])
def test_a_point_that_agrees_with_every_key_is_refused(point: bytes) -> None:
    with pytest.raises(WireError, match="not a point"):
        masking.pair_seed(Keys.fresh().mask_seed, "anna", "bona", point, MASKS)


# ---- shares


@pytest.mark.parametrize(("threshold", "count"), [(3, 3), (3, 5), (6, 8)])
def test_any_threshold_of_shares_restores_a_secret_and_fewer_do_not(threshold: int, count: int) -> None:
    secret = Keys.fresh().own_seed
    shares = masking.split(secret, threshold, count)
    draws = np.random.default_rng(0)
    for _ in range(4):
        chosen = {int(place): shares[place] for place in draws.permutation(count)[:threshold]}
        assert masking.join(chosen) == secret
        chosen.popitem()
        assert masking.join(chosen) != secret


def test_sealed_shares_are_read_by_their_receiver_alone() -> None:
    keys = {name: Keys.fresh() for name in ("anna", "bona", "cora")}
    public = {name: advert(name, one)[0].cipher for name, one in keys.items()}
    shares = bytes(range(32))
    sealed = masking.seal(keys["anna"], "anna", "bona", public["bona"], CONTEXT, shares)
    assert shares not in sealed

    def read(keys: Keys, own: str, peer: str, context: bytes = CONTEXT, data: bytes = sealed) -> bytes:
        return masking.unseal(keys, own, peer, public[peer], context, data)

    assert read(keys["bona"], "bona", "anna") == shares
    for attempt in (
        lambda: read(keys["cora"], "cora", "anna"),
        lambda: read(keys["bona"], "bona", "cora"),
        lambda: read(keys["anna"], "anna", "bona"),  # sent back to its sender
        lambda: read(keys["bona"], "bona", "anna", MASKS),
        lambda: read(keys["bona"], "bona", "anna", data=sealed[:-1] + bytes([sealed[-1] ^ 1])),
        lambda: read(keys["bona"], "bona", "anna", data=b""),
    ):
        with pytest.raises(WireError, match="not those that it sealed"):
            attempt()


def test_a_list_of_survivors_is_signed_for_itself_and_its_attempt() -> None:
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    signature = masking.sign_survivors(key, CONTEXT, ["bona", "anna"])
    masking.check_survivors("anna", public, signature, CONTEXT, ["anna", "bona"])
    for context, names in ((CONTEXT, ["anna"]), (MASKS, ["anna", "bona"]), (CONTEXT, ["anna,bona"])):
        with pytest.raises(WireError, match="did not sign"):
            masking.check_survivors("anna", public, signature, context, names)


# ---- parcels


def test_parcels_come_back_and_malformed_ones_are_refused() -> None:
    tables = {"own": {"anna": b"\0\1"}, "mask": {}}
    assert parcels.unpack(parcels.pack(**tables), "mask", "own") == [{}, {"anna": b"\0\1"}]  # type: ignore[arg-type]
    for data in (
        b"", b"[]", b"{}", b'{"own": {}}', b'{"own": 3, "mask": {}}', b'{"own": {"a": 3}, "mask": {}}',
        b'{"own": {"a": "xy"}, "mask": {}}', b'{"own": {"../a": "00"}, "mask": {}}', b"[" * 10**5,
        b'{"own": {"a": "' + b"00" * 2000 + b'"}, "mask": {}}', bytes(parcels.MOST + 1),
    ):  # fmt: skip
        with pytest.raises(WireError):
            parcels.unpack(data, "own", "mask")
