"""`python -m spot` is the same as `spot`."""

from spot.cli import main

main()
