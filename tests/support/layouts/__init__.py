"""Public corpora in little, laid out as they are published, and what plain reading of their tables counts.

Where torchxrayvision brings a corpus's table, rows of the true one are taken. Images are phantoms.
"""

from collections.abc import Callable
from pathlib import Path

from layouts import covid, folders, labeller, nih, readers, tuberculosis
from layouts.base import Truth

LAYOUTS: dict[str, Callable[[Path], Truth]] = {
    layout.__name__: layout
    for layout in (
        *(nih.nih, labeller.chexpert, labeller.mimic, readers.padchest, nih.rsna, readers.vindr, nih.siim),
        *(covid.covid19, covid.covidx, covid.stonybrook, labeller.brax, readers.openi),
        *(tuberculosis.montgomery, tuberculosis.shenzhen, tuberculosis.tbx11k),
        *(folders.kermany, readers.jsrt, folders.folders),
    )
}
