"""One run from start to end: build, run, resume, repeat, load."""
