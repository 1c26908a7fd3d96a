"""Parse `--seeds`."""

from __future__ import annotations

from pgcli.errors import UsageError

MOST_SEEDS = 10_000  # of one range


def parse_seeds(text: str) -> list[int]:
    """Parse `0-4`, `0,3,7` or a mixture into a list of seeds. Raises: UsageError."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or len(first + last) > 20:
            raise UsageError(f"--seeds {text}: not a list of seeds", "for example --seeds 0-4 or --seeds 0,3,7")
        if int(last or first) - int(first) >= MOST_SEEDS:
            raise UsageError(f"--seeds {text}: more than 10,000 seeds", "use fewer seeds")
        seeds += range(int(first), int(last or first) + 1)
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {text}: a seed occurs twice", "for example --seeds 0-4 or --seeds 0,3,7")
    return seeds
