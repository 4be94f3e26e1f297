"""The bundled student, the world it lives in, and how it was raised."""
