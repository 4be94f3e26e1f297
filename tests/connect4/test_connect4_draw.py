import re
from xml.etree import ElementTree

from spot.connect4 import Board, build_dataset, winning_moves
from spot.connect4.board import Cell
from spot.connect4.draw import draw

SVG = "{http://www.w3.org/2000/svg}"


def centre(cell: Cell) -> tuple[float, float]:
    """Where a cell is drawn, from the drawing's own coordinates on its left and below."""
    root = ElementTree.fromstring(draw(Board()))
    numbers = [(text.text, float(text.attrib["x"]), float(text.attrib["y"])) for text in root.iter(f"{SVG}text")]
    left, below = numbers[:6], numbers[6:]
    assert [text for text, _, _ in left] == list("012345")
    assert [text for text, _, _ in below] == list("0123456")
    return below[cell.column][1], left[cell.row][2]


def test_row_0_is_at_the_bottom_and_column_0_on_the_left() -> None:
    (x, y), (right, _), (_, above) = centre(Cell(0, 0)), centre(Cell(0, 6)), centre(Cell(5, 0))
    assert x < right
    assert above < y


def test_each_disc_is_drawn_where_it_lies() -> None:
    for problem in build_dataset(10):
        board = Board.from_text(problem.meta["board"])
        root = ElementTree.fromstring(draw(board))
        letters = {
            (float(text.attrib["x"]), float(text.attrib["y"])): text.text
            for text in root.iter(f"{SVG}text")
            if text.text in ("X", "O")
        }
        expected = {
            centre(Cell(row, column)): player
            for row in range(6)
            for column in range(7)
            if (player := board.at(row, column)) is not None
        }
        assert letters == expected
        fills = [circle.attrib["style"] for circle in root.iter(f"{SVG}circle")]
        assert sum("--fig-chosen" in fill for fill in fills) == board.x.bit_count()
        assert sum("--fig-rejected" in fill for fill in fills) == board.o.bit_count()
        assert len(fills) == 42


def test_winning_cells_have_rings_of_their_player() -> None:
    board = Board.from_moves("010101")
    drawn = draw(board, winning_moves(board, "X"), winning_moves(board, "O"))
    rings = [
        circle
        for circle in ElementTree.fromstring(drawn).iter(f"{SVG}circle")
        if "stroke-width" in circle.attrib["style"]
    ]
    (mine, opponent) = rings
    assert (float(mine.attrib["cx"]), float(mine.attrib["cy"])) == centre(Cell(3, 0))
    assert (float(opponent.attrib["cx"]), float(opponent.attrib["cy"])) == centre(Cell(3, 1))
    assert "--fig-chosen" in mine.attrib["style"]
    assert "dasharray" not in mine.attrib["style"]
    assert "--fig-rejected" in opponent.attrib["style"]
    assert "dasharray" in opponent.attrib["style"]


def test_the_drawing_stands_alone_and_beside_others() -> None:
    drawn = draw(Board.from_moves("3342"))
    tags = {element.tag.removeprefix(SVG) for element in ElementTree.fromstring(drawn).iter()}
    assert tags == {"svg", "title", "rect", "circle", "text"}
    # No ids to clash with another drawing's, nothing that loads or runs.
    assert not re.search(r"\bid=|href|url\(|<style|script|\bon\w+=|[\"']\s*javascript", drawn)
    assert set(re.findall(r"https?://[^\"]*", drawn)) == {"http://www.w3.org/2000/svg"}
    # Colours are given outright where no page defines them.
    assert all(colour.startswith("#") for colour in re.findall(r"var\(--fig-\w+,([^)]*)\)", drawn))
    assert "<title>Connect4 board with 4 discs, X to move</title>" in drawn
