"""The display during training."""

from __future__ import annotations

import io
import sys
import time

import pytest
from rich.console import Console

from pgcli.config.schema import Config
from pgcli.records import Episode, Evaluation, Iteration, Notice, Record, Sample, Timing, Update
from pgcli.report.display import (
    ASCII_BARS,
    BARS,
    ComparisonView,
    Display,
    LiveDisplay,
    PlainDisplay,
    TrainingView,
    View,
    make_display,
    sparkline,
)

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


def seen_after(records: list[Record], seeds: int = 1) -> TrainingView:
    """Return the view of `seeds` runs; the first has some records."""
    view = TrainingView([CONFIG.model_copy(update={"seed": seed}) for seed in range(seeds)])
    for record in records:
        view.add(record, 0)
    return view


RECORDS: list[Record] = [
    evaluation(0, 20.0),
    *(iteration(k, 10.0 * k) for k in range(10)),
    evaluation(10, 77.0),
    iteration(10, 99.0),
]


def drawn(width: int, view: View, bars: str = BARS, closed: bool = False) -> list[str]:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=False)
    for part in view.draw(width, bars, closed):
        console.print(part)
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("width", [50, 60, 80, 200])
def test_the_panel_fits_and_shows_all_fields(width: int) -> None:
    lines = drawn(width, seen_after(RECORDS))
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
        assert words in " ".join(text.split()), f"{words} is not in\n{text}"


def test_a_notice_is_below_the_panel_and_a_closed_panel_shows_no_time_left() -> None:
    lines = drawn(80, seen_after([*RECORDS, Notice("long " * 30)]), ASCII_BARS, closed=True)
    assert "\n".join(lines).count("long") == 30
    assert max(map(len, lines)) <= 80
    assert " left" not in "\n".join(lines)
    assert not set("\n".join(lines)) & set(BARS)


def test_several_runs_get_a_line_each() -> None:
    lines = drawn(80, seen_after(RECORDS, seeds=2))
    assert len(lines) == 2
    assert max(map(len, lines)) <= 80
    assert "evaluation 77.0 ± 1.2" in lines[0]
    assert "waiting" in lines[1]


def test_the_time_left_follows_the_speed_of_this_session() -> None:
    view = seen_after([iteration(19, 1.0)])  # a run resumed at half its budget
    run = view.runs[0]
    assert run.remaining is None, "one iteration tells nothing of the speed"
    run.started = time.perf_counter() - 10
    run.add(iteration(29, 1.0))  # ten more of forty in ten seconds: ten are left
    assert run.remaining == pytest.approx(10, abs=0.2)


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
    shown = PlainDisplay(TrainingView([CONFIG]))
    for record in RECORDS:
        shown.show(record)
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("evaluation at iteration 0: return 20.0 ± 1.2 (100 episodes, sampled)")
    assert lines[1].startswith("iteration 11/40  env steps 1,100  return 99.0 ± 1.2")
    assert "\x1b" not in "".join(lines)


def test_a_notice_is_printed_at_once_after_what_came_first(capsys: pytest.CaptureFixture[str]) -> None:
    shown = PlainDisplay(TrainingView([CONFIG]))
    for record in (*RECORDS[:3], Notice("masked"), RECORDS[3]):
        shown.show(record)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["iteration 2/40", "note: masked"]
    shown.close()
    assert capsys.readouterr().err.startswith("iteration 3/40")


def test_a_comparison_has_a_line_for_each_variant_and_each_notice_once(capsys: pytest.CaptureFixture[str]) -> None:
    view = ComparisonView(["none", "none", "mean"], reused=2)
    shown = PlainDisplay(view)
    for run, records in enumerate(((evaluation(0, 20.0), iteration(39, 1.0)), (evaluation(0, 30.0),), ())):
        for record in (Notice("masked"), *records):
            shown.show(record, run)
    lines = drawn(80, view)
    assert "none" in lines[0]
    assert lines[0].rstrip().endswith(" 50 %  evaluation 25.0")
    assert lines[1].rstrip().endswith("  0 %  waiting")
    assert lines[2].strip() == "1 of 3 runs, 33 %, 2 reused"
    shown.close()
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["note: masked", "1 of 3 runs, 33 %, 2 reused"]


def test_a_closed_stderr_ends_the_lines_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    shown = PlainDisplay(TrainingView([CONFIG]))
    for record in RECORDS:
        shown.show(record)
    shown.close()


def test_drawing_costs_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("pgcli.report.display.time.perf_counter", lambda: clock[0])
    shown = LiveDisplay(TrainingView([CONFIG]))
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
    assert type(make_display(TrainingView([CONFIG]), quiet=True)) is Display
    assert isinstance(make_display(TrainingView([CONFIG]), quiet=False), PlainDisplay)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(TrainingView([CONFIG]), quiet=False), PlainDisplay)
