"""From the common options to an open cluster, for the commands that need a session."""

from __future__ import annotations

from folkmoot.core.errors import ConfigError
from folkmoot.transport.address import format_address, parse_address

SCHEME = "folkmoot://"
DEFAULT_PORT = 7400


def addresses_of(url: str) -> list[str]:
    """The client addresses in "folkmoot://host:port,host:port"; a port left out is 7400.

    Raises ConfigError.
    """
    if not url.startswith(SCHEME):
        raise ConfigError(f"{url!r} is no cluster: write {SCHEME}HOST:PORT,HOST:PORT")
    found = []
    for part in url.removeprefix(SCHEME).rstrip("/").split(","):
        bare = part and (":" not in part or part.endswith("]"))
        found.append(format_address(*parse_address(f"{part}:{DEFAULT_PORT}" if bare else part)))
    return found
