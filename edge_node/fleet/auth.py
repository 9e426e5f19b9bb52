"""Owns the credentials of HTTP between nodes: one header per request, made from the fleet's keys.

Never reads a clock and never keeps a body. Invariant: a `Verifier` accepts a header at most once in
its life, and accepts none that was made for another node or before this verifier began.
Requests are signed under the current key, and taken under every key that the ring holds.

The header holds, between dots: version, sender id, sender boot, target id, counter, challenge,
SHA-256 of the body, and the HMAC-SHA256 of all these with method and path. A verifier tells its
challenge (16 random bytes) with every refusal; a signer that has not heard it yet is refused once.
The challenge is what makes recordings die with the verifier's memory of them; no clocks needed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from gossip import Keyring, ReplayWindow
from gossip.sealing import Epoch, derive

HEADER = "X-Edge-Auth"
CHALLENGE_HEADER = "X-Edge-Challenge"
MAX_WINDOWS = 1024
_MAX_TARGETS = 4096
_NO_CHALLENGE = bytes(16)
_FORM = re.compile(
    r"1\.([0-9a-f]{32})\.([0-9a-f]{32})\.([0-9a-f]{32})\.(0|[1-9][0-9]{0,17})"
    r"\.([0-9a-f]{32})\.([0-9a-f]{64})\.([0-9a-f]{64})"
)


class PeerAuthError(Exception):
    """A request between nodes is refused; `reason` names the counter. No state has changed."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not authenticated: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Claim:
    """Hold what a verified header says: who sends (ids of 16 bytes) which body."""

    sender: bytes
    boot: bytes
    counter: int
    challenge: bytes
    body_sha256: bytes


class Signer:
    """Sign this node's requests to others. One per boot of the node."""

    def __init__(self, node_id: bytes, boot: bytes, ring: Keyring) -> None:
        self._node_id, self._boot = node_id, boot
        self._keys = _Keys(ring)
        self._counter = 0
        self._challenges: dict[bytes, bytes] = {}

    def sign(self, method: str, path: str, body: bytes, target: bytes) -> str:
        """Return the value of `HEADER` for one request to the node `target`, to be sent once.

        `path` is the request target as it goes over the wire (percent-encoded, with the query).
        O(body).
        """
        self._counter += 1
        challenge = self._challenges.get(target, _NO_CHALLENGE)
        digest = hashlib.sha256(body).digest()
        parts = (self._node_id, self._boot, target, challenge, digest)
        mac = _mac(self._keys.held()[0], method, path, self._counter, *parts)
        sender, boot, to, nonce, body_hex = (part.hex() for part in parts)
        return f"1.{sender}.{boot}.{to}.{self._counter}.{nonce}.{body_hex}.{mac.hex()}"

    def learn(self, target: bytes, challenge: str | None, sent: str | None = None) -> bool:
        """Take `target`'s challenge from a 401's `CHALLENGE_HEADER`.

        Returns True if it is news to the request whose `HEADER` was `sent`: sign and send again,
        once. Of requests that were under way together the first tells the challenge to all.
        """
        if challenge is None or not re.fullmatch(r"[0-9a-f]{32}", challenge):
            return False
        value = bytes.fromhex(challenge)
        if self._challenges.get(target) == value:
            return sent is not None and sent.split(".")[5] != challenge
        if len(self._challenges) >= _MAX_TARGETS:
            self._challenges.clear()
        self._challenges[target] = value
        return True


class Verifier:
    """Check the requests that come to the node `node_id`.

    `counters` counts what was accepted and what was refused, by reason: missing, malformed,
    target, revoked, mac, challenge, body, replay.
    """

    def __init__(
        self, node_id: bytes, ring: Keyring, revoked: Callable[[bytes], bool] = lambda _: False
    ) -> None:
        self._node_id = node_id
        self._keys = _Keys(ring)
        self._revoked = revoked
        self._windows: dict[tuple[bytes, bytes], ReplayWindow] = {}
        self.challenge = secrets.token_bytes(16)
        self.counters: dict[str, int] = {}

    def check(self, method: str, path: str, header: str | None) -> Claim:
        """Verify a header before its body is read. Raises PeerAuthError; changes no window.

        A header that was accepted before is refused here, not only when its body has come.
        """
        if header is None:
            raise self._refusal("missing")
        match = _FORM.fullmatch(header)
        if match is None:
            raise self._refusal("malformed")
        sender, boot, target = (bytes.fromhex(match[n]) for n in (1, 2, 3))
        challenge, digest, mac = (bytes.fromhex(match[n]) for n in (5, 6, 7))
        counter = int(match[4])
        if target != self._node_id:
            raise self._refusal("target")
        if self._revoked(sender):
            raise self._refusal("revoked")
        parts = (sender, boot, target, challenge, digest)
        if not any(
            hmac.compare_digest(mac, _mac(key, method, path, counter, *parts))
            for key in self._keys.held()
        ):
            raise self._refusal("mac")
        if challenge != self.challenge:
            raise self._refusal("challenge")
        window = self._windows.get((sender, boot))
        if window is not None and not window.fresh(counter):
            raise self._refusal("replay")
        return Claim(sender, boot, counter, challenge, digest)

    def accept(self, claim: Claim, body: bytes) -> bytes:
        """Accept a checked request with its body, once; return the sender's id. O(body).

        Raises PeerAuthError (body, challenge, replay).
        """
        if not hmac.compare_digest(hashlib.sha256(body).digest(), claim.body_sha256):
            raise self._refusal("body")
        if claim.challenge != self.challenge:  # changed while the body was read
            raise self._refusal("challenge")
        boot = (claim.sender, claim.boot)
        window = self._windows.get(boot)
        if window is None:
            if len(self._windows) >= MAX_WINDOWS:
                # Forgetting one window would let its recordings in. A new challenge shuts out all
                # of them; honest peers sign once more.
                self._windows.clear()
                self.challenge = secrets.token_bytes(16)
                raise self._refusal("challenge")
            window = self._windows[boot] = ReplayWindow()
        if not window.fresh(claim.counter):
            raise self._refusal("replay")
        window.mark(claim.counter)
        self.counters["accepted"] = self.counters.get("accepted", 0) + 1
        return claim.sender

    def _refusal(self, reason: str) -> PeerAuthError:
        self.counters[reason] = self.counters.get(reason, 0) + 1
        return PeerAuthError(reason)


class _Keys:
    """The HTTP keys of a ring's epochs, each derived once."""

    def __init__(self, ring: Keyring) -> None:
        self._ring = ring
        self._derived: dict[Epoch, bytes] = {}

    def held(self) -> tuple[bytes, ...]:
        """Return the keys that are good now, the current one first."""
        held = self._ring.held
        if tuple(self._derived) != held:
            self._derived = {epoch: derive(epoch.secret, b"edge-node http 1") for epoch in held}
        return tuple(self._derived.values())


def _mac(key: bytes, method: str, path: str, counter: int, *parts: bytes) -> bytes:
    fields = (method.encode(), path.encode("utf-8", "surrogateescape"), counter.to_bytes(8, "big"))
    joined = b"".join(len(part).to_bytes(4, "big") + part for part in (*fields, *parts))
    return hmac.digest(key, joined, "sha256")
