"""Rounds whose updates are masked: the sum is that of a run without masks, whoever drops out, or there is none."""

import gc
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import federation as fed
import numpy as np
import pytest
import secure
import torch
from answers import update
from flwr.app import Message
from replies import disk, table

from client import app as client
from server.aggregate import WeightedSum
from sscxr import config as configs
from sscxr.config import Config
from sscxr.federation import codecs, parcels, wire
from sscxr.federation.lattice import Lattice
from sscxr.federation.limits import Pace, clip
from sscxr.training.parts import apart


def plainly(config: Config) -> Config:
    """The same settings, but without masks."""
    made = configs.loads(configs.dumps(config))
    made.federation.secure = False
    return made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], bytes]]:
    """What each site would send without masks: its fields, its update."""
    files = secure.sites(tmp_path_factory.mktemp("plain"))
    config = plainly(secure.settings(files, "federation.rounds=1"))
    replies = {file.parent.name: fed.ask(config, file) for file in files}
    return {
        name: (dict(reply.content.config_records["sscxr"]), update(reply)) for name, reply in replies.items()
    }


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return secure.sites(tmp_path / "sites")


@pytest.fixture
def config(files: list[Path]) -> Config:
    return secure.settings(files, "federation.rounds=1")


@pytest.fixture
def post(files: list[Path], config: Config) -> secure.Post:
    return secure.Post(files, config)


def mean_of(
    plain: dict[str, tuple[dict[str, Any], bytes]], names: list[str], config: Config
) -> dict[str, Any]:
    """The server's own average of these sites' updates."""
    like = fed.start(config).encoder
    total = WeightedSum(like)
    for name in names:
        fields, data = plain[name]
        total.add(codecs.decode(data, config.federation.uplink, like), fields["images"])
    return total.mean()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- the sum


@pytest.mark.parametrize(
    "overrides",
    [[], ["federation.uplink=fp32", "federation.moments=both", "federation.weights=equal"]],
    ids=["default", "fp32"],
)
def test_two_rounds_give_the_bytes_of_rounds_without_masks(
    tmp_path: Path, files: list[Path], overrides: list[str]
) -> None:
    """As nothing is clipped. Images and loss are the same figures, the loss to 2^-16."""
    config = secure.settings(files, "federation.rounds=2", "federation.clip_updates=100", *overrides)
    found, rounds = {}, {}
    for name, one in (("masked", config), ("plain", plainly(config))):
        one.run.name = name  # each run has its own state at the sites
        run = secure.federation(fed.Grid(client.app, files), one, tmp_path / name)
        found[name] = run.run().encoder
        rounds[name] = [configs.yaml_text.parse(line) for line in (tmp_path / name / "rounds.jsonl").open()]
    assert same(found["masked"], found["plain"])
    rows = table(tmp_path / "masked")
    assert {row["outcome"] for row in rows} == {"folded"}
    assert {row["images"] + row["loss"] + row["update_norm"] + row["seconds"] for row in rows} == {""}


@pytest.mark.parametrize("step", ["keys", "shares", "train", "survivors", "unmask"])
def test_a_site_may_drop_out_at_any_step_and_two_may_not(
    step: str, files: list[Path], config: Config, post: secure.Post, plain: Any
) -> None:
    post.damage = lambda kind, site, reply: None if (kind, site) == (step, "cora") else reply
    fold = secure.fold_of(post, config, files)
    counted = [name for name in secure.NAMES if name != "cora" or step in ("survivors", "unmask")]
    assert sorted(fold.folded) == counted
    assert same(fold.mean(), mean_of(plain, counted, config))
    assert fold.trained()[0] == sum(plain[name][0]["images"] for name in counted)
    rows = {row.site: row for row in fold.rows}
    assert rows["cora"].reason.startswith("no reply to")
    assert rows["cora"].outcome == ("folded" if "cora" in counted else "late")

    post.damage = lambda kind, site, reply: None if kind == step and site in ("cora", "edna") else reply
    fold = secure.fold_of(post, config, files, attempt=1)
    assert not fold.folded
    assert {row.outcome for row in fold.rows} <= {"late", "dropped"}
    assert "a secure sum needs 4" in fold.rows[-1].reason


def test_what_a_site_clips_is_what_the_server_would_have(
    files: list[Path], config: Config, post: secure.Post, plain: Any
) -> None:
    """Clipped values are no multiples of 2^-24 any more: the mean is within half of one of the exact one."""
    like = fed.start(config).encoder
    fold = secure.fold_of(post, config, files, norm=1e-3)
    clipped = {}
    for name, (fields, data) in plain.items():
        arrived = codecs.decode(data, "fp16", like)
        weights = apart(arrived)[0]
        most = Pace.of(config, fields["images"], 0).most(2.0, 1e-3, 1)
        assert clip(weights, codecs.norm(weights), most) == most
        clipped[name] = arrived
    weight = sum(plain[name][0]["images"] for name in clipped)
    for name, values in fold.mean().items():
        exact = sum(clipped[site][name].double() * plain[site][0]["images"] for site in clipped) / weight
        # And half a unit in the last place of fp32, in which the mean is.
        assert float((values.double() - exact).abs().max()) <= 2.0**-25 + 2.0**-24 * float(exact.abs().max())
    assert fold.norm() == pytest.approx(2e-3, rel=1e-4)


# ---- a coordinator that lies


def reasons(fold: Any) -> set[str]:
    return {row.reason for row in fold.rows}


REFUSED = wire.FAILURES["masks"]


def parcel_changed(message: Message, table: str, change: Any, *others: str) -> Message:
    """A message whose parcel has another table."""
    array = message.content.array_records["encoder"]["encoder"]
    tables = dict(zip((table, *others), parcels.unpack(array.data, table, *others), strict=True))
    tables[table] = change(tables[table])
    data = parcels.pack(**tables)
    array.data, array.shape = data, (len(data),)
    return message


def test_swapped_keys_are_refused_by_every_site(
    files: list[Path], config: Config, post: secure.Post, tmp_path: Path
) -> None:
    """Keys of the coordinator's under a member's name, signed by itself or by a true key for another attempt."""
    stranger, honest = secure.sites(tmp_path / "other", ["bona"]), config
    theirs = secure.settings([*[f for f in files if f.parent.name != "bona"], *stranger])
    earlier = secure.Post(files, honest)
    secure.fold_of(earlier, honest, files)
    (old,) = parcels.unpack(update(earlier.answered["keys", "bona"]), "keys")
    other = secure.Post([*[f for f in files if f.parent.name != "bona"], *stranger], theirs)
    secure.fold_of(other, theirs, [*[f for f in files if f.parent.name != "bona"], *stranger])
    (false,) = parcels.unpack(update(other.answered["keys", "bona"]), "keys")
    for attempt, swapped in enumerate((old["bona"], false["bona"]), start=1):

        def change(kind: str, site: str, message: Message, swapped: bytes = swapped) -> Message:
            if kind == "shares" and site != "bona":
                return parcel_changed(message, "keys", lambda keys: keys | {"bona": swapped})
            return message

        post.change = change
        fold = secure.fold_of(post, config, files, attempt=attempt)
        assert not fold.folded
        assert REFUSED in reasons(fold)
        assert not any(kind == "train" for kind, _ in post.asked)


def test_no_site_releases_both_shares_of_another(
    files: list[Path], config: Config, post: secure.Post
) -> None:
    """Some are told that anna's update arrived, some that it did not: nobody unmasks."""
    short = ",".join(name for name in secure.NAMES if name != "anna")

    def change(kind: str, site: str, message: Message) -> Message:
        if kind == "survivors" and site in ("dora", "edna"):
            message.content.config_records["sscxr"]["sites"] = short
        return message

    post.change = change
    fold = secure.fold_of(post, config, files)
    assert not fold.folded
    for name in secure.NAMES:
        assert post.answered["unmask", name].content.config_records["sscxr"]["failure"] == "masks"
    # Nor does it sign, or release the shares for, a second list.
    for step in ("survivors", "unmask"):
        for name in secure.NAMES[1:]:
            reply = post.again(step, name, sites=short)
            assert reply.content.config_records["sscxr"]["failure"] == "masks"


def test_an_attempt_is_answered_once_and_in_order(
    files: list[Path], config: Config, post: secure.Post
) -> None:
    fold = secure.fold_of(post, config, files, attempt=1)
    assert fold.folded
    for step in ("keys", "shares", "train", "survivors", "unmask"):
        for fields in ({}, {"attempt": 0}):
            reply = post.again(step, "anna", **fields)
            assert reply.content.config_records["sscxr"]["failure"] == "masks", step
    secrets = next((files[0].parent / "state").rglob("masks.json"))
    assert secrets.stat().st_mode & 0o777 == 0o600
    state = configs.yaml_text.parse(secrets.read_text())
    assert "secrets" in str(state)
    assert '"secrets": {}' in secrets.read_text()  # deleted with the last step
    first = update(post.answered["keys", "anna"])
    assert secure.fold_of(post, config, files, attempt=2).folded
    (one,), (two,) = (parcels.unpack(data, "keys") for data in (first, update(post.answered["keys", "anna"])))
    assert one["anna"][:32] == two["anna"][:32]  # the identity, and no other key again
    assert one["anna"][32:64] != two["anna"][32:64]
    assert one["anna"][64:96] != two["anna"][64:96]


LISTS = {
    "few": "anna,bona,cora",
    "without": "bona,cora,dora,edna",
    "stranger": "anna,bona,cora,dora,edna,mara",
}


def test_a_site_is_shown_enough_sites_that_it_knows_itself_among_them(
    files: list[Path], config: Config, post: secure.Post
) -> None:
    """Else it refuses the step, whichever, and goes on when it is asked truly."""
    refused = []

    def lied(step: str, message: Message, names: list[str]) -> Message:
        def of(known: dict[str, bytes]) -> dict[str, bytes]:
            return {name: known.get(name, known["bona"]) for name in names}

        if step == "shares":
            return parcel_changed(message, "keys", of)
        if step == "unmask":
            return parcel_changed(message, "signatures", of, "sealed")
        message.content.config_records["sscxr"]["sites"] = ",".join(names)
        return message

    def change(step: str, site: str, message: Message) -> Message:
        if step != "keys" and site == "anna":
            for names in LISTS.values():
                (reply,) = post.grid.send_and_receive([lied(step, secure.copied(message), names.split(","))])
                assert reply.content.config_records["sscxr"]["failure"] == "masks", (step, names)
                refused.append(step)
        return message

    post.change = change
    assert sorted(secure.fold_of(post, config, files).folded) == secure.NAMES
    assert len(refused) == 4 * len(LISTS)


def test_sites_that_were_sent_different_models_or_bounds_give_no_sum(
    files: list[Path], config: Config, post: secure.Post
) -> None:
    """Or settings: a server that silences all but one would read its update in the sum."""

    def model(message: Message) -> None:
        array = message.content.array_records["encoder"]["encoder"]
        values = np.frombuffer(array.data, "<f4").copy()
        values[7] = np.nextafter(values[7], np.float32(9))
        array.data = values.tobytes()

    def bound(message: Message) -> None:
        message.content.config_records["sscxr"]["norm"] = 1e-9

    def settings(message: Message) -> None:
        record = message.content.config_records["sscxr"]
        record["config"] = str(record["config"]).replace("weights: images", "weights: equal")

    for attempt, (lie, step) in enumerate(
        ((model, "train"), (bound, "train"), (settings, "train"), (settings, "keys"))
    ):

        def change(kind: str, site: str, message: Message, lie: Any = lie, step: str = step) -> Message:
            if site == "anna" and kind in (step, "train"):
                lie(message)
            return message

        post.change = change
        fold = secure.fold_of(post, config, files, attempt=attempt)
        assert "anna" not in fold.folded
        assert not fold.folded or lie is settings


@pytest.mark.parametrize("table", ["own", "mask"])
def test_a_false_share_spoils_the_attempt_and_not_the_encoder(
    table: str, files: list[Path], config: Config, post: secure.Post
) -> None:
    def damage(kind: str, site: str, reply: Message) -> Message | None:
        if (kind, site) == ("train", "edna"):
            return None
        if (kind, site) == ("unmask", "anna"):
            other = "mask" if table == "own" else "own"
            return parcel_changed(reply, table, lambda shares: dict.fromkeys(shares, bytes(16)), other)
        return reply

    post.damage = damage
    fold = secure.fold_of(post, config, files)
    assert not fold.folded
    assert any("cannot be that of" in reason or "do not give that key" in reason for reason in reasons(fold))


# ---- what the coordinator learns


class Recording(fed.Grid):
    """A Grid that keeps every message."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.kept: list[bytes] = []

    def push_messages(self, messages: Any) -> Any:
        asked = list(messages)
        self.kept += [data for message in asked for data in _blobs(message)]
        return super().push_messages(asked)

    def pull_messages(self, message_ids: Any) -> Any:
        for reply in super().pull_messages(message_ids):
            self.kept += _blobs(reply)
            yield reply


def _blobs(message: Message) -> list[bytes]:
    records = message.content.array_records.values()
    fields = str({name: dict(record) for name, record in message.content.config_records.items()})
    return [array.data for record in records for array in record.values()] + [fields.encode()]


def needles(plain: Any, config: Config) -> dict[tuple[str, str], bytes]:
    """Parts of each site's update, in each form that it has on its way: (site, form) -> bytes."""
    like, grid, found = fed.start(config).encoder, Lattice.of(config), {}
    for site, (fields, data) in plain.items():
        arrived = codecs.decode(data, config.federation.uplink, like)
        words = grid.words(arrived, fields["images"])
        place = int(np.argmax(np.abs(grid.signed(words)) > 2**18))
        begin = slice(place, place + 6)
        flat = torch.cat([arrived[name].reshape(-1) for name in sorted(arrived)])
        found[site, "words"] = words[begin].tobytes()
        found[site, "packed"] = grid.pack(words[begin], np.zeros(0, "<u8"))
        found[site, "fp32"] = flat[begin].numpy().tobytes()
        found[site, "fp16"] = flat[begin].half().numpy().tobytes()
    return found


def reachable(*roots: object) -> Iterator[bytes]:
    """The bytes of every array, tensor and text that can be reached from some objects."""
    seen, left = set(), list(roots)
    while left:
        one = left.pop()
        skipped = types.ModuleType | types.FunctionType | types.FrameType | type
        if id(one) in seen or isinstance(one, skipped):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one.detach().contiguous().numpy().tobytes()
        elif isinstance(one, np.ndarray):
            yield one.tobytes()
        elif isinstance(one, bytes | bytearray | memoryview):
            yield bytes(one)
        elif isinstance(one, str):
            yield one.encode(errors="replace")
        left += gc.get_referents(one)


def test_the_coordinator_finds_no_sites_update_in_memory_on_disk_or_in_any_message(
    tmp_path: Path, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the same search finds each of them where there are no masks."""
    found = {}
    for name in ("masked", "plain"):
        files = secure.sites(tmp_path / name / "sites")
        config = secure.settings(files, "federation.rounds=1")
        searched = needles(plain, config)
        one = config if name == "masked" else plainly(config)
        grid = Recording(client.app, files)
        run = fed.federation(grid, one, tmp_path / name / "run")
        folds: list[Any] = []
        attempt = run._attempt
        monkeypatch.setattr(
            run,
            "_attempt",
            lambda number, attempt=attempt, folds=folds: folds.append(attempt(number)) or folds[-1],
        )
        run.run()
        memory = reachable(run.state, run.ledger, run.mail, run.roster, *folds, grid.kept)
        places = [*grid.kept, disk(tmp_path / name / "run"), *memory]
        found[name] = {needle for needle, data in searched.items() if any(data in place for place in places)}
        if name == "masked":
            replies = [
                data for data in grid.kept if len(data) == Lattice.of(config).payload_bytes(run.state.encoder)
            ]
            assert len(replies) == 5
            for data in replies:
                counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
                assert 150 < ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 400
    assert found["masked"] == set()
    assert {(site, "fp16") for site in secure.NAMES} <= found["plain"]


# ---- what is refused before


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("federation.rule=median", "needs federation.rule=mean"),
        ("federation.weight_cap=2", "needs federation.weight_cap=0"),
        ("federation.evaluate_every=1", "needs federation.evaluate_every=0"),
        ("federation.uplink=int8", "needs federation.uplink=fp16 or fp32"),
        ("federation.members={anna: x}", "'anna' has no fingerprint"),
    ],
)
def test_what_a_secure_sum_excludes_is_refused_in_one_line(override: str, words: str) -> None:
    with pytest.raises(configs.ConfigError, match=words) as error:
        fed.settings(*secure.SECURE, override)
    assert "\n" not in str(error.value)


def test_a_site_refuses_what_its_own_settings_do_not_allow(files: list[Path], config: Config) -> None:
    """Fewer sites than it asks for, another key under its name, held-out figures, no key."""

    def asked(kind: str = "query") -> Any:
        reply = fed.ask(config, files[0], kind)
        return dict(reply.content.config_records["sscxr"])

    assert asked()["images"] == 0  # its weight is not known
    assert asked("evaluate")["failure"] == "not allowed"
    text = files[0].read_text()
    files[0].write_text(text + "min_sites: 5\n")
    assert asked()["failure"] == "not allowed"
    files[0].write_text(text.replace("identity-key", "other/identity-key"))
    assert asked()["failure"] == "settings"
    files[0].write_text(text)
    config.federation.members["anna"] = "SHA256:" + 43 * "A"
    assert asked()["failure"] == "not allowed"
