"""Key epochs: how the fleet's secret is rotated, and who is met under which."""

from typing import Any

import pytest

from gossip.events import Transmit
from gossip.handshake import Handshake
from gossip.sealing import DropError, Identity, Keyring, parse_header
from simnet.world import Host, World
from tests.gossip.examples import IDENTITY, OTHER
from tests.gossip.test_handshake import HERE, NOW, THERE, THIRD, later, party, run, talk

NEW, NEWER = b"n" * 32, b"o" * 32


def everybody(node_id: bytes) -> bool:
    return True


def rotated(identity: Identity, seed: int, **options: Any) -> Handshake:
    """A party that took part in one rotation."""
    fresh = party(identity, seed, known=everybody, **options)
    assert fresh.keys.offer(1, NEW)
    return fresh


def test_key_rotation_while_a_node_is_offline() -> None:
    """One rotation: it comes back by itself. Two: it is locked out, and told nothing."""
    away, fleet = party(IDENTITY, 1), rotated(OTHER, 2)
    mine, theirs, _ = run(away, fleet)
    assert (mine.epoch.number, mine.former) == (0, False), "the one that was away cannot know"
    assert (theirs.epoch.number, theirs.former) == (0, True), (
        "so the other one tells it the new key"
    )
    talk(mine, theirs)
    assert away.keys.offer(1, NEW)
    mine, theirs, datagrams = run(away, fleet, (mine, theirs))
    assert [one.epoch.number for one in (mine, theirs)] == [1, 1]
    assert [one.former for one in (mine, theirs)] == [False, False]
    assert {data[1] for data in datagrams} == {1}
    talk(mine, theirs)

    again = party(IDENTITY, 3)
    assert fleet.keys.offer(2, NEWER)
    for _ in range(4):
        with pytest.raises(DropError, match="epoch"):
            fleet.receive(again.hello(THERE, NOW), HERE, NOW, {}.get)
        with pytest.raises(DropError, match="epoch"):
            again.receive(fleet.hello(HERE, NOW), THERE, NOW, {}.get)


def test_caller_tries_the_previous_key_every_other_time() -> None:
    away, fleet = party(IDENTITY, 1), rotated(OTHER, 2)
    assert [fleet.hello(THERE, later(n))[1] for n in range(4)] == [1, 0, 1, 0]
    first, second = fleet.hello(THERE, later(5)), fleet.hello(THERE, later(6))
    with pytest.raises(DropError, match="epoch"):
        away.receive(first, HERE, later(6), {}.get)
    theirs, mine, _ = run(fleet, away, hello=second)
    assert (theirs.former, mine.former) == (True, False)
    talk(mine, theirs)
    assert fleet.hello(THERE, later(7))[1] == 1, "an answered call says nothing against the key"
    fleet.keys.forget_previous()
    assert [fleet.hello(THERE, later(n))[1] for n in range(8, 10)] == [1, 1]


def test_answer_comes_under_the_key_that_was_asked_under() -> None:
    one, two = rotated(IDENTITY, 1), rotated(OTHER, 2)
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {}.get)
    assert challenge is not None
    plain, _ = one._seal.open(challenge)
    assert two.keys.previous is not None
    with pytest.raises(DropError, match="handshake"):
        one.receive(two._seal.seal(plain, two.keys.previous), THERE, NOW, {}.get)


def test_thief_of_the_previous_secret_invents_no_member() -> None:
    members = {OTHER.node_id, IDENTITY.node_id}
    fleet = party(OTHER, 2, known=members.__contains__)
    assert fleet.keys.offer(1, NEW)
    thief = party(THIRD, 3)
    with pytest.raises(DropError, match="epoch"):
        fleet.receive(thief.hello(THERE, NOW), HERE, NOW, {}.get)
    calls = [fleet.hello(HERE, NOW), fleet.hello(HERE, NOW)]
    answer, _ = thief.receive(calls[1], THERE, NOW, {}.get)
    assert answer is not None
    with pytest.raises(DropError, match="epoch"):
        fleet.receive(answer, HERE, NOW, {}.get)
    run(party(IDENTITY, 1), fleet)  # a member is met under the old key ...
    newcomer = party(THIRD, 4, Keyring(NEW, 1))
    run(newcomer, fleet)  # ... and anybody under the new one


def test_revoked_node_is_refused_under_every_key() -> None:
    revoked = {IDENTITY.node_id}.__contains__
    for stolen in (party(IDENTITY, 1), rotated(IDENTITY, 1)):
        fleet = rotated(OTHER, 2, revoked=revoked)
        with pytest.raises(DropError, match="revoked"):
            fleet.receive(stolen.hello(THERE, NOW), HERE, NOW, {}.get)
        fleet.hello(HERE, NOW)
        hello = fleet.hello(HERE, NOW)  # under the key that both know
        answer, _ = stolen.receive(hello, THERE, NOW, {}.get)
        assert answer is not None
        with pytest.raises(DropError, match="revoked"):
            fleet.receive(answer, HERE, NOW, {}.get)
    assert not fleet._spent._young


def test_node_revoked_between_its_hello_and_its_confirm_is_refused() -> None:
    revoked: set[bytes] = set()
    one, two = party(IDENTITY, 1), party(OTHER, 2, revoked=revoked.__contains__)
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {}.get)
    assert challenge is not None
    confirm, _ = one.receive(challenge, THERE, NOW, {}.get)
    assert confirm is not None
    revoked.add(IDENTITY.node_id)
    with pytest.raises(DropError, match="revoked"):
        two.receive(confirm, HERE, NOW, {}.get)


def test_same_boots_move_to_the_new_key_without_using_a_counter_twice() -> None:
    one, two = (party(identity, n, known=everybody) for n, identity in ((1, IDENTITY), (2, OTHER)))
    mine, theirs, _ = run(one, two)
    for _ in range(3):
        talk(mine, theirs)
    recorded = mine.channel.seal(b"old")[1]
    before = mine, theirs
    for ring in (one.keys, two.keys):
        assert ring.offer(1, NEW)
    mine, theirs, _ = run(one, two, before)
    for old, new in zip(before, (mine, theirs), strict=True):
        assert new.channel is not old.channel
        assert new.channel.local == old.channel.local
        assert new.channel.counter >= old.channel.counter
    with pytest.raises(DropError, match="replay"):
        theirs.channel.open(recorded, parse_header(recorded)[3])
    talk(mine, theirs)
    assert mine.channel.seal(b"")[1][1] == 1, "the header names the epoch"
    # one side forgets it all: both come out with the same keys again, and with other counters
    used = mine.channel.counter
    one.retire(mine.node_id, mine.boot, mine.channel, False)
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {theirs.node_id: theirs}.get)
    assert challenge is not None
    confirm, mine = one.receive(challenge, THERE, NOW, {}.get)
    assert confirm is not None
    assert mine is not None
    assert mine.channel.counter >= used
    _, again = two.receive(confirm, HERE, NOW, {theirs.node_id: theirs}.get)
    assert again is not None
    assert again.channel is theirs.channel
    talk(mine, again)


def test_epochs_with_one_secret_use_no_counter_twice_either() -> None:
    rings = [Keyring(NEW), Keyring(NEW)]
    one, two = (party(who, n, rings[n]) for n, who in enumerate((IDENTITY, OTHER)))
    mine, theirs, _ = run(one, two)
    talk(mine, theirs)
    used = [mine.channel.counter, theirs.channel.counter]
    assert all(ring.offer(1, NEW) for ring in rings)
    mine, theirs, _ = run(one, two, (mine, theirs))
    assert [mine.channel.counter, theirs.channel.counter] >= used
    talk(mine, theirs)


def test_lost_confirm_of_a_new_key_is_made_up_for() -> None:
    one, two = (party(identity, n, known=everybody) for n, identity in ((1, IDENTITY), (2, OTHER)))
    mine, theirs, _ = run(one, two)
    for ring in (one.keys, two.keys):
        assert ring.offer(1, NEW)
    challenge, _ = two.receive(one.hello(THERE, NOW), HERE, NOW, {theirs.node_id: theirs}.get)
    assert challenge is not None
    _, mine = one.receive(challenge, THERE, NOW, {mine.node_id: mine}.get)
    assert mine is not None
    _, lost = mine.channel.seal(b"lost")
    with pytest.raises(DropError, match="seal"):
        theirs.channel.open(lost, parse_header(lost)[3])
    again, theirs, _ = run(one, two, (mine, theirs))
    assert again.channel is mine.channel
    talk(again, theirs)


def test_two_boots_never_go_back_to_an_older_key() -> None:
    one, two = rotated(IDENTITY, 1), rotated(OTHER, 2)
    mine, theirs, _ = run(one, two)
    calls = [one.hello(THERE, NOW), one.hello(THERE, NOW)]
    assert [call[1] for call in calls] == [1, 0]
    with pytest.raises(DropError, match="epoch"):
        two.receive(calls[1], HERE, NOW, {theirs.node_id: theirs}.get)
    run(one, two, (mine, theirs))


def test_two_rotations_at_once_still_meet() -> None:
    """Each under the key of before; then both take the same one of the two."""
    one, two = (party(identity, n, known=everybody) for n, identity in ((1, IDENTITY), (2, OTHER)))
    assert one.keys.offer(1, NEW)
    assert two.keys.offer(1, NEWER)
    calls = [one.hello(THERE, NOW), one.hello(THERE, NOW)]
    with pytest.raises(DropError, match="seal"):
        two.receive(calls[0], HERE, NOW, {}.get)
    mine, theirs, _ = run(one, two, hello=calls[1])
    assert mine.former
    assert theirs.former
    one.keys.offer(1, NEWER)
    two.keys.offer(1, NEW)
    mine, theirs, _ = run(one, two, (mine, theirs))
    assert one.keys.current.secret == two.keys.current.secret
    assert not mine.former
    talk(mine, theirs)


@pytest.mark.parametrize("confirm_lost", [False, True])
def test_living_link_goes_on_under_the_new_key(
    confirm_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(5)
    one, two = world.fleet(2)
    world.run(3)
    links = [one.running._links.get(two.node_id), two.running._links.get(one.node_id)]
    before = [link.channel for link in links]
    for host in (one, two):
        assert host.running._contact._handshake.keys.offer(1, NEW)
    said: list[bytes] = []
    transmit = world.transmit

    def lossy(source: Host, output: Transmit) -> None:
        if source is one and output.data[0] & 15 == 1:
            said.append(output.data)
            if confirm_lost and len(said) == 2:
                return
        transmit(source, output)

    monkeypatch.setattr(world, "transmit", lossy)
    one.running._contact.call(two.address, one.now())
    one.drain()
    one.set_owner("key", 1)
    two.set_owner("key", 2)
    world.run_until(lambda: all(link.made.epoch.number == 1 for link in links), 0.4)
    # a repeated call, or the peer's own: it cannot read what comes under the new key
    assert len(said) > 2 if confirm_lost else len(said) == 2
    world.run(3)
    for link, channel in zip(links, before, strict=True):
        assert link.channel is not channel
        assert link.confirmed
    assert one.running._links.get(two.node_id) is links[0]
    assert two.running._links.get(one.node_id) is links[1]
    assert one.store.owner(two.node_id, "key") == 2
    assert two.store.owner(one.node_id, "key") == 1
