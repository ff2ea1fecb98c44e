"""Where an API caller may make this server connect to: the public Internet, and what is allowed.

A URL is read once, strictly, into an ``Endpoint``; a name says nothing about where it leads, so
every address it resolves to is judged again, at the registration and before each connection
(``drivers.http`` connects to the very address that was judged). Pure: nothing is resolved here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TypeAlias
from urllib.parse import urlsplit

import msgspec

from retinue.errors import EgressDenied

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MOST_URL = 2048
_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"(?=.{1,253}\Z)(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\Z")
# A last label like these makes resolvers read the whole name as a number: 0x7f.1, 127.1, 017.
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)\Z")
_PLACE = re.compile(r"(?:\[[^\[\]]+\]|[^\[\]:]+)(?::[0-9]+)?\Z")
_UGLY = re.compile(r"[^\x21-\x7e]|\\")


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# Beside what ``is_global`` excludes, which differs a little between versions of Python.
_CLOSED = _networks(
    "0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15",
    "240.0.0.0/4", "::/96",
    "64:ff9b:1::/48", "100::/64", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10",
)  # fmt: skip
# Where machines of a cloud ask for their credentials, and what is no single machine: a host's
# name in the allow-list does not open these, only the network itself.
_SPECIAL = _networks(
    "0.0.0.0/32", "169.254.0.0/16", "168.63.129.16/32", "100.100.100.200/32", "192.0.0.192/32",
    "224.0.0.0/4", "255.255.255.255/32", "::/128", "fe80::/10", "fd00:ec2::254/128", "ff00::/8",
)  # fmt: skip
# Networks whose addresses carry an IPv4 address, and how far to the right it stands in them.
_CARRIERS = (
    (ipaddress.IPv6Network("::/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),
    (ipaddress.IPv6Network("::ffff:0:0:0/96"), 0),
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),
    (ipaddress.IPv6Network("2002::/16"), 80),
)
_TEREDO = ipaddress.IPv6Network("2001::/32")


class Endpoint(msgspec.Struct, frozen=True):
    """A URL in parts: ``host`` in lower case, IPv6 without brackets; ``path`` without a slash."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Host and port as the ``Host`` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL, in one of its many spellings."""
        return f"{self.scheme}://{self.authority}{self.path}"


def read(url: str) -> Endpoint:
    """Read an endpoint's URL.

    Raises:
        EgressDenied: it is none, or one that another reader could take for a different place.
    """
    if len(url) > MOST_URL:
        raise _denied(f"it is longer than {MOST_URL} characters")
    if _UGLY.search(url):
        raise _denied("it holds characters that no URL has (write a host's name in ASCII)")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _denied(str(error)) from None
    if parts.scheme not in _PORTS:
        raise _denied("it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise _denied("it must not hold a user or a password")
    if "?" in url or "#" in url:
        raise _denied("it must not hold a query or a fragment")
    if _PLACE.match(parts.netloc) is None or port == 0:
        raise _denied("its host or its port is none")
    host = _host(parts.hostname or "")
    return Endpoint(parts.scheme, host, port or _PORTS[parts.scheme], parts.path.rstrip("/"))


def _host(given: str) -> str:
    host = given.removesuffix(".").lower()
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            raise _denied(f"{host} is no address") from None
        if address.scope_id is not None:
            raise _denied("an address with a zone is this machine's own business")
        return str(address)
    if _NAME.match(host) is None:
        raise _denied("it names no host")
    if _NUMBER.match(host.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _denied(f"{host} is no address as it is usually written") from None
    return host


class Policy(msgspec.Struct, frozen=True):
    """What the operator allows beside the public Internet: hosts by name, networks."""

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(cls, allowed: Iterable[str]) -> Policy:
        """Return the policy that an allow-list of names, addresses and networks makes.

        Raises:
            ValueError: an entry is none of these.
        """
        hosts: set[str] = set()
        networks: list[Network] = []
        for entry in allowed:
            try:
                networks.append(ipaddress.ip_network(entry.strip("[]")))
                continue
            except ValueError as error:
                if "/" in entry or _NUMBER.match(entry.rpartition(".")[2].lower()):
                    raise ValueError(f"{entry} is no address or network: {error}") from None
            try:
                hosts.add(_host(entry))
            except EgressDenied:
                raise ValueError(f"{entry} is no host name, address or network") from None
        return cls(frozenset(hosts), tuple(networks))

    def check(self, host: str, addresses: Iterable[str]) -> list[Address]:
        """Return the addresses that ``host`` resolved to, if all of them may be connected to.

        Raises:
            EgressDenied: there is none, or one of them may not: then no other one is tried.
        """
        found = [ipaddress.ip_address(address) for address in addresses]
        if not found:
            raise _denied(f"{host} has no address")
        for address in found:
            if not self._allows(host, address):
                raise _denied(
                    f"{host} is at {address}, which is not on the public Internet; the operator"
                    " can allow the host or the network (egress_allow)",
                )
        return found

    def _allows(self, host: str, address: Address) -> bool:
        forms = _forms(address)
        if any(form in network for form in forms for network in self.networks):
            return True
        if host in self.hosts:
            return not any(form in network for form in forms for network in _SPECIAL)
        return all(_is_public(form) for form in forms)


def _forms(address: Address) -> list[Address]:
    """Return an address and the IPv4 addresses it may stand for on the way."""
    forms: list[Address] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        number = int(address)
        forms += [
            ipaddress.IPv4Address(number >> shift & 0xFFFFFFFF)
            for network, shift in _CARRIERS
            if address in network
        ]
        if address in _TEREDO:
            forms.append(ipaddress.IPv4Address(~number & 0xFFFFFFFF))
            forms.append(ipaddress.IPv4Address(number >> 64 & 0xFFFFFFFF))
    return forms


def _is_public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and any(
        address in network for network, _ in _CARRIERS[1:]
    ):
        return True  # the IPv4 address it carries is judged in its place
    if not address.is_global or address.is_multicast:
        return False
    return not any(address in network for network in (*_CLOSED, *_SPECIAL))


def _denied(why: str) -> EgressDenied:
    return EgressDenied(f"the endpoint is refused: {why}", details={"path": "$.endpoint"})
