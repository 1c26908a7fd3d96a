"""Vector forms: all columns of a chunk in one simulator, pgcli's own in numpy or the environment's."""
