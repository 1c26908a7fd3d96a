"""What a user sees while training."""

from __future__ import annotations

import io
import sys
import time

import pytest
from rich.console import Console

from pgcli.config.schema import Config
from pgcli.records import Episode, Evaluation, Iteration, Sample, Timing, Update
from pgcli.report import display as module
from pgcli.report.display import LiveDisplay, PlainDisplay, SilentDisplay, View, make_display, sparkline

CONFIG = Config.model_validate({"name": "pole", "training": {"iterations": 40}})


def sample(mean: float, error: float | None = 1.25) -> Sample:
    return Sample(100, mean, error, None if error is None else error * 10, mean, mean, mean)


def iteration(k: int, mean: float) -> Iteration:
    return Iteration(
        iteration=k,
        env_steps=100 * (k + 1),
        episode_count=2 * (k + 1),
        steps=100,
        returns=sample(mean),
        length_mean=50.0,
        discounted_return_mean=mean,
        update=Update(policy_loss=0.1, entropy=0.5, grad_norm=0.25, learning_rate=0.01),
        episodes=[Episode(2 * k + n, mean, mean, 50, "terminated") for n in range(2)],
        timing=Timing(elapsed=k + 1.0, collect=0.06, update=0.04, evaluate=0.0),
        progress=(k + 1) / 40,
    )


def evaluation(k: int, mean: float) -> Evaluation:
    return Evaluation(k, 100 * k, "sampled", sample(mean), 50.0, mean, seconds=0.1)


def seen_after(records: list[Iteration | Evaluation]) -> View:
    view = View(CONFIG)
    for record in records:
        view.add(record)
    return view


RECORDS: list[Iteration | Evaluation] = [
    evaluation(0, 20.0),
    *(iteration(k, 10.0 * k) for k in range(10)),
    evaluation(10, 77.0),
    iteration(10, 99.0),
]


def drawn(width: int, views: list[View], ascii_only: bool = False) -> list[str]:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=False, legacy_windows=ascii_only)
    levels = " .:-=+*#" if ascii_only else "▁▂▃▄▅▆▇█"
    console.print(module._panel(views[0], width, levels) if len(views) == 1 else module._list(views, width, levels))
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 200])
def test_the_panel_fits_and_says_everything(width: int) -> None:
    view = seen_after(RECORDS)
    lines = drawn(width, [view])
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text.replace("… left", "")
    for words in (
        "pole",
        "CartPole-v1",
        "11/40",
        "28 %",
        "99.0 ± 1.2",
        "77.0 ± 1.2",
        "best 77.0 at 10",
        "entropy 0.500",
        "gradient norm 0.25",
        "1,000/s",  # 11 iterations of 100 steps in 11 × 0.1 s
        "collect 51 %",  # 0.66 of 0.66 + 0.44 + 0.2 s
        "update 34 %",
        "evaluate 15 %",
        "▁",
        "█",
    ):
        assert words in text, f"{words} is not in\n{text}"


def test_several_runs_get_a_line_each() -> None:
    lines = drawn(80, [seen_after(RECORDS), View(CONFIG.model_copy(update={"seed": 1}))])
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert "evaluation 77.0 ± 1.2" in lines[0]
    assert "waiting" in lines[1]


def test_the_time_left_goes_on_as_this_session_did() -> None:
    view = seen_after([iteration(19, 1.0)])  # a run resumed at half its budget
    assert view.remaining is None, "one iteration tells nothing of the speed"
    view.started = time.perf_counter() - 10
    view.add(iteration(29, 1.0))  # ten more of forty in ten seconds: ten are left
    assert view.remaining == pytest.approx(10, abs=0.2)


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([0, 7], 8, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 0, 7, 7], 2, "▁█"),
        ([5, 5, 5], 8, "▁▁▁"),
        ([], 8, ""),
        ([1, 2], 0, ""),
    ],
)
def test_a_sparkline_runs_from_the_lowest_to_the_highest(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_plain_lines_come_at_most_once_a_second_and_the_last_one_always(capsys: pytest.CaptureFixture[str]) -> None:
    shown = PlainDisplay([CONFIG])
    for record in RECORDS:
        shown.show(record)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("evaluation at iteration 0: return 20.0 ± 1.2 (100 episodes, sampled)")
    assert lines[1].startswith("iteration 11/40  env steps 1,100  return 99.0 ± 1.2")
    assert "\x1b" not in "".join(lines)


def test_a_closed_stderr_ends_the_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    shown = PlainDisplay([CONFIG])
    for record in RECORDS:
        shown.show(record)
    shown.close()


def test_drawing_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pgcli.report.display.time.perf_counter", lambda: clock[0])
    shown = LiveDisplay([CONFIG])
    drawings = []

    def refresh() -> None:
        drawings.append(clock[0])
        clock[0] += 0.02  # a slow terminal: 20 ms a drawing

    monkeypatch.setattr(shown._live, "refresh", refresh)
    while clock[0] < 100:
        shown.show(RECORDS[-1])
        clock[0] += 0.01
    shown._live.stop()
    assert 30 <= len(drawings) <= 51, "a hundredth of 100 s are 50 drawings of 20 ms, after the first"


def test_the_display_fits_where_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_display([CONFIG], quiet=True), SilentDisplay)
    assert isinstance(make_display([CONFIG], quiet=False), PlainDisplay)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display([CONFIG], quiet=False), PlainDisplay)
