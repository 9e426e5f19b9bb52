"""How fast the dead are seen, and that nobody else is held for dead: seeds in virtual time.

Durations are in probe intervals, which last a second here. Stand-in cryptography, but for forgers.
"""

import random
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import pytest

from crdt.clock import Instant
from gossip.codec import encode_message, join_messages
from gossip.config import GossipConfig
from gossip.events import Event, MemberDown, MemberSuspect, MemberUp
from gossip.messages import Suspect
from simnet import warm
from simnet.world import Host, World


def fleet(seed: int, count: int, config: GossipConfig | None = None) -> tuple[World, list[Host]]:
    world = World(seed, config, standin=True)
    hosts = world.fleet(count)
    world.run_until(world.all_live, 20)
    world.run(3)
    return world, hosts


def told(host: Host, of: Host, since_s: float = 0.0) -> list[type[Event]]:
    """What a host was told of another, in order."""
    return [
        type(event)
        for when_s, event in host.events
        if when_s >= since_s and getattr(event, "node_id", None) == of.node_id
    ]


def deaths(hosts: list[Host], since_s: float = 0.0) -> int:
    return sum(told(host, of, since_s).count(MemberDown) for host in hosts for of in hosts)


def sent(hosts: list[Host]) -> int:
    return sum(host.running.counters["out_datagrams"] for host in hosts)


def state(host: Host, of: Host) -> str:
    member = host.running._members.get(of.node_id)
    return member.state if member is not None else "unknown"


def detection(seed: int, count: int, *, silent: bool) -> tuple[float, float]:
    """Return when the first suspected a victim, and when the last held it for dead."""
    world, hosts = fleet(seed, count)
    rng = random.Random(seed)
    world.run(rng.random() * 5)
    victim, begun_s = rng.choice(hosts), world.now_s
    if silent:
        world.network.silence([victim.name], key=victim.name)
    else:
        victim.crash()
    others = [host for host in hosts if host is not victim]
    world.run_until(lambda: all(state(host, victim) == "down" for host in others), 30)
    when = {
        kind: [at for host in others for at, event in host.events if event == kind(victim.node_id)]
        for kind in (MemberSuspect, MemberDown)
    }
    assert deaths(others) == 0
    return min(when[MemberSuspect]) - begun_s, max(when[MemberDown]) - begun_s


@pytest.mark.parametrize("silent", [False, True], ids=["killed", "its packets vanish"])
@pytest.mark.parametrize(("count", "target"), [(3, 3.6), (10, 3.6), (30, 5.6)])
def test_death_is_seen_by_all_in_time(count: int, target: float, silent: bool) -> None:
    seeds = range(60 if count < 30 else 3)  # few would draw the median
    took = [detection(seed, count, silent=silent) for seed in seeds]
    assert median(last for _, last in took) <= target
    # an accuser and its three helpers make the suspicion as short as it gets
    shortest = 1.8 * (1.0 if count <= 10 else 1.478)
    assert all(last - first <= shortest + 0.1 for first, last in took)


@pytest.mark.parametrize("who", ["one", "half", "all", "each its own time"])
def test_loop_held_for_two_intervals_costs_nobody_its_life(who: str) -> None:
    for seed in range(5):
        world, hosts = fleet(seed, 10)
        rng = random.Random(f"{seed} {who}")
        for _ in range(4):
            world.run(2 + rng.random() * 4)
            held = {"one": [rng.choice(hosts)], "half": hosts[::2]}.get(who, hosts)
            for host in held:
                host.hold(rng.random() * 2 if who == "each its own time" else 2.0)
        world.run(10)
        world.run_until(world.all_live, 20)
        assert deaths(hosts) == 0, seed
        if who == "all":
            assert not any(MemberSuspect in told(one, two) for one in hosts for two in hosts)


def test_interpreter_that_is_always_busy_costs_nobody_its_life() -> None:
    for seed in range(3):
        world, hosts = fleet(seed, 10)
        rng = random.Random(seed)
        for _ in range(60):
            for host in hosts:
                if rng.random() < 0.7:
                    host.hold(rng.random())
            world.run(1)
        world.run_until(world.all_live, 30)
        assert deaths(hosts) == 0, seed


def test_loss_of_a_fifth_is_hardly_ever_taken_for_death() -> None:
    accused = probes = 0
    for seed in range(3):
        world, hosts = fleet(seed, 20)
        world.network.change(loss=0.2)
        begun_s = world.now_s
        world.run(200)
        assert deaths(hosts, begun_s) == 0
        probes += 20 * 200
        for of in hosts:
            told_of = [told(host, of, begun_s).count(MemberSuspect) for host in hosts]
            accused += max(told_of)
    assert accused <= 4, f"of {probes} probes; 2 in 10,000 may fail"


def test_idle_traffic_is_one_probe_an_interval_and_at_most_twice_the_bytes_under_loss() -> None:
    cost: dict[tuple[int, float], float] = {}
    for count, loss in ((10, 0.0), (30, 0.0), (10, 0.2)):
        world, hosts = fleet(1, count)
        world.run(10)
        world.network.change(loss=loss)
        before = [dict(host.running.counters) for host in hosts]
        world.run(100)
        packets = [
            host.running.counters["out_datagrams"] - was["out_datagrams"]
            for host, was in zip(hosts, before, strict=True)
        ]
        sent = [
            host.running.counters["out_bytes"] - was["out_bytes"]
            for host, was in zip(hosts, before, strict=True)
        ]
        cost[count, loss] = sum(sent) / count / 100
        if loss == 0:
            assert sum(packets) / count / 100 == pytest.approx(2.0, rel=0.02)
    assert cost[30, 0.0] == pytest.approx(cost[10, 0.0], rel=0.2)
    assert cost[10, 0.2] <= 2 * cost[10, 0.0]


def test_every_member_is_probed_once_a_round_and_newcomers_in_the_current_one() -> None:
    world, hosts = fleet(2, 8)
    probing = hosts[1].running._probing
    seen: list[bytes] = []
    for _ in range(21):
        world.run(1)
        seen.append(probing._target)
    for start in (0, 7):
        # 7 others: in any 14 probes in a row each comes at least once
        assert len(set(seen[start : start + 14])) == 7
    newcomer = world.add("late")
    newcomer.seeds.append(hosts[0].address)
    newcomer.start()
    world.run_until(world.all_live, 5)
    assert newcomer.node_id in probing._order or probing._target == newcomer.node_id


def test_answer_that_took_long_does_not_make_the_next_probe_patient() -> None:
    world, hosts = fleet(3, 2)
    link = hosts[0].running._links.get(hosts[1].node_id)
    assert link is not None
    link.latency.sample(5.0, world.now_s)
    assert hosts[0].running._pings.retry_s(link, hosts[0].now()) <= 0.2


def rumour(liar: Host, to: Host, about: Host, accuser: bytes) -> None:
    """Let a member tell another of a third, in anybody's name."""
    link = liar.running._links.get(to.node_id)
    assert link is not None
    message = Suspect(about.node_id, about.running.incarnation, accuser, 0)
    to.receive(link.channel.seal(join_messages([encode_message(message)]))[1], liar.address)


def test_rumour_alone_is_disproved_by_an_own_look() -> None:
    world, hosts = fleet(4, 5)
    one, liar, victim = hosts[:3]
    begun_s = world.now_s
    rumour(liar, one, victim, liar.node_id)
    assert state(one, victim) == "suspect"
    world.run(1)
    assert told(one, victim, begun_s) == [MemberSuspect, MemberUp]
    assert all(told(host, victim, begun_s) == [] for host in hosts[3:])


def test_liar_cannot_hasten_a_death_by_speaking_for_many() -> None:
    config = GossipConfig()
    world, hosts = fleet(5, 6)
    one, liar, victim = hosts[:3]
    world.network.partition([victim.name], [one.name])
    world.network.cut([host.name for host in hosts if host is not victim], [victim.name], key="cut")
    for host in (liar, *hosts[3:]):
        rumour(liar, one, victim, host.node_id)
        rumour(liar, one, victim, liar.node_id)
    doubt = one.running._suspicion._doubts[victim.node_id]
    longest_s = config.suspicion_intervals * config.suspicion_factor
    assert doubt.end_s - doubt.begun_s == pytest.approx(longest_s)
    rumour(hosts[3], one, victim, hosts[3].node_id)
    rumour(hosts[4], one, victim, hosts[4].node_id)
    shortened_s = doubt.end_s - doubt.begun_s
    assert config.suspicion_intervals < shortened_s < longest_s
    rumour(hosts[5], one, victim, hosts[5].node_id)
    assert doubt.end_s - doubt.begun_s == pytest.approx(config.suspicion_intervals)


def test_liar_in_a_large_fleet_counts_for_one() -> None:
    _, hosts = fleet(6, 6, GossipConfig(direct_members=1))
    one, liar, victim = hosts[:3]
    for host in hosts[1:]:
        rumour(liar, one, victim, host.node_id)
    doubt = one.running._suspicion._doubts[victim.node_id]
    assert doubt.end_s - doubt.begun_s == pytest.approx(1.8 * 3)
    for bearer in hosts[3:]:
        rumour(bearer, one, victim, bearer.node_id)
    assert doubt.end_s - doubt.begun_s == pytest.approx(1.8)


def test_flood_of_rumours_is_bounded() -> None:
    world, hosts = fleet(7, 4)
    one, liar, victim = hosts[:3]
    for _ in range(1000):
        rumour(liar, one, victim, liar.node_id)
    assert one.running.counters["dropped_rumours"] == 1000 - 512
    for _ in range(1000):
        rumour(liar, victim, victim, liar.node_id)
    assert victim.running.incarnation <= 1 + 8 + 1, "so many refutations, and one for the others"
    world.run(10)
    assert world.all_live()
    assert deaths(hosts) == 0


# the scars of others


@pytest.mark.parametrize("away", ["before anybody noticed", "while suspected", "after its burial"])
@pytest.mark.parametrize("seed", range(4))
def test_boot_time_incarnation_race(away: str, seed: int) -> None:
    world, hosts = fleet(seed, 6)
    *others, victim = hosts
    victim.crash()
    wanted = {"while suspected": "suspect", "after its burial": "down"}.get(away, "alive")
    world.run_until(lambda: any(state(host, victim) == wanted for host in others), 20)
    begun_s = world.now_s
    victim.start()
    world.run_until(world.all_live, 10)
    world.run(20)
    assert world.all_live()
    seen = [
        view.incarnation
        for host in others
        for view in host.running.members()
        if view.node_id == victim.node_id
    ]
    assert set(seen) == {victim.running.incarnation}
    assert 2 <= victim.running.incarnation <= 3, "at most one refutation"
    assert all(told(host, victim, begun_s).count(MemberSuspect) <= 1 for host in others)
    assert sum(told(host, victim, begun_s + 0.2).count(MemberDown) for host in others) == 0


def test_full_sync_does_not_revive_the_dead() -> None:
    world, hosts = fleet(1, 7, GossipConfig(dead_members=1))
    *awake, sleeper, dead, forgotten = hosts
    sleeper.hold(90)
    forgotten.crash()
    world.run(20)
    dead.crash()
    world.run(20)
    assert all(state(host, forgotten) == "unknown" for host in awake)
    begun_s = world.now_s
    world.run(50)
    assert state(sleeper, forgotten) == state(sleeper, dead) == "alive", "it slept through all"
    world.run_until(world.all_live, 60)
    world.run(30)
    for host in awake:
        assert MemberUp not in told(host, dead, begun_s)
        assert MemberUp not in told(host, forgotten, begun_s)
    assert state(sleeper, dead) in ("down", "unknown")


@pytest.mark.parametrize("direct", [64, 6])
def test_who_missed_a_restart_is_told_of_the_death_that_followed(direct: int) -> None:
    world, hosts = fleet(3, 24, GossipConfig(direct_members=direct, leaf_members=4))
    sleeper, dead, *awake = hosts
    sleeper.hold(40)
    world.network.silence([sleeper.name], key="asleep")
    dead.crash()
    dead.start()
    world.run(5)
    dead.crash()
    world.run(34)
    world.network.heal()
    world.run(1)
    for host in awake:  # so nobody brings the later claim as that of one who is there
        member = host.running._members.get(dead.node_id)
        assert member is not None
        assert (member.state, member.claim.incarnation) == ("down", 2)
    begun_s = world.now_s
    assert state(sleeper, dead) == "alive"
    world.run_until(lambda: state(sleeper, dead) == "suspect", 6)
    world.run_until(lambda: state(sleeper, dead) == "down", 20)
    assert told(sleeper, dead, begun_s) == [MemberSuspect, MemberDown]
    assert all(told(host, dead, begun_s) == [] for host in awake), "nobody is misled"


@pytest.mark.parametrize("index", [4, 0], ids=["a member", "the seed"])
def test_evicted_node_rejoins(index: int) -> None:
    world, hosts = fleet(2, 6, GossipConfig(dead_members=1))
    evicted, last = hosts[index], hosts[5]
    others = [host for host in hosts if host not in (evicted, last)]
    world.network.silence([evicted.name], key=evicted.name)
    world.run(20)
    last.crash()
    world.run(20)
    assert all(state(host, evicted) == "unknown" for host in others)
    world.network.heal()
    assert world.run_until(world.all_live, 60) < 60
    begun_s = world.now_s
    world.run(30)
    assert all(told(host, evicted, begun_s) == [] for host in others), "it stays"


def test_healed_partition_is_whole_again() -> None:
    world, hosts = fleet(3, 12)
    names = [host.name for host in hosts]
    world.network.partition(names[:6], names[6:])
    world.run(40)
    assert state(hosts[0], hosts[11]) == state(hosts[11], hosts[0]) == "down"
    world.network.heal()
    world.run_until(world.all_live, 60)


# what else probes bring home


def settled(host: Host) -> int:
    return host.running._agreement._settled


def test_what_all_have_had_is_settled_and_nothing_before_that() -> None:
    world, hosts = fleet(4, 5)
    for host in hosts:
        host.set_owner("key", host.name)
    world.run_until(lambda: world.converged() and all(map(settled, hosts)), 30)
    world.run(10)
    assert all(settled(host) == host.store.generation for host in hosts)
    hosts[4].crash()
    hosts[0].set_owner("key", "later")
    world.run(60)
    assert state(hosts[0], hosts[4]) == "down"
    assert all(settled(host) < host.store.generation for host in hosts[:4]), "one still owes"
    hosts[4].start()
    world.run(30)
    assert all(settled(host) == host.store.generation for host in hosts)


def test_author_that_this_boot_has_never_met_still_owes() -> None:
    world, hosts = fleet(5, 4)
    for host in hosts:
        host.set_owner("key", host.name)
    world.run(10)
    hosts[3].crash()
    world.run(20)
    hosts[0].crash()
    hosts[0].seeds.append(hosts[1].address)
    hosts[0].start()
    world.run(40)
    assert state(hosts[0], hosts[3]) == "unknown"
    assert settled(hosts[0]) == 0


def test_clock_that_is_behind_learns_the_fleets_time_and_no_liar_moves_it() -> None:
    world = World(6, standin=True)
    slow, liar = world.add("slow"), world.add("liar")
    slow.skew_ms, liar.skew_ms = -3_600_000, 10_000_000_000
    honest = [world.add(f"n{index}") for index in range(4)]
    for host in (slow, liar, *honest):
        host.seeds = [one.address for one in (slow, liar) if one is not host]
        host.start()
    world.run(20)
    ahead_ms = {
        host.name: (host.store.clock.horizon(host.now()) >> 16) - honest[0].now().wall_ms
        for host in (slow, *honest)
    }
    assert all(3_000 <= ahead <= 6_000 for ahead in ahead_ms.values()), ahead_ms


def lead_ms(host: Host) -> int:
    """How far ahead of true time, less the 5 s of the horizon, a node believes it is."""
    return (host.store.clock.horizon(host.now()) >> 16) - host.now().wall_ms + host.skew_ms - 5_000


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_peers_move_no_clock_that_was_ever_set(count: int) -> None:
    world = World(3, standin=True)
    one = world.add("one")
    liars = [world.add(f"liar{index}") for index in range(count)]
    for liar in liars:
        liar.skew_ms = 100 * 365 * 86_400_000
        liar.seeds = [one.address]
    for host in (one, *liars):
        host.start()
    world.run(20)
    assert one.running.acquainted
    assert lead_ms(one) == 0
    one.store.set_fleet("key", 1, one.now())
    one.commit()
    world.run(1)
    entry = one.store.fleet_entry("key", one.now())
    assert entry is not None
    assert abs((entry[1] >> 16) - one.now().wall_ms) < 2_000


def test_clock_that_was_never_set_follows_one_peer_until_it_is_set() -> None:
    world = World(4, standin=True)
    one, other = world.add("one"), world.add("other")
    one.skew_ms = -one.now().wall_ms  # 1970
    other.seeds = [one.address]
    for host in (one, other):
        host.start()
    world.run(10)
    assert abs(lead_ms(one)) < 2_000
    other.skew_ms = 100 * 365 * 86_400_000  # from now on it lies
    other.set_owner("key", 1)
    world.run(10)
    one.store.set_fleet("key", 1, one.now())
    one.commit()
    world.run(1)
    assert lead_ms(one) > other.skew_ms - 2_000
    one.skew_ms = 0
    world.run(3)
    assert lead_ms(one) == 0
    assert one.store.clock.high_water >> 16 <= one.now().wall_ms


def test_a_clock_beyond_what_fits_is_told_and_nothing_breaks() -> None:
    world = World(5, standin=True)
    one, other = world.add("one"), world.add("other")
    one.skew_ms = -one.now().wall_ms
    other.seeds = [one.address]
    for host in (one, other):
        host.start()
    other.skew_ms = ((1 << 48) - 10**10) * 1000  # as many seconds as an Ack can say
    world.run(10)
    for host in (one, other):
        host.store.set_fleet("key", 1, host.now())
        host.commit()
    world.run(1)
    assert one.store.fleet("key", one.now()) == 1
    assert one.disk.saved.high_water >> 16 < 10**9


def test_roster_digest_follows_every_change_and_equals_a_fresh_sum() -> None:
    world, hosts = fleet(8, 6)
    digests = [{host.running._members.digest() for host in hosts}]
    for action in (hosts[5].crash, hosts[5].start, hosts[4].crash):
        action()
        world.run(20)
        digests.append({host.running._members.digest() for host in hosts if host.node})
    assert [len(found) for found in digests] == [1, 1, 1, 1]
    assert all(before != after for before, after in pairwise(digests))
    assert [host.running._members.tree.count(1) for host in hosts[:4]] == [5] * 4


def test_reminder_waits_for_nothing_even_where_the_subject_asks_for_pauses() -> None:
    world, hosts = fleet(14, 12)
    one, victim = hosts[:2]
    victim.running._links.behind(10.0, victim.now())
    world.run(0.3)  # all are asked for pauses of a second
    incarnation = victim.running.incarnation
    one.running._suspicion.accuse(victim.node_id, one.now())
    one.drain()
    assert world.run_until(lambda: victim.running.incarnation > incarnation, 2) <= 0.2


def test_deaths_that_come_in_a_row_are_dealt_with_together() -> None:
    world = World(15, standin=True)
    hosts = world.warm_fleet(120)
    world.run(3)
    one, dead = hosts[0], hosts[20:40]
    ticks: list[float] = []
    suspicion = one.running._suspicion
    look = suspicion.tick

    def tick(now: Instant) -> None:
        if suspicion._doubts and now.mono_s >= suspicion.due_s:
            ticks.append(now.mono_s)
        look(now)

    suspicion.tick = tick  # type: ignore[method-assign]
    for host in dead:
        host.crash()
    others = [host for host in hosts if host.node]
    world.run_until(lambda: all(state(host, of) == "down" for host in others for of in dead), 30)
    assert min(after - before for before, after in pairwise(ticks)) >= 0.05 - 1e-9
    assert len(ticks) < 4 * len(dead)


def test_of_a_large_fleet_only_the_zone_pings_one_that_all_doubt() -> None:
    world = World(13, standin=True)
    hosts = world.warm_fleet(150)
    world.run(2)
    victim = hosts[7]
    linked = [host for host in hosts if victim.running._links.get(host.node_id) is not None]
    neighbours = [host for host in linked if host.running._spread.neighbours.near(victim.node_id)]
    far = [host for host in linked if host not in neighbours]
    assert min(len(neighbours), len(far)) > 5
    victim.crash()
    pinged: set[str] = set()
    for host in linked:
        send = host.running._suspicion._check

        def check(*args: Any, name: str = host.name, send: Callable[..., None] = send) -> None:
            pinged.add(name)
            send(*args)

        host.running._suspicion._check = check  # type: ignore[method-assign]
    others = [host for host in hosts if host is not victim]
    world.run_until(lambda: all(state(host, victim) == "down" for host in others), 30)
    assert pinged == {host.name for host in neighbours}


@pytest.mark.parametrize("each_s", [0.012, 0.02])
def test_fleet_in_which_many_die_at_once_buries_nobody_else_however_slow(each_s: float) -> None:
    """All are linked with all, as nodes are that have grown into a large fleet together."""
    world = World(1, standin=True)
    hosts = world.warm_fleet(80)
    for index, one in enumerate(hosts):
        for other in hosts[:index]:
            if one.running._links.get(other.node_id) is None:
                warm._link(one.running, other.running, one.now(), 0.003)
    world.run(3)
    for host in hosts:
        host.slow_s = each_s
    dead = hosts[5::7]
    before = sent(hosts)
    for host in dead:
        host.crash()
    others = [host for host in hosts if host.node]
    world.run(15)
    assert all(state(host, of) == "down" for host in others for of in dead)
    assert deaths(others) == 0
    assert sent(others) - before < 400 * len(others)


def test_who_has_no_link_to_the_doubted_calls_it_before_it_is_buried() -> None:
    """The answer to the call is enough: a Ping and its Ack need not arrive as well."""
    world = World(12, standin=True)
    hosts = world.warm_fleet(150)
    world.run(2)
    one = hosts[0]
    apart = [host for host in hosts if one.running._links.get(host.node_id) is None]
    victim = next(host for host in apart[1:] if host.running._links.get(one.node_id) is None)
    peers = [host for host in hosts if one.running._links.get(host.node_id) is not None]
    begun_s = world.now_s
    for accuser in peers[:5]:  # and none tells the victim, which has nothing to refute
        rumour(accuser, one, victim, accuser.node_id)
    assert state(one, victim) == "suspect"
    one.running._pings.send = lambda *_: None  # type: ignore[method-assign]
    world.run_until(lambda: state(one, victim) != "suspect", 10)
    assert told(one, victim, begun_s) == [MemberSuspect, MemberUp]
