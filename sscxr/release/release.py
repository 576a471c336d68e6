"""A released encoder: a folder that timm loads, with a model card.

    model.safetensors   the encoder by timm's parameter names, float32, or float16 after `shrink`
    config.json         timm's local-dir form: architecture, arguments, how to normalise the input
    README.md           the model card
    SHA256SUMS          of these three, and SHA256SUMS.sig, its signature: `publish` adds them for others

`timm.create_model("local-dir:FOLDER", pretrained=True)` does not need sscxr. Called on an image it returns the
feature that our probes use, after the final norm: the mean of the patch tokens, or the class token where the method
that trained the encoder pools by it. The same encoder and card give the same bytes.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import timm
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sscxr.files import check_readable, save_tensors, sha256, whole_folder
from sscxr.models.encoder import pooling_args
from sscxr.printable import PLAIN_NAME
from sscxr.release import config_file, signing
from sscxr.release.card import Card, released, render
from sscxr.release.config_file import CONFIG, FORMAT, ReleaseError, checked_args, one_line
from sscxr.runs import PROBES, SCORES

WEIGHTS, CARD = "model.safetensors", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
_TYPES = {"F32": "float32", "F16": "float16"}  # safetensors' names; loaded, all are float32


def write_encoder(
    encoder: nn.Module,
    folder: str | Path,
    *,
    architecture: str,
    model_args: Mapping[str, Any],
    mean: float,
    std: float,
    card: Card,
) -> Path:
    """Write a released encoder, or replace the one there. It appears whole, and only after timm has loaded it.

    Args:
        encoder: a timm ViT without a head.
        folder: the folder to write.
        architecture: timm's name of the ViT, such as "vit_small_patch16_224".
        model_args: timm's other arguments to build it: img_size (int), patch_size, in_chans, depth ...
        mean, std: grey levels (0..1) that normalise the input, the same for every channel.
        card: the contents of the model card.

    Returns:
        The folder.

    Raises:
        ReleaseError: the weights are not finite, or timm cannot load them into the named architecture.
    """
    folder = Path(folder)
    state = weights_of(encoder)
    if bad := not_finite(state):
        raise ReleaseError(f"the encoder is not released: {bad} holds NaN or Inf")
    config = _timm_config(encoder, architecture, dict(model_args), mean=mean, std=std)
    config["sscxr"] = {"format": FORMAT, "code_version": card.code_version}
    with whole_folder(folder) as fresh:
        save_tensors(state, fresh / WEIGHTS, {"format": "pt"})
        (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (fresh / CARD).write_text(render(card, config), encoding="utf-8")
        load_encoder(fresh)
        _check_timm(fresh, state)
    return folder


def load_encoder(folder: str | Path) -> nn.Module:
    """Load the released encoder in `folder` with timm, in eval mode. torch's global generator is not changed.

    Raises:
        ReleaseError: the folder is not a release, or its weights and config do not belong together.
        SigningError: there is a SHA256SUMS, and a file does not match it.
    """
    folder = Path(folder)
    check_readable(folder, (WEIGHTS, CONFIG))
    refuse_no_folder(folder)
    config_file.refuse_later(folder)  # before the rest: its files may be others
    if (folder / signing.SUMS).is_file():
        verify(folder)
    absent = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if absent:
        raise ReleaseError(
            f"{folder} is not a released encoder: it has no {' and no '.join(absent)}{below(folder)}"
        )
    config = config_file.read(folder)
    architecture, args = config["architecture"], checked_args(folder, config)
    try:
        with torch.random.fork_rng(devices=[]):
            # First without memory: a config of a few bytes cannot request more than the weights beside it fill.
            with torch.device("meta"):
                _refuse_others(
                    timm.create_model(architecture, num_classes=0, weight_init="skip", **args), folder
                )
            encoder = timm.create_model(architecture, num_classes=0, **args)
        encoder.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS), strict=True)
    except ReleaseError:
        raise
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        raise ReleaseError(f"timm cannot load the encoder in {folder}: {reason[:300]}") from None
    about = config["pretrained_cfg"]
    cast(Any, encoder).pretrained_cfg = {name: about[name] for name in ("input_size", "mean", "std")}
    if bad := not_finite(encoder.state_dict()):
        raise ReleaseError(f"the encoder in {folder} cannot be used: {bad} holds NaN or Inf")
    return encoder.eval()


def _refuse_others(model: nn.Module, folder: Path) -> None:
    """Refuse weights that are not the model's, by the names and shapes in the file's head."""
    if not isinstance(model, VisionTransformer):
        raise ReleaseError(
            f"{folder / CONFIG} names a {type(model).__name__}, not a plain vision transformer"
        )
    wanted = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    with safetensors.safe_open(folder / WEIGHTS, "pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  not a dict
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ReleaseError(
                f"timm cannot load the encoder in {folder}: {one_line(name)[:80]} is "
                f"{found.get(name, 'absent')} in {WEIGHTS} and {wanted.get(name, 'absent')} by {CONFIG}"
            )


def _check_timm(folder: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Check that timm alone loads these weights."""
    try:
        with torch.random.fork_rng(devices=[]):
            loaded = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).state_dict()
    except Exception as error:
        raise ReleaseError(f"timm cannot load the encoder in {folder}: {one_line(error)[:300]}") from None
    if loaded.keys() != state.keys() or not all(torch.equal(loaded[name], state[name]) for name in state):
        raise ReleaseError(f"timm loads other weights from {folder} than the encoder has")


def refuse_no_folder(folder: Path) -> None:
    """Refuse a path that is not a folder.

    Raises:
        ReleaseError: nothing is there, or a file.
    """
    if not folder.is_dir():
        reason = "it is a file" if folder.exists() else "there is no such folder"
        raise ReleaseError(f"no encoder {folder}: {reason}; give a release's folder, or a run's `encoder`")


def below(folder: Path) -> str:
    """Return a remark that names a run's encoder if the run's folder was given instead; else empty."""
    return f"; {folder / 'encoder'} is one" if (folder / "encoder" / CONFIG).is_file() else ""


def read_card(folder: Path) -> str:
    """Return the text of a release's card.

    Raises:
        ReleaseError: it is not a text in UTF-8.
    """
    try:
        return (folder / CARD).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ReleaseError(f"{folder / CARD} is not a text in UTF-8, so not a model card") from None


def publish(
    run: str | Path,
    folder: str | Path,
    *,
    version: str = "",
    licence: str = "",
    key: Ed25519PrivateKey | None = None,
) -> Path:
    """Release the encoder of a finished run, with a version, sums and perhaps a signature.

    Args:
        run: the run's folder; its ledger and its encoder's folder must agree.
        folder: the folder to write. A release never changes: writing the same one again, or signing it, is allowed.
        version: a plain name; empty: the rounds and the weights' first digits, such as "12-1f0c9a3b".
        licence: of the weights, in a few words or as SPDX writes it; empty: not stated.
        key: signs SHA256SUMS.

    Returns:
        The folder.

    Raises:
        ReleaseError: the run is not finished, or `folder` holds another release.
    """
    run, folder = Path(run), Path(folder).resolve()  # "." has no name
    rounds = _check_run(run)
    version = checked_version(version or f"{rounds}-{sha256(run / 'encoder' / WEIGHTS)[:8]}")
    licence = " ".join(licence.split()) or "not stated"
    config = config_file.read(run / "encoder")
    config["sscxr"] = {**config.get("sscxr", {}), "version": version, "rounds": rounds, "licence": licence}
    card = read_card(run / "encoder")
    with whole_folder(folder) as fresh:
        shutil.copyfile(run / "encoder" / WEIGHTS, fresh / WEIGHTS)
        (fresh / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (fresh / CARD).write_text(released(card, version=version, licence=licence), encoding="utf-8")
        seal(fresh, folder, key)
    return folder


def checked_version(version: str) -> str:
    """Return a release's version, if it is a plain name.

    Raises:
        ReleaseError: it is not.
    """
    if not PLAIN_NAME.fullmatch(version):
        raise ReleaseError(f"version {version[:80]!r} is not a plain name (letters, digits, dots, dashes)")
    return version


def seal(fresh: Path, folder: Path, key: Ed25519PrivateKey | None) -> None:
    """Write the sums and, with a key, the signature of the release in `fresh`, which is to become `folder`.

    Raises:
        ReleaseError: it does not load, or `folder` holds another release.
    """
    sums = signing.sums_of(fresh, FILES)
    (fresh / signing.SUMS).write_bytes(sums)
    if key:
        (fresh / signing.SIGNATURE).write_bytes(key.sign(sums))
    load_encoder(fresh)
    _refuse_another(folder, sums, signed=key is not None)


def input_norm(folder: str | Path) -> tuple[float, float]:
    """Return mean and standard deviation, in grey levels 0..1, that normalise a released encoder's input."""
    config = config_file.read(Path(folder))["pretrained_cfg"]
    return float(config["mean"][0]), float(config["std"][0])


def verify(folder: str | Path, key: Ed25519PublicKey | None = None) -> None:
    """Check a release against its SHA256SUMS and, with a key, its signature.

    Raises:
        SigningError: a file does not match its sum; or a key is given, and its signature is missing or wrong.
        ReleaseError: no sums, or weights that are not safetensors: a pickle, which could run code, is never loaded.
    """
    folder = Path(folder)
    check_readable(folder, (*FILES, signing.SUMS, signing.SIGNATURE))
    config_file.refuse_later(folder)
    if not (folder / signing.SUMS).is_file():
        raise ReleaseError(f"{folder} is not a release: it has no {signing.SUMS}")
    sums = (folder / signing.SUMS).read_bytes()
    if key:
        file = folder / signing.SIGNATURE
        signature = file.read_bytes() if file.is_file() else None
        signing.check_signature(sums, signature, key, str(folder))
    signing.check(folder, signing.parse_sums(sums, FILES, str(folder / signing.SUMS)))
    try:
        with safetensors.safe_open(folder / WEIGHTS, "pt"):
            pass
    except safetensors.SafetensorError as error:
        raise ReleaseError(f"{folder / WEIGHTS} is not a safetensors file ({error}); it is refused") from None


def facts(folder: str | Path) -> dict[str, Any]:
    """Describe a released encoder, after checking its sums if it has any: JSON types by name.

    Raises:
        ReleaseError, SigningError: see `load_encoder`.
    """
    folder = Path(folder).resolve()
    encoder, config = load_encoder(folder), config_file.read(folder)
    ours = config.get("sscxr", {})
    mean, std = input_norm(folder)
    has_sums, signed = ((folder / name).is_file() for name in (signing.SUMS, signing.SIGNATURE))
    return {
        # Texts of other people: on one line, so that they can neither imitate ours nor steer the terminal.
        "version": one_line(ours.get("version", "none: not released")),
        "licence": one_line(ours.get("licence", "not stated")),
        "format": ours.get("format", 1),
        "weights": stored_as(folder / WEIGHTS),
        "rounds": ours.get("rounds") if isinstance(ours.get("rounds"), int) else None,
        "architecture": config["architecture"],
        "blocks": len(cast(Any, encoder).blocks),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "features": cast(Any, encoder).num_features,
        "pooling": cast(Any, encoder).global_pool,
        "patch_size": cast(Any, encoder).patch_embed.patch_size[0],
        "input": one_line("x".join(map(str, config["pretrained_cfg"]["input_size"]))),
        "mean": mean,
        "std": std,
        "sha256": sha256(folder / WEIGHTS),
        "sums": "right" if has_sums else "none",
        "signature": "there" if signed else "none",
        "folder": str(folder),
    }


def stored_as(weights: Path) -> str:
    """Return the type in which a safetensors file stores its tensors: "float32", "float16", ..."""
    with safetensors.safe_open(weights, "pt") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  not a dict
    return ", ".join(sorted(_TYPES.get(name, name) for name in types))


def _check_run(run: Path) -> int:
    """Return the number of rounds of a finished run; refuse an encoder that is not that of its ledger."""
    check_readable(run, ("checkpoints", "encoder"))
    checkpoints = [path for path in run.glob("checkpoints/round-*") if path.name[6:].isdigit()]
    if not checkpoints:
        raise ReleaseError(f"{run} is not a run's folder: it has no checkpoints")
    absent = [name for name in FILES if not (run / "encoder" / name).is_file()]
    if absent:
        raise ReleaseError(f"the run in {run} is not finished: it has no encoder/{absent[0]}; resume it")
    # A simulation ends with one of these two files.
    if (run / "sites").is_dir() and not any((run / name).is_file() for name in (PROBES, SCORES)):
        raise ReleaseError(f"the run in {run} is not finished: its encoder is not measured; resume it")
    last = max(checkpoints)
    check_readable(last, ["encoder.safetensors"])
    check_readable(run / "encoder", FILES)
    try:
        trained = safetensors.torch.load_file(last / "encoder.safetensors")
        weights = safetensors.torch.load_file(run / "encoder" / WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise ReleaseError(f"{run}: weights of {last.name} or of the encoder are damaged ({error})") from None
    if not all(name in trained and torch.equal(trained[name], weights[name]) for name in weights):
        raise ReleaseError(f"{run / 'encoder'} is not the encoder of {last}; resume the run")
    return int(last.name.removeprefix("round-"))


def _refuse_another(folder: Path, sums: bytes, *, signed: bool) -> None:
    """Refuse to change a release, or to overwrite anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    file = folder / signing.SUMS
    if not file.is_file() or file.read_bytes() != sums:
        raise ReleaseError(
            f"{folder} holds something else; a release is never changed: choose another folder"
        )
    if not signed and (folder / signing.SIGNATURE).is_file():
        raise ReleaseError(f"{folder} holds this release, signed; give --key to sign it again")


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights as float32 on the CPU, each with its own storage, sorted by name."""
    state = model.state_dict()
    return {
        name: state[name].detach().to("cpu", torch.float32, copy=True).contiguous() for name in sorted(state)
    }


def not_finite(state: Mapping[str, torch.Tensor]) -> str:
    """Return the name of the first tensor that holds NaN or infinity; empty: none does."""
    return next((name for name, tensor in state.items() if not torch.isfinite(tensor).all()), "")


def _timm_config(
    encoder: nn.Module, architecture: str, model_args: dict[str, Any], *, mean: float, std: float
) -> dict[str, Any]:
    """Return config.json in the layout of timm's `save_for_hf`."""
    channels, size = int(model_args.get("in_chans", 3)), int(model_args.get("img_size", 224))
    return {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": int(cast(Any, encoder).num_features),
        "global_pool": cast(Any, encoder).global_pool,
        "model_args": {**model_args, **pooling_args(cast(Any, encoder).global_pool)},
        "pretrained_cfg": {
            "tag": "sscxr",
            "custom_load": False,
            "input_size": [channels, size, size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "border",  # scaled to fit and padded, never squashed or cut
            "mean": [mean] * channels,
            "std": [std] * channels,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
