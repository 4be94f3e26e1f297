"""Who writes text: the student in process, or any model behind an endpoint."""
