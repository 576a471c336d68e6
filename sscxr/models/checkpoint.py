"""Loads a public checkpoint, in the forms that people save, as the start of an encoder that it must fit."""

import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

from sscxr.files import check_readable
from sscxr.models.encoder import EncoderError, build

_PATCHES = "patch_embed.proj.weight"  # marks where a ViT's own names begin
_OTHER_FORMS = ("visual.class_embedding", "preprocessor.patchifier.proj.weight", "radio_model.model.")
# Of two copies timm takes the averaged one (`load_state_dict(use_ema=True)`), and so do DINO's users.
_AVERAGED, _SECOND = ("ema", "teacher"), ("student", "momentum", "target", "decoder", "encoder_k")
# Parts on top of an encoder, or beside it in pretraining, which are left out of every start.
_NOT_OURS = (
    "head", "fc.", "classifier.", "pre_logits.", "decoder", "mask_token", "attn_pool.", "projector.", "predictor.",
    "proj_head.", "prototypes.", "dino_head.", "ibot_head.",
)  # fmt: skip
_MUST_HAVE = ("blocks.", "patch_embed.", "norm_pre.", "cls_token", "reg_token")
_FAMILIES = ("timm.models.vision_transformer", "timm.models.deit")
_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder that timm's push_to_hf_hub writes

State = Mapping[str, torch.Tensor]


class _Inert:
    """Replaces every class in a checkpoint that torch does not allow: it keeps nothing and runs nothing."""

    def __new__(cls, *_: object, **__: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def load_start(encoder: VisionTransformer, file: str | Path) -> list[str]:
    """Load a checkpoint with timm's names (DeiT, DINO, MAE, MoCo, CLIP, ours) into `encoder` as its start.

    Prefixes (`module.`, `_orig_mod.`, Lightning's) are stripped; of two copies the averaged one is taken, as in
    timm. Position embeddings and the patch projection are resampled to the encoder's sizes, three input channels
    are summed to one; heads and decoders are left out. Every other tensor must have a place in the encoder.

    Args:
        encoder: as `encoder.build` makes it.
        file: .safetensors, .pth, .bin or .ckpt, or a folder in the layout of timm's hub.

    Returns:
        Notes for the user, each in one line: which copy was taken, what was left out or is missing.

    Raises:
        EncoderError: no such file, not a checkpoint, or one that does not fit this encoder; one line states what to
            do. The encoder is unchanged.
    """
    file = _weights_of(Path(file))
    state, notes = _taken(_read(file), file)
    wanted = encoder.state_dict()
    names = _converted({name: value for name, value in state.items() if name != "pos_embed"}, encoder, file)
    names[_PATCHES] = state.get(_PATCHES, names[_PATCHES])  # in its own size
    _refuse_misfit(names, wanted, file)
    state = _converted(state, encoder, file)
    if "fc_norm.weight" in state and "norm.weight" not in state and "norm.weight" in wanted:
        state |= {name[3:]: state[name] for name in list(state) if name.startswith("fc_norm.")}
        notes.append("the start normalises pooled tokens (fc_norm); its norm is used for each token here")
    clash = sorted(k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape)
    if clash:
        raise EncoderError(
            f"checkpoint {file} does not fit the encoder: {clash[0]} is {tuple(state[clash[0]].shape)}, "
            f"the encoder's is {tuple(wanted[clash[0]].shape)}; choose encoder.name to match{_suggestion(names)}"
        )
    missing = sorted(wanted.keys() - state.keys())
    encoder.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)
    deep, depth = _depth(state), _depth(wanted)
    if deep > depth:
        notes.append(f"the start has {deep} blocks: the encoder has its first {depth}")
    if missing:
        notes.append(f"the start has no {', '.join(missing)}; they start at random")
    return notes


def is_from_a_hub(folder: Path) -> bool:
    """Return whether a folder is from timm's hub: weights beside a config.json that is not a release's."""
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return "architecture" in about and about["pretrained_cfg"].get("tag") != "sscxr"
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return False


def sum_channels(state: dict[str, torch.Tensor]) -> None:
    """Convert weights for three input channels to one, in place.

    On a grey image copied to three channels, the three filters act as their sum.
    """
    weight = state[_PATCHES]
    if weight.ndim == 4 and weight.shape[1] == 3:
        state[_PATCHES] = weight.sum(dim=1, keepdim=True)


def _weights_of(file: Path) -> Path:
    """Return the file itself, or the weights in a folder."""
    if file.is_dir():
        file = next((file / name for name in _HUB_WEIGHTS if (file / name).is_file()), file)
    check_readable(file)
    if not file.is_file():
        raise EncoderError(f"no checkpoint {file}; give the path of a .safetensors or .pth file")
    return file


def _read(file: Path) -> Mapping[str, Any]:
    """Read a file without running anything that it names."""
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        with torch.serialization.safe_globals([(_Inert, name) for name in _foreign(file)]):
            saved = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise EncoderError(
            f"checkpoint {file} is not readable as plain weights ({type(error).__name__}): damaged, of another "
            "format, or a pickle of whole objects; save the tensors alone, torch.save(model.state_dict(), FILE)"
        ) from None
    if not isinstance(saved, Mapping):
        raise EncoderError(f"checkpoint {file} has a {type(saved).__name__}, not tensors by name")
    return saved


def _foreign(file: Path) -> list[str]:
    """Return the classes and functions in a checkpoint that torch does not allow; older formats: none."""
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    except (ValueError, RuntimeError):
        return []


def _taken(saved: Mapping[str, Any], file: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors of one encoder by its own names, and a note if there are several."""
    found = {place: state for place, state in _encoders(saved) if state}
    if not found:
        hint = "; its names are those of transformers: convert it to timm's first"
        theirs = any(".encoder.layer." in name or name.startswith("embeddings.") for name in _names(saved))
        raise EncoderError(
            f"checkpoint {file} has no ViT with timm's names (no {_PATCHES}){hint if theirs else ''}"
        )
    place = min(found, key=_rank)
    others = [repr(other) for other in found if other != place]
    notes = [f"the start has several encoders: {place!r} is taken, not {', '.join(others)}"] if others else []
    return found[place], notes


def _rank(place: str) -> int:
    """Return 0 for an averaged copy, 1 for a plain encoder, 2 for one that is kept beside it."""
    words = re.split(r"[^a-z]+", place.lower().replace("encoder_k", "momentum"))
    return 0 if set(words) & set(_AVERAGED) else 2 if set(words) & set(_SECOND) else 1


def _encoders(
    saved: Mapping[str, Any], place: str = "", depth: int = 3
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each encoder in a checkpoint: its place, and its tensors by names without the prefix."""
    tensors = {name: value for name, value in saved.items() if isinstance(value, torch.Tensor)}
    prefixes = [name.removesuffix(_PATCHES) for name in tensors if re.search(rf"(^|\.){_PATCHES}$", name)]
    for prefix in prefixes:
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        yield place + prefix, {name.replace("_orig_mod.", ""): value for name, value in own.items()}
    if not prefixes and any(name.startswith(_OTHER_FORMS) for name in tensors):
        yield place, tensors  # timm has a conversion
    for name, value in saved.items():
        if isinstance(value, Mapping) and depth:
            yield from _encoders(value, f"{place}{name}.", depth - 1)


def _names(saved: Mapping[str, Any]) -> Iterator[str]:
    for name, value in saved.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from map(str, value)


def _converted(state: State, encoder: VisionTransformer, file: Path) -> dict[str, torch.Tensor]:
    """Convert a state to timm's present names and the encoder's sizes."""
    try:
        found = checkpoint_filter_fn(dict(state), encoder, adapt_layer_scale=True)
        if encoder.patch_embed.proj.in_channels == 1:
            sum_channels(found)
    except (RuntimeError, KeyError, ValueError, AttributeError, IndexError, AssertionError):
        shapes = " and ".join(
            f"{name} {tuple(state[name].shape)}" for name in ("pos_embed", _PATCHES) if name in state
        )
        raise EncoderError(
            f"checkpoint {file} does not fit the encoder: {shapes or 'its tensors'} cannot be resized to "
            f"its sizes; choose encoder.name and encoder.patch_size to match{_suggestion(state)}"
        ) from None
    return found


def _refuse_misfit(names: State, wanted: State, file: Path) -> None:
    """Refuse a start that lacks tensors which the encoder uses, or uses tensors which the encoder lacks."""
    if "dist_token" in names:
        raise EncoderError(
            f"checkpoint {file} has a distillation token, which no encoder here has; "
            "take the weights that were trained without one, such as deit_tiny_patch16_224's"
        )
    beyond = re.compile(r"blocks\.(\d+)\.")
    depth = _depth(wanted)
    for name in sorted(names.keys() - wanted.keys()):
        block = beyond.match(name)
        left_out = name.startswith((*_NOT_OURS, "fc_norm.")) or (block and int(block[1]) >= depth)
        if not left_out:
            raise EncoderError(
                f"checkpoint {file} has {name}, for which the encoder has no place: without it the features would "
                f"differ; choose encoder.name to match{_suggestion(names)}"
            )
    for name in sorted(wanted.keys() - names.keys()):
        if name.startswith(_MUST_HAVE):
            raise EncoderError(
                f"checkpoint {file} has no {name}: it is smaller than encoder.name, or of another kind; "
                f"choose encoder.name to match{_suggestion(names)}"
            )


def _depth(state: State) -> int:
    """Return how many blocks the state has."""
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def _suggestion(names: State) -> str:
    """Return a remark that names the timm model with exactly these tensors, if there is one."""
    shapes = {name: tuple(value.shape) for name, value in names.items() if not name.startswith(_NOT_OURS)}
    patch = shapes.pop(_PATCHES, (0, 0, 0, 0))[-1]
    shapes = {
        name.replace("fc_norm.", "norm."): shape for name, shape in shapes.items() if name != "pos_embed"
    }
    first = {name: shape for name, shape in shapes.items() if not re.match(r"blocks\.[1-9]", name)}
    fitting = [name for name in _plain_vits() if _shapes(name, depth=1) == first]
    # The depth can be set and the patch size is resampled; a model that matches both is named first.
    fitting.sort(key=lambda name: (_shapes(name) != shapes, f"patch{patch}_" not in name, len(name), name))
    return f": {fitting[0]} has these tensors" if fitting else " (timm has no ViT with these tensors)"


def _plain_vits() -> list[str]:
    return [name for name in timm.list_models() if timm.model_entrypoint(name).__module__ in _FAMILIES]


@functools.cache
def _shapes(name: str, depth: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a timm model's tensors that do not depend on the input size; none if unsupported."""
    try:
        with torch.device("meta"):
            state = build(name, img_size=32, patch_size=16, depth=depth).state_dict()
    except EncoderError:
        return {}
    return {key: tuple(value.shape) for key, value in state.items() if key not in (_PATCHES, "pos_embed")}
