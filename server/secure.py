"""One attempt at a round whose updates are masked: the server learns their sum, and nothing of one site.

The steps are those of Bonawitz et al. 2017 (`sscxr.federation.masking`): keys, shares, masked updates, a list of
survivors that each of them signs, the shares that unmask. A site may drop out at any step; with fewer sites left
than the least, there is no sum. The server relays keys and shares; it can neither read the shares nor replace keys.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from flwr.app import ArrayRecord, Message
from torch import Tensor

from server.fold import (
    SiteFailedError,
    arrays_bytes,
    bytes_of,
    drop_arrays,
    fields_of,
    note_on_state,
    to_arrays,
)
from server.mail import Mail
from sscxr.config import Config
from sscxr.federation import codecs, floors, masking, parcels, wire
from sscxr.federation.lattice import Lattice, add_mask, figures_of
from sscxr.federation.masking import SECRET, Advert
from sscxr.federation.wire import WireError
from sscxr.runs import SiteRow
from sscxr.training.parts import apart

_STEP = 120.0  # seconds for a step without training; a busy machine takes a minute to start its client

Parcel = dict[str, bytes]


class SecureFold:
    """The masked sum of one attempt, and the outcome of each site; `server.fold.Fold` without masks.

    Attributes:
        rows: one per site that is settled.
        folded: site -> the generation that its update belongs to; empty without a sum.
        images, costs: empty: a site's own number, and what the run costs its patients, are not known.
    """

    def __init__(
        self,
        config: Config,
        encoder: Mapping[str, Tensor],
        encoded: bytes,
        tasks: Callable[[str], wire.Task],
        mail: Mail,
        least: int,
    ) -> None:
        """Begin without keys.

        Args:
            encoder: the server's, fp32; `encoded` as the sites receive it.
            tasks: returns a site's task.
            least: how many sites must be in the sum: the quorum, and at least `floors.threshold`.
        """
        self.rows: list[SiteRow] = []
        self.folded: dict[str, str] = {}
        self.images: dict[str, int] = {}
        self.costs: dict[str, tuple[float, float]] = {}
        self._config, self._encoder, self._encoded = config, encoder, encoded
        self._tasks, self._mail, self._least = tasks, mail, least
        self._threshold, self._lattice = floors.threshold(config.federation), Lattice.of(config)
        task = tasks("")
        self._task = task
        self._context = masking.context(task.run, task.round, task.attempt, task.config, task.fingerprint)
        self._masks = masking.bound(self._context, encoded, task.norm, task.moment_norm)
        self._nodes: dict[str, int] = {}
        self._notes: dict[str, str] = {}
        self._sent: dict[str, int] = {}
        self._figures: dict[str, float] = {}
        self._mean: dict[str, Tensor] = {}
        self._words: Any = None
        self._row: Any = None

    def run(self, present: Mapping[int, str]) -> Iterator[SiteRow]:
        """Do all steps, and yield each site's row when it is settled.

        Args:
            present: node -> site.
        """
        self._nodes = {site: node for node, site in present.items()}
        self._sent = dict.fromkeys(self._nodes, 0)
        begun = 0
        outcome, reason = "folded", ""
        try:
            for _ in self._steps():
                yield from self.rows[begun:]
                begun = len(self.rows)
        except WireError as error:
            outcome, reason = "dropped", f"attempt {self._task.attempt}: {error}"
        left = [site for site in self._nodes if site not in {row.site for row in self.rows}]
        if outcome == "folded":
            self.folded = dict.fromkeys(left, wire.generation(self._task.round, self._task.attempt))
        for site in sorted(left):
            self._settle(site, outcome, reason or self._notes.get(site, ""))
        yield from self.rows[begun:]

    def mean(self) -> dict[str, Tensor]:
        """Return the weighted mean of the updates, fp32."""
        return self._mean

    def trained(self) -> tuple[int, float | None]:
        """Return the images of all sites, and their mean training loss if they report it."""
        images = int(self._figures["images"])
        private = self._config.privacy.noise > 0  # then no site reports its loss
        return images, None if private else self._figures["loss"] / images

    def cosines(self) -> dict[str, float]:
        """Return nothing: the direction of a single update is not known."""
        return {}

    def norm(self) -> float:
        """Return the usual norm of this round's updates, for later rounds: their mean."""
        return self._figures["norm"] / len(self.folded)

    def moment_norm(self) -> list[float]:
        """Return the mean norm of the changes of this round's moments, in a list; empty without moments."""
        return [] if self._config.moments == "local" else [self._figures["moment_norm"] / len(self.folded)]

    def miss(self, site: str, outcome: str, reason: str) -> SiteRow:
        """Record a site that is not in the sum."""
        return self._settle(site, outcome, reason)

    # ---- the steps

    def _steps(self) -> Iterator[None]:
        """Do the steps, and yield when a site may have dropped out.

        Raises:
            WireError: no sum; one line states why.
        """
        adverts = dict(self._adverts())
        yield
        everyone = self._enough(adverts, "sent their keys")
        data = parcels.pack(keys={site: advert.to_bytes() for site, advert in adverts.items()})
        sealed = dict(self._shares(everyone, data))
        yield
        sharers = self._enough(sealed, "shared their keys")
        arrived = sorted(self._masked(sharers))
        yield
        self._enough(arrived, "sent an update")
        signatures = dict(self._signatures(arrived))
        self._enough(signatures, "signed the list of updates", self._threshold)
        opened = dict(self._opened(signatures, sealed, sharers, arrived))
        self._enough(opened, "released their shares", self._threshold)
        self._unmask(adverts, everyone, sharers, arrived, opened)

    def _enough(self, sites: Iterable[str], did: str, least: int = 0) -> list[str]:
        found, least = sorted(sites), least or self._least
        if len(found) < least:
            raise WireError(f"{len(found)} sites {did}, a secure sum needs {least}")
        return found

    def _adverts(self) -> Iterator[tuple[str, Advert]]:
        for site, data in self._ask("keys", dict.fromkeys(self._nodes)):
            try:
                (keys,) = parcels.unpack(data, "keys")
                advert = Advert.read(keys[site])
                advert.check(site, self._config.federation.members[site], self._context)
            except (WireError, KeyError) as error:
                self._settle(site, "refused", _why(error, "it sent no keys of its own"))
                continue
            yield site, advert

    def _shares(self, sites: list[str], data: bytes) -> Iterator[tuple[str, Parcel]]:
        for site, answer in self._ask("shares", dict.fromkeys(sites, data)):
            try:
                (sealed,) = parcels.unpack(answer, "sealed")
                if sorted(sealed) != [name for name in sites if name != site]:
                    raise WireError("its shares are not for each other site")
            except WireError as error:
                self._settle(site, "refused", str(error))
                continue
            yield site, sealed

    def _masked(self, sharers: list[str]) -> Iterator[str]:
        """Add up the masked updates, one at a time, and yield their sites."""
        names = ",".join(sharers)
        arrays = to_arrays(self._encoded)
        for site, data in self._ask("train", dict.fromkeys(sharers), sites=names, arrays=arrays):
            try:
                words, row = self._lattice.unpack(data, self._encoder)
            except WireError as error:
                self._settle(site, "refused", str(error))
                continue
            if self._words is None:
                self._words, self._row = words, row
            else:
                self._words += words
                self._row += row
            yield site

    def _signatures(self, arrived: list[str]) -> Iterator[tuple[str, bytes]]:
        names = ",".join(arrived)
        for site, data in self._ask("survivors", dict.fromkeys(arrived), sites=names):
            try:
                (signatures,) = parcels.unpack(data, "signatures")
                yield site, signatures[site]
            except (WireError, KeyError) as error:
                self._notes[site] = _why(error, "it signed nothing")

    def _opened(
        self, signatures: Parcel, sealed: Mapping[str, Parcel], sharers: list[str], arrived: list[str]
    ) -> Iterator[tuple[str, tuple[Parcel, Parcel]]]:
        """Yield the shares that each survivor releases: of own seeds, and of mask seeds."""
        parts: dict[str, bytes | None] = {
            site: parcels.pack(
                signatures=signatures,
                sealed={sender: sealed[sender][site] for sender in sharers if sender != site},
            )
            for site in signatures
        }
        for site, data in self._ask("unmask", parts):
            try:
                own, mask = parcels.unpack(data, "own", "mask")
                gone = sorted(set(sharers) - set(arrived))
                released = [*own.values(), *mask.values()]
                if (sorted(own), sorted(mask)) != (arrived, gone) or {*map(len, released)} != {SECRET}:
                    raise WireError("it released other shares than it was asked for")
            except WireError as error:
                self._notes[site] = str(error)
                continue
            yield site, (own, mask)

    # ---- messages

    def _ask(
        self,
        kind: str,
        data: Mapping[str, bytes | None],
        *,
        sites: str = "",
        arrays: ArrayRecord | None = None,
    ) -> Iterator[tuple[str, bytes]]:
        """Ask sites for a step and yield the bytes of each good reply; settle or note the others."""
        deadline = self._config.federation.deadline
        trains = kind == "train"
        limit = deadline if trains else min(_STEP, deadline)
        tasks = {self._nodes[s]: replace(self._tasks(s), sites=sites, budget=float(limit)) for s in data}
        parts = {self._nodes[s]: to_arrays(part) for s, part in data.items() if part is not None}
        waiting = {self._nodes[site]: site for site in data}
        late = kind in ("survivors", "unmask")  # its update is in the sum already
        for node, reply in self._mail.ask(
            tasks, "train" if trains else f"query.{kind}", limit, arrays or parts
        ):
            site = waiting.pop(node)
            try:
                yield site, self._answer(site, reply, trains)
            except (WireError, SiteFailedError) as error:
                outcome = "failed" if isinstance(error, SiteFailedError) else "refused"
                self._lose(site, outcome, str(error), note=late)
        for site in waiting.values():
            self._lose(site, "late", f"no reply to {kind} in {limit:g} s", note=late)

    def _answer(self, site: str, reply: Message | WireError, trains: bool) -> bytes:
        try:
            answer, task = wire.from_record(wire.SecureReply, fields_of(reply)), self._task
            other = (answer.round, answer.attempt, answer.fingerprint) != (
                task.round, task.attempt, task.fingerprint,
            )  # fmt: skip
            if other or answer.site != site:
                raise WireError("the reply does not answer this message")
            if trains:
                self._notes[site] = note_on_state(answer.state)
            return bytes_of(cast(Message, reply))
        finally:
            if isinstance(reply, Message):
                self._sent[site] += arrays_bytes(reply)
                drop_arrays(reply)

    def _lose(self, site: str, outcome: str, reason: str, *, note: bool) -> None:
        if note:
            self._notes[site] = reason
        else:
            self._settle(site, outcome, reason)

    def _settle(self, site: str, outcome: str, reason: str) -> SiteRow:
        sent = self._sent.get(site) or None
        row = SiteRow(self._task.round + 1, site, None, None, None, None, sent, outcome, reason)
        self.rows.append(row)
        return row

    # ---- the sum

    def _unmask(
        self,
        adverts: Mapping[str, Advert],
        everyone: list[str],
        sharers: list[str],
        arrived: list[str],
        opened: Mapping[str, tuple[Parcel, Parcel]],
    ) -> None:
        """Take from the sum the own masks of the sites in it, and those that they have with sites that dropped out.

        Raises:
            WireError: what is left is not a sum of updates: a site sent a false share or a malformed update.
        """
        givers = sorted(opened)[: self._threshold]
        places = {giver: everyone.index(giver) for giver in givers}
        for site in arrived:
            own = masking.join({places[giver]: opened[giver][0][site] for giver in givers})
            add_mask(self._words, self._row, masking.own_seed(own, site, self._masks), -1)
        for gone in sorted(set(sharers) - set(arrived)):
            seed = masking.join({places[giver]: opened[giver][1][gone] for giver in givers})
            if masking.mask_public(seed) != adverts[gone].mask:
                raise WireError(
                    f"the shares of {gone}'s mask key do not give that key: a site sent a false one"
                )
            for site in arrived:
                pair = masking.pair_seed(seed, gone, site, adverts[site].mask, self._masks)
                add_mask(self._words, self._row, pair, -1 if site < gone else 1)
        self._figures = figures_of(self._row, len(arrived), self._lattice.most)
        self._mean = self._lattice.mean(self._words, int(self._figures["weight"]), self._encoder)
        size, encoder = (codecs.norm(apart(tensors)[0]) for tensors in (self._mean, self._encoder))
        bound = self._config.federation.max_update_norm * encoder
        if size > bound:
            raise WireError(f"the mean's norm {size:.4g} is out of bounds (at most {bound:.4g})")


def _why(error: Exception, missing: str) -> str:
    return missing if isinstance(error, KeyError) else str(error)
