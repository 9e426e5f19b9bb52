"""The page: whole, harmless, and with all that there is to show."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest

from simnet import charts
from simnet.outcome import Outcome, Spread
from simnet.page import MOST_FAILURES, page
from tests.simnet.outcomes import NASTY, bare, full

_VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Checks that tags nest; keeps their attributes and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def empty() -> Outcome:
    """A run that measured nothing."""
    return Outcome(scenario="x", seed=0, host="world", nodes=1, cryptography="real")


MANY = [full(seed, failed=seed % 3 == 0) for seed in range(60)] + [bare(99)]
PAGES = [[full()], [full(failed=False)], [empty()], [bare()], MANY, []]


@pytest.mark.parametrize("outcomes", PAGES)
def test_a_page_is_well_formed_and_loads_nothing(outcomes: list[Outcome]) -> None:
    text = page(outcomes)
    assert text.startswith("<!DOCTYPE html>")
    read = Reader(text)
    names = {name for name, _ in read.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form"})
    for _, attributes in read.tags:
        assert attributes.keys().isdisjoint({"src", "srcset", "style", "background", "data"})
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert "://" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_what_a_run_said_is_text_and_stays_whole() -> None:
    nasty = replace(full(), scenario=NASTY, notes=(NASTY,), replay=f"replay {NASTY}")
    text = page([nasty])
    assert "<script" not in text
    assert Reader(text).text.count(NASTY) >= 6
    several = page([nasty, replace(nasty, seed=8)])
    assert "<script" not in several


def test_a_run_shows_every_section_it_has_data_for() -> None:
    text = Reader(page([full()])).text
    for said in (
        "failed: agreement",
        "Violated: agreement at 62.500 s",
        "1.000 n1 said x",
        "python -m simnet replay partition --seed 7",
        "Agreement and faults",
        "share of running nodes",
        "seen alive",
        "different replicas",
        "virtual time, s",
        "Spread of 2 writes",
        "average node",
        "slowest node",
        "Latency by tier (emulated accelerators)",
        "shed: full",
        "p99 88",
        "4.0 MB sent, by kind",
        "3.0 MB, 75.0 %",
        "8,100",
        "worst: n7",
        "a note",
        "1,234,567",
        "stand-in cryptography",
    ):
        assert said in text, said


def test_a_run_says_nothing_of_what_it_has_no_data_for() -> None:
    text = Reader(page([empty()])).text
    for title in ("Agreement", "Spread", "Latency", "sent, by kind", "Violated", "emulated"):
        assert title not in text, title


def test_faults_stand_below_the_curve_on_the_same_axis() -> None:
    text = page([full()])
    x = charts.horizontal(0.0, 95.0)
    begin, wide = x.at(20.0), x.at(60.0) - x.at(20.0)
    bars = [one for tag, one in Reader(text).tags if tag == "rect" and one["class"] == "fault"]
    assert [(one["x"], one["width"]) for one in bars] == [(f"{begin:.1f}", f"{wide:.1f}")]
    assert f"M{x.at(0.0):.1f} " in text


def test_many_seeds_link_to_those_that_failed() -> None:
    read = Reader(page(MANY))
    places = {one["id"] for _, one in read.tags if "id" in one}
    links = {(one["href"] or "")[1:] for tag, one in read.tags if tag == "a"}
    assert len(places) == MOST_FAILURES
    assert links == places
    marks = [one["title"] for _, one in read.tags if "title" in one]
    assert len(marks) == len(MANY)
    assert sum("failed" in (mark or "") for mark in marks) == 21
    for said in ("40 passed", "21 failed", "Over all seeds", "Heal", "all 61 seeds", "9 more"):
        assert said in read.text, said


def test_a_long_run_gives_no_longer_page() -> None:
    spreads = tuple(Spread(n / 10, 2.0 + n % 7 / 10, 4.0 + n % 11, 0) for n in range(20_000))
    text = page([replace(full(), spreads=spreads)])
    assert "up to 50 writes" in text
    assert len(text) < 300_000


def test_ticks_are_round_and_within() -> None:
    for high in (0.003, 0.7, 1.0, 9.9, 23.0, 100.0, 86_400.0):
        ticks = charts.Axis(0.0, high, 0.0, 100.0).ticks()
        assert 3 <= len(ticks) <= 13
        assert ticks[0] == 0.0
        assert ticks[-1] <= high * 1.000001


def test_an_axis_is_logarithmic_only_if_few_values_are_far_away() -> None:
    near = charts.fitting([1.0, 2.0, 3.0], 0.0, 100.0)
    assert not isinstance(near, charts.LogAxis)
    assert near.at(0.0) == 0.0
    far = charts.fitting([0.0, 0.5, 1.0, 2.0, 300.0], 0.0, 100.0)
    assert isinstance(far, charts.LogAxis)
    assert far.ticks() == [0.1, 1.0, 10.0, 100.0]
    places = [far.at(value) for value in (0.0, 0.1, 1.0, 10.0, 300.0)]
    assert places[0] == places[1] == 0.0
    assert places[3] - places[2] == pytest.approx(places[2] - places[1])
    assert places[4] < 100.0
    assert charts.fitting([], 0.0, 1.0).at(0.0) == 0.0


def test_thinning_keeps_both_ends() -> None:
    values = [float(n) for n in range(10_000)]
    thin = charts.thinned(values)
    assert (len(thin), thin[0], thin[-1]) == (600, 0.0, 9999.0)
    assert charts.thinned(values[:600]) == values[:600]
