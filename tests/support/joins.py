"""A join file for tests."""

from typing import Any

from sscxr.federation.join import PACKAGES, PROBE, Join, Payload


def a_join(**other: Any) -> Join:
    values: dict[str, Any] = {
        "federation": "lungs",
        "superlink": "fl.example.org:8443",
        "ca": "",
        "versions": dict.fromkeys(PACKAGES, "1.2.3"),
        "fingerprint": '{"recipe": "0123", "wire": 1}',
        "recipe": "data:\n  cache_size: 256\nencoder:\n  start: null",
        "payload": Payload(up_mb=43.0, down_mb=86.0),
        "deadline_s": 7200.0,
        "memory_gb": 3.5,
        "probe": PROBE,
        "issued": "2026-11-22",
    }
    return Join(**values | other)
