"""`sscxr release` and `sscxr encoder ...`. Thin: torch is imported when a command runs, not before."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sscxr import files
from sscxr.commands.command_line import AsJson, Force, PublicKey, examples

if TYPE_CHECKING:
    from sscxr.release.download import Shown

Encoder = Annotated[
    str, typer.Argument(metavar="NAME|URL|DIR", help="A shipped encoder, or a release's address or folder.")
]
Source = Annotated[
    str, typer.Argument(metavar="URL|DIR", help="The release's address (https, http, hf) or folder.")
]
SigningKey = Annotated[Path | None, typer.Option(help="An Ed25519 private key that signs it.")]


def add(app: typer.Typer) -> None:
    """Add the commands to `sscxr`."""
    encoder = typer.Typer(help="List, fetch, show, shrink or export encoders.", no_args_is_help=True)
    pulled = "https://example.org/encoders/v1"
    encoder.command("list", epilog=examples("sscxr encoder list", "sscxr encoder list --json"))(list_shipped)
    encoder.command(
        "pull",
        epilog=examples(
            f"sscxr encoder pull {pulled} --key consortium.pub", "sscxr encoder pull hf://ORG/NAME@v1"
        ),
    )(pull)
    encoder.command(
        "info", epilog=examples("sscxr encoder info runs/mine/encoder", f"sscxr encoder info {pulled} --json")
    )(info)
    encoder.command(
        "shrink", epilog=examples("sscxr encoder shrink releases/v1 --out releases/v1-fp16 --key release.key")
    )(shrink)
    encoder.command("export", epilog=examples("sscxr encoder export runs/mine/encoder --onnx encoder.onnx"))(
        export
    )
    app.command(
        "release",
        epilog=examples("sscxr release runs/mine --to releases/v1 --key release.key --licence CC-BY-4.0"),
    )(make)
    app.add_typer(encoder, name="encoder")


def make(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished run.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The release's folder; it must be new or empty.")],
    key: SigningKey = None,
    version: Annotated[str, typer.Option(help="Default: the rounds and the weights' first digits.")] = "",
    licence: Annotated[str, typer.Option(help="The weights' licence, such as CC-BY-4.0.")] = "",
) -> None:
    """Release a run's encoder. Writes weights, config, model card, SHA256SUMS and, with a key, a signature."""
    from sscxr.release import release, signing

    private = signing.read_private(key) if key else None
    folder = release.publish(run, to, version=version, licence=licence, key=private)
    typer.echo(
        f"{folder}: version {release.facts(folder)['version']}{', signed' if private else ', not signed'}"
    )


def list_shipped(as_json: AsJson = False) -> None:
    """List the encoders that come with sscxr. Shows input, data, licences and probes; each is verified."""
    from sscxr.release import shipped

    found = [shipped.described(name) for name in shipped.names()]
    if as_json:
        typer.echo(json.dumps({"encoders": found}, indent=1))
        return
    if not found:
        typer.echo(f"this sscxr ships no encoders ({shipped.home()} has none)")
    for one in found:
        typer.echo("\n".join(_lines(one)))


def _lines(one: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that describe a shipped encoder, from `shipped.described`."""
    yield f"{one['name']}: {one['architecture']}, input {one['input']}, {one['megabytes']} MB ({one['weights']})"
    least = "at least " if one["sites_without_count"] else ""
    yield f"  version   {one['version']}, licence of the weights: {one['licence']}"
    yield f"  data      {least}{one['images']:,} images at {one['sites']} sites; {'; '.join(one['data_licences'])}"
    for probe in one["probes"]:
        what = " ".join(probe.get(name, "") for name in ("label", "cohort", "probe"))
        yield f"  probe     {what}: AUROC {probe.get('AUROC')}, {probe.get('gain')} over the untrained encoder"


def shrink(
    source: Encoder,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new release's folder; new or empty.")],
    key: SigningKey = None,
    version: Annotated[str, typer.Option(help="Default: the release's own and -fp16.")] = "",
) -> None:
    """Store a release's weights as float16: half the bytes. The card states how far the features move."""
    from sscxr.release import shrink, signing

    private = signing.read_private(key) if key else None
    difference = shrink.shrink(_located(source, None), out, version=version, key=private)
    typer.echo(f"{out}: float16{', signed' if private else ', not signed'}; the features differ {difference}")


def pull(
    source: Source,
    key: PublicKey = None,
    cache: Annotated[
        Path | None, typer.Option(help="Default: $SSCXR_CACHE, or sscxr in the user's cache folder.")
    ] = None,
    max_mb: Annotated[int, typer.Option(min=1, help="Larger weights are refused (MB of 10^6 bytes).")] = 4000,
) -> None:
    """Fetch a release into the cache and print its folder there. Run again, it resumes where it broke off."""
    from sscxr.release import fetch, signing

    public = signing.read_public(key) if key else None
    with shown_downloads() as shown:
        folder = fetch.pull(source, key=public, cache=cache, most_bytes=max_mb * 1_000_000, shown=shown)
    if not public:
        typer.echo("note: without --key, the checksums show damage but do not prove the origin", err=True)
    typer.echo(folder)


def info(source: Encoder, key: PublicKey = None, as_json: AsJson = False) -> None:
    """Show an encoder's facts; a release is verified first."""
    from sscxr.release import release

    facts = release.facts(_located(source, key))
    if facts["signature"] == "there" and key:
        facts["signature"] = "this key's"
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        typer.echo(f"{name.replace('_', ' '):13} {'not stated' if value is None else value}")


def export(
    source: Encoder,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file to write.")],
    key: PublicKey = None,
    force: Force = False,
) -> None:
    """Export an encoder as ONNX. It is compared with PyTorch before the file is written."""
    from sscxr.release.export import BOUND, export_onnx

    files.refuse_existing(onnx, force=force)
    difference = export_onnx(_located(source, key), onnx)
    typer.echo(f"{onnx}: largest difference from PyTorch {difference:.1e} (allowed: {BOUND:.0e})")


def _located(source: str, key: Path | None) -> Path:
    """Return the folder of an encoder, fetched and checked; refuse a fine-tuned model."""
    from sscxr.finetuning import finetuned

    if finetuned.is_model(Path(source)):
        raise finetuned.FinetunedError(
            f"{source} is a fine-tuned model; give the encoder that it started from"
        )
    return located(source, key)


def located(source: str, key: Path | None) -> Path:
    """Return the folder of an encoder, fetched and checked, and show the download."""
    from sscxr.release import fetch, signing

    with shown_downloads() as shown:
        return fetch.located(source, key=signing.read_public(key) if key else None, shown=shown)


@contextmanager
def shown_downloads() -> "Iterator[Shown]":
    """Show a progress bar per file on stderr in a terminal; otherwise an occasional line."""
    from sscxr.display import Board, Clock, Line

    clocks: dict[str, Clock] = {}
    with Board() as board:

        def shown(name: str, done: int, total: int | None) -> None:
            clock = clocks.setdefault(name, Clock())
            speed, whole = clock.rate(done), "" if total is None else f" of {total / 1e6:.1f}"
            notes = [
                f"{done / 1e6:.1f}{whole} MB",
                "" if speed is None else f"{speed / 1e6:.1f} MB/s",
                "" if total is None else clock.left(done, total),
            ]
            board.show(Line(name, done, total, notes))

        yield shown
