"""Files in data URLs: every spelling that has one reading gives the file, all others say why not."""

from __future__ import annotations

import base64
import os
import textwrap
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_prune.config.media import Media
from vllm_prune_server.media.data_urls import inline
from vllm_prune_server.media.errors import MESSAGES, Refused

SETTINGS = Media(max_data_url_bytes=1000)
# Both letters of the URL-safe alphabet occur, and the length needs padding.
FILE = bytes(range(256)) + b"\xfb\xff\xfe!"
BASE64 = base64.b64encode(FILE).decode()
URL_SAFE = base64.urlsafe_b64encode(FILE).decode()


def load(url: str, is_video: bool = False, most: int | None = None) -> tuple[str, bytes]:
    return inline(url, SETTINGS, most, is_video)


def refusal(url: str, is_video: bool = False, most: int | None = None) -> str:
    with pytest.raises(Refused) as error:
        load(url, is_video, most)
    assert error.value.reason in MESSAGES
    return error.value.reason


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/png;base64,{BASE64}",
        f"data:image/png;BASE64,{BASE64}",
        f"data:image/png;name=a;base64,{BASE64}",
        f"data:image/png; base64,{BASE64}",
        f"data:;base64,{BASE64}",
        f"data:image%2Fpng;base64,{BASE64}",
        f"data:image/png;base64,{URL_SAFE}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{URL_SAFE.rstrip('=')}",
        f"data:image/png;base64,{quote(BASE64, safe='')}",
        f"data:image/png;base64,{BASE64}%0A",
        f"data:image/png;base64,\n{BASE64}\n",
        "data:image/png;base64," + "\n".join(textwrap.wrap(BASE64, 76)),
        "data:image/png;base64," + "\r\n  ".join(textwrap.wrap(BASE64, 60)),
        "data:image/png;base64," + quote("\r\n".join(textwrap.wrap(BASE64, 76))),
        f"data:image/png,{quote_from_bytes(FILE)}",
        f"data:,{quote_from_bytes(FILE, safe='')}",
    ],
)
def test_one_reading_is_taken(url: str) -> None:
    assert load(url) == ("", FILE)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("data:image/png;base64", "data_url"),
        ("data:", "data_url"),
        ("data:,", "data_url"),
        (f"data:image/png,{BASE64}", "data_url"),
        (f"data:image/png;base32,{BASE64}", "data_url"),
        (f"data:{'x' * 2000};base64,{BASE64}", "data_url"),
        (f"data:image/png;base64,{BASE64.replace('+', ' ')}", "base64_spaces"),
        (f"data:image/png;base64,{BASE64[:40]} {BASE64[40:]}", "base64_spaces"),
        (f"data:image/png;base64,{BASE64.rstrip('=')[:-1]}!", "base64"),
        ("data:image/png;base64,AAAAA", "base64"),
        ("data:image/png;base64,AAAA=", "base64"),
        ("data:image/png;base64,AA==AAAA", "base64"),
        ("data:image/png;base64,AA==AA==", "base64"),
        ("data:image/png;base64,AAAA====", "base64"),
        ("data:image/png;base64,é€AA", "base64"),
        ("data:image/png;base64,AA%ZZAA", "base64"),
        ("data:image/png;base64,data:image/png;base64,AAAA", "base64"),
    ],
)
def test_what_has_none_or_two_is_refused(url: str, reason: str) -> None:
    assert refusal(url) == reason


def test_sizes_are_checked_before_decoding() -> None:
    largest = base64.b64encode(bytes(1000)).decode()
    assert len(load(f"data:image/png;base64,{largest}")[1]) == 1000
    assert len(load("data:image/png;base64," + "\n".join(textwrap.wrap(largest, 76)))[1]) == 1000
    assert len(load(f"data:image/png;base64,{largest}", most=5000)[1]) == 1000
    assert refusal(f"data:image/png;base64,{largest}", most=990) == "data_url_bytes"
    assert refusal("data:image/png;base64," + "A" * 1340) == "data_url_bytes"
    # Not even looked at: the characters are none of base64's.
    assert refusal("data:image/png;base64," + "!" * 10_000) == "data_url_bytes"
    assert refusal("data:image/png;base64," + "%41" * 2_000) == "data_url_bytes"
    assert len(load("data:image/png," + "%00" * 1000)[1]) == 1000
    assert refusal("data:image/png," + "%00" * 1001) == "data_url_bytes"
    assert refusal("data:image/png,%00" + "A" * 1000) == "data_url_bytes"


def test_frame_lists_stay_text() -> None:
    frames = [base64.b64encode(os.urandom(n)).decode() for n in (7, 8, 9)]
    expected = ",".join(frames).encode()
    assert load("data:video/jpeg;base64," + ",".join(frames), True) == ("video/jpeg", expected)
    for text in (",\n".join(frames), ",".join(one.rstrip("=") for one in frames), quote(",".join(frames), safe="")):
        assert load(f"data:video/jpeg;base64,{text}", True) == ("video/jpeg", expected)
    urls = ",".join(one.replace("+", "-").replace("/", "_") for one in frames)
    assert load(f"data:VIDEO/JPEG;x=1;base64,{urls}", True) == ("video/jpeg", expected)
    assert refusal("data:video/jpeg;base64," + ",".join(frames), False) == "base64"


@given(st.binary(max_size=200), st.booleans(), st.booleans(), st.integers(1, 80))
def test_any_file_comes_back(data: bytes, url_safe: bool, padding: bool, width: int) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    text = encode(data).decode()
    text = "\n".join(textwrap.wrap(text if padding else text.rstrip("="), width, break_on_hyphens=False))
    assert load(f"data:image/png;base64,{text}") == ("", data)
