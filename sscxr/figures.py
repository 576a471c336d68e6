"""Figures for a page: line charts as inline SVG and rows of images as PNG, without any file or network.

Charts are drawn on nothing, with text and axes in the page's own text colour, so that they read in light, in
dark and in print. Lines differ in colour (Okabe and Ito's palette, safe for the colour-blind), in marker and in
stroke, so that they can be told apart in grey as well.
"""

import base64
import html
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

# Okabe and Ito 2008, less yellow and black: the one is lost on white, the other on a dark page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STROKES = ("-", "--", ":", "-.")
# A colour that nothing else has: it becomes the page's text colour in the SVG.
_INK = "#010203"
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "text.parse_math": False,  # a site may be called $x
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        name: for the legend; shown as it is, cut where it is long.
        x, y: [N] each; a NaN in y is a gap.
        bold: drawn thick and in the text's colour: the one that sums up the others.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    bold: bool = False


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str, alt: str) -> str:
    """A line chart as an inline `<svg>`.

    Args:
        lines: at least one.
        x_label, y_label: what the axes measure, with units.
        alt: what the chart shows, for those who do not see it.
    """
    columns = 2
    legend_rows = -(-len(lines) // columns) if len(lines) > 1 else 0
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": alt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks: the page's font has them
        figure = Figure(figsize=(5.2, 2.8 + 0.21 * legend_rows), layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            _draw(axes, line, number)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", color="#808080", alpha=0.25, linewidth=0.6)
        if legend_rows:
            figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        return _inline(figure, alt)


def _draw(axes: Any, line: Line, number: int) -> None:
    style: dict[str, Any] = {
        "color": _INK if line.bold else COLOURS[number % len(COLOURS)],
        "marker": None if line.bold and len(line.x) > 1 else MARKERS[number % len(MARKERS)],
        "linestyle": "-" if line.bold else STROKES[(number // len(COLOURS)) % len(STROKES)],
        "linewidth": 2.4 if line.bold else 1.2,
        "zorder": 3 if line.bold else 2,
    }
    every = max(1, len(line.x) // 10)
    axes.plot(line.x, line.y, label=shorten(line.name), markersize=4, markevery=every, **style)


def _inline(figure: Figure, alt: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Several charts share a page: ids are made their own, and namespaces, which name addresses, are implied.
    key = f"{zlib.crc32(alt.encode()):08x}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda found: found.group(1) + key, text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = text.replace(_INK, "currentColor")
    head = f'<svg role="img" aria-label="{html.escape(alt)}"'
    # The size is the page's business; the viewBox keeps the proportions.
    first, rest = text.split(">", 1)
    first = re.sub(r'\s(width|height)="[^"]*"', "", first)
    return head + first.removeprefix("<svg") + ">" + rest


def image_row(images: npt.NDArray[np.uint8], *, gap: int = 2) -> str:
    """Images side by side as a PNG data address.

    Args:
        images: uint8 [n, H, W], n at least 1.
        gap: px between images, mid grey.
    """
    images = np.asarray(images)
    if images.ndim != 3 or images.dtype != np.uint8 or not len(images):
        raise ValueError(f"a row of images wants uint8 [n, H, W], not {images.dtype} {images.shape}")
    padded = np.pad(images, ((0, 0), (0, 0), (0, gap)), constant_values=128)
    row = np.concatenate(list(padded), axis=1)[:, : -gap or None]
    buffer = io.BytesIO()
    Image.fromarray(row).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shorten(name: str, length: int = 28) -> str:
    """A name on one line, printable and short enough for a legend."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(name))
    plain = " ".join(plain.split())
    plain = plain if len(plain) <= length else plain[: length - 1] + "…"
    # A legend leaves out names that start with an underscore; an invisible space in front keeps them.
    return "\u200b" + plain if plain.startswith("_") or not plain else plain
