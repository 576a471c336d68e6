"""One attempt at one round: each reply is checked, and valid updates are added to the sum.

Errors in a reply are recorded in its row of `sites.csv`; nothing that a site sends stops a round.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median_low

import torch
from flwr.app import Array, ArrayRecord, Message
from torch import Tensor

from server import robust
from server.aggregate import FoldError
from server.agreement import Agreement
from server.bounds import Bounds, usual_of_moments
from server.mail import record_bytes
from sscxr.config import FederationConfig
from sscxr.federation import codecs, wire
from sscxr.federation.limits import clip
from sscxr.federation.wire import ARRAYS, RECORD, WireError
from sscxr.runs import SiteRow
from sscxr.training.parts import apart

_STATE_NOTES = {"lost": "its state was missing or damaged; it started without it"}
# flwr.common.constant.ErrorCode, in words.
_FLOWER_ERRORS = {
    1: "its client app could not be loaded",
    2: "its client app raised an exception",
    3: "the message expired",
    4: "the reply expired",
    5: "its SuperNode went away",
    8: "its client process ended or hung",
}


class SiteFailedError(RuntimeError):
    """A site reported that it failed, or Flower did so for it.

    Attributes:
        site: its name, if it sent one.
    """

    def __init__(self, line: str, site: str = "") -> None:
        super().__init__(line)
        self.site = site


class Fold:
    """The sum of one attempt, and the outcome of each site.

    Attributes:
        total: the valid updates, under `federation.rule`.
        rows: one per site, in the order of arrival.
        folded: site -> the generation that its update belongs to.
        losses: site -> its mean training loss, if it reports one, and the images that count.
        counted: site -> the images that count.
        costs: site -> what the run has cost a patient of it so far, epsilon and delta, if it trains privately.
        images: site -> the images that it trained on, at most those that it joined with.
    """

    def __init__(
        self,
        settings: FederationConfig,
        encoder: Mapping[str, Tensor],
        fingerprint: str,
        bounds: Bounds,
        round_number: int,
        attempt: int,
        folder: Path,
    ) -> None:
        """Start with an empty sum.

        Args:
            encoder: the server's encoder, fp32.
            bounds: how far one site may move it.
            fingerprint, round_number, attempt: values that a reply must repeat.
            folder: the run's, for updates that have to wait.
        """
        self.total = robust.total(settings.rule, encoder, folder)
        self.rows: list[SiteRow] = []
        self.folded: dict[str, str] = {}
        self.losses: dict[str, tuple[float, int]] = {}
        self.counted: dict[str, int] = {}
        self.costs: dict[str, tuple[float, float]] = {}
        self.images: dict[str, int] = {}
        self._agreement = Agreement(apart(encoder)[0], round_number)
        self._norms: list[float] = []
        self._moment_norms: list[float] = []
        self._bounds = bounds
        self._settings, self._encoder, self._fingerprint = settings, encoder, fingerprint
        self._round, self._attempt = round_number, attempt
        # Memory that each update is decoded into in turn.
        self._update = {name: torch.empty(tensor.shape) for name, tensor in encoder.items()}
        self._bound = settings.max_update_norm * codecs.norm(apart(encoder)[0])

    def add(self, site: str, reply: Message | WireError) -> SiteRow:
        """Check one site's reply and add it to the sum; its arrays are dropped in any case."""
        if isinstance(reply, WireError):
            return self.miss(site, "refused", str(reply))
        sent = arrays_bytes(reply)
        try:
            row = self._checked(site, reply, sent)
        except (WireError, FoldError) as error:
            return self.miss(site, "refused", str(error), sent)
        except SiteFailedError as error:
            return self.miss(site, "failed", str(error))
        finally:
            drop_arrays(reply)
        self.rows.append(row)
        return row

    def miss(self, site: str, outcome: str, reason: str, sent: int | None = None) -> SiteRow:
        """Record a site that is not in the sum, and the bytes that it sent in vain."""
        row = SiteRow(self._round + 1, site, None, None, None, None, sent, outcome, reason)
        self.rows.append(row)
        return row

    def _checked(self, site: str, reply: Message, sent: int) -> SiteRow:
        answer = wire.from_record(wire.TrainReply, fields_of(reply))
        asked = {
            "site": site, "round": self._round, "attempt": self._attempt, "fingerprint": self._fingerprint,
        }  # fmt: skip
        other = [name for name, value in asked.items() if getattr(answer, name) != value]
        if other:
            raise WireError(f"the reply does not answer this message: it has another {', '.join(other)}")
        if not (1 <= answer.images <= wire.MAX_COUNT and answer.steps >= 1 and answer.seconds >= 0):
            raise WireError("images, steps or seconds out of range")
        if answer.loss != wire.NO_LOSS and not 0 <= answer.loss <= wire.MAX_LOSS:
            raise WireError("loss out of range")
        if not (0 <= answer.epsilon <= wire.MAX_LOSS and 0 <= answer.delta < 1):
            raise WireError("epsilon or delta out of range")
        if site in self.folded:
            raise WireError("a second reply")
        update = codecs.decode(bytes_of(reply), self._settings.uplink, self._encoder, into=self._update)
        weights, moments = apart(update)
        size = codecs.norm(weights)
        if size > self._bound:
            raise WireError(f"norm {size:.4g} out of bounds (at most {self._bound:.4g})")
        notes = [note_on_state(answer.state)]
        images = self._bounds.counted(site, answer.images)
        if images < answer.images:
            notes.append(f"it counts as {images} images")
        kept = clip(weights, size, self._bounds.norm(site, answer.images))
        if kept < size:
            notes.append(f"its update of norm {size:.4g} was clipped to {kept:.4g}")
        if moments:
            length = codecs.norm(moments)
            kept_moments = clip(moments, length, self._bounds.moment_norm())
            if kept_moments < length:
                notes.append(f"its moments' change of norm {length:.4g} was clipped to {kept_moments:.4g}")
            self._moment_norms.append(kept_moments)
        weight = self._bounds.weight(site, answer.images)
        self.total.add(update, weight)
        self._agreement.add(site, weights, weight)
        self.folded[site] = wire.generation(self._round, self._attempt)
        loss = None if answer.loss == wire.NO_LOSS else answer.loss
        if loss is not None:
            self.losses[site] = (loss, images)
        if answer.epsilon:
            self.costs[site] = (answer.epsilon, answer.delta)
        self.counted[site] = images
        self.images[site] = self._bounds.images(site, answer.images)
        self._norms.append(self._bounds.relative(site, answer.images, kept))
        return SiteRow(
            self._round + 1,
            site,
            answer.images,
            loss,
            size,
            answer.seconds,
            sent,
            "folded",
            "; ".join(filter(None, notes)),
        )

    def mean(self) -> dict[str, Tensor]:
        """Return the average of the updates, fp32."""
        return self.total.mean()

    def trained(self) -> tuple[int, float | None]:
        """Return the images of all sites that count, and their mean training loss."""
        return sum(self.counted.values()), weighted(self.losses)

    def cosines(self) -> dict[str, float]:
        """Return how far each site's update points the way of the others', see `Agreement.cosines`."""
        return self._agreement.cosines()

    def norm(self) -> float:
        """Return the usual norm of this round's updates, for later rounds."""
        return median_low(self._norms)

    def moment_norm(self) -> list[float]:
        """Return the usual norm of the changes of this round's moments, in a list; empty without moments."""
        return [usual_of_moments(self._moment_norms)] if self._moment_norms else []


def weighted(losses: Mapping[str, tuple[float, int]]) -> float | None:
    """Return the mean over images of sites' figures, from (figure, images) by site; None without images."""
    images = sum(count for _, count in losses.values())
    if not images:
        return None
    # Summed in the sites' order by name: the same figure whatever the order of the replies.
    return math.fsum(loss * count for _, (loss, count) in sorted(losses.items())) / images


def note_on_state(state: str) -> str:
    """Return a remark on a site's state; empty if it is as usual."""
    return _STATE_NOTES.get(state, "")


def arrays_bytes(reply: Message) -> int:
    """Return the bytes of a reply's arrays."""
    records = reply.content.array_records.values() if reply.has_content() else ()
    return sum(record_bytes(record) for record in records)


def drop_arrays(reply: Message) -> None:
    """Free a reply's arrays now: Flower's records are in reference cycles, which wait for the collector."""
    if reply.has_content():
        for record in reply.content.array_records.values():
            record.clear()


def fields_of(reply: Message | WireError) -> dict[str, object]:
    """Return a reply's flat record.

    Raises:
        SiteFailedError: the reply is an error, or a failure that the site reports.
        WireError: the record is missing; or the reply is itself this error, in place of an unreadable message.
    """
    if isinstance(reply, WireError):
        raise reply
    if reply.has_error():
        # The text comes from another machine's exception; it is not repeated.
        code = int(reply.error.code)
        raise SiteFailedError(f"no reply: {_FLOWER_ERRORS.get(code, 'an error')} (Flower error {code})")
    if RECORD not in reply.content.config_records:
        raise WireError(f"a reply without its record {RECORD!r}")
    record: dict[str, object] = dict(reply.content.config_records[RECORD])
    if "failure" in record:
        answer = wire.from_record(wire.Failure, record)
        reason = wire.FAILURES.get(answer.failure, "it failed for a reason that is not on the list")
        raise SiteFailedError(reason, answer.site)
    return record


def to_arrays(data: bytes) -> ArrayRecord:
    """Return an encoder's bytes in Flower's form: one array, which it sends in pieces of 5 MB.

    With an array for each tensor, every hop would make two requests for each, one after the other.
    """
    return ArrayRecord({ARRAYS: Array("uint8", (len(data),), "bytes", data)})


def bytes_of(reply: Message) -> bytes:
    """Return the bytes of a reply's update.

    Raises:
        WireError: the reply does not have exactly one array.
    """
    arrays = list(reply.content.array_records.get(ARRAYS, {}).values())
    if len(arrays) != 1:
        raise WireError(f"a reply without its update ({len(arrays)} arrays, expected one)")
    return arrays[0].data
