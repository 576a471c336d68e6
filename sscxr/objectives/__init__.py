"""Self-supervised methods, one a file; `pretrain.objective` names one of this list."""

from sscxr.objectives.base import Objective
from sscxr.objectives.dino import DINO
from sscxr.objectives.gmml import GMML
from sscxr.objectives.mae import MAE

OBJECTIVES: dict[str, type[Objective]] = {"gmml": GMML, "mae": MAE, "dino": DINO}
