"""torch.compile, if requested and possible."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("sscxr")

# Drop-path draws the same numbers as without compiling; one process compiles, since a site may be short of
# memory.
_OPTIONS: dict[str, Any] = {"fallback_random": True, "compile_threads": 1}


def wanted(setting: str, device: torch.device) -> bool:
    """Return whether `run.compile` requests it on this device: `auto` does on a GPU."""
    return setting == "true" or (setting == "auto" and device.type == "cuda")


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a function of a batch, for calls with gradients; if that fails, use it as it is and log a warning.

    It is compiled once for batches of any size above one, so that results do not depend on which size came first.
    """
    fast = torch.compile(function, options=_OPTIONS)
    failed = False

    def call(*batch: Tensor) -> Tensor:
        nonlocal failed
        if failed or not torch.is_grad_enabled():
            return function(*batch)
        try:
            for tensor in batch:
                if len(tensor) > 1:
                    torch._dynamo.mark_dynamic(tensor, 0)
            return fast(*batch)
        except Exception as error:  # no compiler, one that fails, no room for its files; or `function` itself
            failed = True
            prediction = function(*batch)
            reason = " ".join(str(error).split())[:200]
            log.warning("torch.compile does not work here, training continues without it: %s", reason)
            return prediction

    return call
