"""The report: one page that needs nothing else, true to the events; and its charts."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from math import nan
from pathlib import Path
from xml.etree import ElementTree as ET

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparring.learner.accounts import accounts
from sparring.learner.chart import Series, line_chart, number_text, ticks
from sparring.learner.history import estimate_mean, history
from sparring.learner.report import ReportFile, compared, headline, page, write_picture, write_report
from sparring.rollout.events import AnyEvent, Evaluated, Noted, encode, segment
from sparring.rollout.journal import SqliteSegments
from tests.learner.story import story

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page: refuses tags that do not balance, keeps text and attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


STORIES = [
    story(12),
    story(11, policies=("alice", "bob"), held_out=("now", "old verifier"), late=True),
    story(3, held_out=()),
    story(4)[:1],
    story(4)[:2],
    [],
]


@pytest.mark.parametrize("events", STORIES, ids=["one", "two", "no held-out", "opened", "version 0", "empty"])
def test_every_page_is_balanced_and_needs_nothing_else(events: list[AnyEvent]) -> None:
    source = page(history(events), accounts(events))
    read = Page(source)
    assert {"script", "link", "img", "iframe", "object"} & set(read.tags) == set()
    assert [name for name, _ in read.attributes if name in ("src", "href", "srcset", "action", "style")] == []
    assert [name for name, _ in read.attributes if name.startswith("on")] == []
    assert "url(" not in source
    assert "@import" not in source
    assert set(re.findall(r"https?://[^\"' <]+", source)) <= {"http://www.w3.org/2000/svg"}


@pytest.mark.parametrize("broken", ["<p>a", "<p><b>a</p></b>", "a</p>"])
def test_the_reader_sees_tags_that_do_not_balance(broken: str) -> None:
    with pytest.raises(AssertionError, match=r"never closed|closes"):
        Page(broken)


def test_what_was_said_cannot_become_markup() -> None:
    hostile = "<script>alert(1)</script><b>&amp;\"'</b>"
    events: list[AnyEvent] = []
    for event in story(2):
        if isinstance(event, Evaluated):
            said = [[("<i>user</i>", hostile), ("solver", hostile)] for _ in event.transcripts]
            events.append(msgspec.structs.replace(event, transcripts=said, name="<u>name</u>"))
        else:
            events.append(event)
    events.append(Noted(kind="<u>", text=hostile))
    read = Page(page(history(events)))
    assert {"script", "i", "u"} & set(read.tags) == set()
    assert hostile in read.text
    assert "<i>user</i>" in read.text


def test_the_headline_says_what_the_events_say() -> None:
    events = story(12)
    values = {event.version: event.values for event in events if isinstance(event, Evaluated)}
    before, after = estimate_mean(values[0]), estimate_mean(values[12])
    assert before is not None
    assert after is not None
    said = headline(history(events))
    assert said == (
        f"Greedy reward on 20 held-out tasks rose from {before.mean:.2f} to {after.mean:.2f} in 12 steps (1m30s of training)"
    )
    assert f"before {before}, after {after} (95 % intervals)" in Page(page(history(events))).text


def test_a_run_that_changed_nothing_says_so() -> None:
    events = [
        msgspec.structs.replace(event, values=[1.0, 0.0] * 10) if isinstance(event, Evaluated) else event
        for event in story(2)
    ]
    assert headline(history(events)) == "Greedy reward on 20 held-out tasks stayed at 0.50 in 2 steps (15s of training)"


def test_a_run_that_got_worse_says_so() -> None:
    events = [
        msgspec.structs.replace(event, values=[1.0] * 20 if event.version == 0 else [0.0] * 20)
        if isinstance(event, Evaluated)
        else event
        for event in story(2)
    ]
    assert " fell from 1.00 to 0.00 " in headline(history(events))
    assert "0 tasks got better, 20 worse" in page(history(events))


@pytest.mark.parametrize(
    ("events", "start"),
    [
        (STORIES[2], "3 steps (22s of training), without held-out tasks"),
        (STORIES[4], "Greedy reward on 20 held-out tasks is 0.00 at version 0; no later version was evaluated"),
        (STORIES[5], "0 steps (0s of training), without held-out tasks"),
    ],
)
def test_the_headline_of_a_run_that_shows_less(events: list[AnyEvent], start: str) -> None:
    assert headline(history(events)) == start


def test_a_task_without_a_value_is_neither_better_nor_worse() -> None:
    first = Evaluated(name="a", version=0, headline="", values=[None, 0.0, 1.0, 0.0], rewards=[], transcripts=[])
    last = Evaluated(name="a", version=1, headline="", values=[1.0, 1.0, 0.0, 0.0], rewards=[], transcripts=[])
    assert compared(first, last) == (1, 1)


def test_the_tasks_that_changed_come_first_and_all_of_them_come() -> None:
    events = story(12)
    first, *_, last = [event for event in events if isinstance(event, Evaluated)]
    changed = [number for number in range(20) if first.values[number] != last.values[number]]
    same = [number for number in range(20) if first.values[number] == last.values[number]]
    assert changed
    assert same
    source = page(history(events))
    assert [int(number) for number in re.findall(r"<h3>task (\d+)</h3>", source)] == changed + same
    assert source.index("<details><summary>") < source.index(f"<h3>task {same[0]}</h3>")


def test_before_and_after_stand_side_by_side_below_what_both_were_asked() -> None:
    events = story(12)
    first, *_, last = [event for event in events if isinstance(event, Evaluated)]
    number = next(n for n in range(20) if first.values[n] == 0 and last.values[n] == 1)
    article = page(history(events)).partition(f"<h3>task {number}</h3>")[2].partition("</article>")[0]
    read = Page(f"<div>{article}</div>")
    assert read.text.count(first.transcripts[number][0][1]) == 1
    order = [read.text.index(text) for text in ("version 0", "probably", "version 12", f"{number + 3}")]
    assert order[0] < order[1] < order[2]
    assert read.text.rstrip().endswith(str(number + 3))


def test_equal_replies_are_shown_on_both_sides() -> None:
    events: list[AnyEvent] = [event for event in story(2) if not isinstance(event, Evaluated)]
    said = [[("user", "What is 1 + 1?"), ("solver", "two")]]
    for version in (0, 2):
        values: list[float | None] = [0.0]
        events.append(
            Evaluated(name="a", version=version, headline="", values=values, rewards=values, transcripts=said)
        )
    text = Page(page(history(events))).text
    assert text.count("What is 1 + 1?") == 1
    assert text.count("two") == 2


def test_the_accounts_are_in_the_page() -> None:
    text = Page(page(history(story(4)))).text
    assert "Training episodes that ended: 64, of them failed: 1, dropped for their age: 0. Seats not judged: 1." in text
    assert "policy 8 8 0" in text
    assert "KeyError 1 KeyError: 'x'" in text
    assert "verifier gave up <soon> 1 seat solver" in text


def test_every_setting_is_in_the_page() -> None:
    text = Page(page(history(story(4)))).text
    for part in ("learning_rate=0.0003", "group_size 8", "evaluate_every 10", "ScriptedModels(", "f" * 64):
        assert part in text


def test_the_page_has_a_curve_for_every_figure() -> None:
    source = page(history(story(12)))
    for title in (
        "Held-out reward",
        "Reward in training",
        "Reply length",
        "KL(",
        "Effective sample",
        "Staleness",
        "Gradient norm",
    ):
        assert f'aria-label="{title}' in source
    assert source.count("<svg") == 2 + 10


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    write_report(story(3), tmp_path / "report.html")
    first = (tmp_path / "report.html").read_text()

    def torn() -> list[AnyEvent]:
        raise RuntimeError("the journal broke off")

    with pytest.raises(RuntimeError):
        write_report(torn(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == first
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_the_watcher_writes_the_page_of_the_journal_when_the_run_ends(tmp_path: Path) -> None:
    events = story(3)
    store = SqliteSegments(tmp_path / "journal.db")
    store.append(segment([encode(event) for event in events]))
    store.close()
    watcher = ReportFile(tmp_path)
    watcher.opened({})
    watcher.event(events[1])
    assert not (tmp_path / "report.html").exists()
    watcher.closed()
    assert (tmp_path / "report.html").read_text() == page(history(events), accounts(events))


def test_the_picture_stands_alone(tmp_path: Path) -> None:
    write_picture(story(40), tmp_path / "curve.svg")
    source = (tmp_path / "curve.svg").read_text()
    root = ET.fromstring(source)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in source
    used = set(re.findall(r"var\((--\w+)\)", source))
    assert used <= set(re.findall(r"(--\w+):", source))
    assert {"script", "image", "use", "foreignObject"} & {node.tag.rpartition("}")[2] for node in root.iter()} == set()


# --------------------------------------------------------------------------------------------------------------- charts


def numbers_in(svg: str, attribute: str) -> list[tuple[float, float]]:
    """The points of every element's `points` attribute."""
    pairs = [pair.split(",") for text in re.findall(rf'{attribute}="([^"]+)"', svg) for pair in text.split()]
    return [(float(x), float(y)) for x, y in pairs]


points = st.lists(st.tuples(st.integers(0, 5000), st.floats(-1e6, 1e6)), min_size=1, max_size=30)


@given(points)
def test_every_point_lies_inside_the_chart(drawn: list[tuple[float, float]]) -> None:
    ordered = sorted(dict(drawn).items())
    svg = line_chart(
        "a", [Series(label="x", points=ordered, band=[(x, y - 1, y + 1) for x, y in ordered])], width=300, height=200
    )
    ET.fromstring(svg)
    placed = numbers_in(svg, "points")
    assert len(placed) == 3 * len(ordered)
    for x, y in placed:
        assert 55 <= x <= 283
        assert 53 <= y <= 175


def test_a_higher_value_is_drawn_higher_and_a_later_one_further_right() -> None:
    (x0, y0), (x1, y1) = numbers_in(line_chart("a", [Series(label="x", points=[(0, 1.0), (5, 2.0)])]), "points")
    assert x0 < x1
    assert y0 > y1


def test_what_is_not_finite_is_left_out() -> None:
    svg = line_chart("a", [Series(label="x", points=[(0, 1.0), (1, nan), (2, 2.0)])])
    assert "nan" not in svg
    assert len(numbers_in(svg, "points")) == 2


def test_a_chart_without_points_says_so() -> None:
    assert "not measured" in line_chart("KL", [Series(label="x", points=[])])
    assert "not measured" in line_chart("KL", [Series(label="x", points=[(0, nan)])])


def test_a_legend_names_the_curves_where_there_are_several() -> None:
    one = Series(label="first <a>", points=[(0, 1.0), (1, 2.0)])
    assert "&#9644;" not in line_chart("a", [one])
    both = line_chart("a", [one, replace(one, label="second")])
    assert both.count("&#9644;") == 2
    assert "first &lt;a&gt;" in both


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_are_few_round_and_cover_the_range(low: float, wide: float) -> None:
    wide = max(wide, abs(low) * 1e-6)
    high = low + wide
    found = ticks(low, high)
    step = found[1] - found[0]
    assert 2 <= len(found) <= 6 or step > wide
    assert found[0] <= low + step * 1e-6
    assert found[-1] >= high - step * 1e-6
    assert f"{step:.0e}"[0] in "125"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1, "1"), (0.2, "0.2"), (0.0001, "1e-4"), (0.00025, "2.5e-4"), (123456.0, "1.235e+05"), (-3, "-3")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number_text(value) == text
