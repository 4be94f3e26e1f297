"""A board as a drawing for the report: discs told apart by colour and letter, winning cells by rings.

Colours are the report's own where the page defines them (`--fig-*`), and fixed where the drawing stands alone.
"""

from collections.abc import Collection

from spot.connect4.board import COLUMNS, ROWS, Board, Cell, Player

_PITCH = 40
_MARGIN = 28
_WIDTH, _HEIGHT = _MARGIN + COLUMNS * _PITCH + 4, _MARGIN + ROWS * _PITCH + 4

_PAPER, _INK, _LINE = "var(--fig-paper,#fdfcfa)", "var(--fig-ink,#24262a)", "var(--fig-line,#dedbd4)"
_COLOURS: dict[Player, str] = {"X": "var(--fig-chosen,#1f6fb2)", "O": "var(--fig-rejected,#c4501b)"}
_TEXT = "text-anchor:middle;dominant-baseline:central;font-family:system-ui,sans-serif"


def draw(board: Board, mine: Collection[Cell] = (), opponent: Collection[Cell] = ()) -> str:
    """The board as one `<svg>` element, row 0 at the bottom, coordinates on the left and below.

    `mine` and `opponent` are the winning cells of the side to move and of the other: a solid ring in the player's
    colour and a dashed one inside it.
    """
    me: Player = board.to_move
    them: Player = "O" if me == "X" else "X"
    title = f"Connect4 board with {board.discs} discs, {me} to move"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" aria-label="{title}">',
        f"<title>{title}</title>",
        f'<rect x="{_MARGIN}" y="4" width="{COLUMNS * _PITCH}" height="{ROWS * _PITCH}" rx="6" '
        f'style="fill:{_PAPER};stroke:{_LINE}"/>',
    ]
    parts += [_text(_MARGIN / 2, _y(row), str(row), 12, _INK) for row in range(ROWS)]
    parts += [_text(_x(column), _HEIGHT - 14, str(column), 12, _INK) for column in range(COLUMNS)]
    for column in range(COLUMNS):
        for row in range(ROWS):
            parts += _cell(row, column, board.at(row, column))
    parts += [_ring(cell, 15, _COLOURS[me], "") for cell in mine]
    parts += [_ring(cell, 10, _COLOURS[them], "stroke-dasharray:4 3") for cell in opponent]
    return "".join([*parts, "</svg>"])


def _x(column: int) -> float:
    return _MARGIN + _PITCH * (column + 0.5)


def _y(row: int) -> float:
    return 4 + _PITCH * (ROWS - row - 0.5)


def _cell(row: int, column: int, player: Player | None) -> list[str]:
    x, y = _x(column), _y(row)
    if player is None:
        return [f'<circle cx="{x}" cy="{y}" r="15" style="fill:none;stroke:{_LINE}"/>']
    disc = f'<circle cx="{x}" cy="{y}" r="15" style="fill:{_COLOURS[player]}"/>'
    return [disc, _text(x, y, player, 15, _PAPER)]


def _ring(cell: Cell, radius: int, colour: str, dashes: str) -> str:
    style = f"fill:none;stroke:{colour};stroke-width:3;{dashes}"
    return f'<circle cx="{_x(cell.column)}" cy="{_y(cell.row)}" r="{radius}" style="{style}"/>'


def _text(x: float, y: float, text: str, size: int, colour: str) -> str:
    return f'<text x="{x}" y="{y}" style="{_TEXT};font-size:{size}px;fill:{colour}">{text}</text>'
