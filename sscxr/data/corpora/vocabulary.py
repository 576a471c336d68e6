"""One vocabulary of labels, and the mapping from the words of each public corpus.

Words have the corpus's meaning: nothing is guessed from parts of words ("subcutaneous emphysema" is not an
emphysema of the lung). Words without one of our labels are listed as `UNMAPPED`, so that new words are noticed. A
label that a corpus does not cover is unknown, never absent.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

NIH = (
    *("atelectasis", "cardiomegaly", "consolidation", "edema", "effusion", "emphysema", "fibrosis", "hernia"),
    *("infiltration", "mass", "nodule", "pleural_thickening", "pneumonia", "pneumothorax"),
)
CHEXPERT = (
    *("atelectasis", "cardiomegaly", "consolidation", "edema", "effusion", "enlarged_cardiomediastinum"),
    *("fracture", "lung_lesion", "lung_opacity", "pleural_other", "pneumonia", "pneumothorax"),
    "support_devices",
)
PNEUMONIA_KINDS = ("bacterial_pneumonia", "viral_pneumonia", "fungal_pneumonia", "covid19")
TUBERCULOSIS = ("tuberculosis", "active_tuberculosis", "latent_tuberculosis")
HEALTHY = "normal"
LABELS = (*sorted({*NIH, *CHEXPERT, *PNEUMONIA_KINDS, *TUBERCULOSIS}), HEALTHY)

UNMAPPED: tuple[str, ...] = ()
Words = Mapping[str, tuple[str, ...]]
Matrix = npt.NDArray[np.float32]


def _listed(text: str) -> list[str]:
    return " ".join(text.split()).split("; ")


def _words(spellings: Mapping[str, str], unmapped: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return word -> labels, from label -> its words, separated by semicolons; and words without a label."""
    found = dict.fromkeys(unmapped, UNMAPPED)
    for label, words in spellings.items():
        for word in _listed(words):
            found[word] = (*found.get(word, ()), label)
    return found


# ChestX-ray14's `Finding Labels`.
NIH_WORDS: Words = _words({name: name for name in NIH}) | {
    "no finding": (HEALTHY,),
    "infiltrate": ("infiltration",),
}
# The columns of CheXpert, MIMIC-CXR-JPG and BRAX, all from the CheXpert labeller.
CHEXPERT_WORDS: Words = _words(
    {name: name.replace("_", " ") for name in CHEXPERT}
    | {HEALTHY: "no finding", "effusion": "pleural effusion"}
)
# VinDr-CXR's classes. `Nodule/Mass` is CheXpert's lung lesion.
_VINDR = {
    HEALTHY: "no finding",
    "atelectasis": "atelectasis",
    "cardiomegaly": "cardiomegaly",
    "fracture": "clavicle fracture; rib fracture",
    "consolidation": "consolidation",
    "edema": "edema",
    "emphysema": "emphysema",
    "infiltration": "infiltration",
    "lung_opacity": "lung opacity",
    "lung_lesion": "nodule/mass",
    "effusion": "pleural effusion",
    "pleural_thickening": "pleural thickening",
    "pneumonia": "pneumonia",
    "pneumothorax": "pneumothorax",
    "fibrosis": "pulmonary fibrosis",
    "tuberculosis": "tuberculosis",
}
_VINDR_UNMAPPED = """
    aortic enlargement; calcification; copd; enlarged pa; ild; lung cavity; lung cyst; lung tumor;
    mediastinal shift; other disease; other diseases; other lesion
"""
VINDR_WORDS: Words = _words(_VINDR, _listed(_VINDR_UNMAPPED))
_PADCHEST = {
    HEALTHY: "normal",
    "atelectasis": "atelectasis; atelectasis basal; laminar atelectasis; lobar atelectasis; "
    "round atelectasis; segmental atelectasis; total atelectasis",
    "cardiomegaly": "cardiomegaly",
    "consolidation": "consolidation; air bronchogram",
    "edema": "pulmonary edema",
    "effusion": "pleural effusion; loculated pleural effusion; loculated fissural effusion; "
    "hydropneumothorax",
    "pneumothorax": "hydropneumothorax; pneumothorax",
    "emphysema": "emphysema",
    "fibrosis": "pulmonary fibrosis",
    "hernia": "hiatal hernia",
    "infiltration": "infiltrates; alveolar pattern; interstitial pattern; ground glass pattern; "
    "reticular interstitial pattern; reticulonodular interstitial pattern",
    "mass": "pulmonary mass; mass",
    "nodule": "nodule; multiple nodules",
    "pleural_thickening": "pleural thickening; apical pleural thickening; calcified pleural thickening",
    "pneumonia": "pneumonia; atypical pneumonia",
    "tuberculosis": "tuberculosis",
    "latent_tuberculosis": "tuberculosis sequelae",
    "fracture": "callus rib fracture; clavicle fracture; fracture; humeral fracture; rib fracture; "
    "vertebral fracture",
    "support_devices": "abnormal foreign body; aortic endoprosthesis; artificial aortic heart valve; "
    "artificial heart valve; artificial mitral heart valve; catheter; central venous catheter; "
    "chest drain tube; double j stent; central venous catheter via jugular vein; "
    "central venous catheter via subclavian vein; central venous catheter via umbilical vein; "
    "dual chamber device; electrical device; endoprosthesis; endotracheal tube; gastrostomy tube; "
    "nephrostomy tube; nsg tube; pacemaker; prosthesis; reservoir central venous catheter; "
    "single chamber device; tracheostomy tube; ventriculoperitoneal drain tube",
}
# Words about no finding: with nothing else beside them, every label is unknown.
PADCHEST_SILENT = frozenset({"", "nan", "unchanged", "exclude", "suboptimal study"})
_PADCHEST_UNMAPPED = """
    adenopathy; air fluid level; air trapping; aortic aneurysm; aortic atheromatosis;
    aortic button enlargement; aortic elongation; asbestosis signs; ascendent aortic elongation; abscess;
    axial hyperostosis; azygoesophageal recess shift; azygos lobe; blastic bone lesion; bone cement;
    bone metastasis; breast mass; bronchiectasis; bronchovascular markings; bullas; calcified adenopathy;
    calcified densities; calcified fibroadenoma; calcified granuloma; calcified mediastinal adenopathy;
    calcified pleural plaques; cavitation; cervical rib; central vascular redistribution; chilaiditi sign;
    chronic changes; copd signs; costochondral junction hypertrophy; costophrenic angle blunting; cyst; dai;
    dextrocardia; descendent aortic elongation; diaphragmatic eventration; empyema; end on vessel;
    esophagic dilatation; external foreign body; fibrotic band; fissure thickening; flattened diaphragm;
    goiter; granuloma; gynecomastia; heart insufficiency; heart valve calcified; hemidiaphragm elevation;
    hilar congestion; hilar enlargement; humeral prosthesis; hyperinflated lung; hypoexpansion;
    hypoexpansion basal; increased density; kerley lines; kyphosis; lepidic adenocarcinoma; lipomatosis;
    lung metastasis; lung vascular paucity; lymphangitis carcinomatosa; lytic bone lesion;
    major fissure thickening; mammary prosthesis; mastectomy; mediastinal enlargement; mediastinal mass;
    mediastinal shift; mediastinic lipomatosis; metal; miliary opacities; minor fissure thickening;
    nipple shadow; non axial articular degenerative changes; obesity; osteopenia; osteoporosis;
    osteosynthesis material; pectum carinatum; pectum excavatum; pericardial effusion; pleural mass;
    pleural plaques; pneumomediastinum; pneumoperitoneo; post radiotherapy changes; pseudonodule;
    pulmonary artery enlargement; pulmonary artery hypertension; pulmonary hypertension;
    pulmonary venous hypertension; respiratory distress; right sided aortic arch; sclerotic bone lesion;
    scoliosis; soft tissue mass; sternotomy; sternoclavicular junction hypertrophy;
    subacromial space narrowing; subcutaneous emphysema; superior mediastinal enlargement;
    supra aortic elongation; surgery; surgery breast; surgery heart; surgery humeral; surgery lung;
    surgery neck; suture material; thoracic cage deformation; tracheal shift; vascular hilar enlargement;
    vascular redistribution; vertebral anterior compression; vertebral compression;
    vertebral degenerative changes; volume loss
"""
PADCHEST_WORDS: Words = _words(_PADCHEST, [*_listed(_PADCHEST_UNMAPPED), *PADCHEST_SILENT])
# The heads of Open-i's manual MeSH codes (`major`), such as "Opacity/lung/base/left".
_OPENI = {
    HEALTHY: "normal",
    "lung_opacity": "airspace disease; opacity",
    "atelectasis": "atelectasis; pulmonary atelectasis",
    "emphysema": "bullous emphysema; emphysema; pulmonary emphysema",
    "cardiomegaly": "cardiomegaly",
    "support_devices": "catheters, indwelling; implanted medical device; medical device; stents; "
    "tube, inserted",
    "consolidation": "consolidation",
    "fracture": "fractures, bone",
    "hernia": "hernia, diaphragmatic; hernia, hiatal",
    "effusion": "hydropneumothorax; pleural effusion; hemopneumothorax",
    "pneumothorax": "hydropneumothorax; pneumothorax; hemopneumothorax",
    "infiltration": "infiltrate",
    "mass": "mass",
    "nodule": "nodule",
    "pleural_thickening": "pleural thickening",
    "pneumonia": "pneumonia",
    "edema": "pulmonary edema",
    "fibrosis": "pulmonary fibrosis",
    "tuberculosis": "tuberculosis",
}
OPENI_WORDS: Words = _words(_OPENI)
OPENI_SILENT = frozenset({"", "no indexing", "technical quality of image unsatisfactory"})
# Kind of a finding -> the more general findings that it implies.
PARENTS: Words = {
    "bacterial_pneumonia": ("pneumonia",),
    "viral_pneumonia": ("pneumonia",),
    "fungal_pneumonia": ("pneumonia",),
    "covid19": ("viral_pneumonia", "pneumonia"),
    "active_tuberculosis": ("tuberculosis",),
    "latent_tuberculosis": ("tuberculosis",),
}
# The parts of the COVID-19 collection's `finding`: "Pneumonia/Viral/COVID-19", before August 2020 "COVID-19,
# ARDS". Any part alone implies all that is above it.
_COVID = {
    HEALTHY: "no finding",
    "pneumonia": "pneumonia; aspiration; lipoid",
    "covid19": "covid-19",
    "tuberculosis": "tuberculosis",
    "bacterial_pneumonia": "bacterial; bacterial pneumonia; chlamydophila; e.coli; klebsiella; legionella; "
    "mrsa; mycoplasma; mycoplasma bacterial pneumonia; nocardia; staphylococcus; streptococcus",
    "viral_pneumonia": "viral; viral pneumonia; h1n1; herpes; influenza; mers; mers-cov; sars; varicella",
    "fungal_pneumonia": "fungal; fungal pneumonia; aspergillosis; pneumocystis",
}
COVID_SILENT = frozenset({"", "ards", "todo", "unknown"})
COVID_WORDS: Words = {
    word: (label, *PARENTS.get(label, ())) for word, (label,) in _words(_COVID).items()
} | dict.fromkeys(COVID_SILENT - {""}, UNMAPPED)
# COVIDx: three classes (the A lists), or two (the B lists): COVID-19 or not.
COVIDX_CLASSES: Mapping[str, Mapping[str, float]] = {
    "normal": {HEALTHY: 1, "pneumonia": 0, "viral_pneumonia": 0, "covid19": 0},
    "pneumonia": {HEALTHY: 0, "pneumonia": 1, "covid19": 0},
    "covid-19": {HEALTHY: 0, "pneumonia": 1, "viral_pneumonia": 1, "covid19": 1},
    "positive": {HEALTHY: 0, "covid19": 1},
    "negative": {"covid19": 0},
}


def spelled(
    cells: "pd.Series[str]",
    words: Words,
    split: Callable[[str], Sequence[str]],
    *,
    silent: frozenset[str] = frozenset({""}),
    others: bool = False,
) -> tuple[dict[str, Matrix], set[str]]:
    """Return labels from lists of named findings: 1 if named, 0 if only others are, NaN if none is.

    An unknown word leaves findings that are not named beside it unknown: it may be another spelling of one of
    them.

    Args:
        cells: the lists as text.
        words: lower-case word -> labels.
        split: splits a cell into its words.
        silent: words about no finding; a cell of these alone leaves every label unknown.
        others: whether words that are not in `words` are known to name other findings.

    Returns:
        label -> float32 [N], and the words that are not in `words`.
    """
    names = sorted({name for labels in words.values() for name in labels})
    place = {name: number for number, name in enumerate(names)}
    codes, texts = pd.factorize(cells)
    table = np.zeros((len(texts), len(names)), dtype=np.float32)
    unknown: set[str] = set()
    for row, text in enumerate(texts):
        found = {" ".join(word.lower().split()) for word in split(str(text))}
        strange = {word for word in found if word not in words} - silent
        unknown |= strange
        if (strange and not others) or found <= silent:
            table[row] = np.nan
        for word in found:
            for label in words.get(word, ()):
                table[row, place[label]] = 1
    values = table[codes]
    return {name: values[:, place[name]] for name in names}, unknown


UNCERTAIN = {"ignore": np.nan, "zeros": 0.0, "ones": 1.0}


def from_labeller(columns: Mapping[str, Matrix], uncertain: str) -> dict[str, Matrix]:
    """Return labels from the CheXpert labeller's columns: 1, 0, -1 uncertain, NaN not mentioned.

    "No Finding" means that the findings, though not support devices, are absent (CheXpert, section 3.1); any
    present finding means that the image is not normal.

    Args:
        columns: a column of `CHEXPERT_WORDS` -> float [N].
        uncertain: treatment of -1: "ignore" (unknown), "zeros" or "ones" (CheXpert's U-Ignore, U-Zeros, U-Ones).
    """
    by_label = {
        CHEXPERT_WORDS[name.lower()][0]: np.asarray(cells, np.float32) for name, cells in columns.items()
    }
    healthy = by_label.pop(HEALTHY, np.zeros(0, np.float32)) == 1
    labels: dict[str, Matrix] = {}
    ill = np.zeros(len(next(iter(by_label.values()), healthy)), dtype=bool)
    for name, cells in by_label.items():
        if name != "support_devices":
            ill |= cells == 1
        values = np.where(cells == -1, np.float32(UNCERTAIN[uncertain]), cells)
        if len(healthy) and name != "support_devices":
            values = np.where(healthy, np.float32(0), values)
        labels[name] = values.astype(np.float32)
    if len(healthy):
        labels[HEALTHY] = np.where(healthy, 1, np.where(ill, 0, np.nan)).astype(np.float32)
    return labels
