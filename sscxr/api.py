"""The interface for notebooks: `Run`, a run by its folder, and `load_encoder`.

torch is imported only for encoders: that takes seconds, and a run's tables do not need it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sscxr import config as configs
from sscxr import runs
from sscxr.config import Config
from sscxr.files import expanded
from sscxr.runs import RunError, Status, natural

if TYPE_CHECKING:
    from torch import nn

_PROBE_COLUMNS = ["label", "cohort", "kind", "auroc", "low", "high", "untrained", "gain", "gain_low", "gain_high",
                  "test_images", "test_positives", "test_patients"]  # fmt: skip
_SCORE_COLUMNS = ["site", "figure", "images", "test_images", "test_patients", "federated", "alone", "gap",
                  "gap_low", "gap_high", "where"]  # fmt: skip


class Run:
    """A run, by its folder. Each attribute reads the files again, so it is up to date while the run is going.

    Attributes:
        folder: its folder.
    """

    def __init__(self, folder: str | Path) -> None:
        """Open a run's folder.

        Raises:
            RunError: the folder has no run.
        """
        self.folder = expanded(folder)
        if not (self.folder / runs.CONFIG).is_file():
            raise RunError(f"{self.folder}: no run has started there (no {runs.CONFIG})")

    def __repr__(self) -> str:
        sites = self.sites
        number = sites["site"].nunique()
        try:
            outcome = self.status.line()
        except RunError:  # its first moment
            outcome = "starting"
        return f"Run({str(self.folder)!r}: {number} site{'' if number == 1 else 's'}, {outcome})"

    @property
    def status(self) -> Status:
        """The state of the run."""
        return runs.read_status(self.folder)

    @property
    def config(self) -> Config:
        """All its settings; those of later versions are at their defaults."""
        return configs.load(self.folder / runs.CONFIG, foreign=True)

    @property
    def sites(self) -> pd.DataFrame:
        """One row per site and attempt at a round: the fields of `SiteRow`."""
        return runs.read_sites(self.folder / runs.SITES)

    @property
    def rounds(self) -> pd.DataFrame:
        """One row per round, by its number: sites, images, loss, held_out_loss, bytes_up, seconds and so on."""
        records = runs.read_rounds(self.folder / runs.ROUNDS)
        plain = [{key: cell for key, cell in one.items() if not isinstance(cell, dict)} for one in records]
        table = pd.DataFrame(plain) if plain else pd.DataFrame({"round": []}, dtype=int)
        return table.set_index("round")

    @property
    def held_out(self) -> pd.DataFrame:
        """One row per site and evaluation: round, site, loss, score; unreported cells are empty."""
        rows = []
        for one in runs.read_rounds(self.folder / runs.ROUNDS):
            losses, scores = one.get("held_out") or {}, one.get("scores") or {}
            for site in sorted(losses.keys() | scores.keys(), key=natural):
                rows.append((one["round"], site, losses.get(site), scores.get(site)))
        return pd.DataFrame(rows, columns=["round", "site", "loss", "score"])

    @property
    def probes(self) -> pd.DataFrame:
        """One row per probe, with 95 % intervals: AUROC, and the gain over the untrained encoder.

        Empty until the run has ended, and without labels: a real server measures none.
        """
        rows = []
        for pair in runs.read_list(self.folder / runs.PROBES):
            rows.append(
                pair["trained"]
                | {"untrained": pair["untrained"]["auroc"], "gain": pair["gain"]}
                | {"gain_low": pair["low"], "gain_high": pair["high"]}
            )
        return pd.DataFrame(rows, columns=_PROBE_COLUMNS)

    @property
    def scores(self) -> pd.DataFrame:
        """The run's model, or encoder, against sites' own: one row per site, figure and kind of patients."""
        rows = []
        for one in (one for name in (runs.SCORES, runs.ALONE) for one in runs.read_list(self.folder / name)):
            values = {name: (one[name] or {}).get("value") for name in ("federated", "alone", "gap")}
            ends = {f"gap_{end}": (one["gap"] or {}).get(end) for end in ("low", "high")}
            rows.append({"where": runs.OWN} | one | values | ends)
        return pd.DataFrame(rows, columns=_SCORE_COLUMNS)

    def encoder(self) -> "nn.Module":
        """Return its released encoder, as from `sscxr.load_encoder`; before its end, that of the last round.

        Raises:
            RunError: no round is done yet.
        """
        from sscxr import stages
        from sscxr.release import release

        released = self.folder / "encoder"
        if (released / release.WEIGHTS).is_file():
            return release.load_encoder(released)
        config = self.config
        encoder = stages.of(config).encoder(self._last_checkpoint())
        about: Any = encoder.pretrained_cfg
        about.update(mean=(config.data.mean,), std=(config.data.std,))  # as in a release
        return encoder.eval()

    def _last_checkpoint(self) -> dict[str, Any]:
        """Return the tensors of the last committed round."""
        import safetensors.torch

        for folder in sorted((self.folder / "checkpoints").glob("round-?????"), reverse=True):
            try:
                return safetensors.torch.load_file(folder / "encoder.safetensors")
            except FileNotFoundError:  # just deleted, in favour of newer ones
                continue
        raise RunError(f"{self.folder}: no round is finished yet, so there is no encoder")


def load_encoder(path_or_url: str | Path, *, key: str | Path | None = None) -> "nn.Module":
    """Load a released encoder as a timm ViT in eval mode; an address is fetched, and checksums are verified.

    Called on normalised images [B, C, H, W] it returns [B, D], the mean of the patch tokens;
    `sscxr.release.release.input_norm` returns the normalisation for grey levels 0..1.

    Args:
        path_or_url: a folder (a release, or a run's `encoder`), or an http or https address.
        key: file of the Ed25519 public key that must verify the release's signature; None: not checked.

    Raises:
        SscxrError: one line states what is wrong.
    """
    from sscxr.release import fetch, release, signing

    return release.load_encoder(fetch.located(path_or_url, key=signing.read_public(key) if key else None))
