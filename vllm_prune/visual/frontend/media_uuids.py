"""Cache keys for media that clients name by a `uuid`.

vLLM takes a client's `uuid` as the key of its processor cache, its encoder cache and its prefix hashes, for all
clients alike: whoever knows or guesses a uuid reads or replaces the item behind it. Here a uuid only ever stands for
the content that its owner sent with it. The key that vLLM gets is made of owner, uuid and content, so that no cache of
any kind can answer with other content, and it starts with a word that no content hash starts with.
"""

from __future__ import annotations

import hashlib
import hmac
import threading
from dataclasses import dataclass

from cachetools import LRUCache

CAPACITY = 65536
SHOWN_CHARACTERS = 64


@dataclass(frozen=True)
class OwnedUuid:
    """A client's uuid on its way to the processor.

    Attributes:
        uuid: as the client wrote it.
        owner: secret of the tenant that it belongs to; empty where there are no tenants.
    """

    uuid: str
    owner: str = ""


class MediaUuidError(ValueError):
    """A uuid that cannot be served; the message says what to do."""


class MissingMediaError(MediaUuidError):
    """An item that was sent by its uuid only, and is not at hand.

    Attributes:
        modality: of the item.
        index: of the item among those of its modality.
        reason: why its uuid is not enough.
    """

    def __init__(self, modality: str, index: int, reason: str) -> None:
        super().__init__(modality, index, reason)
        self.modality, self.index, self.reason = modality, index, reason

    def __str__(self) -> str:
        return self.text()

    def text(self, uuid: str | None = None, budget: str | None = None) -> str:
        """The message.

        Args:
            uuid: the item's, where it is known.
            budget: the item's under this request, None where it has none.
        """
        name = "its uuid" if uuid is None else f"uuid {shown(uuid)}"
        message = f"{self.modality} {self.index} was sent by {name} only, and {self.reason}: send the item again"
        if budget is None:
            return message
        return f"{message}. Items are kept by their budget, and this request's pruning.visual is {budget}"


class MediaUuids:
    """The content that recent uuids stand for; shared by all threads of a front end.

    A uuid that has been forgotten can be bound anew, to any content: its key will be another one.

    Args:
        capacity: uuids to remember.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._contents: LRUCache[str, str] = LRUCache(capacity)
        self._lock = threading.Lock()

    def key(self, modality: str, index: int, name: OwnedUuid, content: str | None) -> str:
        """Cache key of an item.

        Args:
            modality: of the item; a uuid may name one item of each.
            index: of the item, for the message.
            name: its uuid.
            content: digest of what was sent, None for a uuid alone.

        Raises:
            MediaUuidError: the uuid stands for other content.
            MissingMediaError: nothing was sent, and the uuid is not known for this owner.
        """
        bound = _bound(modality, name)
        with self._lock:
            known = self._contents.get(bound)
            if content is None and known is None:
                raise MissingMediaError(modality, index, "this server does not know it")
            if content is not None and known not in (None, content):
                raise MediaUuidError(
                    f"uuid {shown(name.uuid)} of {modality} {index} already stands for another {modality}: "
                    "a uuid names one content; choose a new one"
                )
            if content is not None:
                self._contents[bound] = content
        return f"uuid:{bound}:{content or known}"


def _bound(modality: str, name: OwnedUuid) -> str:
    # Hashed first: keys of an HMAC that differ in zeros at the end are equal.
    secret = hashlib.sha256(_bytes(name.owner)).digest()
    return hmac.new(secret, _bytes(f"{modality}:{name.uuid}"), hashlib.sha256).hexdigest()


def _bytes(text: str) -> bytes:
    # JSON can carry half a surrogate pair.
    return text.encode(errors="surrogatepass")


def shown(uuid: str) -> str:
    """A uuid for a message, quoted and cut to a readable length."""
    return repr(uuid if len(uuid) <= SHOWN_CHARACTERS else uuid[:SHOWN_CHARACTERS] + "...")
