"""Behind a server: an OpenAI-compatible endpoint, its replies read without trust."""
