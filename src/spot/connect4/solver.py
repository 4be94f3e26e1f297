"""Forced wins, exactly: the first moves after which a player has four in a row within k plies whatever the other does.

A search over all moves of the player and all replies, with bounds remembered by position. Nothing is estimated, so a
limit of 41 plies settles any position; how long that takes is another matter on boards with few discs.
"""

from spot.connect4.board import each_bit, playable, winning_bits
from spot.errors import UserError

MAX_PLIES = 41
MAX_REMEMBERED = 1_000_000
"""Positions that are kept; with more, the memory starts anew."""

# No move wins sooner than the first, and none later than the last cell allows.
_NEVER = MAX_PLIES + 2


def check_plies(plies: int, most: int = MAX_PLIES) -> None:
    """Raise `UserError` where no win can take that many plies, or more are asked for than `most`."""
    if not 1 <= plies <= most or plies % 2 == 0:
        raise UserError(
            f"plies is {plies}: a win ends with the winner's own move, so give an odd number from 1 to {most}"
        )


class Solver:
    """Answers whether a win can be forced, and remembers what it found. Positions must not be finished games."""

    def __init__(self) -> None:
        # Position: the most plies known not to be enough, the fewest known to be.
        self._known: dict[tuple[int, int], tuple[int, int]] = {}

    def forcing_bits(self, own: int, other: int, plies: int) -> int:
        """The first moves of `own`, to move, that force a win within `plies` (odd)."""
        found = winning_bits(own, other)
        if plies > 1:
            for move in each_bit(playable(own | other) & ~found):
                if self._forces(own | move, other, plies):
                    found |= move
        return found

    def wins(self, own: int, other: int, plies: int) -> bool:
        """Whether `own`, to move, forces a win within `plies` (odd)."""
        if winning_bits(own, other):
            return True
        if plies < 3:
            return False
        lost, won = self._known.get((own, other), (1, _NEVER))
        if lost < plies < won:
            found = any(self._forces(own | move, other, plies) for move in each_bit(playable(own | other)))
            lost, won = (lost, plies) if found else (plies, won)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            self._known[own, other] = lost, won
        return plies >= won

    def _forces(self, own: int, other: int, plies: int) -> bool:
        """Whether `own` wins within `plies` counted from the move just made, `other` to reply."""
        if winning_bits(other, own):
            return False
        replies = playable(own | other)
        # A reply that leaves a winning cell open loses at once; with two such cells every reply does.
        if threats := winning_bits(own, other):
            replies = threats
            if threats & (threats - 1):
                return True
        # Without a reply the board is full: a draw.
        return replies != 0 and all(self.wins(own, other | reply, plies - 2) for reply in each_bit(replies))
