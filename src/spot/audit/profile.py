"""Means along the answer: per-token values collected by their distance from the first edit."""

import numpy as np

from spot.audit.summary import ProfileBin

_MOST = 24
"""Bins on either side; the last reaches 2^23 tokens."""


def bounds(place: int) -> tuple[int, int]:
    """The first and last offset of a bin: 0, 1, 2, 3-4, 5-8, ... tokens after the first edit, and so before it."""
    if place == 0:
        return 0, 0
    near, far = (1, 1) if abs(place) == 1 else (2 ** (abs(place) - 2) + 1, 2 ** (abs(place) - 1))
    return (near, far) if place > 0 else (-far, -near)


class Profile:
    """Sums and counts a bin, for each of three values: negative log-likelihoods of both sides, and KL."""

    def __init__(self) -> None:
        self._sums = {name: np.zeros(2 * _MOST + 1) for name in ("chosen", "rejected", "kl")}
        self._counts = {name: np.zeros(2 * _MOST + 1, dtype=int) for name in self._sums}

    def add(self, name: str, values: np.ndarray, edit: int) -> None:
        """Add one answer's values, a token each, whose first edit is at the index `edit`."""
        offsets = np.arange(len(values)) - edit
        # frexp's exponent is the bit length of a whole number below 2^53.
        places = np.frexp(np.abs(offsets) - 1)[1] + 1
        places = np.where(offsets == 0, 0, np.sign(offsets) * places) + _MOST
        self._sums[name] += np.bincount(places, values, 2 * _MOST + 1)
        self._counts[name] += np.bincount(places, minlength=2 * _MOST + 1)

    def bins(self) -> list[ProfileBin]:
        """The bins that hold a token, from the earliest on."""

        def mean(name: str, place: int) -> float | None:
            return float(self._sums[name][place] / count) if (count := self._counts[name][place]) else None

        return [
            ProfileBin(
                first=bounds(place - _MOST)[0],
                last=bounds(place - _MOST)[1],
                chosen_tokens=int(self._counts["chosen"][place]),
                rejected_tokens=int(self._counts["rejected"][place]),
                chosen_nll=mean("chosen", place),
                rejected_nll=mean("rejected", place),
                chosen_kl=mean("kl", place),
            )
            for place in range(2 * _MOST + 1)
            if self._counts["chosen"][place] or self._counts["rejected"][place]
        ]
