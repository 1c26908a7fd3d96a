"""The text of docs/results.md: targets, published results, and one table for each environment."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from textwrap import fill

import numpy as np

from pgcli.config import load_config
from pgcli.report.statistics import interquartile_mean, trimmed_mean_interval

EPISODES = 100
MORE_EPISODES = {"Blackjack-v1": 20_000, "FrozenLake-v1": 10_000}  # whose returns vary more than the policies differ
FEW_SEEDS = 4
Row = Mapping[str, str]

# The target of each environment and published results; the end of the page lists the sources.
TARGETS: dict[str, tuple[float | None, str]] = {
    "CartPole-v1": (
        475,
        "Solved at 475 (Gymnasium's reward threshold), at most 500; the tutorial's target is 100. Published: PPO 500 "
        "at 100 k and A2C 500 at 500 k steps [zoo]; PPO 490 ± 6 at 500 k [CleanRL].",
    ),
    "FrozenLake-v1": (
        0.73,
        "Gymnasium's threshold is 0.70; the optimal policy has 0.74. After each of two tables (IQM 0.702 and 0.723, "
        "100 episodes), its hyper-parameters were changed, on yet other seeds. Published: nothing comparable.",
    ),
    "CliffWalking-v1": (-13, "The shortest path costs 13. Published: nothing comparable."),
    "Taxi-v4": (
        7.8,
        "By dynamic programming, the optimal policy has a mean of 7.93 over the start states, so no policy has "
        "Gymnasium's threshold of 8 as its mean. Published: nothing comparable.",
    ),
    "Blackjack-v1": (
        -0.06,
        "By dynamic programming with an infinite deck, the optimal policy has -0.0466. Published: nothing comparable.",
    ),
    "Acrobot-v1": (
        -83,
        "Gymnasium's threshold is -100. Published: A2C -83 ± 17 at 500 k and PPO -74 ± 18 at 1 M steps [zoo]; "
        "PPO -86 ± 1 at 500 k [CleanRL].",
    ),
    "Pendulum-v1": (
        -180,
        "No threshold. Published: PPO -172 ± 104 at 100 k and A2C -163 ± 103 at 1 M steps, both with gSDE [zoo]; "
        "PPO -1142 ± 136 at 8 M with the settings of MuJoCo [CleanRL].",
    ),
    "MountainCar-v0": (
        -110,
        "Solved at -110. Published: PPO -110 ± 19 and A2C -111 ± 24 at 1 M steps [zoo]; PPO -200 ± 0 at 500 k "
        "[CleanRL].",
    ),
    "MountainCarContinuous-v0": (
        90,
        "Solved at 90. Published: A2C 91.2 ± 0.3 at 100 k and PPO 88.3 ± 2.6 at 20 k steps, both with gSDE [zoo].",
    ),
    "InvertedPendulum-v5": (
        950,
        "Solved at 950, at most 1000. Published, on older versions: REINFORCE 999 ± 2 at 3 M, the best evaluation of "
        "each run [Tianshou]; REINFORCE about 600 after 5,000 episodes [Gymnasium's tutorial].",
    ),
    "LunarLander-v3": (
        240,
        "Solved at 200. Published, on v2: PPO 242 ± 32 at 1 M and A2C 156 ± 80 at 200 k steps [zoo].",
    ),
    "LunarLander-v3, continuous": (
        240,
        "Solved at 200. Published, on v2: PPO 271 ± 32 and A2C 84 ± 146, at 1 M and 5 M steps [zoo].",
    ),
    "BipedalWalker-v3": (
        300,
        "Solved at 300. Published: PPO 288 ± 2 and A2C 300 ± 23 at 5 M steps [zoo]; PPO 172 ± 96 at 8 M with the "
        "settings of MuJoCo [CleanRL].",
    ),
    "HalfCheetah-v5": (
        4800,
        "Gymnasium's threshold is 4800. Published, on older versions: PPO at 1 M steps 5784 ± 1244, the best "
        "evaluation of each run [Tianshou], 1443 ± 46 [CleanRL] and 5819 ± 664 [zoo]; REINFORCE 884 ± 41 at 3 M "
        "[Tianshou]; VPG, with a learned critic, about -50 at 1 M [Spinning Up].",
    ),
    "Hopper-v5": (
        3800,
        "Gymnasium's threshold is 3800. Published, on older versions: PPO at 1 M steps 2609 ± 701, the best "
        "evaluation of each run [Tianshou], 2383 ± 271 [CleanRL] and 2410 ± 10 [zoo]; REINFORCE 396 ± 65 at 3 M "
        "[Tianshou]; VPG, with a learned critic, about 390 at 1 M [Spinning Up].",
    ),
    "Walker2d-v5": (
        None,
        "Published, on older versions: PPO at 1 M steps 3588 ± 757, the best evaluation of each run [Tianshou], "
        "2288 ± 572 [CleanRL] and 3479 ± 822 [zoo]; REINFORCE 412 ± 52 at 3 M [Tianshou]; VPG, with a learned critic, "
        "about 290 at 1 M [Spinning Up].",
    ),
    "ALE/Pong-v5": (
        None,
        "Returns lie between -21 and 21. Published: PPO 20.4 ± 0.2 [CleanRL] and 21.0 ± 0.1 [zoo], after 10 M steps, "
        "ten times as many.",
    ),
    "minigrid:MiniGrid-DoorKey-5x5-v0": (
        0.9,
        "A success after n of 250 steps has the return 1 - 0.9 n / 250. Published: nothing comparable.",
    ),
    "popgym:popgym-RepeatPreviousEasy-v0": (
        0.9,
        "Returns lie between -1 and 1; guessing has -0.5. Published: nothing comparable.",
    ),
}
# For the figure of the curves: a published result of the text above, with its algorithm, steps and source.
PUBLISHED: dict[str, tuple[str, float]] = {
    "CartPole-v1": ("PPO at 100 k [zoo]", 500),
    "Acrobot-v1": ("PPO at 1 M [zoo]", -74),
    "Pendulum-v1": ("A2C at 1 M [zoo]", -163),
    "MountainCar-v0": ("PPO at 1 M [zoo]", -110),
    "MountainCarContinuous-v0": ("A2C at 100 k [zoo]", 91.2),
    "InvertedPendulum-v5": ("REINFORCE at 3 M [Tianshou]", 999),
    "LunarLander-v3": ("PPO at 1 M [zoo]", 242),
    "LunarLander-v3, continuous": ("PPO at 1 M [zoo]", 271),
    "BipedalWalker-v3": ("A2C at 5 M [zoo]", 300),
    "HalfCheetah-v5": ("PPO at 1 M [zoo]", 5819),
    "Hopper-v5": ("PPO at 1 M [Tianshou]", 2609),
    "Walker2d-v5": ("PPO at 1 M [Tianshou]", 3588),
    "ALE/Pong-v5": ("PPO at 10 M [zoo]", 21.0),
}
HEAD = f"""\
# What the shipped configs reach

`make results` writes this page from [results.csv](results.csv), which has every seed. Each row
describes the **final** policies of one config, one policy per seed. [Learning
curves](#learning-curves) are at the end.

- *sampled*: the interquartile mean (IQM) of their returns over seeds, with its 95 % interval.
- *over seeds*: the lowest and the highest seed.
- *reach the target*: the number of seeds with at least the target's return.
- *greedy*: the same policies with their most probable actions.
- *CPU time*: the processor time of the command that trained all seeds of the row, divided by their
  number. It includes the start and the evaluations during training.

Each policy plays {EPISODES} fresh episodes, unless the text of the environment has another number.
Returns are undiscounted, up to the environment's own time limit. Neither the best checkpoint nor
the best seed is selected. Hyper-parameters were chosen on other seeds. The version of Gymnasium is
1.4.

Each run has one process and one thread, so CPU time is wall time on an idle core. Seeds of small
policies train together in one process and share the start. One such seed alone takes up to three
times as long, and 1.5 seconds for its start. The column is empty for an interrupted training.

The interval is that of a trimmed mean over seeds (Tukey & McLaughlin), widened by the standard
error over episodes. All seeds play the same episodes, so the spread over seeds does not show this
error. On Taxi and Pendulum it is nearly the whole width, and "10 of 10" is one set of episodes.
If the middle half of the seeds reaches the largest return, the interval is one number; *over seeds*
shows the others."""
FEW = f"""\
Intervals of 2 to {FEW_SEEDS} seeds assume roughly normal returns. So few seeds are likely to miss a
failure of one seed in five."""
VERSIONS = """\
Each row of results.csv also has the commit and the CPU that it was measured with, and two digests:
of the settings that affect it, and of a short training with them. A row is measured again when one
of the two changes. Rows marked with * are such rows. A seed that you train on another CPU may
differ from its row in the last bits at first, and then by more."""
CURVES = """\
## Learning curves

![Return over environment steps, with a panel for each environment](images/curves.png)

A line is the IQM over seeds; its band reaches from the lowest to the highest seed. Points are the
evaluations during training, from the untrained policy to the final one, of
`evaluation.episodes` episodes. Between its evaluations a seed is interpolated linearly, and after
its end it keeps its last value. Dotted is one published result, which may be of more steps.

`make results` writes [curves.csv](curves.csv), which has every seed, and draws the figure from it.
Configs marked with * have curves of earlier settings or code.
"""
SOURCES = """\
- **zoo**: rl-baselines3-zoo, `benchmark.md`: one trained agent each, greedy, mean ± standard
  deviation over episodes.
- **CleanRL**: `docs/benchmark/ppo.md` and `ppo_continuous_action.md` (3 seeds),
  `docs/rl-algorithms/rpo.md` (10 seeds), mean ± standard deviation over seeds.
- **Tianshou**: `examples/mujoco/README.md`, 10 seeds, mean ± standard deviation.
- **Spinning Up**: `docs/images/plots/vpg`, 10 seeds, read off its figures.
- **Gymnasium's tutorial**: `mujoco_reinforce.py`, 5 seeds, read off its figure.
"""


def number(value: float) -> str:
    """Format a return: one decimal, or three below 2, as for success rates."""
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.1f}"


def interval(values: list[float], errors: list[float]) -> str:
    """Format the interquartile mean with its 95 % interval over seeds and episodes.

    Args: returns and their standard errors over episodes. All seeds share the episodes, so their errors have about the
    same sign, and the mean of the errors is the error of the interquartile mean.
    """
    samples = np.array(values)
    middle = float(interquartile_mean(samples))
    if len(values) == 1:
        return number(middle)
    low, high = trimmed_mean_interval(samples)
    half = math.hypot(float(high - low) / 2, 1.96 * float(np.mean(errors)))
    return f"{number(middle)} [{number(middle - half)}, {number(middle + half)}]"


@cache
def environment(config: str) -> str:
    """Return the name of a config's environment in TARGETS, with the kwargs that distinguish it."""
    env = load_config(config).env
    return ", ".join([env.id, *(key for key in env.kwargs if f"{env.id}, {key}" in TARGETS)])


def summary(rows: Sequence[Row], target: float | None, *, is_stale: bool) -> str:
    """Format the row of one config."""
    sampled, greedy = ([float(row[mode]) for row in rows] for mode in ("sampled", "greedy"))
    errors = {mode: [float(row[f"{mode}_standard_error"] or "nan") for row in rows] for mode in ("sampled", "greedy")}
    steps = [int(row["env_steps"]) for row in rows]
    times = [float(row["cpu_seconds"]) for row in rows if row["cpu_seconds"]]
    reached = "" if target is None else f"{sum(value >= target for value in sampled)} of {len(rows)}"
    cells = (
        f"`{rows[0]['config']}`{' *' if is_stale else ''}",
        f"{np.median(steps):,.0f}",
        str(len(rows)),
        interval(sampled, errors["sampled"]),
        f"{number(min(sampled))} to {number(max(sampled))}",
        reached,
        interval(greedy, errors["greedy"]),
        f"{(time := np.median(times)):,.{0 if time >= 10 else 1}f} s" if times else "",
    )
    return f"| {' | '.join(cells)} |"


def render(rows: Sequence[Row], configs: Sequence[str], stale: Collection[str]) -> str:
    """Return the text of the page."""
    seeds = [sum(row["config"] == name for row in rows) for name in configs]
    page = [HEAD, "", *([FEW, ""] if any(2 <= count <= FEW_SEEDS for count in seeds) else []), VERSIONS]
    for task, (target, published) in TARGETS.items():
        measured = {
            name: [row for row in rows if row["config"] == name] for name in configs if environment(name) == task
        }
        if not any(measured.values()):
            continue
        goal = "No target." if target is None else f"Target {number(target)}."
        if task in MORE_EPISODES:
            published += f" Each policy plays {MORE_EPISODES[task]:,} episodes."
        page += ["", f"## {task}", "", fill(f"{goal} {published}", 98, break_on_hyphens=False), ""]
        page += [
            "| config | env steps | seeds | sampled: IQM [95 %] | over seeds | reach the target | greedy: IQM [95 %] "
            "| CPU time |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        page += [summary(own, target, is_stale=name in stale) for name, own in measured.items() if own]
    return "\n".join([*page, "", CURVES, "## Sources", "", SOURCES])
