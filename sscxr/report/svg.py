"""matplotlib's figures as inline `<svg>`: in the page's font and colours, light or dark, of any size.

Categories are distinct in print and for the colour-blind: they also differ by marker, stroke or hatching.
"""

import html
import io
import re
import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Okabe and Ito 2008, without yellow and black, invisible on a white or a dark page. The page's style
# has a lighter form of each for dark, as --c0, --c1 ...
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STROKES = ("-", "--", ":", "-.")
# Only strokes: a hatching of dots or rings takes a quarter of a megabyte of SVG.
HATCHES = ("", "////", "\\\\\\\\", "xxxx", "----", "||||", "++++", "//", "xx")
# Unique colours that stand for the page's text, its background, and its muted text.
INK, PAGE, SOFT = "#010203", "#fdfefd", "#7a8490"
WIDTH = 5.2  # inches, 374 px: fits a phone
_SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: searchable, and in the page's font
    "text.parse_math": False,  # a site may be called $x
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "hatch.linewidth": 0.6,
}
_VARIABLES = {INK: "var(--ink)", PAGE: "var(--page)", SOFT: "var(--soft)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(COLOURS)
}
_HOVER = "hover-"  # prefix for the ids of elements with a text under the mouse


def style(number: int) -> dict[str, Any]:
    """Return colour, marker and stroke of the n-th category; the first 42 differ by colour and marker."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": STROKES[(number // len(COLOURS)) % len(STROKES)],
    }


def draw(paint: Callable[[Figure, Any], Mapping[str, str] | None], *, alt: str, height: float) -> str:
    """Draw a figure as an inline `<svg>`.

    Args:
        paint: called with the figure and its axes; returns ids (`hover`) -> texts shown under the mouse.
        alt: a description for those who do not see the figure; unique on the page.
        height: inches.
    """
    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": alt}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that matplotlib's font lacks: the page's font has them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        texts = paint(figure, figure.add_subplot()) or {}
        return _inline(figure, alt, texts)


def hover(artist: Any, number: int) -> str:
    """Mark a line or a bar so that `draw` can give it a text, and return its id."""
    name = f"{_HOVER}{number}"
    artist.set_gid(name)
    return name


def _inline(figure: Figure, alt: str, texts: Mapping[str, str]) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    for name, words in texts.items():
        text = text.replace(f'id="{name}">', f'id="{name}"><title>{html.escape(words)}</title>', 1)
    # Several charts share a page: ids are made unique, and namespaces, which name addresses, are left out.
    key = f"{zlib.crc32(alt.encode()):08x}-"
    text = re.sub(r'(\bid="|href="#|url\(#)', lambda found: found.group(1) + key, text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        text = text.replace(f": {colour}", f": {variable}")
    head = f'<svg role="img" aria-label="{html.escape(alt)}"'
    # The page sets the size; the viewBox keeps the proportions.
    first, rest = text.split(">", 1)
    first = re.sub(r'\s(width|height)="[^"]*"', "", first)
    return re.sub(r"\n\s*", "\n", head + first.removeprefix("<svg") + ">" + rest)


def shorten(name: str, length: int = 28) -> str:
    """Return a name on one line, printable and short enough for a legend."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(name))
    plain = " ".join(plain.split())
    plain = plain if len(plain) <= length else plain[: length - 1] + "…"
    # A legend leaves out names that start with an underscore; an invisible space in front keeps them.
    return "\u200b" + plain if plain.startswith("_") or not plain else plain
