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


def _same(names: Iterable[str], **other: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {name: (name,) for name in names} | other


# ChestX-ray14's `Finding Labels`.
NIH_WORDS: Words = _same(NIH) | {"no finding": (HEALTHY,), "infiltrate": ("infiltration",)}
# The columns of CheXpert, MIMIC-CXR-JPG and BRAX, all from the CheXpert labeller.
CHEXPERT_WORDS: Words = {
    "no finding": (HEALTHY,),
    "enlarged cardiomediastinum": ("enlarged_cardiomediastinum",),
    "cardiomegaly": ("cardiomegaly",),
    "lung opacity": ("lung_opacity",),
    "lung lesion": ("lung_lesion",),
    "edema": ("edema",),
    "consolidation": ("consolidation",),
    "pneumonia": ("pneumonia",),
    "atelectasis": ("atelectasis",),
    "pneumothorax": ("pneumothorax",),
    "pleural effusion": ("effusion",),
    "pleural other": ("pleural_other",),
    "fracture": ("fracture",),
    "support devices": ("support_devices",),
}
# VinDr-CXR's classes. `Nodule/Mass` is CheXpert's lung lesion.
VINDR_WORDS: Words = {
    "no finding": (HEALTHY,),
    "atelectasis": ("atelectasis",),
    "cardiomegaly": ("cardiomegaly",),
    "clavicle fracture": ("fracture",),
    "consolidation": ("consolidation",),
    "edema": ("edema",),
    "emphysema": ("emphysema",),
    "infiltration": ("infiltration",),
    "lung opacity": ("lung_opacity",),
    "nodule/mass": ("lung_lesion",),
    "pleural effusion": ("effusion",),
    "pleural thickening": ("pleural_thickening",),
    "pneumonia": ("pneumonia",),
    "pneumothorax": ("pneumothorax",),
    "pulmonary fibrosis": ("fibrosis",),
    "rib fracture": ("fracture",),
    "tuberculosis": ("tuberculosis",),
    "aortic enlargement": UNMAPPED,
    "calcification": UNMAPPED,
    "copd": UNMAPPED,
    "enlarged pa": UNMAPPED,
    "ild": UNMAPPED,
    "lung cavity": UNMAPPED,
    "lung cyst": UNMAPPED,
    "lung tumor": UNMAPPED,
    "mediastinal shift": UNMAPPED,
    "other disease": UNMAPPED,
    "other diseases": UNMAPPED,
    "other lesion": UNMAPPED,
}
_PADCHEST_MAPPED: dict[str, tuple[str, ...]] = {
    "normal": (HEALTHY,),
    "atelectasis": ("atelectasis",),
    "atelectasis basal": ("atelectasis",),
    "laminar atelectasis": ("atelectasis",),
    "lobar atelectasis": ("atelectasis",),
    "round atelectasis": ("atelectasis",),
    "segmental atelectasis": ("atelectasis",),
    "total atelectasis": ("atelectasis",),
    "cardiomegaly": ("cardiomegaly",),
    "consolidation": ("consolidation",),
    "air bronchogram": ("consolidation",),
    "pulmonary edema": ("edema",),
    "pleural effusion": ("effusion",),
    "loculated pleural effusion": ("effusion",),
    "loculated fissural effusion": ("effusion",),
    "hydropneumothorax": ("effusion", "pneumothorax"),
    "emphysema": ("emphysema",),
    "pulmonary fibrosis": ("fibrosis",),
    "hiatal hernia": ("hernia",),
    "infiltrates": ("infiltration",),
    "alveolar pattern": ("infiltration",),
    "interstitial pattern": ("infiltration",),
    "ground glass pattern": ("infiltration",),
    "reticular interstitial pattern": ("infiltration",),
    "reticulonodular interstitial pattern": ("infiltration",),
    "pulmonary mass": ("mass",),
    "mass": ("mass",),
    "nodule": ("nodule",),
    "multiple nodules": ("nodule",),
    "pleural thickening": ("pleural_thickening",),
    "apical pleural thickening": ("pleural_thickening",),
    "calcified pleural thickening": ("pleural_thickening",),
    "pneumonia": ("pneumonia",),
    "atypical pneumonia": ("pneumonia",),
    "pneumothorax": ("pneumothorax",),
    "tuberculosis": ("tuberculosis",),
    "tuberculosis sequelae": ("latent_tuberculosis",),
    "callus rib fracture": ("fracture",),
    "clavicle fracture": ("fracture",),
    "fracture": ("fracture",),
    "humeral fracture": ("fracture",),
    "rib fracture": ("fracture",),
    "vertebral fracture": ("fracture",),
}
_PADCHEST_DEVICES = (
    *(
        "abnormal foreign body",
        "aortic endoprosthesis",
        "artificial aortic heart valve",
        "artificial heart valve",
    ),
    *(
        "artificial mitral heart valve",
        "catheter",
        "central venous catheter",
        "chest drain tube",
        "double j stent",
    ),
    *("central venous catheter via jugular vein", "central venous catheter via subclavian vein"),
    *("central venous catheter via umbilical vein", "dual chamber device", "electrical device"),
    *("endoprosthesis", "endotracheal tube", "gastrostomy tube", "nephrostomy tube", "nsg tube", "pacemaker"),
    *("prosthesis", "reservoir central venous catheter", "single chamber device", "tracheostomy tube"),
    "ventriculoperitoneal drain tube",
)
# Words about no finding: with nothing else beside them, every label is unknown.
PADCHEST_SILENT = frozenset({"", "nan", "unchanged", "exclude", "suboptimal study"})
_PADCHEST_UNMAPPED = (
    *("adenopathy", "air fluid level", "air trapping", "aortic aneurysm", "aortic atheromatosis"),
    *("aortic button enlargement", "aortic elongation", "asbestosis signs", "ascendent aortic elongation"),
    *("abscess", "axial hyperostosis", "azygoesophageal recess shift", "azygos lobe", "blastic bone lesion"),
    *(
        "bone cement",
        "bone metastasis",
        "breast mass",
        "bronchiectasis",
        "bronchovascular markings",
        "bullas",
    ),
    *("calcified adenopathy", "calcified densities", "calcified fibroadenoma", "calcified granuloma"),
    *("calcified mediastinal adenopathy", "calcified pleural plaques", "cavitation", "cervical rib"),
    *("central vascular redistribution", "chilaiditi sign", "chronic changes", "copd signs"),
    *("costochondral junction hypertrophy", "costophrenic angle blunting", "cyst", "dai", "dextrocardia"),
    *("descendent aortic elongation", "diaphragmatic eventration", "empyema", "end on vessel"),
    *("esophagic dilatation", "external foreign body", "fibrotic band", "fissure thickening"),
    *("flattened diaphragm", "goiter", "granuloma", "gynecomastia", "heart insufficiency"),
    *("heart valve calcified", "hemidiaphragm elevation", "hilar congestion", "hilar enlargement"),
    *(
        "humeral prosthesis",
        "hyperinflated lung",
        "hypoexpansion",
        "hypoexpansion basal",
        "increased density",
    ),
    *("kerley lines", "kyphosis", "lepidic adenocarcinoma", "lipomatosis", "lung metastasis"),
    *("lung vascular paucity", "lymphangitis carcinomatosa", "lytic bone lesion", "major fissure thickening"),
    *("mammary prosthesis", "mastectomy", "mediastinal enlargement", "mediastinal mass", "mediastinal shift"),
    *("mediastinic lipomatosis", "metal", "miliary opacities", "minor fissure thickening", "nipple shadow"),
    *("non axial articular degenerative changes", "obesity", "osteopenia", "osteoporosis"),
    *("osteosynthesis material", "pectum carinatum", "pectum excavatum", "pericardial effusion"),
    *("pleural mass", "pleural plaques", "pneumomediastinum", "pneumoperitoneo", "post radiotherapy changes"),
    *("pseudonodule", "pulmonary artery enlargement", "pulmonary artery hypertension"),
    *("pulmonary hypertension", "pulmonary venous hypertension", "respiratory distress"),
    *("right sided aortic arch", "sclerotic bone lesion", "scoliosis", "soft tissue mass", "sternotomy"),
    *("sternoclavicular junction hypertrophy", "subacromial space narrowing", "subcutaneous emphysema"),
    *("superior mediastinal enlargement", "supra aortic elongation", "surgery", "surgery breast"),
    *("surgery heart", "surgery humeral", "surgery lung", "surgery neck", "suture material"),
    *("thoracic cage deformation", "tracheal shift", "vascular hilar enlargement", "vascular redistribution"),
    *("vertebral anterior compression", "vertebral compression", "vertebral degenerative changes"),
    "volume loss",
)
PADCHEST_WORDS: Words = (
    _PADCHEST_MAPPED
    | dict.fromkeys(_PADCHEST_DEVICES, ("support_devices",))
    | dict.fromkeys((*_PADCHEST_UNMAPPED, *PADCHEST_SILENT), UNMAPPED)
)
# The heads of Open-i's manual MeSH codes (`major`), such as "Opacity/lung/base/left".
OPENI_WORDS: Words = {
    "normal": (HEALTHY,),
    "airspace disease": ("lung_opacity",),
    "atelectasis": ("atelectasis",),
    "pulmonary atelectasis": ("atelectasis",),
    "bullous emphysema": ("emphysema",),
    "cardiomegaly": ("cardiomegaly",),
    "catheters, indwelling": ("support_devices",),
    "consolidation": ("consolidation",),
    "emphysema": ("emphysema",),
    "fractures, bone": ("fracture",),
    "hernia, diaphragmatic": ("hernia",),
    "hernia, hiatal": ("hernia",),
    "hydropneumothorax": ("effusion", "pneumothorax"),
    "implanted medical device": ("support_devices",),
    "infiltrate": ("infiltration",),
    "mass": ("mass",),
    "medical device": ("support_devices",),
    "nodule": ("nodule",),
    "opacity": ("lung_opacity",),
    "pleural effusion": ("effusion",),
    "pleural thickening": ("pleural_thickening",),
    "pneumonia": ("pneumonia",),
    "pneumothorax": ("pneumothorax",),
    "hemopneumothorax": ("effusion", "pneumothorax"),
    "pulmonary edema": ("edema",),
    "pulmonary emphysema": ("emphysema",),
    "pulmonary fibrosis": ("fibrosis",),
    "stents": ("support_devices",),
    "tube, inserted": ("support_devices",),
    "tuberculosis": ("tuberculosis",),
}
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


def _kind(name: str) -> tuple[str, ...]:
    return (name, *PARENTS[name])


_BACTERIA = (
    *("bacterial", "bacterial pneumonia", "chlamydophila", "e.coli", "klebsiella", "legionella", "mrsa"),
    *("mycoplasma", "mycoplasma bacterial pneumonia", "nocardia", "staphylococcus", "streptococcus"),
)
_VIRUSES = (
    *("viral", "viral pneumonia", "h1n1", "herpes", "influenza", "mers", "mers-cov", "sars", "varicella"),
)
_FUNGI = ("fungal", "fungal pneumonia", "aspergillosis", "pneumocystis")
# The parts of the COVID-19 collection's `finding`: "Pneumonia/Viral/COVID-19", before August 2020 "COVID-19,
# ARDS". Any part alone implies all that is above it.
COVID_WORDS: Words = (
    {
        "no finding": (HEALTHY,),
        "pneumonia": ("pneumonia",),
        "aspiration": ("pneumonia",),
        "lipoid": ("pneumonia",),
        "covid-19": _kind("covid19"),
        "tuberculosis": ("tuberculosis",),
    }
    | dict.fromkeys(_BACTERIA, _kind("bacterial_pneumonia"))
    | dict.fromkeys(_VIRUSES, _kind("viral_pneumonia"))
    | dict.fromkeys(_FUNGI, _kind("fungal_pneumonia"))
    | dict.fromkeys(("ards", "todo", "unknown"), UNMAPPED)
)
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
