"""A sheet of paper measured in pixels, on which the figures draw bars, lines, text and keys through matplotlib.

A pixel of the sheet is a pixel of the SVG (matplotlib's 1/72 inch), with the origin in the upper left corner, so that
labels can be placed by hand and stay where they are whatever font the reader has. No pyplot: its state is global.
"""

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from spot.report.svg import SENTINEL, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT, SMALL = 12.5, 11.0
_ADVANCE = 0.56  # width of an average letter as a share of the font size, for the spacing of a key

Mark = Literal["bar", "line", "dashes", "whisker"]


class Sheet:
    """One figure being drawn; every colour is a role of `svg.PALETTE`."""

    def __init__(self, width: float, height: float) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72))
        self.figure.patch.set_facecolor(SENTINEL["paper"])
        self.paper = self.figure.add_axes((0, 0, 1, 1))
        self.paper.set_axis_off()
        self.paper.set_xlim(0, width)
        self.paper.set_ylim(height, 0)

    def plot(self, left: float, top: float, width: float, height: float) -> "Axes":
        """Axes with their own scales in a box of the sheet: labels in grey, horizontal rules, no frame."""
        axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )
        axes.patch.set_visible(False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=SENTINEL["muted"], pad=6)
        axes.grid(axis="y", color=SENTINEL["line"], linewidth=1)
        axes.set_axisbelow(True)
        return axes

    def bar(self, place: tuple[float, float], width: float, height: float, role: str, *, alpha: float = 1) -> None:
        """A filled box whose upper left corner is at `place`."""
        from matplotlib.patches import Rectangle

        self.paper.add_patch(
            Rectangle(place, width, height, facecolor=SENTINEL[role], edgecolor="none", alpha=alpha, zorder=2)
        )

    def line(self, start: tuple[float, float], end: tuple[float, float], role: str, width: float = 1) -> None:
        """A straight line; rules lie under bars, everything else above."""
        (x0, y0), (x1, y1) = start, end
        self.paper.plot(
            [x0, x1], [y0, y1], color=SENTINEL[role], linewidth=width, solid_capstyle="butt",
            zorder=1 if role == "line" else 3,
        )  # fmt: skip

    def whisker(self, low: float, high: float, y: float, reach: float) -> None:
        """An interval from `low` to `high` with end caps of `reach` pixels to either side."""
        self.line((low, y), (high, y), "ink", 1.2)
        for x in (low, high):
            self.line((x, y - reach), (x, y + reach), "ink", 1.2)

    def text(
        self,
        place: tuple[float, float],
        text: str,
        *,
        role: str = "ink",
        size: float = TEXT,
        align: Literal["left", "center", "right"] = "left",
        bold: bool = False,
    ) -> None:
        """One line of text, centred vertically on `place`; never read as mathematics."""
        x, y = place
        self.paper.text(
            x, y + 0.36 * size, text, color=SENTINEL[role], fontsize=size, ha=align, va="baseline",
            weight="bold" if bold else "normal", parse_math=False,
        )  # fmt: skip

    def note(self, place: tuple[float, float], text: str, align: Literal["left", "center", "right"] = "left") -> None:
        """Small grey text: ticks, values, captions of axes."""
        self.text(place, text, role="muted", size=SMALL, align=align)

    def key(self, x: float, y: float, entries: Sequence[tuple[str, str, Mark]]) -> None:
        """A legend on one line: (label, role, mark) from left to right."""
        for label, role, mark in entries:
            if mark == "bar":
                self.bar((x, y - 5), 10, 10, role)
            elif mark == "whisker":
                self.whisker(x, x + 14, y, 3)
            else:
                for start, end in ((0, 14),) if mark == "line" else ((0, 4), (6, 10), (12, 14)):
                    self.line((x + start, y), (x + end, y), role, 2)
            x += 15 if mark == "bar" else 19
            self.note((x, y), label)
            x += len(label) * SMALL * _ADVANCE + 16


def rendered(name: str, title: str, description: str, draw: Callable[[], Sheet]) -> str:
    """Draw a sheet and return its tidied SVG in sentinel colours. The same input gives the same bytes."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.family": "DejaVu Sans",
        "path.simplify": False,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # Names in other scripts are drawn by the reader's fonts; matplotlib's need not have their glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        buffer = io.StringIO()
        draw().figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return tidy(buffer.getvalue(), name, title, description)


def round_ticks(limit: float, wanted: int = 4) -> Iterator[int]:
    """Whole round numbers from 0 up to `limit`, about `wanted` steps apart."""
    rough = max(limit / wanted, 1)
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    value = 0
    while value <= limit:
        yield value
        value += step
