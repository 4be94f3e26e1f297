"""What a run did, as figures, one HTML page, and a summary in the terminal."""
