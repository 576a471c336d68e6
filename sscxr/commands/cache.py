"""`sscxr prepare`, `sscxr corpora`, `sscxr cache ...`. Thin: image readers are imported when a command runs."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from sscxr.commands.command_line import AsJson, examples

if TYPE_CHECKING:
    from sscxr.data.cache.cache import Cache

CacheFolder = Annotated[Path, typer.Argument(metavar="CACHE", help="The cache's folder.")]


def add(app: typer.Typer) -> None:
    """Add the commands to `sscxr`."""
    app.command(
        "prepare",
        epilog=examples(
            "sscxr prepare EXPORT --out cache",
            "sscxr prepare EXPORT --out cache --labels labels.csv --source ward-3",
            "sscxr prepare nih/manifest.csv --out cache --size 288 --workers 4",
        ),
    )(prepare)
    app.command("corpora", epilog=examples("sscxr corpora", "sscxr corpora nih"))(list_corpora)
    cache = typer.Typer(help="Show a site cache, or remove images from it.", no_args_is_help=True)
    cache.command("info", epilog=examples("sscxr cache info cache", "sscxr cache info cache --json"))(
        cache_info
    )
    cache.command("remove", epilog=examples("sscxr cache remove cache --patient 0012345"))(cache_remove)
    app.add_typer(cache, name="cache")


def prepare(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC...",
            help="Folders, DICOM, PNG or JPEG files, manifests (.csv), public corpora (NAME:FOLDER).",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The cache's folder; an unfinished or older one is continued.")],
    labels: Annotated[Path | None, typer.Option(help="A CSV that describes files of the folders.")] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="The images' source, if no manifest names it; default: local. Never a patient's name."
        ),
    ] = None,
    size: Annotated[int, typer.Option(help="Pixels a side of the cached images.")] = 256,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; default: one per core.")] = None,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Larger images are refused before decoding.")
    ] = 50_000_000,
    readd_removed: Annotated[
        bool, typer.Option("--readd-removed", help="Add images that were removed on request again.")
    ] = False,
    uncertain: Annotated[
        str, typer.Option(help="Labels a corpus calls uncertain: ignore (unknown), zeros or ones.")
    ] = "ignore",
    train_on_test: Annotated[
        bool, typer.Option("--train-on-test", help="Do not set aside published test sets.")
    ] = False,
    chest_word: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WORD",
            help="A word for a chest that your devices write in Body Part Examined; may be repeated.",
        ),
    ] = None,
    public: Annotated[
        bool,
        typer.Option(
            "--public",
            help="For public images: use a published salt, so that everybody sets the same patients aside.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prepare a site cache from an export. Run again, it resumes where it stopped and adds new files."""
    from sscxr.data.prepare.prepare import PUBLIC_SALT
    from sscxr.data.prepare.prepare import prepare as prepare_cache

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
        chest_words=chest_word or (),
        salt=PUBLIC_SALT if public else None,
    )
    _show(cache, as_json)


def list_corpora(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only this one, with its labels.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the public corpora for NAME:FOLDER. Shows their content, where to get them, and their layout."""
    from rich.markup import escape
    from rich.table import Table

    from sscxr.data import corpora
    from sscxr.display import PlainConsole

    console = PlainConsole(markup=True, width=None if sys.stdout.isatty() else 160)
    chosen = [corpora.known(name)] if name else list(corpora.CORPORA.values())
    titles = ("images", "labels", "licence", "where", "layout")
    if as_json:
        facts = {
            corpus.name: {title: getattr(corpus, title) for title in ("title", *titles)} for corpus in chosen
        }
        typer.echo(json.dumps(facts, indent=1))
        return
    for corpus in chosen:
        table = Table(
            "", "", title=f"{corpus.name}: {corpus.title}", title_justify="left", title_style="bold", box=None,
            show_header=False,
        )  # fmt: skip
        for title in titles:
            table.add_row(title, escape(getattr(corpus, title)))
        console.print(table)
        console.print()


def cache_info(folder: CacheFolder, as_json: AsJson = False) -> None:
    """Show the content of a cache; complete an interrupted write."""
    from sscxr.data.cache import store
    from sscxr.data.cache.cache import COMMIT, NEXT, open_cache

    if (folder / NEXT / COMMIT).exists():  # only then: a reader of a cache need not have the right to write
        with store.writing(folder):
            pass
    _show(open_cache(folder), as_json)


def cache_remove(
    folder: CacheFolder,
    patient: Annotated[list[str] | None, typer.Option(help="A patient's id as the export writes it.")] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="A patient group, by its hash in the index.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option(help="An image, by its hash in the index.")] = None,
) -> None:
    """Remove images from a cache. The next `prepare` of the same export does not bring them back."""
    from sscxr.data.cache.assemble import remove
    from sscxr.data.cache.cache import open_cache

    if not (patient or group or image):
        raise click.UsageError("give --patient ID, --group HASH or --image HASH")
    removed = remove(folder, patients=patient or (), groups=group or (), images=image or ())
    typer.echo(f"removed {removed} image{'s' if removed != 1 else ''}; {len(open_cache(folder))} remain")


def _show(cache: "Cache", as_json: bool) -> None:
    """Print the counts of a cache, without names."""
    facts = describe(cache)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    from rich.table import Table

    from sscxr.display import PlainConsole

    console = PlainConsole(highlight=True)
    table = Table("", "", "images", title=repr(cache), title_justify="left", title_style="bold", box=None)
    labels = {
        name: ", ".join(f"{count} {kind}" for kind, count in cells.items())
        for name, cells in facts["labels"].items()
    }
    for title, counts in {
        "source": facts["sources"],
        "view": facts["views"],
        "age": facts["ages"],
        "grey range": facts["grey_ranges"],
        "label": labels,
        "masks": {"": facts["masks"]},
        "warnings": facts["warnings"],
        "quarantined": facts["quarantined"],
    }.items():
        for place, (name, count) in enumerate(counts.items()):
            table.add_row("" if place else title, name, str(count))
    console.print(table)
    for name in ("quarantine", "sheet"):
        console.print(facts[name], soft_wrap=True, highlight=False)


def describe(cache: "Cache") -> dict[str, Any]:
    """Return the counts of a cache, which do not name a patient or a file of the export."""
    from sscxr.data.cache.cache import LABEL_PREFIX
    from sscxr.data.cache.tables import doubts, unusable

    index = cache.index

    def counted(column: str) -> dict[str, int]:
        return {str(name or "unknown"): count for name, count in sorted(Counter(index[column]).items())}

    labels = {}
    for name in cache.labels:
        cells = index[LABEL_PREFIX + name]
        with_it, without, unknown = (cells == 1).sum(), (cells == 0).sum(), cells.isna().sum()
        labels[name] = {"with": int(with_it), "without": int(without), "unknown": int(unknown)}
    return {
        "cache": str(cache.folder),
        "images": len(cache),
        "groups": int(index["group"].nunique()),
        "size": cache.size,
        "sources": counted("source"),
        "views": counted("view"),
        "ages": counted("age_band"),
        "grey_ranges": counted("grey_range"),
        "labels": labels,
        "masks": int((index["has_mask"] == 1).sum()),
        "warnings": doubts(cache),
        "quarantined": unusable(cache),
        "quarantine": str(cache.folder / "quarantine.csv"),
        "sheet": str(cache.folder / "sheet.png"),
    }
