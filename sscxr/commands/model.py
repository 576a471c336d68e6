"""`sscxr evaluate`, `compare`, `predict`, `embed`, `similar`. Thin: torch is imported when a command runs."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer

from sscxr import printable
from sscxr.commands.command_line import AsJson, Force, examples

if TYPE_CHECKING:
    from rich.table import Table

    from sscxr.finetuning.judge import Judged
    from sscxr.predict.reading import Read

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a fine-tuned model.")]
CacheOption = Annotated[
    Path, typer.Option("--data", metavar="CACHE", help="The folder of a prepared site cache.")
]
Files = Annotated[
    list[Path],
    typer.Argument(metavar="FILES...", help="DICOM, PNG and JPEG files, folders of them, manifests (.csv)."),
]
HeldOut = Annotated[
    bool, typer.Option("--held-out", help="Only patients that the cache sets aside for testing.")
]
Source = Annotated[
    str, typer.Option(metavar="NAME[,NAME...]", help="Only images of these sources; default: all.")
]


def add(app: typer.Typer) -> None:
    """Add the commands to `sscxr`."""
    app.command(
        "evaluate",
        epilog=examples(
            "sscxr evaluate models/pneumonia --data cache",
            "sscxr evaluate models/pneumonia --data cache --held-out --json",
        ),
    )(evaluate)
    app.command(
        "compare",
        epilog=examples(
            "sscxr compare models/pretrained models/untrained --data cache --json",
            "sscxr compare runs/mine/encoder state/_alone/encoder --data cache",
        ),
    )(compare)
    app.command(
        "predict",
        epilog=examples(
            "sscxr predict models/pneumonia EXPORT --out predictions --saliency",
            "sscxr predict models/lungs a.dcm b.dcm --out masks --dicom-seg",
        ),
    )(predict)
    app.command(
        "embed",
        epilog=examples(
            "sscxr embed runs/mine/encoder --data cache --out features.csv",
            "sscxr embed models/pneumonia a.dcm b.png --out features.csv",
        ),
    )(embed)
    app.command(
        "similar",
        epilog=examples("sscxr similar a.dcm --encoder runs/mine/encoder --in cache --out like-a.png"),
    )(similar)


def evaluate(
    model: Model, data: CacheOption, source: Source = "", held_out: HeldOut = False, as_json: AsJson = False
) -> None:
    """Evaluate a fine-tuned model on prepared data. Patients that it was trained on are left out."""
    from sscxr.finetuning import judge

    found = _figures(judge.evaluate(model, data, sources=names(source), held_out=held_out), as_json)
    typer.echo(f"{model} on {data}: {found['n']} images of {found['patients']} patients")
    table = _table("", "value", "95 % interval", "images")
    for name, figure in figures_of(found).items():
        table.add_row(name, *cells(figure), str(figure["n"]))
    _print(table)
    for label, threshold in found.get("threshold", {}).items():
        at = "no threshold" if threshold is None else f"threshold {threshold:.3f}"
        typer.echo(
            f"{label}: sensitivity and specificity at {at}, for specificity {found['at_specificity']:g}"
        )
    _print(_subgroups(found))


def compare(
    first: Annotated[
        str, typer.Argument(metavar="A", help="A fine-tuned model's folder; or an encoder: URL or folder.")
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="Another of the same kind.")],
    data: CacheOption,
    source: Source = "",
    held_out: HeldOut = False,
    as_json: AsJson = False,
) -> None:
    """Compare two models, or two encoders, on the same images. Shows A minus B, paired over patients.

    Encoders are compared by probes, on patients that the cache sets aside for testing.
    """
    from sscxr.finetuning import finetuned, judge

    if not all(finetuned.is_model(Path(one)) for one in (first, second)):
        _compare_encoders(first, second, data, names(source), as_json)
        return
    found = _figures(judge.compare(first, second, data, sources=names(source), held_out=held_out), as_json)
    typer.echo(f"A {first}\nB {second}\n{data}: {found['n']} images of {found['patients']} patients")
    table = _table("", "A", "B", "A - B", "95 % interval", "p")
    for name, figure in figures_of(found).items():
        each = [_number(found[one][name]["value"]) for one in ("a", "b")]
        table.add_row(name, *each, *cells(figure), _number(figure.get("p")))
    _print(table)


def _compare_encoders(first: str, second: str, data: Path, sources: list[str], as_json: bool) -> None:
    from sscxr.predict import probing

    found = probing.compare(first, second, data, sources=sources)
    if as_json:
        typer.echo(json.dumps(found, indent=1, allow_nan=False))
        return
    typer.echo(
        f"A {first}\nB {second}\n{data}: {found['n']} images of {found['patients']} patients, set aside"
    )
    table = _table("AUROC of probes", "source", "probe", "A", "B", "A - B", "95 % interval")
    means = [
        {"label": "mean of the labels", "cohort": "", "probe": kind} | each
        for kind, each in found["mean"].items()
    ]
    for row in [*means, *found["tasks"]]:
        values = [_number(row[one]["value"]) for one in ("a", "b")]
        table.add_row(row["label"], row["cohort"], row["probe"], *values, *cells(row))
    _print(table)


def predict(
    model: Model,
    files: Files,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder for the results.")],
    with_saliency: Annotated[
        bool, typer.Option("--saliency", help="Show which parts of the image support the likeliest labels.")
    ] = False,
    with_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also write masks of DICOM files as DICOM SEG.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite earlier predictions in DIR.")] = False,
) -> None:
    """Predict probabilities or lung masks for X-ray files. A file that fails does not stop the others."""
    from sscxr.predict import predict as predicting

    with _shown_files() as shown:
        options = [*["--saliency"] * with_saliency, *["--dicom-seg"] * with_seg]
        found = predicting.predict(model, files, out, options=options, overwrite=force, on_file=shown)
    for file, reason in found.without_seg:
        typer.echo(f"{file}: {reason}", err=True)
    typer.echo(f"{out / predicting.TABLE}: {found.done} of {len(found.rows)} files")
    if found.failed or found.without_seg:
        raise typer.Exit(1)


def embed(
    encoder: Annotated[
        str,
        typer.Argument(metavar="ENCODER", help="A fine-tuned model's folder, or a release: URL or folder."),
    ],
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILES...]", help="DICOM, PNG and JPEG files, folders of them, manifests."),
    ] = None,
    *,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="CACHE", help="A prepared site cache instead of files.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The CSV to write.")],
    force: Force = False,
) -> None:
    """Write one row of features per image. They are the mean of the encoder's patch tokens."""
    from sscxr import files as writing
    from sscxr.data.cache.cache import open_cache
    from sscxr.predict import neighbours

    if bool(files) == (data is not None):
        raise click.UsageError("give either FILES, or --data CACHE")
    writing.refuse_existing(out, force=force)
    embedder = neighbours.open_embedder(encoder)
    failed: list[Read] = []
    if data is not None:
        table = neighbours.embed_cache(embedder, open_cache(data))
    else:
        table, failed = neighbours.embed_files(embedder, files or [])
    for file in failed:
        typer.echo(_failed(file), err=True)
    text = printable.frame(table, index=False, float_format="%.7g")
    writing.write_atomically(out, text.encode("utf-8", "surrogateescape"))
    typer.echo(f"{out}: {len(table)} rows of {table.shape[1] - 1} features")
    if failed:
        raise typer.Exit(1)


def similar(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A DICOM, PNG or JPEG file.")],
    encoder: Annotated[
        str, typer.Option(metavar="ENCODER", help="A fine-tuned model's folder, or a release: URL or folder.")
    ],
    cache: Annotated[Path, typer.Option("--in", metavar="CACHE", help="The site cache to look in.")],
    number: Annotated[int, typer.Option(min=1, max=99, help="How many images.")] = 8,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The contact sheet to write.")] = Path(
        "similar.png"
    ),
    force: Force = False,
) -> None:
    """Find the images of a cache that are most similar to a file. Draws them beside it."""
    from sscxr import files as writing
    from sscxr.predict import neighbours

    if out.suffix.lower() != ".png" or not out.absolute().parent.is_dir():
        raise click.UsageError(f"--out {out}: give a file name that ends in .png, in an existing folder")
    writing.refuse_existing(out, force=force)
    found, page = neighbours.similar(neighbours.open_embedder(encoder), image, cache, number=number)
    page.save(out)
    table = _table(*found.columns)
    for row in found.itertuples(index=False):
        table.add_row(f"{row.cosine:.3f}", *map(str, row[1:]))
    _print(table)
    typer.echo(out)


@contextmanager
def _shown_files() -> "Iterator[Callable[[int, int, Read], None]]":
    """Show a bar of files on stderr, and a line for each that fails."""
    from sscxr.display import Board, Clock, Line

    clock = Clock()
    with Board() as board:

        def shown(done: int, total: int, file: "Read") -> None:
            if file.problem:
                board.say(_failed(file))
            board.show(Line("files", done, total, [f"{done} of {total}", clock.left(done, total)]))

        yield shown


def _failed(file: "Read") -> str:
    return " ".join(f"{file.file}: {file.problem}".split())


def _table(*headings: str) -> "Table":
    from rich.table import Table

    return Table(*headings, box=None)


def _print(table: "Table") -> None:
    from sscxr.display import PlainConsole

    PlainConsole().print(table)


def names(text: str) -> list[str]:
    """Return the names in "a,b"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _figures(judged: "Judged", as_json: bool) -> dict[str, Any]:
    """Print the notes and return the figures; as JSON, print them too, and end."""
    for note in judged.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(judged.figures, indent=1, allow_nan=False))
        raise typer.Exit
    return judged.figures


def figures_of(found: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the figures by name, without the counts and subgroups beside them."""
    parts = {"value", "low", "high", "n"}
    return {name: one for name, one in found.items() if isinstance(one, dict) and parts <= one.keys()}


def cells(figure: Mapping[str, Any]) -> tuple[str, str]:
    """Return a figure's value and its interval as text."""
    low, high = _number(figure["low"]), _number(figure["high"])
    return _number(figure["value"]), f"{low} to {high}" if low else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _subgroups(found: Mapping[str, Any]) -> "Table":
    """Return a table of each subgroup's first figure, with counts."""
    name = next(iter(figures_of(found)))
    counted = ["with"] if "positives" in found else []  # of a label; masks have none
    table = _table("", "", name, "95 % interval", "images", "patients", *counted)
    for column, parts in found["by"].items():
        for place, (part, figures) in enumerate(parts.items()):
            title = "" if place else column.replace("_", " ")
            positives = [", ".join(map(str, figures["positives"].values())) for _ in counted]
            counts = (str(figures["n"]), str(figures["patients"]), *positives)
            table.add_row(title, part, *cells(figures[name]), *counts)
    return table
