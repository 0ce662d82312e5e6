"""Section `media`: where images, videos and audio may come from, and how large they may be."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from .section import Section

MiB = 1 << 20
GiB = 1 << 30

Count = Annotated[int, Field(strict=True, ge=1)]
Seconds = Annotated[float, Field(gt=0, le=600, allow_inf_nan=False)]

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


class Media(Section):
    """Limits of media intake. Sizes are in bytes, times in seconds; each limit holds per item, `max_items` per request.

    A video of which only some of the sampled frames can be decoded, such as one that is cut off, is taken with these,
    as by vLLM itself; the server's log says how many of how many. One without any is refused.

    Attributes:
        hosts: hosts that media may be fetched from, `*.example.com` for all below one; empty: any public host.
        private: networks (CIDR), or names of hosts, whose addresses need not be public. All else must be.
        max_redirects: redirects that are followed, each checked like the first URL.
        allow_port_change: whether redirects may lead to another port; from 80 to 443 they always may.
        connect_seconds: time to connect.
        fetch_seconds: time of a download, redirects included.
        max_bytes: size of a fetched file.
        max_data_url_bytes: size of a file inside the request, once base64 is undone.
        max_items: media in one request.
        max_waiting: media of one tenant that may wait for a decoding process; more are refused with `Retry-After`.
        min_side: shorter side of an image or a frame, in pixels.
        max_aspect_ratio: longer side over the shorter one.
        max_pixels: pixels of an image or a frame.
        max_frames: frames of a video that reach the model, or of an animated image.
        max_source_frames: frames in a video file; those between the sampled ones have to be decoded too.
        max_video_pixels: pixels of a frame times frames that reach the model.
        max_decoded_bytes: size of what comes out of the decoder.
        decode_workers: decoding processes, at most four where none is given.
        decode_seconds: time of one decoding, after which its process is killed.
        decode_memory_bytes: memory that a decoding process may take on top of what it starts with.
    """

    hosts: tuple[str, ...] = ()
    private: tuple[str, ...] = ()
    max_redirects: Annotated[int, Field(strict=True, ge=0, le=10)] = 3
    allow_port_change: bool = False
    connect_seconds: Seconds = 5.0
    fetch_seconds: Seconds = 30.0
    max_bytes: Count = 128 * MiB
    max_data_url_bytes: Count = 64 * MiB
    max_items: Count = 128
    max_waiting: Count = 1024
    min_side: Count = 4
    max_aspect_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 200.0
    max_pixels: Count = 64 * MiB
    max_frames: Count = 768
    max_source_frames: Count = 54_000
    max_video_pixels: Count = 512 * MiB
    max_decoded_bytes: Count = 2 * GiB
    decode_workers: Annotated[int, Field(strict=True, ge=1, le=64)] | None = None
    decode_seconds: Seconds = 30.0
    decode_memory_bytes: Count = 4 * GiB

    @field_validator("hosts")
    @classmethod
    def _host_patterns(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _HOST.fullmatch(host):
                raise ValueError(f"{host!r} is not a host name; give names such as cdn.example.com or *.example.com")
        return tuple(host.lower() for host in hosts)

    @field_validator("private")
    @classmethod
    def _networks_or_hosts(cls, private: tuple[str, ...]) -> tuple[str, ...]:
        for entry in private:
            if not _is_network(entry) and not (_HOST.fullmatch(entry) and any(c.isalpha() for c in entry)):
                raise ValueError(f"{entry!r} is neither a network such as 10.0.3.0/24 nor a host name")
        return tuple(entry.lower() for entry in private)

    @model_validator(mode="after")
    def _one_request_fits_the_queue(self) -> Media:
        if self.max_waiting < self.max_items:
            raise ValueError(
                f"max_waiting ({self.max_waiting}) is below max_items ({self.max_items}), so that a full request is "
                "never taken; raise it or lower max_items"
            )
        return self

    @property
    def private_networks(self) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
        """The entries of `private` that are networks; a single address is one too."""
        return tuple(ipaddress.ip_network(entry) for entry in self.private if _is_network(entry))

    @property
    def workers(self) -> int:
        """Decoding processes."""
        return self.decode_workers or min(4, os.cpu_count() or 1)


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True
