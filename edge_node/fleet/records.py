"""Owner records of one family, followed: each is read again when it has changed, and only then.

Owns which of them the follower has; never what they say. Invariant: after a look the follower has
been given every record as the replica has it, however it came there: by a peer, by this node's own
hand or from its journal; and of every one that is gone, that it is.
"""

from collections.abc import Callable

from crdt import Store, Value


class Records:
    """The owner records whose keys begin alike."""

    def __init__(
        self, store: Store, prefix: str, take: Callable[[bytes, str, Value], None]
    ) -> None:
        """Prepare; ``take`` gets origin, key and value of what is new, None where it is gone."""
        self._store = store
        self._prefix = prefix
        self._take = take
        self._held: set[tuple[bytes, str]] = set()
        self._generation = self._mark = -1

    def look(self) -> bool:
        """Have ``take`` told of all that changed since the last look; say whether anything did.

        O(changes), O(records) where there were more than a replica remembers.
        """
        store = self._store
        if self._generation == store.generation:
            return False
        self._generation = store.generation
        self._mark, changed = store.owners_changed(self._mark)
        news: dict[tuple[bytes, str], Value]
        if changed is None:
            news = dict.fromkeys(self._held)
            news |= {(origin, key): value for origin, key, value in store.owners(self._prefix)}
        else:
            news = {one: store.owner(*one) for one in changed if one[1].startswith(self._prefix)}
        for (origin, key), value in news.items():
            if value is None:
                self._held.discard((origin, key))
            else:
                self._held.add((origin, key))
            self._take(origin, key, value)
        return bool(news)
