"""The one door to the terminal: what comes from outside is text, never markup, and no terminal obeys it.

A server's message, a path or a model's name may hold `[/x]`, `[link=...]` or an escape sequence. Every console of this
package is made by `new_console`, every line on stderr is written by `say`; both show such things as they are spelled.
"""

import sys
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

# Joiners, which emoji and several languages are spelled with; all other invisible characters may deceive.
_KEPT = "\n\t\u200c\u200d"


def printable(text: str) -> str:
    r"""`text` with whatever a terminal would obey, or cannot show, spelled out (`\x1b`); line breaks and tabs stay."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    if character.isprintable() or character in _KEPT or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode()


def say(kind: str, message: str) -> None:
    """Write `kind: message` to stderr, on one line."""
    sys.stderr.write(f"{kind}: {printable(' '.join(message.split()))}\n")


def new_console(**settings: Any) -> "Console":
    """A console of rich with `settings`, without markup, emoji codes and highlighting, which only shows what is
    `printable` and what its encoding has."""
    from rich.console import Console
    from rich.segment import Segment

    class PlainConsole(Console):
        def render_str(self, text: str, **how: Any) -> Any:
            # Before it is laid out, so that columns are as wide as what they show.
            return super().render_str(self._shown(text), **how)

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                if segment.control:
                    yield segment  # rich's own: moving the cursor for a bar
                else:
                    yield Segment(self._shown(segment.text), segment.style)

        def _shown(self, text: str) -> str:
            return printable(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    return PlainConsole(markup=False, emoji=False, highlight=False, **settings)
