"""The fetcher against a real hostile host: what it dials, how far it follows, and when it hangs up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_prune.config.media import Media, MiB
from vllm_prune_server.media.errors import MESSAGES, Refused
from vllm_prune_server.media.fetch import Fetcher

from .hostile import HostileHost, certificate

pytestmark = pytest.mark.slow

FILE = b"the very bytes" * 1000
LOCAL = Media(private=("127.0.0.1/32",), fetch_seconds=1.5, connect_seconds=0.5, max_bytes=MiB)


@pytest.fixture(scope="module")
def host() -> Iterator[HostileHost]:
    with HostileHost({"/file.png": FILE, "/secret": b"secret"}) as running:
        yield running


class Names:
    """A resolver whose answers are given in turn; the last one stays."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def __call__(self, name: str, port: int) -> list[str]:
        self.asked += 1
        return self.answers[min(self.asked, len(self.answers)) - 1]


async def refusal(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(Refused) as error:
        await fetcher.fetch(url)
    assert error.value.reason in MESSAGES
    return error.value.reason


async def test_a_plain_file(host: HostileHost) -> None:
    assert await Fetcher(LOCAL).fetch(host.url("/file.png")) == FILE


async def test_what_arrives_is_charged_and_may_be_refused(host: HostileHost) -> None:
    arrived: list[int] = []
    assert await Fetcher(LOCAL).fetch(host.url("/file.png"), charge=arrived.append) == FILE
    assert sum(arrived) == len(FILE)

    def refuse(size: int) -> None:
        raise Refused("request_bytes")

    with pytest.raises(Refused, match="request_bytes"):
        await Fetcher(LOCAL).fetch(host.url("/file.png"), charge=refuse)


async def test_the_name_stays_in_the_host_header(host: HostileHost) -> None:
    names = Names(["127.0.0.1"])
    assert await Fetcher(LOCAL, resolver=names).fetch(host.url("/file.png?a=%20b#c", "cdn.test")) == FILE
    assert host.seen[-1] == ("/file.png?a=%20b", f"cdn.test:{host.port}", "127.0.0.1")
    assert names.asked == 1


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST.", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"])
async def test_nothing_connects_to_a_private_address(host: HostileHost, name: str) -> None:
    before = len(host.seen)
    assert await refusal(Fetcher(Media()), host.url("/secret", name)) == "address"
    assert len(host.seen) == before


async def test_one_private_answer_among_public_ones(host: HostileHost) -> None:
    before = len(host.seen)
    fetcher = Fetcher(Media(), resolver=Names(["8.8.8.8", "127.0.0.1"]))
    assert await refusal(fetcher, host.url("/secret", "mixed.test")) == "address"
    assert len(host.seen) == before


async def test_unknown_names_and_dead_hosts_read_the_same() -> None:
    assert await refusal(Fetcher(Media()), "http://nobody.invalid/x") == "dns"
    assert await refusal(Fetcher(LOCAL), "http://127.0.0.1:9/x") == "connection"
    assert len({MESSAGES[reason] for reason in ("dns", "address", "connection")}) == 1


async def test_a_name_is_resolved_once_and_the_checked_address_dialled() -> None:
    with HostileHost({"/file.png": FILE}) as good, HostileHost({"/file.png": b"rebound"}, "127.0.0.2") as evil:
        names = Names(["127.0.0.1"], ["127.0.0.2"])
        assert await Fetcher(LOCAL, resolver=names).fetch(good.url("/file.png", "rebinding.test")) == FILE
        assert (names.asked, len(good.seen), len(evil.seen)) == (1, 1, 0)


async def test_a_redirect_is_resolved_and_checked_again(host: HostileHost) -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    before = len(host.seen)
    assert (
        await refusal(Fetcher(LOCAL, resolver=names), host.url("/redirect?to=/secret", "rebinding.test")) == "address"
    )
    assert names.asked == 2
    assert len(host.seen) == before + 1


async def test_a_second_address_is_tried_when_the_first_is_dead(host: HostileHost) -> None:
    settings = LOCAL.model_copy(update={"private": ("127.0.0.0/8",)})
    names = Names(["127.0.0.9", "127.0.0.1"])
    assert await Fetcher(settings, resolver=names).fetch(host.url("/file.png", "two.test")) == FILE


async def test_redirect_to_a_private_address(host: HostileHost) -> None:
    settings = LOCAL.model_copy(update={"private": ("cdn.test",)})
    fetcher = Fetcher(settings, resolver=Names(["127.0.0.1"]))
    assert await fetcher.fetch(host.url("/redirect?to=/file.png", "cdn.test")) == FILE
    before = len(host.seen)
    for place in (host.url("/secret"), f"//127.0.0.1:{host.port}/secret", f"http://[::1]:{host.port}/secret"):
        assert await refusal(fetcher, host.url(f"/redirect?to={place}", "cdn.test")) == "address"
    assert [path for path, _, _ in host.seen[before:] if path == "/secret"] == []


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file:///etc/passwd", "scheme"),
        ("ftp://127.0.0.1/x", "scheme"),
        ("data:image/png;base64,AAAA", "redirect"),
        ("http://user:password@127.0.0.1/", "url"),
        ("http://2130706433/", "url"),
        ("/a%5Cb", "redirect"),
        ("http:%5C%5C127.0.0.1/", "redirect"),
        ("/a%20b", "redirect"),
        ("http://127.0.0.1:1/", "redirect"),
        ("http://127.0.0.1/", "redirect"),
    ],
)
async def test_redirects_to_odd_places(host: HostileHost, place: str, reason: str) -> None:
    assert await refusal(Fetcher(LOCAL), host.url(f"/redirect?to={place}")) == reason


async def test_redirects_without_a_place_and_without_an_end(host: HostileHost) -> None:
    fetcher = Fetcher(LOCAL)
    assert await refusal(fetcher, host.url("/redirect")) == "redirect"
    assert await fetcher.fetch(host.url("/chain?left=2&to=/file.png")) == FILE
    before = len(host.seen)
    assert await refusal(fetcher, host.url("/chain?left=50&to=/file.png")) == "redirect"
    assert len(host.seen) - before == LOCAL.max_redirects + 1
    assert await refusal(Fetcher(LOCAL, redirects=False), host.url("/redirect?to=/file.png")) == "redirect"


async def test_a_port_may_change_only_where_the_operator_says_so(host: HostileHost) -> None:
    with HostileHost({"/file.png": FILE}) as other:
        url = host.url(f"/redirect?to={other.url('/file.png')}")
        assert await refusal(Fetcher(LOCAL), url) == "redirect"
        assert other.seen == []
        settings = LOCAL.model_copy(update={"allow_port_change": True})
        assert await Fetcher(settings).fetch(url) == FILE


async def test_hosts_that_are_not_allowed(host: HostileHost) -> None:
    settings = LOCAL.model_copy(update={"hosts": ("images.test",)})
    fetcher = Fetcher(settings, resolver=Names(["127.0.0.1"]))
    assert await fetcher.fetch(host.url("/file.png", "images.test")) == FILE
    assert await refusal(fetcher, host.url("/file.png", "other.test")) == "host"
    assert await refusal(fetcher, host.url(f"/redirect?to={host.url('/file.png')}", "images.test")) == "host"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status?code=404", "status"),
        ("/status?code=500", "status"),
        ("/status?code=204", "status"),
        ("/zipped", "encoding"),
        ("/endless", "bytes"),
        ("/says?length=1099511627776&sends=10", "bytes"),
        ("/says?length=1000&sends=10", "connection"),
        ("/says?length=-5&sends=10", "connection"),
        ("/headers", "connection"),
        ("/endless?chunk=1&pause=0.05", "timeout"),
        ("/silent?seconds=3", "timeout"),
    ],
)
async def test_answers_that_lie_or_never_end(host: HostileHost, path: str, reason: str) -> None:
    started = time.monotonic()
    assert await refusal(Fetcher(LOCAL), host.url(path)) == reason
    assert time.monotonic() - started < LOCAL.fetch_seconds + 1


async def test_more_than_the_declared_length_is_cut_off(host: HostileHost) -> None:
    assert await Fetcher(LOCAL).fetch(host.url("/says?length=10&sends=5000")) == b"x" * 10


async def test_a_lower_limit_of_the_media_io_counts(host: HostileHost) -> None:
    with pytest.raises(Refused, match="bytes"):
        await Fetcher(LOCAL).fetch(host.url("/file.png"), most=100)


async def test_slow_hosts_do_not_hold_up_others(host: HostileHost) -> None:
    fetcher = Fetcher(LOCAL)
    slow = [asyncio.create_task(refusal(fetcher, host.url("/silent?seconds=3"))) for _ in range(30)]
    await asyncio.sleep(0.2)
    started = time.monotonic()
    assert await fetcher.fetch(host.url("/file.png")) == FILE
    assert time.monotonic() - started < 1
    assert set(await asyncio.gather(*slow)) == {"timeout"}


async def test_certificates_are_checked_against_the_name(tmp_path: Path) -> None:
    pem, trusted = certificate(tmp_path, "secure.test")
    with HostileHost({"/file.png": FILE}, certificate=pem) as secure, HostileHost() as plain:
        fetcher = Fetcher(LOCAL, resolver=Names(["127.0.0.1"]), tls=trusted)
        assert await fetcher.fetch(secure.url("/file.png", "secure.test")) == FILE
        assert secure.seen[-1][1] == f"secure.test:{secure.port}"
        assert await refusal(fetcher, secure.url("/file.png", "other.test")) == "connection"
        stranger = Fetcher(LOCAL, resolver=Names(["127.0.0.1"]))
        assert await refusal(stranger, secure.url("/file.png", "secure.test")) == "connection"
        loose = LOCAL.model_copy(update={"allow_port_change": True})
        downgrading = Fetcher(loose, resolver=Names(["127.0.0.1"]), tls=trusted)
        url = secure.url(f"/redirect?to={plain.url('/file.png', 'secure.test')}", "secure.test")
        assert await refusal(downgrading, url) == "redirect"
        assert plain.seen == []


async def test_proxies_of_the_environment_are_not_asked(host: HostileHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await Fetcher(LOCAL).fetch(host.url("/file.png")) == FILE
