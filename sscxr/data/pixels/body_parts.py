"""Body Part Examined in the words of many languages: a chest, something else, not stated, or not known.

The standard's terms are English capitals (PS3.16 Annex L), but devices write the operators' language. An
unknown word is refused rather than trusted: a knee in the training set would never be noticed. A site adds
its own `sscxr prepare --chest-word`.
"""

import re
import unicodedata
from collections.abc import Collection

from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset

from sscxr.data.pixels import elements

# Each of these words means a chest. German BRUST and Danish BRYST are the breast as well; mammograms are another
# modality.
CHEST = {
    "CHEST", "THORAX", "THORACE", "LUNG", "LUNGS", "MEDIASTINUM", "CXR", "PECTUS", "THX", "BRUST", "BRUSTKORB",
    "LUNGE", "LUNGEN", "THORAXAUFNAHME", "TORAX", "TÓRAX", "TÒRAX", "PECHO", "PULMON", "PULMONES", "PULMÓN",
    "PEITO", "PULMAO", "PULMÃO", "PULMÕES", "TORACE", "PETTO", "POLMONE", "POLMONI", "PLAMANI", "PLĂMÂNI",
    "POITRINE", "POUMON", "POUMONS", "BORSTKAS", "LONGEN", "BRÖSTKORG", "LUNGOR", "LUNGA", "BRYST",
    "BRYSTKASSE", "LUNGER", "RINTAKEHÄ", "KEUHKOT", "RINDKERE", "KOPSUD", "KLATKA", "PŁUCA", "PLUCA", "HRUDNÍK",
    "HRUDNIK", "HRUĎ", "PLÍCE", "PLICE", "PĽÚCA", "MELLKAS", "TÜDŐ", "PLUĆA", "PLJUČA", "TORAKS", "PRSNI",
    "GÖĞÜS", "GOGUS", "AKCIĞER", "AKCİĞER", "AKCIGER", "KRŪTINĖ", "KRŪŠKURVIS", "PLAUČIAI", "PLAUŠAS", "ОГК",
    "ОГП", "ФЛГ", "ФОГК", "ФГ", "ГРУДЬ", "КЛЕТКА", "КЛЕТКИ", "КЛІТКА", "КЛІТКИ", "ЛЕГКИЕ", "ЛЁГКИЕ", "ЛЕГКИХ",
    "ЛЁГКИХ", "ЛЕГЕНІ", "ТОРАКС", "КОШ", "ΘΩΡΑΚΑΣ", "ΘΏΡΑΚΑΣ", "ΘΩΡΑΚΑ", "ΘΏΡΑΚΑ", "ΘΩΡΑΚΟΣ", "ΘΏΡΑΚΟΣ",
    "ΠΝΕΥΜΟΝΕΣ", "ΠΝΕΎΜΟΝΕΣ", "الصدر", "صدر", "الرئة", "חזה", "ריאות", "سینه", "ریه", "NGỰC", "PHỔI", "DADA",
    "PARU", "THORAKS",
}  # fmt: skip
# Scripts written without spaces, or with signs that are not letters: anywhere in the text.
CHEST_SIGNS = re.compile("[胸肺]|흉부|흉곽|가슴|폐|ทรวงอก|ปอด|छाती|वक्ष")
# Words that name no part: unknown, or how the image was taken.
NOT_STATED = {
    "UNKNOWN", "UNDEFINED", "UNSPECIFIED", "OTHER", "NONE", "XX", "XXX", "NA", "PORT", "PORTABLE", "PORTATIL",
    "PORTÁTIL", "BED", "BEDSIDE", "ПОРТ", "ПОРТАТИВНЫЙ",
}  # fmt: skip
# Other parts, in the standard's terms and a few neighbours' words: a chest word beside a spine's is a spine.
SPINE = {
    "SPINE", "TSPINE", "LSPINE", "CSPINE", "WIRBELSÄULE", "WIRBELSAEULE", "WS", "BWS", "HWS", "LWS", "COLONNE",
    "RACHIS", "COLUMNA", "COLUNA", "COLONNA", "RACHIDE", "ПОЗВОНОЧНИК", "ПОЗВОНОЧНИКА", "ПОП", "КРЫЖ",
    "KRĘGOSŁUP", "KREGOSLUP", "PÁTEŘ", "PATER", "WERVELKOLOM", "VERTEBRA", "VERTEBRE", "VERTEBRAL", "脊柱", "腰椎",
    "頸椎", "颈椎", "胸椎",
}  # fmt: skip
OTHER = SPINE | {
    "ABDOMEN", "ANKLE", "ARM", "BREAST", "CALCANEUS", "CLAVICLE", "COCCYX", "ELBOW", "EXTREMITY", "FEMUR",
    "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEEL", "HIP", "HUMERUS", "JAW", "KNEE", "LEG", "NECK",
    "ORBIT", "PATELLA", "PELVIS", "RIB", "RIBS", "RIBCAGE", "SACRUM", "SCAPULA", "SHOULDER", "SKULL", "STERNUM",
    "THIGH", "THUMB", "TIBIA", "TOE", "WRIST", "BRAIN", "HEART", "KIDNEY", "BLADDER", "TEETH", "TOOTH", "KNIE",
    "HÜFTE", "BECKEN", "SCHÄDEL", "HANDGELENK", "SCHULTER", "FUSS", "RODILLA", "CADERA", "MANO", "PIE", "GENOU",
    "HANCHE", "MAIN", "PIED", "GINOCCHIO", "ANCA", "КОЛЕНО", "КИСТЬ", "СТОПА", "ТАЗ", "ЧЕРЕП", "腹部", "膝", "骨盤",
}  # fmt: skip
THORACIC_SPINE = re.compile("[胸腰頸颈]椎|脊柱")


def written(dataset: Dataset) -> str:
    """Return Body Part Examined in capitals; non-ASCII letters by the header's character set, or else as UTF-8."""
    text = elements.text(dataset, "BodyPartExamined")
    if text and not text.isascii():
        # A code string has no character set (PS3.5 6.1.2.2), so pydicom reads its bytes as Latin 1.
        try:
            stored = text.encode("latin-1")
        except UnicodeEncodeError:
            return text.upper()
        for encoding in ("utf-8", *_encodings(dataset)):
            try:
                return stored.decode(encoding).strip().upper()
            except (LookupError, ValueError):
                continue
    return text.upper()


def _encodings(dataset: Dataset) -> list[str]:
    try:
        return [
            name
            for name in convert_encodings(elements.get(dataset, "SpecificCharacterSet"))
            if name != "iso8859"
        ]
    except (LookupError, TypeError, ValueError):
        return []


def kind(part: str, chest_words: Collection[str] = ()) -> str:
    """Classify a body part as "chest", "not stated", "other" or "not known".

    Args:
        part: as written, in any case.
        chest_words: a site's further words for a chest.
    """
    part = _plain(part)
    words = set(re.findall(r"[^\W\d_]+", part))
    own = {_plain(word) for word in chest_words}
    if part in own or words & own:
        return "chest"
    if re.sub(r"[\W\d_]+", "", part) in NOT_STATED or words <= NOT_STATED:
        return "not stated"
    if words & SPINE or THORACIC_SPINE.search(part):
        return "other"
    if words & CHEST or CHEST_SIGNS.search(part):
        return "chest"
    return "other" if words & OTHER else "not known"


def _plain(text: str) -> str:
    """Normalise to capitals, single spaces, and one code point per letter."""
    return " ".join(unicodedata.normalize("NFC", text).upper().split())
