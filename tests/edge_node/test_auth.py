"""A request between nodes is accepted once, by the node it was made for, as it was made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.fleet import auth
from edge_node.fleet.auth import PeerAuthError, Signer, Verifier
from gossip import Keyring

A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))
BOOT = bytes(range(16))
SECRET = bytes(range(100, 132))
NEW = b"n" * 32
BODY = b"a frame"
PATH = "/peer/v1/infer"


def pair() -> tuple[Signer, Verifier]:
    """Return A's signer and B's verifier, introduced to each other."""
    signer, verifier = Signer(A, BOOT, Keyring(SECRET)), Verifier(B, Keyring(SECRET))
    assert signer.learn(B, verifier.challenge.hex())
    return signer, verifier


def refusal(
    verifier: Verifier,
    header: str | None,
    method: str = "POST",
    path: str = PATH,
    body: bytes = BODY,
) -> str:
    """Return the reason of a refusal, "" if the request is accepted; check the count."""
    before = dict(verifier.counters)
    try:
        verifier.accept(verifier.check(method, path, header), body)
        reason = ""
    except PeerAuthError as error:
        reason = error.reason
    counted = reason or "accepted"
    assert verifier.counters == {**before, counted: before.get(counted, 0) + 1}
    return reason


def test_a_request_is_accepted_once() -> None:
    signer, verifier = pair()
    header = signer.sign("POST", PATH, BODY, B)
    claim = verifier.check("POST", PATH, header)
    assert verifier.accept(claim, BODY) == A
    assert refusal(verifier, header) == "replay"
    with pytest.raises(PeerAuthError, match="replay"):
        verifier.accept(claim, BODY)
    with pytest.raises(PeerAuthError, match="replay"):
        verifier.check("POST", PATH, header)  # before its body may keep anybody waiting


def test_late_requests_are_accepted_within_the_window_only() -> None:
    signer, verifier = pair()
    headers = [signer.sign("POST", PATH, BODY, B) for _ in range(1200)]
    assert refusal(verifier, headers[-1]) == ""
    assert refusal(verifier, headers[-1000]) == ""
    assert refusal(verifier, headers[0]) == "replay", "older than the window counts as seen"


def test_what_is_signed_cannot_be_changed() -> None:
    signer, verifier = pair()
    header = signer.sign("POST", PATH, BODY, B)
    assert refusal(verifier, header, method="GET") == "mac"
    assert refusal(verifier, header, path=PATH + "?x=1") == "mac"
    assert refusal(verifier, header, body=BODY + b".") == "body"
    assert refusal(verifier, header, body=b"") == "body"
    assert refusal(verifier, header) == "", "the refusals used nothing up"


def test_fields_do_not_run_into_each_other() -> None:
    signer, verifier = pair()
    header = signer.sign("POST", "/x", BODY, B)
    assert refusal(verifier, header, method="POST/", path="x") == "mac"


def test_only_the_target_and_only_the_fleet() -> None:
    signer, verifier = pair()
    assert refusal(verifier, signer.sign("POST", PATH, BODY, C)) == "target"
    stranger = Signer(A, BOOT, Keyring(SECRET[::-1]))
    stranger.learn(B, verifier.challenge.hex())
    assert refusal(verifier, stranger.sign("POST", PATH, BODY, B)) == "mac"
    assert refusal(verifier, None) == "missing"


def test_a_member_is_not_shut_out_by_another_boot_of_itself() -> None:
    signer, verifier = pair()
    restarted = Signer(A, BOOT[::-1], Keyring(SECRET))
    restarted.learn(B, verifier.challenge.hex())
    for _ in range(3):
        assert refusal(verifier, signer.sign("POST", PATH, BODY, B)) == ""
        assert refusal(verifier, restarted.sign("POST", PATH, BODY, B)) == ""


def test_recordings_die_with_the_verifier_that_knew_them() -> None:
    signer, verifier = pair()
    recording = signer.sign("POST", PATH, BODY, B)
    assert refusal(verifier, recording) == ""
    restarted = Verifier(B, Keyring(SECRET))
    with pytest.raises(PeerAuthError, match="challenge"):
        restarted.check("POST", PATH, recording)  # before any body is read
    assert signer.learn(B, restarted.challenge.hex())
    assert not signer.learn(B, restarted.challenge.hex()), "no news: do not try again"
    assert refusal(restarted, signer.sign("POST", PATH, BODY, B)) == ""


def test_windows_are_bounded_and_forget_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_WINDOWS", 3)
    signer, verifier = pair()
    recording = signer.sign("POST", PATH, BODY, B)
    claimed = verifier.check("POST", PATH, recording)
    assert refusal(verifier, recording) == ""
    for n in range(3):
        other = Signer(C, bytes([n]) * 16, Keyring(SECRET))
        other.learn(B, verifier.challenge.hex())
        reason = refusal(verifier, other.sign("POST", PATH, BODY, B))
        assert reason == ("challenge" if n == 2 else "")
    assert refusal(verifier, recording) == "challenge"
    with pytest.raises(PeerAuthError, match="challenge"):
        verifier.accept(claimed, BODY)  # checked before the windows were forgotten
    assert other.learn(B, verifier.challenge.hex())
    assert refusal(verifier, other.sign("POST", PATH, BODY, B)) == ""


@pytest.mark.parametrize("challenge", [None, "", "00", "zz" * 16, "00" * 17, "AB" * 16])
def test_a_malformed_challenge_teaches_nothing(challenge: str | None) -> None:
    assert not Signer(A, BOOT, Keyring(SECRET)).learn(B, challenge)


@given(st.data())
def test_a_changed_or_truncated_header_is_refused(data: st.DataObject) -> None:
    signer, verifier = pair()
    header = signer.sign("POST", PATH, BODY, B)
    at = data.draw(st.integers(0, len(header) - 1))
    letter = data.draw(st.characters(codec="latin-1"))
    changed = header[:at] + letter + header[at + 1 :]
    if changed != header:
        assert refusal(verifier, changed) in ("malformed", "mac", "target")
    assert refusal(verifier, header[:at]) == "malformed"
    assert refusal(verifier, header + letter) == "malformed"
    assert refusal(verifier, header) == ""


@given(st.text(max_size=400))
def test_any_other_text_is_malformed(text: str) -> None:
    assert refusal(Verifier(B, Keyring(SECRET)), text) == "malformed"


def test_a_rotation_cuts_nobody_off_until_the_previous_key_is_forgotten() -> None:
    ring, late = Keyring(SECRET), Keyring(SECRET)
    here, away, verifier = Signer(A, BOOT, ring), Signer(C, BOOT, late), Verifier(B, ring)
    for signer in (here, away):
        assert signer.learn(B, verifier.challenge.hex())
    assert ring.offer(1, NEW)
    assert refusal(verifier, here.sign("POST", PATH, BODY, B)) == ""
    assert refusal(verifier, away.sign("POST", PATH, BODY, B)) == "", "it was away"
    current = Signer(A, BOOT[::-1], Keyring(NEW))
    current.learn(B, verifier.challenge.hex())
    assert refusal(verifier, current.sign("POST", PATH, BODY, B)) == ""
    behind = Verifier(B, late)
    here.learn(B, behind.challenge.hex())
    assert refusal(behind, here.sign("POST", PATH, BODY, B)) == "mac", "it was signed as of now"
    ring.forget_previous()
    assert refusal(verifier, away.sign("POST", PATH, BODY, B)) == "mac"
    assert late.offer(1, NEW)
    assert refusal(verifier, away.sign("POST", PATH, BODY, B)) == ""


def test_the_revoked_are_refused() -> None:
    revoked: set[bytes] = set()
    signer = Signer(A, BOOT, Keyring(SECRET))
    verifier = Verifier(B, Keyring(SECRET), revoked.__contains__)
    signer.learn(B, verifier.challenge.hex())
    assert refusal(verifier, signer.sign("POST", PATH, BODY, B)) == ""
    revoked.add(A)
    assert refusal(verifier, signer.sign("POST", PATH, BODY, B)) == "revoked"
