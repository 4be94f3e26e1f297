"""The three ways a command ends that is not success; `cli` turns each into one line and an exit code."""


class UserError(Exception):
    """Wrong use: bad input, bad config, a missing file. One line that names the place and the mend. Exit code 2."""


class RunFailed(Exception):
    """The work itself failed (no reply, a loss that is not finite); what was done is kept. Exit code 1."""


class StoppedEarly(Exception):
    """Stopped before the end with everything committed; the same command goes on from here. Exit code 3."""
