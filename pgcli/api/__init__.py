"""The Python API: the commands as functions, and runs as objects. `import pgcli` exports it."""
