"""Rotating the fleet's secret: the new one travels over every pair's own channel.

So there is one sealed envelope per member, and none for who is revoked. A member that was away
comes back under the secret before, and is given the new one at once.

Owns who is told and who is believed; the ring itself belongs to the handshake. Invariant: no key
is taken from a peer that was met under the secret before ours, but one of two rotations at once.
"""

from collections.abc import Callable

from crdt.clock import Instant
from gossip.broadcast import URGENT, Link, Links
from gossip.codec import encode_message
from gossip.events import Address, Event, KeysChanged
from gossip.messages import NewKey
from gossip.sealing import Keyring

_LOOK_S = 10.0


class Rotation:
    """Pass a new key epoch on."""

    def __init__(
        self,
        keys: Keyring,
        links: Links,
        revoked: Callable[[bytes], bool],
        call: Callable[[Address, Instant], None],
        emit: Callable[[Event], None],
        count: Callable[[str], None],
    ) -> None:
        self._keys = keys
        self._links = links
        self._revoked = revoked
        self._call = call
        self._emit = emit
        self._count = count
        self._look_s = 0.0

    def rotate(self, number: int, secret: bytes, source: Link | None = None) -> bool:
        """Take a later epoch's secret and tell every other peer; tell whether it was later."""
        if not self._keys.offer(number, secret):
            return False
        self._emit(KeysChanged(number))
        for link in self._links:
            if self._revoked(link.node_id):
                self._links.close(link.node_id, gone=True)
            elif link is not source:
                self._tell(link)
        return True

    def on_link(self, link: Link) -> None:
        """Give the current secret to a peer that was met under the one before."""
        if link.made.former:
            self._tell(link)

    def on_new_key(self, link: Link, message: NewKey, now: Instant) -> None:
        """Take a peer's later secret, and meet that peer again under it.

        Two halves of a fleet that both rotated meet under the secret before: there the greater of
        two secrets with one number counts, but none with a later number. Whoever is met so is a
        known member and will be told the current secret in any case.
        """
        if link.made.former and message.number != self._keys.current.number:
            self._count("dropped_new_key")  # whoever stole the old secret could say this
        elif self.rotate(message.number, message.secret, link):
            self._call(link.address, now)

    def tick(self, now: Instant) -> None:
        """Meet those again, now and then, whose link is not under the current key."""
        if now.mono_s >= self._look_s:
            self._look_s = now.mono_s + _LOOK_S
            for link in self._links:
                if link.made.epoch is not self._keys.current:
                    self._call(link.address, now)

    def _tell(self, link: Link) -> None:
        epoch = self._keys.current
        data = encode_message(NewKey(epoch.number, epoch.secret))
        self._links.offer(link, b"N", data, URGENT)
