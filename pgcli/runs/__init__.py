"""The run directory: what a run leaves on disk, written so that a kill at any instant loses nothing."""
