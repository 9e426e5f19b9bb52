"""Say whose reuse state of a camera is worth fetching.

Owns what peers announce of it and one cost rule; never does IO. Invariant: what a peer announced
is checked before it is believed, and wrong announcements cost a transfer at most, never an answer:
what arrives is checked again against the model's digest, and audited.

An entry saves the full pass that would be due now, if it shows the scene that the camera shows;
and, if calibrated, the full passes until the newcomer would be calibrated itself.
"""

from collections.abc import Iterable
from dataclasses import dataclass

CALIBRATION_PASSES = 256
"""Full passes until a camera is calibrated, at the least."""

PRIOR_BPS = 100e6
"""Bandwidth to a peer before there was a transfer: a wired site's. Bits per second."""

PRIOR_RTT_S = 0.01
CODEC_BYTES_PER_S = 80e6
"""Compressing there and decompressing here: bytes of an entry per second of both."""

NEAR_BITS = 20
"""Bits of 64 in which two images of one scene differ at most; of two scenes some 28 do."""

MAX_BYTES = 1 << 32
MAX_SIGNATURE = 1 << 64


@dataclass(frozen=True, slots=True)
class Holder:
    """A node that holds the reuse state of a camera, as it announced that."""

    node: bytes
    signature: int
    size_bytes: int
    calibrated: bool
    since_ms: int
    """Wall time of the announcement."""

    @classmethod
    def from_element(cls, element: object) -> "Holder | None":
        """Read an element of the set ``cache/AGENT/DIGEST``; None if it is none of this version."""
        if not isinstance(element, list) or len(element) < 5:
            return None
        node, signature, size_bytes, calibrated, since_ms = element[:5]
        if not (
            isinstance(node, bytes)
            and all(type(number) is int for number in (signature, size_bytes, since_ms))
            and 0 <= signature < MAX_SIGNATURE
            and 0 < size_bytes < MAX_BYTES
        ):
            return None
        return cls(node, signature, size_bytes, calibrated is True, since_ms)

    def element(self) -> list[bytes | int | bool]:
        """Return what :meth:`from_element` reads."""
        return [self.node, self.signature, self.size_bytes, self.calibrated, self.since_ms]

    def is_near(self, scene: int | None) -> bool:
        """Tell whether its scene may be the one with that signature; None: who knows, so yes."""
        return scene is None or (self.signature ^ scene).bit_count() <= NEAR_BITS


@dataclass(frozen=True, slots=True)
class Link:
    """The way to a peer."""

    bandwidth_bps: float = PRIOR_BPS
    rtt_s: float = PRIOR_RTT_S

    def fetch_s(self, size_bytes: int) -> float:
        """Predict the time until an entry is here and decoded."""
        transfer_s = size_bytes * 8 / max(1.0, self.bandwidth_bps)
        return self.rtt_s + transfer_s + size_bytes / CODEC_BYTES_PER_S


def in_order(holders: Iterable[Holder], scene: int | None) -> list[Holder]:
    """Return the holders, those first whose scene is near the one seen here, then the newest."""
    return sorted(holders, key=lambda one: (not one.is_near(scene), -one.since_ms, one.node))


def saved_s(holder: Holder, full_s: float, scene: int | None) -> float:
    """Predict what an entry saves a newcomer whose full pass takes ``full_s``."""
    passes = int(holder.is_near(scene)) + CALIBRATION_PASSES * holder.calibrated
    return passes * full_s


def is_worth(holder: Holder, link: Link, full_s: float, scene: int | None) -> bool:
    """Tell whether to fetch: only in less than half the time that computing it again takes."""
    return link.fetch_s(holder.size_bytes) < saved_s(holder, full_s, scene) / 2
