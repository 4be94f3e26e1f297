"""Connect4: boards, the moves that win or force a win, and the data set that asks for them."""

from spot.connect4.board import Board, winning_moves
from spot.connect4.dataset import build_dataset

__all__ = ["Board", "build_dataset", "winning_moves"]
