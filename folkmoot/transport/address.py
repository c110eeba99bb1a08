"""Addresses: "host:port" and "[::1]:port", and what the operating system says about them.

Pure: no I/O. Names are resolved where connections are made, at every attempt anew.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from folkmoot.core.errors import ConfigError

PORT_MAX = 65_535
_PORT_DIGITS = 5


def parse_address(address: str) -> tuple[str, int]:
    """Split `address` into host and port; the host comes without brackets.

    Port 0 means "any free one" when listening. Raises ConfigError naming the address and what is
    wrong with it.
    """
    host, colon, port_text = address.rpartition(":")
    if not colon:
        raise ConfigError(f"address {address!r} has no port: write host:port, as in 127.0.0.1:7001")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"address {address!r}: an IPv6 address needs brackets, as in [::1]:7001")
    if not host or host.strip() != host:
        raise ConfigError(
            f"address {address!r} has no host: write host:port; 0.0.0.0 is every interface"
        )
    is_number = port_text.isascii() and port_text.isdigit() and len(port_text) <= _PORT_DIGITS
    if not is_number or int(port_text) > PORT_MAX:
        raise ConfigError(
            f"address {address!r}: port {port_text!r} is not a number from 0 to {PORT_MAX}"
        )
    return host, int(port_text)


def format_address(host: str, port: int) -> str:
    """Join host and port so that `parse_address` takes them apart again."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def printable(socket_name: Any) -> str:
    """Write what getpeername or getsockname gave."""
    if isinstance(socket_name, tuple) and len(socket_name) >= 2:
        return format_address(str(socket_name[0]), int(socket_name[1]))
    return str(socket_name) if socket_name else "unknown"


def cause_of(error: BaseException) -> str:
    """Say in plain words why a connection or socket failed.

    Libraries wrap the operating system's error, chain it, or gather several in a group; the first
    one underneath is what the user needs.
    """
    found = os_error_of(error)
    if isinstance(found, socket.gaierror):
        return f"the name cannot be resolved ({found.strerror})"
    if found is not None and found.errno is not None and found.errno in errno.errorcode:
        return os.strerror(found.errno)
    if isinstance(error, UnicodeError):
        return "the name cannot be resolved (it is not a valid host name)"
    return str(found or error) or type(error).__name__


def os_error_of(error: BaseException | None) -> OSError | None:
    """Find the error of the operating system in `error`, its causes, or its group."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif isinstance(error, OSError) and error.errno is not None:
            return error
        else:
            error = error.__cause__ or error.__context__
    return None


def set_options(sock: socket.socket, silence_max_s: float) -> None:
    """Send small frames at once, and notice that the other side confirms nothing any more."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(int(silence_max_s * 1000), 1)
        )
