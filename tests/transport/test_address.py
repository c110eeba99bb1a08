"""Addresses: what is one, and errors that say what to write instead."""

import errno
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from folkmoot.core.errors import ConfigError
from folkmoot.transport.address import cause_of, format_address, parse_address, printable


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:7001", "127.0.0.1", 7001),
        ("node-1.example:0", "node-1.example", 0),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
    ],
)
def test_addresses(address: str, host: str, port: int) -> None:
    assert parse_address(address) == (host, port)
    assert format_address(host, port) == address


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("", "has no port"),
        ("localhost", "has no port"),
        (":7001", "has no host"),
        ("[]:7001", "has no host"),
        (" host:7001", "has no host"),
        ("::1:7001", "needs brackets"),
        ("host:", "port '' is not a number"),
        ("host:http", "port 'http' is not a number"),
        ("host:-1", "port '-1' is not a number"),
        ("host:65536", "port '65536' is not a number from 0 to 65535"),
        ("host:٣", "is not a number"),
        ("host:" + "9" * 5000, "is not a number"),
    ],
)
def test_what_is_no_address_is_named(address: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(address)
    assert what in str(caught.value)
    assert repr(address) in str(caught.value) or len(address) > 100


@given(st.text())
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    try:
        host, port = parse_address(text)
    except ConfigError:
        return
    assert parse_address(format_address(host, port)) == (host, port)


def test_printable_names_of_sockets() -> None:
    assert printable(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert printable(("::1", 80, 0, 0)) == "[::1]:80"
    assert printable("") == "unknown"
    assert printable("/run/socket") == "/run/socket"


def test_the_cause_is_found_underneath() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('::1', 1)")
    assert cause_of(refused) == "Connection refused"
    wrapped = OSError("All connection attempts failed")
    wrapped.__cause__ = ExceptionGroup("attempts", [refused])
    assert cause_of(wrapped) == "Connection refused"
    assert cause_of(OSError("odd")) == "odd"
    assert cause_of(OSError()) == "OSError"
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert "cannot be resolved" in cause_of(unknown)
    assert "cannot be resolved" in cause_of(UnicodeError("label too long"))
