"""The stand-in cryptography: the sizes of the real one, and its refusals."""

import pytest
from cryptography.exceptions import InvalidTag

from gossip.sealing import Identity
from simnet.standin import StandinIdentity
from simnet.world import World

SECRET = bytes(range(32))
PROVIDERS = [Identity.from_private_bytes(SECRET), StandinIdentity(SECRET)]


@pytest.mark.parametrize("identity", PROVIDERS)
def test_sizes_and_refusals_are_those_of_the_real_one(identity: Identity) -> None:
    assert len(identity.public_key) == 32
    assert identity.private_bytes() == SECRET
    signature = identity.sign(b"message")
    assert len(signature) == 64
    assert identity.verify(identity.public_key, b"message", signature)
    assert not identity.verify(identity.public_key, b"massage", signature)
    assert not identity.verify(bytes(32), b"message", signature)
    assert not identity.verify(identity.public_key, b"message", signature[:-1])

    cipher, nonce = identity.aead(b"k" * 32), bytes(12)
    sealed = cipher.encrypt(nonce, b"data", nonce)
    assert len(sealed) == 4 + 16
    assert cipher.decrypt(nonce, sealed, nonce) == b"data"
    for place in range(len(sealed)):
        bad = sealed[:place] + bytes((sealed[place] ^ 1,)) + sealed[place + 1 :]
        with pytest.raises(InvalidTag):
            cipher.decrypt(nonce, bad, nonce)
    with pytest.raises(InvalidTag):
        identity.aead(b"l" * 32).decrypt(nonce, sealed, nonce)
    with pytest.raises(InvalidTag):
        cipher.decrypt(nonce, sealed, b"another header")
    with pytest.raises(InvalidTag):
        cipher.decrypt(nonce, b"short", nonce)

    one, other = identity.exchange(b"1" * 32), identity.exchange(b"2" * 32)
    assert len(one.public) == len(one.shared(other.public)) == 32
    assert one.shared(other.public) == other.shared(one.public)
    assert one.shared(other.public) != one.shared(one.public)


def test_same_key_gives_the_same_bytes_and_another_one_others() -> None:
    one, same, other = (StandinIdentity(key) for key in (SECRET, SECRET, SECRET[::-1]))
    assert one.sign(b"message") == same.sign(b"message")
    assert len({one.node_id, same.node_id, other.node_id}) == 2
    assert not one.verify(other.public_key, b"message", one.sign(b"message"))


def test_fleet_with_another_secret_is_not_understood() -> None:
    world = World(1, standin=True)
    one = world.add("one")
    other = world.add("other", secret=b"a thief's own secret")
    other.seeds.append(one.address)
    one.start()
    other.start()
    world.run(5)
    assert not world.all_live()
    assert one.running.counters["dropped_seal"] > 0
