"""Train and measure the posture detector (`sscxr/data/pixels/posture.py`); see `docs/posture.md`.

    python bench/train_posture.py --data ../shared/data/cxr                        # train, then measure
    python bench/train_posture.py --data ../shared/data/cxr --leave-out nih        # a source never seen
    python bench/train_posture.py --data ../shared/data/cxr --measure-only

Data: folders with a `manifest.csv` each, used for training if the licence has no NC, and phantoms. By patient
group, 25 % are held out, 10 % set the thresholds. One thread and fixed seeds: every run gives the same weights. The
loss is the cross entropy over the 16 ways to undo a picture; only the first, which leaves it unchanged, is right:
with every picture the network sees all turns, mirrorings and inversions.
"""

import argparse
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from sscxr.data.phantoms import phantom
from sscxr.data.pixels import posture

STORE = 96  # px of the squares that training crops from
TEST_SHARE, THRESHOLD_SHARE = 0.25, 0.1
# Publications' pictures, cropped and annotated: for measuring only, whatever the licence.
TEST_ONLY = ("covid_idc",)


@dataclass
class Picture:
    """An upright picture: its source, its place in 0..1 by patient group, and the grey levels."""

    source: str
    place: float
    image: npt.NDArray[np.float32]


def place_of(group: str) -> float:
    """Return a patient group's place in 0..1; below TEST_SHARE it is held out."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) / 2**32


def read(data: Path, leave_out: str) -> tuple[list[Picture], dict[str, str]]:
    """Read all frontal pictures and the sources' licences. Pictures not for training are put in the test share."""
    pictures, licences = [], {}
    for manifest in sorted(data.glob("*/manifest.csv")):
        table = pd.read_csv(manifest, keep_default_na=False)
        for row in table[table["view"] != "L"].to_dict("records"):
            source, place = str(row["source"]), place_of(str(row["split_group"]))
            if (
                source in TEST_ONLY
                or re.search(r"\bNC\b", row["licence"])
                or (leave_out and leave_out in source)
            ):
                place = 0.0
            else:
                licences[source] = row["licence"]
            grey = Image.open(manifest.parent / row["file"]).convert("L")
            pictures.append(Picture(source, place, np.asarray(grey, dtype=np.float32) / 255))
    sites = [phantom.draw_site(np.random.default_rng([7, site]), "phantom") for site in range(24)]
    for number in range(1200):
        rng = np.random.default_rng([8, number])
        site = sites[number % len(sites)]
        patient = phantom.draw_patient(rng, child=bool(rng.random() < site.children))
        image, _, _ = phantom.draw(rng, style=site.style, patient=patient, size=160)
        pictures.append(Picture("phantom", place_of(f"phantom {number}"), image))
    return pictures, licences


class Network(nn.Module):
    """The network of `posture.scores`, in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(1, 12, 5, 2), nn.Conv2d(12, 24, 3, 2), nn.Conv2d(24, 24, 3, 1)])
        self.dense = nn.Linear(24 * 6 * 6, 32)
        self.score = nn.Linear(32, 1)

    def forward(self, squares: Tensor) -> Tensor:
        """[N, S, S] to [N]."""
        hidden = squares[:, None]
        for conv in self.convs:
            hidden = functional.relu(conv(hidden))
        hidden = functional.dropout(hidden.flatten(1), 0.2, self.training)
        hidden = functional.dropout(functional.relu(self.dense(hidden)), 0.1, self.training)
        return self.score(hidden)[:, 0]

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights in the layout that `posture.scores` reads."""
        found = {}
        for layer, conv in enumerate(self.convs):
            found[f"conv{layer}.weight"] = conv.weight.permute(2, 3, 1, 0)
            found[f"conv{layer}.bias"] = conv.bias
        # Rows of `dense` in numpy's order: row, column, channel.
        found["dense.weight"] = self.dense.weight.reshape(-1, 24, 6, 6).permute(2, 3, 1, 0).flatten(0, 2)
        found["dense.bias"] = self.dense.bias
        found["score.weight"], found["score.bias"] = self.score.weight.T, self.score.bias
        return {name: tensor.detach().contiguous().clone() for name, tensor in found.items()}


def undo(squares: Tensor) -> Tensor:
    """[N, S, S] to [N, 16, S, S], in the order of `posture.hypotheses`."""
    turns = [squares.rot90(quarter, (1, 2)) for quarter in range(4)]
    upright = torch.stack(turns + [turn.flip(2) for turn in turns], 1)
    return torch.cat([upright, -upright], 1)


def vary(squares: Tensor, generator: torch.Generator) -> Tensor:
    """Crops, slight turns, squashing, bars, local contrast, blur, noise; equalised. [N, 96, 96] to [N, 40, 40]."""
    count, side = len(squares), posture.SIDE

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle = torch.deg2rad(uniform(-10, 10)) * (uniform(0, 1) < 0.6)
    zoom, squeeze = torch.exp(uniform(-0.25, 0.08)), torch.exp(uniform(-0.12, 0.12))
    shift = uniform(-0.12, 0.12, 2)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    grid = torch.stack(
        [
            torch.stack([cos * squeeze, -sin, shift[:, 0]], 1),
            torch.stack([sin, cos / squeeze, shift[:, 1]], 1),
        ],
        1,
    )
    places = functional.affine_grid(grid, [count, 1, 2 * side, 2 * side], align_corners=False)
    # Beyond the picture there is black, white or more of the border, as cassettes and viewers leave it.
    outside = (places.abs() > 1).any(-1)[:, None].float()
    images = functional.grid_sample(squares[:, None], places, padding_mode="border", align_corners=False)
    fill = torch.where(uniform(0, 1) < 0.75, 0.0, 1.0)[:, None, None, None]
    filled = (uniform(0, 1) < 0.6)[:, None, None, None].float() * outside
    images = images * (1 - filled) + fill * filled
    images = functional.avg_pool2d(images, 2)
    local = functional.avg_pool2d(images, 9, 1, 4, count_include_pad=False)
    images = images + uniform(-0.5, 1.5, 1, 1, 1) * (images - local)
    # Haze over a part, as exposure, scatter and breasts make it, and opaque lungs.
    slope = torch.linspace(-1, 1, side)
    tilt = uniform(-0.25, 0.25, 1, 1, 1) * slope[:, None] + uniform(-0.25, 0.25, 1, 1, 1) * slope
    images = images + tilt + uniform(0, 0.04, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    # Saturated ends: many levels become one rank.
    low, high = uniform(-0.1, 0.15, 1, 1, 1), uniform(0.85, 1.1, 1, 1, 1)
    flat = torch.minimum(torch.maximum(images, low), high).flatten(1).contiguous()
    ordered = flat.sort(1).values
    ranks = torch.searchsorted(ordered, flat) + torch.searchsorted(ordered, flat, right=True)
    return (ranks.float() / flat.shape[1] - 1).view(count, side, side)


def squares_of(pictures: list[Picture]) -> Tensor:
    """Return the trimmed and squashed pictures, float32 [N, 96, 96]."""
    found = np.empty((len(pictures), STORE, STORE), dtype=np.float32)
    for row, picture in enumerate(pictures):
        found[row] = Image.fromarray(posture.trim(picture.image)).resize((STORE, STORE), Image.Resampling.BOX)
    return torch.from_numpy(found)


def train(pictures: list[Picture], steps: int, seed: int) -> Network:
    """Train on all but the held-out and the threshold shares, the sources in equal parts."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    chosen = [picture for picture in pictures if picture.place >= TEST_SHARE + THRESHOLD_SHARE]
    squares = squares_of(chosen)
    # The square root keeps a small source from being learned by heart and a large one from drowning it.
    counts = pd.Series([picture.source for picture in chosen])
    odds = torch.tensor(counts.map(counts.value_counts() ** -0.5).to_numpy(), dtype=torch.float32)
    print(f"training on {counts.value_counts().to_dict()}, {steps} steps")
    network = Network()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps, pct_start=0.1)
    network.train()
    for step in range(steps):
        rows = torch.multinomial(odds, 64, replacement=True, generator=generator)
        ways = undo(vary(squares[rows], generator))
        logits = network(ways.flatten(0, 1)).view(len(rows), 16)
        loss = functional.cross_entropy(
            logits, torch.zeros(len(rows), dtype=torch.long), label_smoothing=0.01
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            right = (logits.argmax(1) == 0).float().mean()
            print(f"step {step:5d}  loss {loss.item():.4f}  right {right:.3f}", flush=True)
    return network.eval()


def set_thresholds(network: Network, pictures: list[Picture], seed: int) -> dict[str, float]:
    """Return log odds that varied upright pictures of the threshold share exceed too rarely to matter."""
    generator = torch.Generator().manual_seed(seed + 1)
    share = [picture for picture in pictures if TEST_SHARE <= picture.place < TEST_SHARE + THRESHOLD_SHARE]
    squares = squares_of(share)
    none = {"rotation": np.inf, "inversion": np.inf, "mirror": np.inf}
    odds = []
    for _ in range(6):
        with torch.no_grad():
            values = network(undo(vary(squares, generator)).flatten(0, 1)).view(-1, 16).numpy()
        odds += [posture.judge(row, none) for row in values]
    table = pd.DataFrame([vars(one) for one in odds])
    found = {}
    for name, false_alarms in (("rotation", 5e-4), ("inversion", 5e-4), ("mirror", 3e-3)):
        # Never below 2: odds of about 7 to 1.
        found[name] = max(2.0, float(table[f"{name}_odds"].quantile(1 - false_alarms)))
    print("thresholds", {name: round(value, 2) for name, value in found.items()})
    return found


CHANGES: dict[str, Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]] = {
    "upright": lambda image: image,
    "gamma 0.6": lambda image: image**0.6,
    "gamma 1.8": lambda image: image**1.8,
    "bars": lambda image: np.pad(image, ((0, 0), (image.shape[1] // 4, image.shape[1] // 4))),
    "squashed": lambda image: image[::2],
    "cropped 10 %": lambda image: image[
        image.shape[0] // 10 : -image.shape[0] // 10, image.shape[1] // 10 : -image.shape[1] // 10
    ],
    "90": lambda image: np.rot90(image, -1),
    "180": lambda image: np.rot90(image, 2),
    "270": lambda image: np.rot90(image, 1),
    "inverted": lambda image: 1 - image,
    "mirrored": lambda image: image[:, ::-1],
}
# Changes after which the picture is still the right way up and round: what is flagged is a false alarm.
HARMLESS = tuple(CHANGES)[:6]


def measure(pictures: list[Picture], detector: posture.Detector) -> pd.DataFrame:
    """Run `posture.look` on held-out pictures; return one row per picture and change."""
    rows = []
    for number, picture in enumerate(pictures):
        if picture.place >= TEST_SHARE:
            continue
        for change, apply in CHANGES.items():
            found = posture.look(apply(picture.image), detector)
            rows.append({"source": picture.source, "picture": number, "change": change, **vars(found)})
    return pd.DataFrame(rows)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return percentages by source: false alarms of what quarantines and of mirroring, then sensitivities."""

    def one(rows: pd.DataFrame) -> pd.Series:
        def share(change: str, right: Callable[[pd.DataFrame], "pd.Series[bool]"]) -> float:
            return float(100 * right(rows[rows["change"] == change]).mean())

        upright, varied = rows[rows["change"] == "upright"], rows[rows["change"].isin(HARMLESS)]
        found = {
            "images": len(upright),
            "false %": 100 * ((upright["rotation"] > 0) | upright["inverted"]).mean(),
            "false, varied %": 100 * ((varied["rotation"] > 0) | varied["inverted"]).mean(),
            "false mirror %": 100 * upright["mirrored"].mean(),
            "false mirror, varied %": 100 * varied["mirrored"].mean(),
        }
        for change in ("90", "180", "270"):
            found[change] = share(change, lambda part, turn=int(change): part["rotation"] == turn)
        found["inverted"] = share("inverted", lambda part: part["inverted"])
        found["mirrored"] = share("mirrored", lambda part: part["mirrored"])
        return pd.Series(found)

    by_source = {source: one(rows) for source, rows in table.groupby("source")}
    real = one(table[~table["source"].isin(["phantom", *TEST_ONLY])])
    return pd.DataFrame({**by_source, "all real, but TEST_ONLY": real}).T.round(2)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and measure the posture detector.")
    parser.add_argument("--data", type=Path, required=True, help="folder of folders with a manifest.csv")
    parser.add_argument("--out", type=Path, default=posture.WEIGHTS)
    parser.add_argument(
        "--leave-out", default="", help="a source (part of its name) to test on only; writes nothing"
    )
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-only", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pictures, licences = read(given.data, given.leave_out)
    if given.measure_only:
        detector = posture.load(given.out)
    else:
        network = train(pictures, given.steps, given.seed)
        thresholds = set_thresholds(network, pictures, given.seed)
        metadata = {f"threshold.{name}": f"{value:.4f}" for name, value in thresholds.items()}
        metadata["data"] = json.dumps({**licences, "phantom": phantom.LICENCE})
        metadata["recipe"] = f"bench/train_posture.py --steps {given.steps} --seed {given.seed}"
        metadata["held_out"] = f"split_group with sha256[:8] / 2**32 below {TEST_SHARE}"
        tensors = network.tensors()
        if not given.leave_out:
            save_file(tensors, given.out, metadata)
        detector = posture.Detector({name: tensor.numpy() for name, tensor in tensors.items()}, thresholds)
    table = measure(pictures, detector)
    summary = summarise(table)
    print(summary.to_string())
    if given.json:
        given.json.write_text(json.dumps(summary.to_dict("index"), indent=1))


if __name__ == "__main__":
    main()
