"""Keys, shares and signatures of a secure sum as bytes: JSON of tables, site -> hexadecimal."""

import json
from collections.abc import Mapping

from sscxr.federation.wire import WireError, check_name

MOST = 1 << 24  # bytes; for a thousand sites, a share each is 0.3 MB
_LONGEST = 1024  # bytes of a value


def pack(**tables: Mapping[str, bytes]) -> bytes:
    """Return tables of bytes by site's name as JSON."""
    plain = {
        name: {site: value.hex() for site, value in sorted(table.items())} for name, table in tables.items()
    }
    return json.dumps(plain, sort_keys=True).encode()


def unpack(data: bytes, *names: str) -> list[dict[str, bytes]]:
    """Return the tables of these names, in their order; the sender is not trusted.

    Raises:
        WireError: not these tables, an invalid name of a site, or a value that is not bytes.
    """
    try:
        if len(data) > MOST:
            raise WireError(f"a parcel of {len(data)} bytes, at most {MOST} are read")
        tables = json.loads(data)
        if not isinstance(tables, dict) or set(tables) != set(names):
            raise WireError(f"a parcel without exactly the tables {', '.join(names)}")
        return [
            {check_name(site, "site"): _bytes(value) for site, value in tables[name].items()}
            for name in names
        ]
    except WireError:
        raise
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise WireError(f"a parcel that is not tables of bytes ({type(error).__name__})") from None


def _bytes(value: str) -> bytes:
    if len(value) > 2 * _LONGEST:
        raise WireError(f"a value of {len(value)} digits, at most {2 * _LONGEST} are read")
    return bytes.fromhex(value)
