"""`pgcli report`: one HTML page that is whole, escaped, accessible, and free of external resources."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import webbrowser
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import pgcli
from test_compare import write_run

from pgcli.cli.report import report
from pgcli.config import Config, load_config, override
from pgcli.errors import ConfigError, RunDirectoryError
from pgcli.experiment.run import Request, run_experiment
from pgcli.inspection.explain import show
from pgcli.report import appearance
from pgcli.report.curves import read_lines
from pgcli.report.html import page as pages
from pgcli.report.html.charts import Series, draw, points_for
from pgcli.report.html.page import Group, inline, render
from pgcli.runs.removal import check_removable
from pgcli.studies.comparison import write_report
from pgcli.studies.html_report import write_html
from pgcli.studies.suite_report import write_suite
from pgcli.studies.variants import Comparison, Variant

SMALL = (
    *("env.num_envs=4", "rollout.episodes=4", "env.max_episode_steps=30", "training.iterations=3", "name=small"),
    *("evaluation.episodes=2", "evaluation.stop_at_return=null", "evaluation.every=1", "diagnostics.every=1"),
)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&\u2028\u202e\x1b\x00\x07 {{ 7*7 }}"
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
VOID = {"meta", "img", "line", "circle", "path", "br"}  # elements without an end
MOST_BYTES = 2_000_000
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Parsed(HTMLParser):
    """The elements, texts and JSON of a page; each element must be closed in order."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(content.decode())
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif self._open and self._open[-1] != "style":
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> list[Any]:
        """Return the parsed JSON of all charts."""
        kinds = [attributes.get("type") for attributes in self.all("script")]
        assert kinds.count(None) == 1, "one script"
        return [json.loads(text) for kind, text in zip(kinds, self.scripts, strict=True) if kind == "application/json"]


def checked(file: Path) -> Parsed:
    """Parse a page, and check what holds for every page."""
    content = file.read_bytes()
    found = Parsed(content)
    films = sum(len(element["src"]) for tag in ("img", "video") for element in found.all(tag))
    assert len(content) - films < MOST_BYTES
    assert not RAW.search(content.decode())
    for tag, attributes in found.elements:
        names = set(attributes)
        assert not names & {"style", "srcset", "action", "data"}, f"{tag}: {names}"
        assert not [name for name in names if name.startswith("on")]
        assert attributes.get("src", "data:").startswith("data:")
        if "href" in attributes:
            assert tag == "a"
            assert re.match(r"#|\./", attributes["href"])
        if tag in ("img", "svg", "video"):
            assert attributes.get("alt") or attributes.get("aria-label"), tag
    assert not set(dict(found.elements)) & {"link", "iframe", "object", "base", "form", "embed", "use", "image"}
    assert "url(" not in content.decode()
    assert "@import" not in content.decode()
    check_structure(found)
    check_policy(found, content.decode())
    for chart in found.data:
        assert all(len(one["x"]) == len(one["y"]) <= 500 for one in chart["series"])
    return found


def check_structure(found: Parsed) -> None:
    """Headings are in order, ids are unique, links have targets, and tables have captions and scopes."""
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [link["href"][1:] for link in found.all("a") if link["href"].startswith("#")]
    assert targets[0] == "main", "the first link skips to the content"
    assert set(targets) <= set(ids)
    assert len(found.all("table")) == len(found.all("caption"))
    assert all(cell.get("scope") in ("col", "row") for cell in found.all("th"))
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("main")) == len(found.all("title")) == 1


def check_policy(found: Parsed, content: str) -> None:
    """The content security policy names the digests of the style and of the script, and nothing external."""
    policy = next(meta["content"] for meta in found.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    style = re.findall(r"<style>(.*?)</style>", content, re.DOTALL)
    script = re.findall(r"<script>(.*?)</script>", content, re.DOTALL)
    for (text,) in (style, script):
        assert base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two seeds of a run; do not change it."""
    home = tmp_path_factory.mktemp("runs") / "small"
    for seed in (0, 1):
        settings = override(load_config("cartpole"), [*SMALL, f"seed={seed}"])
        run_experiment(Request(settings, home / f"seed-{seed}", ["train", "cartpole"]))
    return home


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """Return a copy of a run."""
    return shutil.copytree(runs / "seed-0", tmp_path / "run")


def test_the_page_of_a_run_has_its_results_findings_config_and_command(run: Path) -> None:
    file = write_html([run], None)
    assert file == run / "report.html"
    found, facts = checked(file), show(run)
    assert "small, seed 0" in found.text
    assert "finished" in found.text
    assert facts["reason"] in found.text
    assert f"{facts['evaluation']['return_mean']:.1f}" in found.text
    for finding in facts["findings"]:
        assert " ".join(finding["text"].split()) in found.text
        assert finding["key"] in found.text
    assert {finding["name"] for finding in facts["findings"]} >= {"no_gain"}
    for key in facts["config"]:
        assert key in found.texts
    assert f"pgcli train {run}/config.yaml" in found.text
    assert "numpy" in found.text
    assert "Gradient variance" in found.text
    titles = [chart["title"] for chart in found.data]
    assert titles[0] == "Mean return"
    assert "Variance of the gradient estimate" in titles
    assert [one["label"] for one in found.data[0]["series"]] == ["evaluation", "training"]
    assert check_removable(run, run) == [], "`pgcli rm` knows the page"


def test_the_curves_of_several_runs_are_those_of_plot(runs: Path, tmp_path: Path) -> None:
    third = shutil.copytree(runs / "seed-0", tmp_path / "third")
    text = (third / "config.yaml").read_text()
    (third / "config.yaml").write_text(text.replace("name: small", "name: other"))
    file = write_html([runs, third], tmp_path / "deep/page.html")
    found = checked(file)
    lines, _ = read_lines([runs, third], "env_steps", "evaluation.return_mean", "mean", "ci95", 1)
    chart = found.data[0]
    assert [one["label"] for one in chart["series"]] == [line.label for line in lines] == ["small", "other"]
    for drawn, line in zip(chart["series"], lines, strict=True):
        assert drawn["x"] == pytest.approx(line.curve.x.tolist(), rel=1e-5)
        assert drawn["y"] == pytest.approx(line.curve.center.tolist(), rel=1e-5)
        assert drawn["low"] == pytest.approx(line.curve.low.tolist(), rel=1e-5)
    assert found.text.count("Evaluations of the policy") == 3
    assert "All keys are listed at" in found.text, "of two runs with one config"


def test_a_drawn_curve_is_in_its_place(tmp_path: Path) -> None:
    nan = np.full(3, np.nan)
    chart = draw([Series(0, "a", np.array([0.0, 5, 10]), np.array([0.0, 50, 100]), nan, nan)], "A", "x", 500)
    low, high = chart.data["y"]
    for point, x, y in zip(chart.series[0].line[1:].split(), (0, 500, 1000), (0, 50, 100), strict=True):
        place = 1000 * (high - y) / (high - low)
        assert list(map(float, point.split(","))) == pytest.approx([x, place], abs=0.1)
    assert chart.series[0].band == ""
    assert [tick.label for tick in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert [tick.at for tick in chart.x_ticks] == ["0%", "20%", "40%", "60%", "80%", "100%"]
    ten = np.array([1.0, 10, 100])
    log = draw([Series(0, "a", ten, ten, nan, nan)], "A", "x", 500, log=True)
    middle = float(log.series[0].line[1:].split()[1].split(",")[1])
    assert middle == pytest.approx(500, abs=0.1), "10 is halfway between 1 and 100"


def test_many_long_curves_are_thinned_and_fit_in_a_page(tmp_path: Path) -> None:
    x = np.arange(0, 5e6, 1000.0)
    noise = np.random.default_rng(0).normal(size=(40, len(x)))
    number = 40 * 13
    charts = [
        draw([Series(k, f"curve {k}", x, one, one - 1, one + 1) for k, one in enumerate(noise)], f"{n}", "x", points)
        for n in range(13)
        for points in [points_for(number)]
    ]
    group = Group([(k, f"curve {k}") for k in range(40)], charts[:1], charts[1:])
    content = {"kind": "", "title": "t", "lede": "", "tiles": [], "overview": None, "curves": [group], "training": []}
    more: dict[str, Any] = {"gradients": None, "only": None, "runs": [], "left_out": "", "contents": []}
    file = tmp_path / "page.html"
    file.write_bytes(render("runs.html.j2", content | more))
    checked(file)
    long = draw([Series(0, "a", x, noise[0], noise[0], noise[0])], "A", "x", points_for(1))
    assert len(long.data["series"][0]["x"]) == 500
    assert [long.data["series"][0]["x"][at] for at in (0, -1)] == [0, 4_999_000]
    assert "500 points" in long.caption


# Bad input


def edit(file: str, change: Callable[[str], str]) -> Callable[[Path], object]:
    return lambda run: (run / file).write_text(change((run / file).read_text()))


def only_heads(*names: str) -> Callable[[Path], None]:
    def cut(run: Path) -> None:
        for name in names:
            (run / f"{name}.csv").write_text((run / f"{name}.csv").read_text().splitlines()[0] + "\n")

    return cut


def with_status(**status: Any) -> Callable[[Path], object]:
    return lambda run: (run / "status.json").write_text(json.dumps(status))


def without_any_iteration(run: Path) -> None:
    only_heads("metrics", "timing", "evaluations", "episodes", "gradients")(run)
    with_status(status="interrupted", iteration=0, reason="SIGINT")(run)


def cut_off(run: Path) -> None:
    with_status(status="running")(run)
    for name in ("metrics", "evaluations", "episodes", "timing", "gradients"):
        file = run / f"{name}.csv"
        file.write_bytes(file.read_bytes()[:-3])


def of_an_old_version(run: Path) -> None:
    edit("config.yaml", lambda text: re.sub(r"^  (rebuild|noise_steps|mode): .*\n", "", text, flags=re.MULTILINE))(run)
    edit("run.json", lambda text: json.dumps({"pgcli": "0.0.1", "command": ["train"]}))(run)
    (run / "gradients.csv").unlink()


WHOLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no evaluations": (only_heads("evaluations"), "No evaluation is in evaluations.csv."),
    "no iterations": (without_any_iteration, "interrupted"),
    "killed": (cut_off, "killed"),
    "diverged": (with_status(status="diverged", iteration=3, reason="the loss is nan"), "Diverged: the loss is nan."),
    "failed": (with_status(status="failed", iteration=3, reason=HOSTILE), "alert(1)"),
    "an old version": (of_an_old_version, "0.0.1"),
    "no reason": (with_status(status="finished", iteration=3), "Finished."),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_run_in_any_state_has_a_whole_page(kind: str, run: Path) -> None:
    change, words = WHOLE[kind]
    change(run)
    assert words in checked(write_html([run], None)).text


def test_an_unreadable_run_is_described_beside_the_others(runs: Path, run: Path, tmp_path: Path) -> None:
    (run / "evaluations.csv").unlink()
    with pytest.raises(RunDirectoryError, match="is missing"):
        write_html([run], None)
    found = checked(write_html([runs, run], tmp_path / "page.html"))
    assert "unreadable" in found.text
    assert f"error: {run}/evaluations.csv: is missing" in found.text
    assert [one["label"] for one in found.data[0]["series"]] == ["evaluation", "training"]
    assert len(found.data) > 3, "also the metrics of training"


def test_hostile_text_stays_text(run: Path) -> None:
    clean = checked(write_html([run], None))
    escaped = json.dumps(HOSTILE)
    edit("config.yaml", lambda text: text.replace("kwargs: {}", f"kwargs: {{{escaped}: {escaped}}}", 1))(run)
    edit("config.yaml", lambda text: text.replace("id: CartPole-v1", f"id: {escaped}"))(run)
    more = {"tags": [HOSTILE], "note": HOSTILE, "user_code": {HOSTILE: HOSTILE}, "git_commit": HOSTILE}
    information = json.loads((run / "run.json").read_text())
    information["versions"] = {HOSTILE: HOSTILE}
    information |= more | {"command": [HOSTILE], "machine": {HOSTILE: HOSTILE}}
    (run / "run.json").write_text(json.dumps(information))
    with_status(status="failed", iteration=3, reason=HOSTILE)(run)
    edit("gradients.csv", lambda text: text.replace("total+none", "</script><b>").replace("reward_to_go", "<i>"))(run)
    target = run.with_name("'\"><script>x")
    run.rename(target)
    found = checked(write_html([target], None))
    assert "{{ 7*7 }}" in found.text
    for tag in ("script", "img", "b", "i"):
        extra = len(found.all(tag)) - len(clean.all(tag))
        assert extra == (1 if tag == "b" else 0), f"{tag}: only the level of the finding about the failure is new"
    assert found.text.count(r"\u202e\x1b\x00\x07") >= 8
    twin = shutil.copytree(target, target.with_name("twin"))
    edit("config.yaml", lambda text: text.replace(f": {escaped}}}", ": 3}"))(twin)
    both = checked(write_html([target, twin], target / "both.html"))
    assert all("alert(1)" in one["label"] for one in both.data[0]["series"])


def test_inline_text_marks_up_code_and_escapes_the_rest() -> None:
    assert inline("a `<b>` **c** *d* 2 * 3 * 4") == "a <code>&lt;b&gt;</code> <strong>c</strong> <em>d</em> 2 * 3 * 4"
    assert "<b" not in inline("**<b>** `<b onclick='x'>` *<b>*")


FOREIGN: dict[str, tuple[Callable[[Path], tuple[list[Path], Path | None]], str]] = {
    "another suffix": (lambda run: ([run], run / "a.pdf"), "not the name of an HTML file"),
    "a folder": (lambda run: ([run], run.parent), "not the name of an HTML file"),
    "a foreign file": (lambda run: ([run], run.parent / "mine.html"), "pgcli did not write it"),
    "a link": (lambda run: ([run], run.parent / "link.html"), "pgcli did not write it"),
    "a file as folder": (lambda run: ([run], run / "run.json/x.html"), "cannot be written|ot a directory"),
    "no run": (lambda run: ([run / "checkpoints"], None), "contains no run"),
    "no folder": (lambda run: ([run / "nothing"], None), "no such directory"),
    "a file": (lambda run: ([run / "run.json"], None), "a file, not a run directory"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_bad_path_is_one_sentence_and_changes_no_file(kind: str, run: Path) -> None:
    mine = run.parent / "mine.html"
    mine.write_text("mine")
    (run.parent / "link.html").symlink_to(mine)
    before = {path: path.read_bytes() for path in sorted(run.parent.rglob("*")) if path.is_file()}
    words, told = FOREIGN[kind]
    with pytest.raises((ConfigError, RunDirectoryError), match=told):
        write_html(*words(run))
    assert {path: path.read_bytes() for path in sorted(run.parent.rglob("*")) if path.is_file()} == before


def test_a_page_replaces_a_page_and_a_foreign_file_only_with_overwrite(run: Path) -> None:
    mine = run / "report.html"
    mine.write_text("mine")
    with pytest.raises(RunDirectoryError, match="--overwrite"):
        write_html([run], None)
    write_html([run], None, overwrite=True)
    write_html([run], None)
    assert mine.read_bytes().startswith(b"<!doctype html>")


# Films


def test_a_film_is_embedded_up_to_a_size_and_linked_beyond_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "videos").mkdir()
    gif = b"GIF89a" + bytes(100)
    (run / "videos/an agent.gif").write_bytes(gif)
    (run / "videos/other.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(50))
    (run / "fake.gif").write_bytes(b"<html>")
    os.mkfifo(run / "videos/pipe.gif")
    found = checked(write_html([run], None))
    assert [image["src"] for image in found.all("img")] == [f"data:image/gif;base64,{base64.b64encode(gif).decode()}"]
    assert found.all("video")[0]["src"].startswith("data:video/mp4;base64,")
    monkeypatch.setattr(pages, "MOST_FILM_BYTES", 80)
    found = checked(write_html([run], None))
    assert not found.all("img")
    assert "./videos/an%20agent.gif" in [link["href"] for link in found.all("a")]
    assert "too large" in found.text


# Studies


def study(home: Path, labels: Sequence[str] = ("<a>", "b'|")) -> Path:
    """Write a comparison of three seeds of synthetic runs."""
    returns = {0: [[1, 20, 30], [2, 25, 31], [1, 22, 35]], 1: [[1, 10, 15], [2, 12, 14], [1, 15, 16]]}
    variants = []
    for number, label in enumerate(labels):
        settings = override(Config(), [f"optimizer.learning_rate=0.{number + 1}", "training.env_steps=200"])
        found = [
            (seed, write_run(home / f"runs/{number}/seed-{seed}", values, threshold=30))
            for seed, values in enumerate(returns[number])
        ]
        for seed, path in found:
            (path / "config.yaml").write_text(
                f"{{name: study, seed: {seed}, optimizer: {{learning_rate: 0.{number + 1}}}}}"
            )
        variants.append(Variant(label, settings, found))
    write_report(Comparison(variants, home, 200), None, ["compare", "x", "<y>"])
    return home


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a comparison; do not change it."""
    return study(tmp_path_factory.mktemp("compared") / "study")


def test_the_page_of_a_comparison_has_what_compare_reported(compared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compared, tmp_path / "moved")
    shutil.rmtree(folder / "runs/1/seed-2")
    found = checked(write_html([folder], None))
    result = json.loads((folder / "report.json").read_text())
    for pair in result["pairs"]:
        assert " ".join(inline(pair["sentence"]).striptags().split()) in found.text
    for note in result["notes"]:
        assert inline(note).striptags() in found.text
    assert "pgcli compare x '<y>'" in found.text
    assert "Clopper-Pearson" in found.text
    profile, curves = found.data[-1], found.data[0]
    assert [one["label"] for one in curves["series"]] == ["<a>", "b'|"]
    assert curves["series"][0]["y"] == pytest.approx([4 / 3, 67 / 3, 32], rel=1e-5)
    shares = [row["share"] for row in result["profile"] if row["arm"] == "<a>"]
    assert profile["series"][0]["y"] == pytest.approx(shares, rel=1e-5)
    assert "Not readable" in found.text, "the deleted run"
    assert found.text.count("Runs of the variant") == 2


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


@pytest.mark.parametrize(
    "damage",
    [
        lambda result: result.pop("pairs"),
        lambda result: result.update(arms=[{}]),
        lambda result: result.update(arms=3),
        lambda result: result.update(arms=[]),
        lambda result: result["runs"][0].update(arm="c"),
        lambda result: result["runs"][0].update(run=3),
        lambda result: result["profile"][0].update(share="x"),
        lambda result: result.update(profile=[]),
        lambda result: result.update(threshold="x"),
        lambda result: result.update(seeds=None),
        lambda result: result["pairs"][0].update(sentence=None, difference="x"),
        lambda result: result.update(directory=7),
        lambda result: result.update(column=[]),
        lambda result: result.update(tasks=[{"task": "../../x"}]),
        lambda result: result.update(arms=nested(400)),
    ],
    ids=map(str, range(15)),
)
def test_a_damaged_result_of_a_study_is_one_sentence(
    damage: Callable[[Any], object], compared: Path, tmp_path: Path
) -> None:
    result = json.loads((compared / "report.json").read_text())
    damage(result)
    (tmp_path / "report.json").write_text(json.dumps(result))
    with pytest.raises(RunDirectoryError) as error:
        write_html([tmp_path], None)
    assert "report.json" in str(error.value)
    assert len(str(error.value).splitlines()) <= 2


@pytest.mark.slow("draws seven figures")
def test_the_page_of_a_suite_has_the_scores_and_every_task(tmp_path: Path) -> None:
    labels = ("<a>", "b")
    results = {
        name: json.loads((study(tmp_path / "suite" / name, labels) / "report.json").read_text())
        for name in ("one", "two")
    }
    for result in results.values():
        for run in result["runs"]:
            run["first_evaluation"] = 1.0
    write_suite(tmp_path / "suite", "pair", results, {}, ["compare", "pair.yaml"])
    found = checked(write_html([tmp_path / "suite"], None))
    assert "pair: 2 variants on 2 tasks" in found.text
    assert "(measured)" in found.text
    assert found.text.count("Runs of the variant") == 4
    assert len(found.data) == 3, "profiles, and a chart for each task"
    shutil.rmtree(tmp_path / "suite/two")
    with pytest.raises(RunDirectoryError, match=r"two/report\.json"):
        write_html([tmp_path / "suite"], None)


# The command, the browser


def test_the_command_prints_the_page_and_opens_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pgcli("report", "run", cwd=run.parent).stdout == "run/report.html\n"
    failed = pgcli("report", "run", "-o", "run/metrics.csv", cwd=run.parent, code=2)
    assert failed.stderr == "error: -o: `run/metrics.csv` is not the name of an HTML file\nhint: use FILE.html\n"
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    report([run], open_=True)
    assert opened == [(run / "report.html").resolve().as_uri()]


def test_the_colours_of_a_page_have_contrast() -> None:
    style = Path(pages.__file__).parent.joinpath("templates/style.css.j2").read_text()
    light, dark = style.split("prefers-color-scheme: dark", 1)
    for text, ground, curves in (
        (light, appearance.BACKGROUND, appearance.PAGE_COLORS),
        (dark.split("* {")[0], appearance.BACKGROUND_DARK, appearance.PAGE_COLORS_DARK),
    ):
        found = dict(re.findall(r"--(\w+): (#\w{6})", text))
        behind = [ground, *(found[name] for name in ("panel", "warnbg", "notebg"))]
        for name in ("text", "soft", "accent", "good", "warn"):
            assert min(contrast(found[name], one) for one in behind) >= 4.5, name
        assert min(contrast(color, ground) for color in curves) >= 4.5


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours (Web Content Accessibility Guidelines 2.2)."""
    values = np.array([[int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)] for color in (one, other)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    dark, bright = sorted((linear @ [0.2126, 0.7152, 0.0722]).tolist())
    return float((bright + 0.05) / (dark + 0.05))


ACTIONS = """
const out = [], plot = document.querySelector(".plot"), buttons = document.querySelectorAll(".legend button");
const key = (name) => plot.dispatchEvent(new KeyboardEvent("keydown", {key: name}));
const shown = () => plot.querySelector(".tip").hidden ? "" : plot.getAttribute("aria-valuetext");
out.push(buttons.length, shown());
key("Home"); out.push(shown());
key("ArrowRight"); out.push(shown());
key("End"); key("ArrowRight"); out.push(shown());
key("Escape"); out.push(shown());
const box = plot.querySelector("svg").getBoundingClientRect();
plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 9}));
out.push(shown());
buttons[0].click(); key("Home"); out.push(shown(), buttons[0].getAttribute("aria-pressed"));
out.push([...document.querySelectorAll('svg [data-series="0"].off')].length > 0);
buttons[0].click(); key("Home"); out.push(shown());
document.body.replaceChildren(JSON.stringify(out));
"""


def browser(file: Path, home: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [f"--user-data-dir={home}", "--enable-logging=stderr", "--v=0", *more]
    return subprocess.run(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", *words, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow("starts a browser")
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_values_and_switches_series_off_without_an_error(compared: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(compared, tmp_path / "study")
    file = write_html([folder], None)
    done = browser(file, tmp_path / "home", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    assert 'aria-pressed="true"' in done.stdout, "the script ran under the content security policy"
    text = re.sub(r"<meta http-equiv=[^>]*>", "", file.read_text()).replace(
        "</body>", f"<script>{ACTIONS}</script></body>"
    )
    (tmp_path / "acted.html").write_text(text)
    done = browser(tmp_path / "acted.html", tmp_path / "home", "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    body = re.search(r"<body>(.*?)</body>", done.stdout, re.DOTALL)
    assert body
    count, nothing, first, second, last, gone, middle, off, pressed, hidden, again = json.loads(
        body[1].replace("&lt;", "<").replace("&gt;", ">")
    )
    assert (count, nothing, gone) == (4, "", "")
    assert first.startswith("0; <a>: 1")
    assert second.startswith("100; <a>: 22.33 [")
    assert last.startswith("200; <a>: 32 [")
    assert middle == second
    assert off.startswith("0; b'|: 1")
    assert (pressed, hidden, again) == ("false", True, first)
