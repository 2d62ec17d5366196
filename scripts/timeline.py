#!/usr/bin/env python3
"""Draws docs/upgrade.svg, an upgrade in the simulator, and prints what `fleet status` shows meanwhile.

    .venv/bin/python scripts/timeline.py [FILE]

Once with prebuilt modules, once without (tests/upgrade_story.py). The same code gives the same bytes. What is
printed are the examples of docs/upgrade.md.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Iterator, Sequence
from xml.sax.saxutils import escape

import structlog
from attrs import define

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from upgrade_story import (  # noqa: E402 - found by the path above
    AGAIN,
    BUILD,
    DOWN,
    EACH,
    NEW,
    OLD,
    POOLS,
    READY,
    START,
    TICK_MINUTES,
    Moment,
    Run,
    begin_of,
    gap,
    marks,
    over,
    recorded,
    runs,
    statuses,
)

WORDS = {READY: "ready", DOWN: "reboots", BUILD: "builds", START: "starts", AGAIN: "ready", "job": "builds"}
LEGEND = {
    READY: f"driver for {OLD.version} ready",
    DOWN: "drained, down, booting",
    BUILD: "builds its modules",
    START: "driver's pod starts and loads",
    AGAIN: f"driver for {NEW.version} ready",
}
BEFORE, AFTER = 3, 5
"""Ticks that are shown before the tag comes, and after the last node is ready."""

# the picture, in pixels
WIDTH, LEFT, RIGHT, LANE, BAR, ROW, LETTER = 960, 112, 16, 24, 17, 15, 6.3
STYLE = (
    "text{font:12px sans-serif;fill:#222}.h{font-weight:bold;font-size:14px}.s{font-size:11px;fill:#444}"
    ".b{font-size:10.5px;fill:#fff}.d{font-size:10.5px}.old{fill:#3b6ea5}.new{fill:#1f7a33}.down{fill:#bdbdbd}"
    ".start{fill:#d9c24a}.build{fill:#e8838f}.job{fill:#7a5195}.m{stroke:#222;stroke-dasharray:3 3}"
    ".g{stroke:#ddd}"
)


@define
class Panel:
    """One run: its heading, its marks, a lane for each node and, with prebuilds, one for the Job."""

    moments: Sequence[Moment]
    heading: str
    begin: int
    end: int
    top: float

    @property
    def _lanes(self) -> float:
        return self.top + 30 + ROW * len(marks(self.moments)) + 8

    @property
    def _job(self) -> bool:
        return any(each.prebuilding for each in self.moments)

    @property
    def bottom(self) -> float:
        """Where the lanes end and the axis is."""
        return self._lanes + LANE * (len(POOLS) * EACH + self._job) + 8 * len(POOLS)

    def x(self, tick: float) -> float:
        return round(LEFT + (tick - self.begin) * (WIDTH - LEFT - RIGHT) / (self.end - self.begin), 1)

    def draw(self) -> Iterator[str]:
        yield _text(16, self.top + 18, self.heading, "h")
        yield from self._axis()
        yield from self._marks()
        yield from self._node_lanes()
        yield from self._job_lane()

    def _axis(self) -> Iterator[str]:
        origin = self.begin + BEFORE
        for tick in range(origin, self.end, 10):
            x = self.x(tick)
            yield f'<path class="g" d="M{x} {self._lanes}V{self.bottom}"/>'
            yield _text(x, self.bottom + 14, f"{(tick - origin) * TICK_MINUTES:g} min", "s", "middle")

    def _node_lanes(self) -> Iterator[str]:
        names = sorted(self.moments[0].nodes)
        for number in range(len(POOLS) * EACH):
            pool, count = divmod(number, EACH)
            name, label = names[count * len(POOLS) + pool], f"{POOLS[pool]}-{count + 1}"
            found = runs([each.nodes[name] for each in self.moments[self.begin : self.end]], self.begin)
            yield from self._lane(self._lanes + number * LANE + 8 * pool, label, found)

    def _job_lane(self) -> Iterator[str]:
        if self._job:
            states = ["job" if each.prebuilding else "" for each in self.moments[self.begin : self.end]]
            y = self._lanes + len(POOLS) * (EACH * LANE + 8)
            yield from self._lane(y, "prebuild Job", runs(states, self.begin))

    def _lane(self, y: float, label: str, found: Sequence[Run]) -> Iterator[str]:
        shown = [each for each in found if each.what]
        yield f"<g><title>{escape(self._told(label, shown))}</title>"
        yield _text(LEFT - 10, y + 13, label, "", "end")
        for each in shown:
            x, wide = self.x(each.begin), round(self.x(each.end) - self.x(each.begin), 1)
            yield f'<rect class="{each.what}" x="{x}" y="{y}" width="{wide}" height="{BAR}" rx="2"/>'
            word = {READY: OLD.version, AGAIN: NEW.version}.get(each.what, WORDS[each.what])
            if wide > len(word) * LETTER + 6:
                light = each.what in (READY, AGAIN, "job")
                yield _text(x + wide / 2, y + 12.5, word, "b" if light else "d", "middle")
        yield "</g>"

    def _told(self, label: str, found: Sequence[Run]) -> str:
        origin = self.begin + BEFORE
        told = (
            f"{WORDS[each.what]} from {(each.begin - origin) * TICK_MINUTES:g}"
            f" to {(each.end - origin) * TICK_MINUTES:g}"
            for each in found
        )
        return f"{label}: {', '.join(told)} min"

    def _marks(self) -> Iterator[str]:
        for row, (tick, text) in enumerate(sorted(marks(self.moments).items())):
            x, y = self.x(tick), self.top + 30 + ROW * (row + 1)
            right = x + len(text) * LETTER + 8 > WIDTH
            yield f'<path class="m" d="M{x} {y - 10}V{self.bottom}"/>'
            yield _text(x - 5 if right else x + 5, y, text, "s", "end" if right else "")


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    more = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:g}" y="{y:g}"{more}>{escape(text)}</text>'


def picture(with_prebuild: Sequence[Moment], without: Sequence[Moment]) -> str:
    """The whole SVG."""
    begin = begin_of(with_prebuild) - BEFORE
    end = max(over(each) for each in (with_prebuild, without)) + AFTER
    lacks = "a node is without its driver for {:g} minutes"
    first_panel = Panel(
        with_prebuild, f"With prebuilt modules {lacks.format(gap(with_prebuild))}", begin, end, 8
    )
    second = Panel(
        without, f"Without a registry {lacks.format(gap(without))}", begin, end, first_panel.bottom + 34
    )
    height = second.bottom + 58
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}"'
            f' height="{height:g}" role="img" aria-labelledby="t d">',
            f'<title id="t">{len(POOLS) * EACH} GPU nodes go from {OLD.version} to {NEW.version}</title>',
            f'<desc id="d">{escape(described(with_prebuild, without))}</desc>',
            f"<style>{STYLE}</style>",
            f'<rect width="{WIDTH}" height="{height:g}" rx="8" fill="#fff"/>',
            *first_panel.draw(),
            *second.draw(),
            *_legend(height - 20),
            "</svg>\n",
        ]
    )


def described(with_prebuild: Sequence[Moment], without: Sequence[Moment]) -> str:
    """The picture in words."""

    def told(moments: Sequence[Moment]) -> str:
        begin = begin_of(moments)
        said = (
            f"{text} ({(tick - begin) * TICK_MINUTES:g} min)" for tick, text in sorted(marks(moments).items())
        )
        return f"{'; '.join(said)}; a node lacks its driver for {gap(moments):g} minutes"

    return (
        f"A lane for each node, over time, from a run in the upgrade simulator. With prebuilt modules: "
        f"{told(with_prebuild)}. Without: {told(without)}."
    )


def _legend(y: float) -> Iterator[str]:
    x = 16.0
    for kind, text in LEGEND.items():
        yield f'<rect class="{kind}" x="{x:g}" y="{y - 11:g}" width="14" height="14" rx="2"/>'
        yield _text(x + 19, y, text, "s")
        x += 19 + len(text) * 5.9 + 14


def main(path: Path) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with_prebuild, without = recorded(prebuild=True), recorded(prebuild=False)
    path.write_text(picture(with_prebuild.moments, without.moments))
    sys.stdout.write("\n".join(statuses(with_prebuild)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs/upgrade.svg")
