"""Whether a store honours put-if-absent: asked once, when a run is opened."""

from __future__ import annotations

from spotckpt.deadline import Deadline
from spotckpt.errors import AlreadyExists, ConditionsIgnored
from spotckpt.store.base import Store


def require_conditions(store: Store, key: str, data: bytes, *, deadline: Deadline | None = None) -> None:
    """Makes sure that the store refuses to create an object that is there.

    It asks with the very bytes that lie at the key, so a store that ignores the condition changes nothing and no
    object is left behind.

    Args:
        store: the store to ask.
        key: an object that is there.
        data: its bytes.
        deadline: as for any call.

    Raises:
        ConditionsIgnored: the store overwrote it: two attempts could both win.
    """
    try:
        written = store.put_if_absent(key, data, deadline=deadline)
    except AlreadyExists:
        return
    if written:
        raise ConditionsIgnored(
            "put_if_absent",
            f"{store.uri}/{key}",
            f"{store.uri} overwrote an object in spite of If-None-Match",
            hint="use a store with conditional writes, such as S3, LocalStack, SeaweedFS or a local directory",
        )
