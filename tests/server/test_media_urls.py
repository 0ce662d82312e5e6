"""URLs with two readings are refused, and addresses that are not public, however they are spelled."""

from __future__ import annotations

import ipaddress

import pytest

from vllm_prune.config.media import Media
from vllm_prune_server.media.errors import Refused
from vllm_prune_server.media.urls import check_addresses, is_public, parse

PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.5.4",
    "192.168.1.1",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "::ffff:0:0",
    "64:ff9b::7f00:1",
    "64:ff9b::a00:1",
    "64:ff9b:1::808:808",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "2606:4700:4700::1111"]


@pytest.mark.parametrize("text", PRIVATE)
def test_addresses_that_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", [text for text in PRIVATE if "%" not in text])
def test_private_literals_in_urls(text: str) -> None:
    host = f"[{text}]" if ":" in text else text
    with pytest.raises(Refused) as error:
        check_addresses(parse(f"http://{host}/x", Media()), [text], Media())
    assert error.value.reason == "address"


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://127.0.0.0x1/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://127.1/",
        "http://127.0.1/",
        "http://0/",
        "http://127.0.0.1.:80/../",
        "http://256.256.256.256/",
        "http://example.com\\@127.0.0.1/",
        "http://127.0.0.1\\@example.com/",
        "http://example.com/a\\..\\b",
        "http://user@example.com/",
        "http://user:password@example.com/",
        "http://@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com:80@127.0.0.1/",
        "http://example.com /",
        " http://example.com/",
        "http://example.com/a b",
        "http://example.com/\r\nHost: 127.0.0.1",
        "http://exam\tple.com/",
        "http://example.com/\x00",
        "http://example.com/\u2028",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:99999999/",
        "http://example.com:/",
        "http://example.com:+80/",
        "http://[::1",
        "http://[::1]x/",
        "http://[fe80::1%25eth0]/",
        "http://[v1.1]/",
        "http://example\u3002com/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://ex%61mple.com/",
        "http:///path",
        "http:/example.com/",
        "http:example.com",
        "http://",
        "//example.com/",
        "example.com/x.png",
        "",
    ],
)
def test_urls_with_two_readings(url: str) -> None:
    with pytest.raises(Refused) as error:
        check_addresses(parse(url, Media()), ["127.0.0.1"], Media())
    assert error.value.reason in ("url", "address")
    if "127.0.0.1.:80" not in url:
        assert error.value.reason == "url"


@pytest.mark.parametrize("url", ["ftp://example.com/x", "gopher://example.com/", "javascript:1", "file:///etc/passwd"])
def test_other_schemes(url: str) -> None:
    with pytest.raises(Refused) as error:
        parse(url, Media())
    assert error.value.reason == "scheme"


def test_the_parsed_form() -> None:
    target = parse("HTTPS://CDN.Example.com.:8443/a%20b/ü.png?x=1#part", Media())
    assert (target.host, target.port, target.url.scheme) == ("cdn.example.com", 8443, "https")
    assert target.url.raw_path == b"/a%20b/%C3%BC.png?x=1"
    assert parse("http://example.com", Media()).port == 80
    assert parse("https://[2606:4700:4700::1111]/x", Media()).host == "2606:4700:4700::1111"


def test_allowed_hosts() -> None:
    settings = Media(hosts=("images.example.com", "*.cdn.example.com"))
    for good in ("images.example.com", "IMAGES.example.com", "a.cdn.example.com", "a.b.cdn.example.com"):
        parse(f"http://{good}/", settings)
    for bad in ("example.com", "cdn.example.com", "xcdn.example.com", "images.example.com.evil.com", "8.8.8.8"):
        with pytest.raises(Refused) as error:
            parse(f"http://{bad}/", settings)
        assert error.value.reason == "host"
    with pytest.raises(Refused):
        parse("http://images.example.com/", settings, ("other.example.com",))


def test_private_networks_and_names() -> None:
    settings = Media(private=("10.0.3.0/24", "minio.internal"))
    assert check_addresses(parse("http://10.0.3.7/", settings), ["10.0.3.7"], settings) == ["10.0.3.7"]
    assert check_addresses(parse("http://minio.internal/", settings), ["192.168.0.9"], settings) == ["192.168.0.9"]
    for host, addresses in (
        ("10.0.4.7", ["10.0.4.7"]),
        ("other.internal", ["192.168.0.9"]),
        ("other.internal", ["8.8.8.8", "192.168.0.9"]),
        ("other.internal", ["8.8.8.8", "10.0.3.7", "not an address"]),
    ):
        with pytest.raises(Refused) as error:
            check_addresses(parse(f"http://{host}/", settings), addresses, settings)
        assert error.value.reason == "address"
    with pytest.raises(Refused) as error:
        check_addresses(parse("http://nobody.example.com/", settings), [], settings)
    assert error.value.reason == "dns"


@pytest.mark.parametrize(
    "wrong",
    [
        {"hosts": ("http://example.com",)},
        {"hosts": ("*",)},
        {"private": ("10.0.0.0/40",)},
        {"private": ("10.0.0.1/8",)},
        {"private": ("127.1",)},
        {"fetch_seconds": 0},
        {"fetch_seconds": float("nan")},
        {"max_bytes": 0},
        {"max_pixels": True},
        {"max_redirects": -1},
        {"sizes": 1},
    ],
)
def test_settings_that_mean_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Media.model_validate(wrong)
