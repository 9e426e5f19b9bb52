"""Rotating the fleet's secret while it runs."""

from hashlib import sha256

from gossip.events import KeysChanged
from simnet.world import World

NEW, NEWER = b"n" * 32, b"o" * 32


def test_a_rotation_reaches_all_and_nobody_is_lost() -> None:
    world = World(31)
    hosts = world.fleet(5)
    world.run_until(world.all_live, 20)
    world.network.change(loss=0.2)
    assert hosts[2].running.rotate(1, NEW, hosts[2].now())
    hosts[2].drain()
    world.run_until(lambda: all(one.running.keys.current.number == 1 for one in hosts), 10)
    for host in hosts:
        assert [event for _, event in host.events if isinstance(event, KeysChanged)]
        assert not host.running.rotate(1, NEW, host.now()), "it is no later one"
    world.run(20)
    hosts[0].set_owner("k", 1)
    world.run_until(world.converged, 10)
    assert world.all_live()


def test_a_member_that_was_away_comes_back_after_one_rotation_but_not_after_two() -> None:
    world = World(32)
    hosts = world.fleet(4)
    world.run_until(world.all_live, 20)
    away = hosts[3]
    away.crash()
    assert hosts[0].running.rotate(1, NEW, hosts[0].now())
    hosts[0].drain()
    world.run(5)
    away.start()
    world.run_until(world.all_live, 60)
    world.run_until(lambda: away.running.keys.current.number == 1, 10)
    away.crash()
    for number, secret in ((2, NEWER), (3, NEW)):
        assert hosts[1].running.rotate(number, secret, hosts[1].now())
        hosts[1].drain()
        world.run(5)
    away.start()  # with the secret of its file: nobody told this one's disk
    world.run(60)
    assert away.running.keys.current.number == 0
    assert len(away.running.members()) == 1


def test_halves_that_both_rotated_end_under_one_key() -> None:
    world = World(34)
    hosts = world.fleet(4)
    world.run_until(world.all_live, 20)
    world.network.partition(["n0", "n1"], ["n2", "n3"])
    world.run(15)
    for host, secret in ((hosts[0], NEW), (hosts[2], NEWER)):
        assert host.running.rotate(1, secret, host.now())
        host.drain()
    world.run(5)
    world.network.heal()
    world.run(30)
    (secret,) = {host.running.keys.current.secret for host in hosts}
    assert secret == max(NEW, NEWER, key=lambda one: sha256(one).digest())
    for host in hosts:
        host.running.keys.forget_previous()
    world.run_until(world.all_live, 30)
    hosts[0].set_owner("k", 1)
    world.run_until(world.converged, 10)


def test_link_that_stayed_under_the_former_key_is_made_anew() -> None:
    world = World(35)
    one, two = world.fleet(2)
    world.run_until(world.all_live, 20)
    assert one.running.rotate(1, NEW, one.now())
    world.network.partition(["n0"], ["n1"])
    one.drain()
    for host in (one, two):
        host.running.keys.offer(1, NEW)
    world.run(1.5)
    world.network.heal()
    world.run(15)
    for host, other in ((one, two), (two, one)):
        link = host.running._links.get(other.node_id)
        assert link is not None
        assert link.made.epoch is host.running.keys.current
        assert not link.made.former


def test_who_is_revoked_gets_no_key_and_no_link() -> None:
    world = World(33)
    hosts = world.fleet(4)
    world.run_until(world.all_live, 20)
    thief = hosts[3]
    for host in hosts[:3]:
        host.revoked.add(thief.node_id)
    assert hosts[0].running.rotate(1, NEW, hosts[0].now())
    hosts[0].drain()
    world.run(60)
    assert [host.running.keys.current.number for host in hosts] == [1, 1, 1, 0]
    for host in hosts[:3]:
        states = {view.node_id: view.state for view in host.running.members()}
        assert states[thief.node_id] == "down"
        assert sum(state == "alive" for state in states.values()) == 2
    hosts[1].set_owner("secret", 1)
    world.run(10)
    assert thief.store.owner(hosts[1].node_id, "secret") is None
    assert any(host.running.counters.get("dropped_revoked") for host in hosts[:3])
