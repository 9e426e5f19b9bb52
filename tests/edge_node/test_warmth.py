"""Where an agent's frames find something to reuse, and what that saves."""

from edge_node.placement.warmth import KEPT, WARM_S, Warmth


def test_a_place_is_warm_for_the_agent_it_answered_last_and_for_a_while() -> None:
    warmth = Warmth()
    assert not warmth.is_warm("door", b"b", 0.0)
    warmth.answered("door", b"b", 1.0, 0.0)
    assert warmth.is_warm("door", b"b", WARM_S / 2)
    assert not warmth.is_warm("door", None, WARM_S / 2)
    assert not warmth.is_warm("yard", b"b", WARM_S / 2)
    assert not warmth.is_warm("door", b"b", WARM_S)
    warmth.answered("door", None, 1.0, 1.0)
    assert not warmth.is_warm("door", b"b", 1.5)


def test_only_frames_of_a_warm_place_tell_what_reuse_saves() -> None:
    warmth = Warmth()
    for index in range(200):  # moved every time
        warmth.answered("door", index % 2, 0.2, index / 10)
    assert warmth.factor("door") == 1.0
    for index in range(200):
        warmth.answered("yard", b"b", 0.2, index / 10)
    assert 0.2 <= warmth.factor("yard") < 0.25
    assert warmth.factor("unknown") == 1.0


def test_a_frame_takes_its_share_where_it_finds_something_to_reuse() -> None:
    warmth = Warmth()
    assert not warmth.reuses("door")
    for index in range(200):
        warmth.answered("door", b"b", 0.2, index / 10)
    assert warmth.reuses("door")
    assert warmth.share("door", b"b", 20.0) == warmth.factor("door") < 0.25
    assert warmth.share("door", b"c", 20.0) == 1.0
    assert warmth.share("door", b"b", 20.0 + WARM_S) == 1.0


def test_the_agents_of_long_ago_are_forgotten() -> None:
    warmth = Warmth()
    for index in range(KEPT + 10):
        warmth.answered(f"camera {index}", None, 1.0, 0.0)
    assert not warmth.is_warm("camera 0", None, 0.0)
    assert warmth.is_warm(f"camera {KEPT}", None, 0.0)
