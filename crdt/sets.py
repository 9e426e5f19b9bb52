"""The add-wins observed-remove set.

Owns: per element, the adds and the removes that live batches state, and how many state each (a
re-emitted add is for a while in two batches).
Never: keeps a tombstone of its own; a remove is here while some log states it.
Invariant: an element is in the set exactly when some add of it is covered by no remove, so a
remove takes what its writer had seen and a concurrent add wins.

Source: Bieniusa et al., An optimized conflict-free replicated set (2012), with the removes kept
as entries of logs instead of a version vector.
"""

from collections.abc import Iterator

from crdt.causal import Dot


def covers(remove: Dot, add: Dot) -> bool:
    """Say whether a remove up to one dot takes back the add with the other."""
    return remove.origin == add.origin and remove >= add


_Counts = dict[Dot, int]


class _Element:
    __slots__ = ("adds", "removes")

    def __init__(self) -> None:
        self.adds: _Counts = {}
        self.removes: _Counts = {}


class OrSet:
    """Hold elements, each named by its canonical bytes."""

    __slots__ = ("_elements",)

    def __init__(self) -> None:
        self._elements: dict[bytes, _Element] = {}

    def __len__(self) -> int:
        return len(self._elements)

    def __contains__(self, element: bytes) -> bool:
        found = self._elements.get(element)
        if found is None or not found.removes:  # nearly always
            return found is not None and bool(found.adds)
        return any(not _covered(dot, found.removes) for dot in found.adds)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the elements in the set, sorted. O(elements log elements)."""
        return (element for element in sorted(self._elements) if element in self)

    def add(self, element: bytes, dot: Dot) -> None:
        """State an add."""
        adds = self._element(element).adds
        adds[dot] = adds.get(dot, 0) + 1

    def remove(self, element: bytes, dot: Dot) -> None:
        """State that the adds of `dot.origin` up to `dot` are taken back."""
        removes = self._element(element).removes
        removes[dot] = removes.get(dot, 0) + 1

    def drop_add(self, element: bytes, dot: Dot) -> None:
        """Take one statement of an add away."""
        self._drop(element, self._elements[element].adds, dot)

    def drop_remove(self, element: bytes, dot: Dot) -> None:
        """Take one statement of a remove away."""
        self._drop(element, self._elements[element].removes, dot)

    def visible(self, element: bytes) -> Iterator[Dot]:
        """Yield the adds of an element that no remove covers. O(adds x removes) of the element."""
        found = self._elements.get(element)
        if found is not None:
            yield from (dot for dot in found.adds if not _covered(dot, found.removes))

    def removed(self, element: bytes, dot: Dot) -> bool:
        """Say whether a remove covers this add."""
        found = self._elements.get(element)
        return found is not None and _covered(dot, found.removes)

    def holds(self, element: bytes, remove: Dot) -> bool:
        """Say whether an add that this remove covers is still stated."""
        found = self._elements.get(element)
        return found is not None and any(covers(remove, dot) for dot in found.adds)

    def _element(self, element: bytes) -> _Element:
        found = self._elements.get(element)
        if found is None:
            found = self._elements[element] = _Element()
        return found

    def _drop(self, element: bytes, counts: _Counts, dot: Dot) -> None:
        if counts[dot] > 1:
            counts[dot] -= 1
            return
        del counts[dot]
        found = self._elements[element]
        if not found.adds and not found.removes:
            del self._elements[element]


def _covered(dot: Dot, removes: _Counts) -> bool:
    return any(covers(remove, dot) for remove in removes)
