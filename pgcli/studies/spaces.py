"""The spaces of `pgcli tune`: intervals and choices, one for each key that is searched."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pgcli.errors import UsageError
from pgcli.studies.variants import split_values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = float | int | str  # of a searched key: a number, or the text of a choice
EXAMPLES = "write 1e-4..1e-1:log, 0.8..1, 8..64, 8..64:step=8, or values: [16],[64,64]"
_NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|(?<!\.)\.\d+)(?:e[+-]?\d+)?"
_INTERVAL = re.compile(rf"({_NUMBER})\.\.({_NUMBER})((?::[^:]*)*)", re.IGNORECASE)
_MEANT = re.compile(r"[^/\\\[\]{}'\"]*\.\.[^/\\\[\]{}'\"]*|[+-]?[.\d][^/\\\[\]{}'\",:]*:(?:log|step).*")
_RESOLUTION = 4  # decimal digits of an interval's width, or significant digits on a logarithmic scale


@dataclass(frozen=True)
class Interval:
    """LOW..HIGH, inclusive: numbers, or whole numbers; `log` for a logarithmic scale, or a `step`."""

    low: float
    high: float
    log: bool = False
    step: float | None = None
    whole: bool = False

    @property
    def text(self) -> str:
        """The interval as on the command line."""
        step = "" if self.step is None else f":step={self.step!r}"
        return f"{self.low!r}..{self.high!r}" + (":log" if self.log else step)

    @property
    def edges(self) -> tuple[Value, ...]:
        """Both ends."""
        return self.low, self.high

    @property
    def size(self) -> int | None:
        """The number of values, or None for a continuous interval."""
        step = self.step or (1 if self.whole and not self.log else None)
        return None if step is None else math.floor((self.high - self.low) / step + 1e-9) + 1

    def value(self, number: int) -> Value:
        """Return a value of an interval with steps, by number."""
        return self.rounded(self.low + number * (self.step or 1))

    def rounded(self, value: Any) -> Value:
        """Return a sampled value with few digits."""
        if self.whole:
            return int(value)
        if self.step is not None:
            return float(f"{value:.12g}")
        if self.log:
            narrow = max(0, -math.floor(math.log10(self.high / self.low - 1)))
            short = float(f"{value:.{_RESOLUTION + narrow}g}")
        else:
            short = round(float(value), _RESOLUTION - math.floor(math.log10(self.high - self.low)))
        return min(max(short, self.low), self.high)

    def distribution(self) -> BaseDistribution:
        """Return the interval for Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)


@dataclass(frozen=True)
class Choices:
    """A,B: some values, without an order."""

    values: tuple[str, ...]

    @property
    def text(self) -> str:
        """The values as on the command line."""
        return ",".join(self.values)

    @property
    def edges(self) -> tuple[Value, ...]:
        """All values."""
        return self.values

    @property
    def size(self) -> int:
        """The number of values."""
        return len(self.values)

    def value(self, number: int) -> Value:
        """Return a value by number."""
        return self.values[number]

    def rounded(self, value: Any) -> Value:
        """Return the value itself."""
        return str(value)

    def distribution(self) -> BaseDistribution:
        """Return the values for Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


Space = Interval | Choices


def parse_space(key: str, text: str) -> Space | None:
    """Parse the space of a key: LOW..HIGH, LOW..HIGH:log, LOW..HIGH:step=N, or values A,B.

    Returns: None for a single value. Raises: UsageError.
    """
    word = f"{key}={text}"
    found = _INTERVAL.fullmatch(text.strip())
    if found is not None:
        return _interval(word, found[1], found[2], found[3].split(":")[1:])
    values = split_values(text)
    if any(_MEANT.fullmatch(value) for value in values):
        raise UsageError(f"`{word}`: not a space", EXAMPLES)
    if len(values) == 1:
        return None
    if twice := next((value for value in values if values.count(value) > 1), None):
        raise UsageError(f"`{word}`: {twice} occurs twice", "name each value once")
    return Choices(tuple(values))


def _interval(word: str, low: str, high: str, options: Sequence[str]) -> Interval:
    """Return an interval with the ends as typed. Raises: UsageError."""
    ends = [float(end) if re.search(r"[.e]", end, re.IGNORECASE) else int(end) for end in (low, high)]
    log, step = False, None
    for option in options:
        name, _, value = option.strip().lower().partition("=")
        if name == "log" and not value and not log:
            log = True
        elif name == "step" and re.fullmatch(_NUMBER, value) and step is None:
            step = float(value)
        else:
            raise UsageError(f"`{word}`: `:{option}` is neither :log nor :step=N", EXAMPLES)
    if not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise UsageError(f"`{word}`: the first number must be below the second", EXAMPLES)
    if log and ends[0] <= 0:
        raise UsageError(f"`{word}`: a logarithmic scale needs numbers above 0", "begin above 0, or remove :log")
    if log and step is not None:
        raise UsageError(f"`{word}`: a logarithmic scale has no steps", "remove :log or :step")
    if step is not None and not 0 < step <= ends[1] - ends[0]:
        raise UsageError(f"`{word}`: the step must be above 0 and at most {ends[1] - ends[0]:g}", EXAMPLES)
    return Interval(ends[0], ends[1], log, step)


def with_type(key: str, space: Space, values: Collection[Any]) -> Space:
    """Return the space with the type of the key's values in the config: whole numbers, or all numbers.

    Raises: UsageError for a broken step between whole numbers.
    """
    if isinstance(space, Choices):
        return space
    if not all(isinstance(value, int) for value in values):
        return replace(space, low=float(space.low), high=float(space.high))
    if space.step is not None and not space.step.is_integer():
        raise UsageError(f"`{key}={space.text}`: whole numbers need a whole step", EXAMPLES)
    step = None if space.step is None else int(space.step)
    high = int(space.high) if step is None else int(space.low) + int((space.high - space.low) // step) * step
    return replace(space, low=int(space.low), high=high, step=step, whole=True)


def words_of(values: Mapping[str, Value]) -> list[str]:
    """Return the values of keys as overrides."""
    return [f"{key}={value}" for key, value in values.items()]


def grid_size(spaces: Mapping[str, Space]) -> int:
    """Return the number of points of a grid. Raises: UsageError for a continuous interval."""
    sizes = {key: space.size for key, space in spaces.items()}
    if endless := next((key for key, size in sizes.items() if size is None), None):
        raise UsageError(
            f"--sampler grid: `{endless}={spaces[endless].text}` is continuous",
            "add :step=N, or list values: KEY=A,B",
        )
    return math.prod(size for size in sizes.values() if size is not None)


def grid_point(spaces: Mapping[str, Space], number: int) -> dict[str, Value]:
    """Return a point of the grid; the last key changes fastest."""
    point = {}
    for key in reversed(list(spaces)):
        number, at = divmod(number, spaces[key].size or 1)
        point[key] = spaces[key].value(at)
    return {key: point[key] for key in spaces}
