"""The stages of a run, each one function, and the pipeline that orders them."""
