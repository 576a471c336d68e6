"""Self-supervised methods, one a file; `pretrain.objective` names one of this list."""

from sscxr.objectives.base import Objective
from sscxr.objectives.gmml import GMML

OBJECTIVES: dict[str, type[Objective]] = {"gmml": GMML}
