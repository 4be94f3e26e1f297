"""From wrong attempts to corrections: Oracles, their prompts, and the judging of what they give."""
