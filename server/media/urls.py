"""URLs of media: parsed once, by a grammar with no room for two readings, and addresses that may be dialled."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import httpx

from vllm_prune.config.media import Media

from .errors import Refused

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HTTP = re.compile(r"[A-Za-z]+://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::([0-9]{1,5}))?(?:[/?#].*)?", re.DOTALL)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What is_global of some supported Python versions lets through: special-purpose networks that were registered
# late, and tunnels (`::a.b.c.d`, Teredo) that end at an address of somebody else's choice.
_SPECIAL = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
        "fec0::/10",
    )
)
# A cloud's metadata and control endpoint that lies among the public addresses.
_CONTROL = frozenset({ipaddress.ip_address("168.63.129.16")})


@dataclass(frozen=True)
class Target:
    """A URL that may be fetched once its addresses have been checked.

    Attributes:
        url: the parsed form, the only one that is used from here on.
        host: lower case, without brackets or a final dot.
        port: given or the scheme's.
    """

    url: httpx.URL
    host: str
    port: int

    @property
    def has_usual_port(self) -> bool:
        """Whether the port is the scheme's own."""
        return self.port == _PORTS[self.url.scheme]


def scheme_of(url: str) -> str:
    """Scheme of a URL in lower case.

    Raises:
        Refused: no scheme, or characters on whose meaning parsers differ. A data URL's body is not looked at.
    """
    match = _SCHEME.match(url)
    if match is None:
        raise Refused("url")
    scheme = match[1].lower()
    if scheme != "data" and any(char == "\\" or char.isspace() or not char.isprintable() for char in url):
        raise Refused("url")
    return scheme


def parse(url: str, settings: Media, domains: tuple[str, ...] = ()) -> Target:
    """Parse an http or https URL and check its host's name.

    Args:
        url: as the client or a redirect gave it.
        settings: the operator's section.
        domains: vLLM's own `--allowed-media-domains`; empty: any.

    Raises:
        Refused: malformed, another scheme, or a host that is not allowed.
    """
    if scheme_of(url) not in _PORTS:
        raise Refused("scheme")
    match = _HTTP.fullmatch(url)
    if match is None:
        raise Refused("url")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        raise Refused("url") from None
    host = match[1].strip("[]").lower()
    port = int(match[2]) if match[2] else _PORTS[parsed.scheme]
    if parsed.host != host or parsed.userinfo or not 0 < port < 65536 or (parsed.port or port) != port:
        raise Refused("url")
    host = host.removesuffix(".")
    if literal(host) is None and (":" in host or _NUMBER.fullmatch(host.rpartition(".")[2])):
        # 127.1, 0x7f000001 and the like, which some resolvers take for addresses.
        raise Refused("url")
    if not _allowed(host, settings.hosts) or not _allowed(host, domains):
        raise Refused("host")
    return Target(parsed, host, port)


def _allowed(host: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern.lower() for pattern in patterns
    )


def literal(host: str) -> Address | None:
    """The address that a host is written as, None for a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_addresses(target: Target, addresses: list[str], settings: Media) -> list[str]:
    """The addresses of a target in canonical form, if all of them may be dialled.

    Raises:
        Refused: none, or one that is neither public nor listed in `private`. One is enough, as the other
            answers may be bait.
    """
    if not addresses:
        raise Refused("dns")
    parsed = [literal(text) for text in addresses]
    if target.host not in settings.private:
        networks = settings.private_networks
        for address in parsed:
            if address is None or not (is_public(address) or any(address in network for network in networks)):
                raise Refused("address")
    return list(dict.fromkeys(str(address) for address in parsed))


def is_public(address: Address) -> bool:
    """Whether an address, and the one embedded in it where there is one, is on the public internet."""
    inner = embedded(address)
    if inner is not None:
        return is_public(inner)
    if address.is_multicast or address.is_unspecified or address.is_reserved or address in _CONTROL:
        return False
    if any(address in network for network in _SPECIAL) or getattr(address, "scope_id", None) is not None:
        return False
    return address.is_global


def embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address inside a mapped, 6to4 or NAT64 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour
