"""Sets up a run's device and precision by its settings."""

import os
from contextlib import AbstractContextManager
from typing import Any, cast

import torch

from sscxr.config import Config, ConfigError


def set_up(config: Config) -> torch.device:
    """Apply the run's thread count and determinism to this process, and return the device to train on.

    Raises:
        ConfigError: the device does not exist.
    """
    if config.run.deterministic:
        # Read when CUDA starts; without it cuBLAS may add in a different order each time.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.get_num_threads() != config.run.threads:
        torch.set_num_threads(config.run.threads)
    name = config.run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"run.device={config.run.device}: {reason}") from None
    if device.type == "cuda":
        torch.use_deterministic_algorithms(config.run.deterministic)
        # Filling new memory helps to find errors and has no effect on the results.
        cast(Any, torch.utils.deterministic).fill_uninitialized_memory = False
        # Memory-efficient attention adds gradients in varying order; flash and plain attention do not.
        torch.backends.cuda.enable_mem_efficient_sdp(not config.run.deterministic)
    return device


def autocast(amp: str, device: torch.device) -> AbstractContextManager[object]:
    """Return autocast to bf16 if requested, or if `auto` finds a device that computes faster in it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=in_bf16(amp, device))


def in_bf16(amp: str, device: torch.device) -> bool:
    """Return whether a recipe's `amp` means bf16 on this device."""
    return amp == "bf16" or (amp == "auto" and _gains_from_bf16(device))


def _gains_from_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(able.get("avx512_bf16") or able.get("amx_bf16"))
