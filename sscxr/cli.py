"""`sscxr ...`: one thin command a task; what goes wrong is one line on stderr and a non-zero exit."""

import sys
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sscxr import encoder_commands, finetune_commands, model_commands, report_command
from sscxr.data.cache import LABEL_PREFIX, Cache, open_cache
from sscxr.errors import SscxrError

app = typer.Typer(
    name="sscxr",
    help="Federated self-supervised learning on chest X-rays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="Look into a site cache, or remove images from it.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")
encoder_commands.add(app)
finetune_commands.add(app)
model_commands.add(app)
report_command.add(app)

INTERRUPTED = 130  # the exit status of a program that Ctrl-C ended
CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="The cache's folder.")]


@app.command()
def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC...",
            help="Folders, DICOM, PNG or JPEG files, manifests (.csv), public corpora (NAME:FOLDER).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The cache's folder; an unfinished or older one is continued.")],
    labels: Annotated[
        Path | None, typer.Option(help="A CSV that says more about files of the folders.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="What to call where the images come from, if no manifest says; default: local. No patient's name."
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Pixels a side of the cached images.")] = 256,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; default: one a core.")] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Larger images are refused before decoding.")
    ] = 50_000_000,
    readd_removed: Annotated[bool, typer.Option(help="Take back images removed on request.")] = False,
    uncertain: Annotated[
        str, typer.Option(help="Labels a corpus calls uncertain: ignore (unknown), zeros or ones.")
    ] = "ignore",
    train_on_test: Annotated[
        bool, typer.Option("--train-on-test", help="Do not set aside what was published as a test set.")
    ] = False,
) -> None:
    """Prepare a site cache from an export; run again, it goes on where it stopped and adds what is new."""
    from sscxr.data.prepare import prepare as prepare_cache

    cache = prepare_cache(
        sources,
        out,
        labels=labels,
        size=size,
        workers=workers,
        max_pixels=max_pixels,
        readd_removed=readd_removed,
        source=source,
        uncertain=uncertain,
        train_on_test=train_on_test,
    )
    _show(cache)


@app.command("corpora")
def list_corpora(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this one, with its labels.")
    ] = None,
) -> None:
    """List the public corpora that can be named as NAME:FOLDER: what they hold, whom to ask, how they lie."""
    from sscxr.data import corpora

    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen = [corpora.known(name)] if name else list(corpora.CORPORA.values())
    for corpus in chosen:
        table = Table(
            "", "", title=f"{corpus.name}: {corpus.title}", title_justify="left", title_style="bold", box=None,
            show_header=False,
        )  # fmt: skip
        for title in ("images", "labels", "licence", "where", "layout"):
            table.add_row(title, escape(getattr(corpus, title)))
        console.print(table)
        console.print()


@cache_app.command("info")
def cache_info(folder: CacheFolder) -> None:
    """Say what a cache holds; complete a write that was interrupted."""
    from sscxr.data import store

    if store.is_cache(folder):
        with store.writing(folder):
            pass
    _show(open_cache(folder))


@cache_app.command("remove")
def cache_remove(
    folder: CacheFolder,
    patient: Annotated[list[str] | None, typer.Option(help="A patient's id as the export writes it.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="A patient group, by its hash in the index.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option(help="An image, by its hash in the index.")] = None,
) -> None:
    """Remove images from a cache; the next `prepare` of the same export does not bring them back."""
    from sscxr.data.assemble import remove

    if not (patient or group or image):
        raise click.UsageError("say what to remove: --patient ID, --group HASH or --image HASH")
    removed = remove(folder, patients=patient or (), groups=group or (), images=image or ())
    typer.echo(f"removed {removed} image{'s' if removed != 1 else ''}; {len(open_cache(folder))} remain")


def _show(cache: Cache) -> None:
    """Counts of a cache, without a name in them."""
    console = Console()
    table = Table("", "", "images", title=repr(cache), title_justify="left", title_style="bold", box=None)
    index = cache.index
    for title, column in (
        ("source", "source"),
        ("view", "view"),
        ("age", "age_band"),
        ("grey range", "grey_range"),
    ):
        for place, (name, count) in enumerate(sorted(Counter(index[column]).items())):
            table.add_row("" if place else title, name or "unknown", str(count))
    for place, name in enumerate(cache.labels):
        cells = index[LABEL_PREFIX + name]
        with_it, without, unknown = (cells == 1).sum(), (cells == 0).sum(), cells.isna().sum()
        table.add_row("" if place else "label", name, f"{with_it} with, {without} without, {unknown} unknown")
    table.add_row("masks", "", str(int((index["has_mask"] == 1).sum())))
    doubts = Counter(doubt for cell in index["warnings"] for doubt in str(cell).split("; ") if doubt)
    for place, (name, count) in enumerate(sorted(doubts.items())):
        table.add_row("" if place else "warnings", name, str(count))
    for place, (name, count) in enumerate(_quarantined(cache).most_common()):
        table.add_row("" if place else "quarantined", name, str(count))
    console.print(table)
    for name in ("quarantine.csv", "sheet.png"):
        console.print(str(cache.folder / name), soft_wrap=True, highlight=False, markup=False)


def _quarantined(cache: Cache) -> Counter[str]:
    """Files in quarantine by the kind of reason: what stands before the colon."""
    from sscxr.data.tables import load

    return Counter(reason.split(":")[0] for reason in load(cache.folder).quarantine.values())


def _add_commands() -> None:
    """The commands of the layers above, which this one does not import: they name themselves when installed."""
    for entry in sorted(entry_points(group="sscxr.commands")):
        entry.load()(app)


def main() -> None:
    """The entry point `sscxr`."""
    _add_commands()
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:  # typer's answer to Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code)
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _fail(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        typer.echo(
            "stopped; run it again: preparing and pulling go on where they were, a fine-tuning begins anew",
            err=True,
        )
        sys.exit(INTERRUPTED)
    except SscxrError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
