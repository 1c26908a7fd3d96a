"""Coverage of intervals, false positive rates, and the bias of v.

`make soak` runs it for minutes: it computes the tables of docs/compare.md and docs/gradient_variance.md by simulation,
prints them, and exits with 1 if a page has other ones.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from helpers import collect_episodes
from scipy import stats

from pgcli.algorithm.gradient_variance import measure, with_estimator
from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.policy_gradient import estimate_gradient
from pgcli.config import load_config, override
from pgcli.experiment.build import environments_of
from pgcli.report import scores
from pgcli.report.statistics import INTERVALS, Array, bootstrap_interval
from pgcli.sampling.chunks import EnvironmentCache
from pgcli.sampling.executor import ChunkExecutor

DOCS = Path(__file__).parent.parent / "docs"
SEEDS = (2, 3, 4, 5, 6, 8, 10, 15, 20)
Draw = Callable[[np.random.Generator, tuple[int, ...]], Array]


def failing(draw: np.random.Generator, size: tuple[int, ...]) -> Array:
    """Draw scores of which a fifth are failures: N(0, 1) among N(10, 1)."""
    return draw.normal(size=size) + 10 * (draw.random(size) > 0.2)


SHAPES: dict[str, Draw] = {
    "normal": lambda draw, size: draw.normal(size=size),
    "lognormal": lambda draw, size: draw.lognormal(size=size),
    "20 % fail": failing,
}


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|--:|{'--:|' * (len(head) - 1)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def coverage(data_sets: int = 20_000) -> str:
    """Tabulate how often each 95 % interval contains the value of the whole distribution."""
    truths = {}
    for shape, draw in SHAPES.items():
        whole = np.sort(draw(np.random.default_rng(1), (8_000_000,)))
        middle = float(whole[2_000_000:6_000_000].mean())
        truths[shape] = {"mean": float(whole.mean()), "iqm": middle, "median": float(np.median(whole))}

    def rows() -> Iterator[list[str]]:
        for n in SEEDS:
            cells = [str(n)]
            samples = {shape: draw(np.random.default_rng(n), (data_sets, n)) for shape, draw in SHAPES.items()}
            for stat, interval in INTERVALS.items():
                cells += [covered(interval(samples[shape]), truths[shape][stat]) for shape in SHAPES]
            few = {shape: samples[shape][:2000] for shape in SHAPES}
            cells += [covered(bootstrap_interval([few[s]], np.mean, 2000), truths[s]["mean"]) for s in SHAPES]
            yield cells

    heads = ("mean, ", "IQM, ", "median, ", "bootstrap, ")
    return table(["n", *(f"{name}{shape}" for name in heads for shape in SHAPES)], rows())


def covered(interval: tuple[Array, Array], truth: float) -> str:
    """Return how often an interval contains the truth; "" without an interval."""
    low, high = interval
    return "" if np.isnan(low).all() else share(float(np.mean((low <= truth) & (high >= truth))))


def share(value: float) -> str:
    """Write a share without the zero before its point."""
    return f"{value:.2f}".removeprefix("0")


def improvement_coverage(data_sets: int = 2_000) -> str:
    """Tabulate how often the interval of P(a > b) contains it, for normal scores of like and unlike spread."""

    def rows() -> Iterator[list[str]]:
        for n in (5, 6, 8, 10, 20):
            cells = [str(n)]
            for spread in (1, 5):
                for truth in (0.5, 0.76, 0.92):
                    draw, shift = np.random.default_rng(n), stats.norm.ppf(truth) * math.hypot(1, spread)
                    pairs = draw.normal(size=(data_sets, 2, n))
                    edges = [scores.improvement_interval(spread * x + shift, y) for x, y in pairs]
                    cells.append(share(float(np.mean([low <= truth <= high for low, high in edges]))))
            yield cells

    heads = [f"{like}, P = {truth}" for like in ("like", "spreads 5 : 1") for truth in (0.5, 0.76, 0.92)]
    return table(["n", *heads], rows())


def ceiling(draw: np.random.Generator, n: int) -> Array:
    """Draw scores of mean 420: a fifth are N(100, 20), the others 500."""
    return np.where(draw.random(n) < 0.2, draw.normal(100, 20, n), 500.0)


PAIRS: dict[str, Callable[[np.random.Generator, int], tuple[Array, Array]]] = {
    "normal": lambda draw, n: (draw.normal(size=n), draw.normal(size=n)),
    "lognormal": lambda draw, n: (draw.lognormal(size=n), draw.lognormal(size=n)),
    "20 % fail": lambda draw, n: (ceiling(draw, n), ceiling(draw, n)),
    "20 % fail against N(420, 5)": lambda draw, n: (ceiling(draw, n), draw.normal(420, 5, n)),
    "lognormal against N(1.65, 0.05)": lambda draw, n: (draw.lognormal(size=n), draw.normal(math.exp(0.5), 0.05, n)),
}


def false_positives(comparisons: int = 2_000) -> str:
    """Tabulate how often the first look at two variants of equal means shows a difference of means."""
    scores.seeds_needed = lambda *_: None  # takes most of the time
    scores._likely_seeds = lambda *_: (None, None)

    def rows() -> Iterator[list[str]]:
        unpaired = {f"{name}, unpaired": (PAIRS[name], scores.unpaired_difference) for name in SHAPES}
        paired = {name: (pair, scores.paired_difference) for name, pair in PAIRS.items()}
        for name, (pair, difference) in (paired | unpaired).items():
            cells = [name]
            for n in (3, 5, 10, 20):
                draw, found, alone = np.random.default_rng(n), 0, 0
                for _ in range(comparisons):
                    x, y = pair(draw, n)
                    one = difference(x, y, confidence=1 - scores.look_alpha(1))
                    found += one.shown and one.claim == "mean"
                    t_alone = difference(x, y)
                    alone += bool(t_alone.low > 0 or t_alone.high < 0)
                cells.append(f"{100 * found / comparisons:.1f} % ({100 * alone / comparisons:.0f} %)")
            yield cells

    return table(["scores of equal mean", *(f"n = {n}" for n in (3, 5, 10, 20))], rows())


ESTIMATORS = (
    *("reward_to_go+none", "reward_to_go+mean", "reward_to_go+leave_one_out", "total+none", "total+leave_one_out"),
    *("reward_to_go+none+batch", "reward_to_go+mean+batch", "total+leave_one_out+batch"),
)


def variance(batches: int = 2_000) -> str:
    """Tabulate the mean of v over the variance of the gradients of many batches of an untrained policy on CartPole."""
    cases = [(average, n) for average in ("steps", "episodes") for n in (4, 16)]
    columns = [_variance_ratios(average, n, batches) for average, n in cases]
    heads = ["estimator", *(f"`{average}`, N = {n}" for average, n in cases)]
    return table(
        heads,
        ([f"`{name}`", *(f"{ratio:.2f}" for ratio in row)] for name, *row in zip(ESTIMATORS, *columns, strict=True)),
    )


def _variance_ratios(average: str, n: int, batches: int) -> list[float]:
    settings = override(
        load_config("cartpole"),
        [
            *(f"rollout.episodes={n}", f"env.num_envs={n}", "policy.hidden_sizes=[8]", "env.max_episode_steps=80"),
            f"algorithm={{average: {average}, returns: reward_to_go, baseline: none, standardize: none}}",
            f"diagnostics={{every: 1, shadows: [{', '.join(ESTIMATORS[1:])}]}}",
        ],
    )
    executor = ChunkExecutor(EnvironmentCache(environments_of(settings)))
    try:
        envs = executor.environments.of_width(n)
        agent = build_agent(envs.observation_space, envs.action_space, settings)
        agents = [with_estimator(agent, name) for name in ESTIMATORS]
        claimed = np.zeros((batches, len(ESTIMATORS)))
        gradients = []
        for number in range(batches):
            batch = collect_episodes(settings, executor, agent.policy, number, lambda: None)
            claimed[number] = [row.gradient_variance or 0.0 for row in measure(agent, batch)]
            drawn = [torch.cat([x.flatten() for x in estimate_gradient(one, batch)[0]]) for one in agents]
            gradients.append(torch.stack(drawn).double().numpy())
    finally:
        executor.close()
    true = np.stack(gradients).var(0, ddof=1).sum(-1)
    ratios: list[float] = (claimed.mean(0) / true).tolist()
    return ratios


TABLES = (
    (coverage, "compare.md"),
    (improvement_coverage, "compare.md"),
    (false_positives, "compare.md"),
    (variance, "gradient_variance.md"),
)

if __name__ == "__main__":
    torch.set_num_threads(1)
    differ = False
    for make, page in TABLES:
        text = make()
        same = text in (DOCS / page).read_text()
        differ |= not same
        print(
            f"docs/{page} {'has this table' if same else 'has another table'}: {make.__doc__}\n\n{text}\n", flush=True
        )
    sys.exit(differ)
