"""The run directory: the files of a run, written so that a kill at any time loses nothing."""
