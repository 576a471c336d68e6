"""A fine-tuned model: an encoder with a head or decoder, in memory and as a folder.

    model.safetensors   the whole model, float32: `encoder.*` by timm's names, then `head.*` or `decoder.*`
    config.json         its specification: `Spec`
    SHA256SUMS          of these two
    settings.yaml       the settings it was trained with
    history.jsonl       one line an epoch
    trained_on.csv      salted hashes of the patient groups it learned from; it stays at the site
    evaluation.json     figures on patients that it has not seen
    README.md           the card

The first three are the model; a folder of these alone can be loaded.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import safetensors
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from sscxr import __version__, files, seeds
from sscxr import config as configs
from sscxr.config import Config
from sscxr.errors import SscxrError
from sscxr.finetuning import KINDS
from sscxr.models import checkpoint
from sscxr.models import encoder as encoders
from sscxr.release import config_file, release, signing

Model: TypeAlias = nn.Module  # Classifier or UNETR: has `encoder`, gives logits

WEIGHTS, CONFIG = "model.safetensors", "config.json"
SETTINGS, HISTORY, TRAINED_ON = "settings.yaml", "history.jsonl", "trained_on.csv"
EVALUATION, CARD = "evaluation.json", "README.md"


class FinetunedError(SscxrError):
    """A model cannot be built, read or written; one line states why."""


@dataclass(frozen=True)
class Spec:
    """The specification of a fine-tuned model.

    Attributes:
        task: "classify" or "segment": of `KINDS`.
        architecture: timm's name of the encoder.
        model_args: img_size (as fine-tuned), patch_size, in_chans, and depth if it differs from the name's.
        mean, std: grey levels (0..1) that normalise the input.
        labels: classify: the logits' names, in their order; segment: the structure in the mask.
        pool: classify: how tokens become a feature, "mean" or "cls".
        feature_size: segment: channels of the decoder at full resolution.
        encoder_sha256: of the pretrained weights it began from; "" if it began untrained.
        code_version: of sscxr.
    """

    task: str
    architecture: str
    model_args: dict[str, Any]
    mean: float
    std: float
    labels: list[str]
    pool: str = "mean"
    feature_size: int = 16
    encoder_sha256: str = ""
    code_version: str = __version__

    @property
    def img_size(self) -> int:
        """Return the px a side of the encoder's input."""
        return int(self.model_args["img_size"])


def build(spec: Spec, *, drop_path: float = 0.0) -> Model:
    """Return the model with random weights. Its initialisation draws from torch's global generator.

    Raises:
        FinetunedError: the task is unknown, or the sizes do not fit each other.
        EncoderError: see `encoder.build`.
    """
    encoder = encoders.build(spec.architecture, **spec.model_args, drop_path=drop_path)
    if spec.task not in KINDS:
        raise FinetunedError(f"task {spec.task!r} is none of {', '.join(KINDS)}")
    try:
        return KINDS[spec.task].build(encoder, spec)
    except ValueError as error:
        raise FinetunedError(str(error)) from None


def encoder_settings(folder: str | Path) -> list[str]:
    """Return overrides that describe the released encoder in `folder`, e.g. "encoder.patch_size=8".

    Raises:
        FinetunedError, ReleaseError: there is no released encoder, or this code cannot build it.
    """
    facts = _released(Path(folder))
    args = facts["model_args"]
    settings = {f"encoder.{name}": args.get(name) for name in ("img_size", "patch_size", "depth")}
    settings |= {"encoder.name": facts["architecture"], "encoder.in_chans": 1}
    settings |= {"data.mean": facts["mean"], "data.std": facts["std"]}
    return [configs.setting(name, value) for name, value in settings.items()]


def spec_of(config: Config, *, encoder_sha256: str = "") -> Spec:
    """Return the specification of the model that a run's settings describe; `run.stage` names the task."""
    return Spec(
        task=config.run.stage,
        architecture=config.encoder.name,
        model_args=encoders.args_of(config.encoder, config.finetune.img_size),
        mean=config.data.mean,
        std=config.data.std,
        labels=list(KINDS[config.run.stage].labels(config)),
        pool=config.classify.pool,
        feature_size=config.segment.feature_size,
        encoder_sha256=encoder_sha256,
    )


def start(folder: str | Path | None, config: Config, *, untrained: bool = False) -> tuple[Model, Spec]:
    """Return the model before fine-tuning: a released encoder, with a head or decoder by the run's seed.

    Args:
        folder: a released encoder's; `config` has its settings (`encoder_settings`). None: random weights.
        config: `run.stage` names the task; `finetune.img_size` may differ from the encoder's input size; the
            position embeddings are then resampled.
        untrained: keep the encoder's random weights, as a baseline of the same network.

    Raises:
        FinetunedError, ReleaseError, SigningError, EncoderError: one line states what does not fit.
    """
    trained = folder is not None and not untrained
    sha256 = files.sha256(Path(folder) / release.WEIGHTS) if folder is not None and trained else ""
    spec = spec_of(config, encoder_sha256=sha256)
    drop_path = 0.0 if config.finetune.frozen else config.finetune.drop_path
    with seeds.forked(config.run.seed, spec.task, "start"):
        model = build(spec, drop_path=drop_path)
    if folder is not None and trained:
        load_encoder(cast(VisionTransformer, model.encoder), folder)
    return model, spec


def load_encoder(encoder: VisionTransformer, folder: str | Path) -> None:
    """Load exactly the tensors of a released encoder; three input channels are summed to one.

    Raises:
        FinetunedError, ReleaseError, SigningError: see `start`.
    """
    _released(Path(folder))
    state = release.load_encoder(folder).state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    checkpoint.sum_channels(state)
    try:
        encoder.load_state_dict(checkpoint_filter_fn(state, encoder), strict=True)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FinetunedError(f"the encoder in {folder} does not fit the model: {reason}") from None


def notes_on_start(folder: str | Path, config: Config) -> list[str]:
    """Return a line for the user on each change to the encoder in `folder` at the start."""
    facts = _released(Path(folder))
    trained_at, wanted = int(facts["model_args"]["img_size"]), config.finetune.img_size
    notes = []
    if wanted and wanted != trained_at:
        notes.append(
            f"the encoder was pretrained at {trained_at} px: its position embeddings are resampled to {wanted} px"
        )
    if facts["model_args"]["in_chans"] == 3:
        notes.append("the encoder takes three channels: its filters are summed to one for grey images")
    return notes


def refuse(folder: str | Path, *, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless it holds a fine-tuned model that may be overwritten."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder.is_dir() and (folder / WEIGHTS).is_file() and is_model(folder)):
        raise FinetunedError(f"{folder} holds something other than a fine-tuned model; choose another folder")
    if not overwrite:
        raise FinetunedError(f"{folder} holds a fine-tuned model; choose another folder, or give --force")


def save(
    folder: str | Path,
    model: Model,
    spec: Spec,
    *,
    extra: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a fine-tuned model; it appears whole or not at all. The same model gives the same bytes.

    Args:
        folder: the folder to write.
        extra: further files, as name and text.
        overwrite: replace a fine-tuned model that is there.

    Raises:
        FinetunedError: the weights are not finite, or the folder is not empty.
    """
    folder = Path(folder)
    refuse(folder, overwrite=overwrite)
    place = folder.resolve()  # "." has no name
    state = release.weights_of(model)
    if bad := release.not_finite(state):
        raise FinetunedError(f"the model is not saved: {bad} holds NaN or Inf")
    text = json.dumps(dataclasses.asdict(spec), indent=2, ensure_ascii=False)
    with files.whole_folder(place) as fresh:
        files.save_tensors(state, fresh / WEIGHTS, {"format": "pt"})
        (fresh / CONFIG).write_text(text + "\n", encoding="utf-8")
        (fresh / signing.SUMS).write_bytes(signing.sums_of(fresh, (WEIGHTS, CONFIG)))
        for name, content in (extra or {}).items():
            (fresh / name).write_text(content, encoding="utf-8")
    return folder


def load(folder: str | Path) -> tuple[Model, Spec]:
    """Load a fine-tuned model, in eval mode on the CPU, and its spec. torch's global generator is unchanged.

    Raises:
        FinetunedError: there is no model, or a damaged one, or a pickle, which could run code and is never loaded.
        SigningError: a file does not match SHA256SUMS.
    """
    folder = Path(folder)
    spec = read_spec(folder)
    if (folder / signing.SUMS).is_file():
        text = (folder / signing.SUMS).read_bytes()
        signing.check(folder, signing.parse_sums(text, (WEIGHTS, CONFIG), str(folder / signing.SUMS)))
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError) as error:
        raise FinetunedError(
            f"{folder / WEIGHTS} is not a whole safetensors file ({error}); refused"
        ) from None
    try:
        with torch.random.fork_rng(devices=[]):
            model = build(spec)
        model.load_state_dict(state, strict=True)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FinetunedError(f"{folder}: {WEIGHTS} and {CONFIG} do not belong together: {reason}") from None
    if bad := release.not_finite(model.state_dict()):
        raise FinetunedError(f"the model in {folder} cannot be used: {bad} holds NaN or Inf")
    return model.eval(), spec


def read_spec(folder: str | Path) -> Spec:
    """Read the specification of the fine-tuned model in `folder`.

    Raises:
        FinetunedError: see `load`.
    """
    folder = Path(folder)
    files.check_readable(folder, (WEIGHTS, CONFIG))
    absent = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if absent:
        raise FinetunedError(
            f"{folder} is not a fine-tuned model: it has no {' and no '.join(absent)}{_pickles(folder)}"
        )
    try:
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FinetunedError(f"{folder / CONFIG} is not readable ({error})") from None
    if isinstance(facts, dict) and "pretrained_cfg" in facts:
        raise FinetunedError(
            f"{folder} is an encoder, not a fine-tuned model; `sscxr finetune` makes one from it"
        )
    try:
        spec = Spec(**facts)
        well = _is_well(spec)
    except (TypeError, AttributeError, KeyError, ValueError):
        well = False
    if not well:
        raise FinetunedError(f"{folder / CONFIG} does not describe a fine-tuned model of this sscxr")
    return spec


def _is_well(spec: Spec) -> bool:
    """Return whether each part has the right type; building the model shows whether they fit each other."""
    sizes = [spec.img_size, *(value for name, value in spec.model_args.items() if name != "img_size")]
    return (
        spec.task in KINDS
        and isinstance(spec.architecture, str)
        and all(isinstance(size, int) and size > 0 for size in [*sizes, spec.feature_size])
        and math.isfinite(spec.mean)
        and 0 < spec.std < math.inf
        and isinstance(spec.labels, list)
        and bool(spec.labels)
        and all(label and isinstance(label, str) for label in spec.labels)
    )


def _released(folder: Path) -> dict[str, Any]:
    """Return a released encoder's architecture, model_args, mean and std."""
    files.check_readable(folder, (WEIGHTS, CONFIG))
    release.refuse_no_folder(folder)
    if is_model(folder):
        raise FinetunedError(f"{folder} is a fine-tuned model; give the encoder that it began from")
    if not (folder / WEIGHTS).is_file() and _pickles(folder):
        raise FinetunedError(f"{folder} is not a released encoder: it has no {WEIGHTS}{_pickles(folder)}")
    if not (folder / CONFIG).exists():
        raise FinetunedError(f"{folder} is not a released encoder: it has no {CONFIG}{release.below(folder)}")
    facts = config_file.read(folder)
    about = facts["pretrained_cfg"]
    mean, std = (sum(about[name]) / len(about[name]) for name in ("mean", "std"))
    args = {"in_chans": 3, "img_size": 224, **config_file.checked_args(folder, facts)}
    if args["in_chans"] not in (1, 3):
        raise FinetunedError(f"the encoder in {folder} takes {args['in_chans']} channels; X-rays have one")
    if "patch_size" not in args:
        raise FinetunedError(f"{folder / CONFIG} does not state the encoder's patch_size")
    return {"architecture": facts["architecture"], "model_args": args, "mean": mean, "std": std}


def is_model(folder: Path) -> bool:
    """Return whether a folder holds a fine-tuned model, by its config alone."""
    try:
        facts = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and facts.get("task") in [*KINDS]


def _pickles(folder: Path) -> str:
    """Return a remark on a pickle in the place of safetensors; empty if there is none."""
    found = [path.name for path in sorted(folder.glob("*")) if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    return f"; {found[0]} is a pickle, which could run code, and is refused" if found else ""
