"""`sscxr finetune ...`. Thin: torch is imported when a command runs, not before."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sscxr.commands.command_line import PublicKey, examples
from sscxr.commands.encoder import located
from sscxr.commands.model import CacheOption, Source, cells, figures_of, names
from sscxr.display import Board, Clock, Line, PlainConsole

if TYPE_CHECKING:
    from rich.table import Table

    from sscxr.config import Config
    from sscxr.finetuning.finetune import Epoch, Split
    from sscxr.finetuning.tune import Listener, Tuned

_LINES = 30  # the most plain lines of epochs without a terminal

Encoder = Annotated[
    str, typer.Option(metavar="NAME|URL|DIR", help="A shipped or released encoder, or a run's `encoder`.")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="The model's folder.")]
Frozen = Annotated[bool, typer.Option("--frozen", help="Freeze the encoder and train only the head.")]
Untrained = Annotated[
    bool, typer.Option("--untrained", help="Start from random weights of the same network: a baseline.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the fine-tuned model in DIR.")]
ConfigFile = Annotated[
    str, typer.Option("--config", metavar="FILE", help="A recipe: a YAML file, or a shipped one by name.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as finetune.epochs=10."),
]


def add(app: typer.Typer) -> None:
    """Add the commands to `sscxr`."""
    finetune = typer.Typer(help="Fine-tune an encoder on a prepared site cache.", no_args_is_help=True)
    finetune.command(
        "classify",
        epilog=examples(
            "sscxr finetune classify --encoder runs/mine/encoder --data cache --label pneumonia --out models/p",
            "sscxr finetune classify --encoder runs/mine/encoder --data cache --label pneumonia,effusion \\",
            "    --per-class 50 --out models/few finetune.epochs=10",
        ),
    )(classify)
    finetune.command(
        "segment",
        epilog=examples("sscxr finetune segment --encoder runs/mine/encoder --data cache --out models/lungs"),
    )(segment)
    app.add_typer(finetune, name="finetune")


def classify(
    encoder: Encoder,
    data: CacheOption,
    label: Annotated[
        str, typer.Option(metavar="NAME[,NAME...]", help="The labels to learn, as named in the cache.")
    ],
    out: Out,
    overrides: Overrides = None,
    source: Source = "",
    per_class: Annotated[
        int | None,
        typer.Option(min=1, help="Learn from so many images with, and without, each label; no validation."),
    ] = None,
    frozen: Frozen = False,
    untrained: Untrained = False,
    force: Force = False,
    config: ConfigFile = "default",
    key: PublicKey = None,
) -> None:
    """Fine-tune a classifier. At the end it is evaluated on patients that were never trained on."""
    from sscxr.finetuning import tune

    folder = located(encoder, key)
    settings = tune.settings(folder, "classify", config, overrides or ())
    settings.finetune.frozen |= frozen
    settings.classify.labels = names(label)
    settings.classify.per_class = per_class or settings.classify.per_class
    _tune(folder, data, settings, out, source, untrained, force)


def segment(
    encoder: Encoder,
    data: CacheOption,
    out: Out,
    overrides: Overrides = None,
    source: Source = "",
    frozen: Frozen = False,
    untrained: Untrained = False,
    force: Force = False,
    config: ConfigFile = "segment",
    key: PublicKey = None,
) -> None:
    """Fine-tune a lung segmenter (UNETR) on masks. At the end it is evaluated on patients it has not seen."""
    from sscxr.finetuning import tune

    folder = located(encoder, key)
    settings = tune.settings(folder, "segment", config, overrides or ())
    settings.finetune.frozen |= frozen
    _tune(folder, data, settings, out, source, untrained, force)


class Show:
    """Shows a fine-tuning on a board: bars in a terminal, else a few plain lines."""

    def __init__(self, board: Board, config: "Config") -> None:
        from sscxr.finetuning import KINDS

        self.board, self._clock = board, Clock()
        self.score = KINDS[config.run.stage].score
        self._planned, self._images, self._epochs, self._last = 1, 0, 0, ""
        self._began = 0.0

    @property
    def listener(self) -> "Listener":
        """Return the callbacks of a fine-tuning that update this display."""
        from sscxr.finetuning.tune import Listener

        return Listener(self._noted, self._begun, self._epoch_done, self._stepped)

    def _noted(self, text: str) -> None:
        self.board.say(f"note: {text}")

    def _begun(self, parts: "Split", planned: int) -> None:
        self._planned, self._images, self._began = planned, len(parts.train), time.monotonic()
        train, val, test = (len(rows) for rows in (parts.train, parts.val, parts.test))
        self.board.say(
            f"{train} images to learn from, {val} to stop by, {test} to test on; at most {planned} epochs"
        )

    def _stepped(self, done: int, steps: int) -> None:
        share = self._epochs + done / steps
        left = self._clock.left(share, self._planned)
        speed = self._images * done / steps / max(time.monotonic() - self._began, 1e-6)
        title, notes = (
            f"epoch {self._epochs + 1} of at most {self._planned}",
            [left and f"at most {left}", self._last],
        )
        step = Line(f"step {done} of {steps}", done, steps, [f"{speed:.0f} images/s"])
        self.board.lines = [Line(title, share, self._planned, notes), step]

    def _epoch_done(self, one: "Epoch") -> None:
        scored = "" if math.isnan(one.score) else f", validation {self.score} {one.score:.4f}"
        self._epochs, self._last, self._began = one.epoch, f"loss {one.loss:.4f}{scored}", time.monotonic()
        every = -(-self._planned // _LINES)
        if one.epoch % every == 0 or one.epoch == self._planned:
            left = self._clock.left(one.epoch, self._planned) if one.epoch < self._planned else ""
            line = f"epoch {one.epoch}/{self._planned}: {self._last}, {one.seconds:.1f} s"
            self.board.say(f"{line}{left and f', at most {left}'}")


def _tune(
    encoder: Path, data: Path, settings: "Config", out: Path, source: str, untrained: bool, force: bool
) -> None:
    from sscxr.data.cache.cache import open_cache
    from sscxr.finetuning import tune

    cache = open_cache(data)
    settings.data.cache_size = cache.size  # the size that `sscxr predict` scales files to
    job = tune.Job(encoder, cache, settings, out, names(source), untrained, force)
    with Board() as board:
        tuned = tune.fine_tune(job, Show(board, settings).listener)
    _finish(tuned)


def _finish(tuned: "Tuned") -> None:
    """Print the figures on the test patients, and the model's folder."""
    from rich.table import Table

    from sscxr.finetuning import KINDS

    found = tuned.figures
    if found:
        title = f"on {found['n']} images of {found['patients']} test patients"
        table = Table("", "value", "95 % interval", "images", title=title, title_justify="left", box=None)
        _add_figures(table, found)
        sources = found["by"]["source"]
        if KINDS[tuned.spec.task].by_source and len(sources) > 1:
            for source, figures in sources.items():
                table.add_section()
                _add_figures(table, figures, f"{source}: ")
        PlainConsole().print(table)
    typer.echo(tuned.folder)


def _add_figures(table: "Table", figures: Mapping[str, Any], prefix: str = "") -> None:
    """Add a row for each figure that has a value."""
    for name, one in figures_of(figures).items():
        if one["value"] is not None:
            table.add_row(prefix + name, *cells(one), str(one["n"]))
