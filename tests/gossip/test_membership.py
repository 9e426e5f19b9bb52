"""Who is there: the core in virtual time."""

import pytest

from gossip.config import GossipConfig
from gossip.events import Event, MemberDown, MemberLeft, MemberSuspect, MemberUp
from gossip.messages import Suspect
from simnet.disk import Disk
from simnet.world import Host, World


def state(host: Host, of: Host) -> str:
    found = [view.state for view in host.running.members() if view.node_id == of.node_id]
    return found[0] if found else "unknown"


def told(host: Host, kind: type[Event], since_s: float = 0.0) -> list[bytes]:
    events = [event for when_s, event in host.events if when_s >= since_s]
    return [event.node_id for event in events if isinstance(event, kind)]  # type: ignore[union-attr]


def test_fleet_of_five_meets_through_one_seed() -> None:
    world = World(1)
    world.fleet(5)
    assert world.run_until(world.all_live, 5) < 2


def test_other_secret_stays_outside_and_is_counted() -> None:
    world = World(2)
    one = world.fleet(2)[0]
    stranger = world.add("stranger", secret=b"another fleet's secret")
    stranger.seeds.append(one.address)
    stranger.start()
    world.run(10)
    assert len(stranger.running.members()) == 1
    assert one.running.counters["dropped_seal"] > 0
    assert state(one, stranger) == "unknown"
    assert told(one, MemberUp) == [world.hosts["n1"].node_id]


@pytest.mark.parametrize("seed", range(5))
def test_crash_is_seen_by_all_within_the_promised_time(seed: int) -> None:
    world = World(seed)
    one, two, victim = world.fleet(3)
    world.run(5 + seed / 3)
    victim.crash()
    took_s = world.run_until(lambda: state(one, victim) == state(two, victim) == "down", 10)
    assert 2.5 <= took_s <= 7
    assert told(one, MemberSuspect) == told(one, MemberDown) == [victim.node_id]
    assert state(one, two) == "alive"


def test_blackholed_node_is_down_and_comes_back_by_itself() -> None:
    world = World(3)
    one, _, victim = world.fleet(3)
    world.run(3)
    world.network.silence(["n2"], key="n2")
    world.run_until(lambda: state(one, victim) == "down", 10)
    world.run(60)
    incarnation = victim.running.incarnation
    world.network.heal()
    assert world.run_until(world.all_live, 60) < 30
    assert victim.running.incarnation > incarnation, "it refuted; nobody else could revive it"


def test_suspicion_is_refuted_by_the_suspect() -> None:
    world = World(4)
    one, two, three = world.fleet(3)
    world.run(3)
    world.network.cut(["n1", "n2"], ["n0"], key="cut")  # one hears nobody
    world.run_until(lambda: "suspect" in (state(one, two), state(two, one)), 10)
    world.network.heal()
    world.run_until(world.all_live, 10)
    assert sum(host.running.incarnation for host in (one, two, three)) > 3
    assert not any(told(host, MemberDown) for host in (one, two, three))


def test_one_cut_pair_is_bridged_by_indirect_probes() -> None:
    world = World(5)
    hosts = world.fleet(4)
    world.run(3)
    world.network.partition(["n0"], ["n1"])
    world.run(120)
    assert not any(told(host, MemberDown) for host in hosts)


def test_leave_is_known_at_once_and_is_no_death() -> None:
    world = World(6)
    one, two, three = world.fleet(3)
    world.run(3)
    three.running.leave(three.now())
    three.drain()
    world.run(0.3)
    three.crash()
    assert state(one, three) == state(two, three) == "left"
    world.run(60)
    assert told(one, MemberLeft) == told(two, MemberLeft) == [three.node_id]
    assert not told(one, MemberSuspect)
    three.start()
    world.run_until(world.all_live, 5)


def test_who_has_left_is_not_brought_back_by_doubts() -> None:
    world = World(18)
    one, two, three = world.fleet(3)
    world.run(3)
    three.running.leave(three.now())
    three.drain()
    world.run(0.02)
    link = two.running._links.get(three.node_id)
    assert link is not None
    before = three.running.incarnation
    rumour = Suspect(three.node_id, before, two.node_id, 0)
    two.running._suspicion.tell(link, rumour)
    two.running.handle_timer(two.now())
    two.drain()
    world.run(5)
    assert three.running.incarnation > before
    assert state(one, three) == state(two, three) == "left"


def test_leave_that_one_node_missed_reaches_it_by_the_roster() -> None:
    world = World(7)
    one, two, three = world.fleet(3)
    world.run(3)
    world.network.cut(["n2"], ["n1"], key="cut")
    three.running.leave(three.now())
    three.drain()
    world.run(1)
    three.crash()
    world.run_until(lambda: state(two, three) == "left", 10)
    assert not told(one, MemberDown)


def test_restarted_node_comes_back_with_a_new_boot() -> None:
    world = World(8)
    one, two, three = world.fleet(3)
    world.run(3)
    three.crash()
    three.start()
    world.run(10)
    assert world.all_live()
    assert not told(one, MemberDown)
    for host in (one, two):
        view = next(view for view in host.running.members() if view.node_id == three.node_id)
        assert view.incarnation == three.incarnation == 2


def test_restarted_seed_is_found_again() -> None:
    world = World(9)
    seed, _, _ = world.fleet(3)
    world.run(3)
    seed.crash()
    world.run(30)
    seed.start()  # it has no seeds of its own: the others must call
    assert world.run_until(world.all_live, 60) < 30


def test_seed_may_come_later() -> None:
    world = World(10)
    seed, other = world.add("n0"), world.add("n1")
    other.seeds.append(seed.address)
    other.start()
    world.run(120)
    seed.start()
    assert world.run_until(world.all_live, 10) < 5


def test_lonely_node_keeps_calling_a_seed_it_had_lost() -> None:
    world = World(11)
    one, two = world.fleet(2)
    world.run(3)
    world.network.partition(["n0"], ["n1"])
    world.run_until(lambda: state(one, two) == state(two, one) == "down", 20)
    world.run(600)
    world.network.heal()
    assert world.run_until(world.all_live, 30) < 15


def test_restart_at_another_address_is_followed() -> None:
    world = World(12)
    one, _, three = world.fleet(3)
    world.run(3)
    three.crash()
    world.run(10)
    world.move(three, ("10.9.9.9", 7946))
    three.start()
    world.run_until(world.all_live, 10)
    view = next(view for view in one.running.members() if view.node_id == three.node_id)
    assert view.address == ("10.9.9.9", 7946)


def test_address_change_of_a_running_node_is_followed() -> None:
    world = World(13)
    hosts = world.fleet(3)
    one, _, three = hosts
    world.run(3)
    world.move(three, ("10.9.9.9", 7946))
    three.running.readdress(three.address, three.now())
    three.drain()
    world.run(30)
    assert world.all_live()
    assert not any(told(host, MemberDown) for host in hosts)
    view = next(view for view in one.running.members() if view.node_id == three.node_id)
    assert view.address == ("10.9.9.9", 7946)
    one.set_owner("key", 1)
    world.run(1)
    assert three.store.owner(one.node_id, "key") == 1


def test_held_up_process_accuses_nobody_and_is_not_buried() -> None:
    world = World(14)
    hosts = world.fleet(4)
    world.run(3)
    for _ in range(5):
        hosts[1].hold(2.0)
        world.run(7)
    assert world.all_live()
    assert not any(told(host, MemberDown) for host in hosts)
    assert not told(hosts[1], MemberSuspect)


@pytest.mark.parametrize("seed", range(3))
def test_loss_of_a_fifth_buries_nobody(seed: int) -> None:
    world = World(seed)
    world.network.change(loss=0.2)
    hosts = world.fleet(8)
    world.run_until(world.all_live, 30)
    world.run(120)
    assert not any(told(host, MemberDown) for host in hosts)


@pytest.mark.parametrize("away_s", [0, 30], ids=["still alive", "already down"])
def test_incarnation_lost_with_the_disk_is_outgrown(away_s: float) -> None:
    world = World(15)
    one, _, three = world.fleet(3)
    for _ in range(2):
        world.run(2)
        three.crash()
        three.start()
    world.run_until(world.all_live, 10)
    three.crash()
    world.run(away_s)
    three.disk = Disk(three.node_id)  # the others remember 3
    three.start()
    world.run_until(lambda: world.all_live() and three.running.incarnation > 3, 20)
    view = next(view for view in one.running.members() if view.node_id == three.node_id)
    assert view.incarnation == three.running.incarnation


def test_dead_are_bounded() -> None:
    world = World(16, GossipConfig(dead_members=2))
    hosts = world.fleet(6)
    world.run(3)
    for host in hosts[2:]:
        host.crash()
    world.run(60)
    assert len(hosts[0].running.members()) == 1 + 1 + 2
    assert state(hosts[0], hosts[1]) == "alive"


def test_slow_report_widens_the_timeouts() -> None:
    world = World(17)
    one, two = world.fleet(2)
    world.run(2)
    two.crash()
    for _ in range(20):  # however often it is said within one probe
        one.running.slow(2.0, one.now())
    world.run(4.5)
    assert state(one, two) != "down"
    assert world.run_until(lambda: state(one, two) == "down", 30) < 10


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("probe_interval_s", 0.0),
        ("probe_timeout_s", 2.0),
        ("batching_s", 0.5),
        ("direct_members", 0),
    ],
)
def test_config_refuses_what_is_out_of_range(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        GossipConfig(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("incarnation", [(1 << 48) - 1, 1 << 48, 1 << 60])
def test_absurd_incarnation_is_refused_at_the_start(incarnation: int) -> None:
    host = World(19).add("n0")
    host.disk.saved.incarnation = incarnation - 1
    with pytest.raises(ValueError, match="incarnation"):
        host.start()


def test_node_is_told_nowhere_but_at_an_ip_address() -> None:
    world = World(20)
    host = world.add("n0")
    host.address = ("name.example", 1)
    with pytest.raises(ValueError, match=r"name\.example"):
        host.start()
    host.address = ("2001:DB8:0::7", 1)
    host.start()
    assert host.running.members()[0].address == ("2001:db8::7", 1)
    with pytest.raises(ValueError, match=r"0\.0\.0\.0"):
        host.running.readdress(("0.0.0.0", 1), host.now())
