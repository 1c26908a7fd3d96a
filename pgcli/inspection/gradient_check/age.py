"""Bias and variance of importance weights over the age of the data.

They come from all batches of a small problem.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from gymnasium import spaces

from pgcli.algorithm.learner import build_agent
from pgcli.config import choices
from pgcli.config.rules import violations
from pgcli.config.schema import Config
from pgcli.errors import UsageError
from pgcli.inspection.gradient_check.measurement import batches_of, estimates_of, gradient_of_return, reduced
from pgcli.inspection.gradient_check.problems import FiniteProblem, chain_mdp
from pgcli.policies.policy import Policy
from pgcli.report.plots import COLORS, STYLE
from pgcli.runs.outputs import check_output, write_output

SURVIVAL = 8  # steps at most; each pays 1


class Aged(NamedTuple):
    """An estimator on data of the policy `age` updates ago; bias and deviation are relative to |∇J|."""

    ratios: str
    age: int
    bias: float  # |E[g] - ∇J| / |∇J|
    standard_deviation: float  # the root of the trace of g's covariance, over |∇J|


def over_age(config: Config, oldest: int) -> list[Aged]:
    """Compute the bias and the standard deviation of each kind of importance weights.

    The data are up to `oldest` updates old.

    The policy survives a step with probability p, and begins with 1/2. Each update is one exact step of ascent along
    ∇J with `optimizer.learning_rate`. The estimate is that of `config` from two trajectories.

    Raises: UsageError: if no kind of weights suits the config.
    """
    torch.set_num_threads(1)
    problem = FiniteProblem("survival", "", chain_mdp(SURVIVAL, 1.0, 0.0), spaces.Discrete, 2, [0.0, 0.0])
    off_policy = config.algorithm.model_copy(update={"objective": "importance_sampling", "reuse": oldest + 1})
    variants = [
        config.model_copy(update={"algorithm": off_policy.model_copy(update={"ratios": kind})})
        for kind in get_args(choices.Ratios)
    ]
    variants = [variant for variant in variants if not any(violations(variant))]
    if not variants or config.has_value:
        raise UsageError(
            "the age of data is measured for whole episodes without a value function",
            "use `rollout: {episodes: 64}` and another `algorithm.baseline`",
        )
    found = []
    for variant in variants:
        agent = build_agent(problem.observation_space, problem.action_space, reduced(variant, problem))
        problem.initialize(agent.policy.double())
        policies = _ascended(problem, agent.policy, variant, oldest)
        truth = gradient_of_return(problem, agent.policy, variant.algorithm.gamma)
        size = float(np.linalg.norm(truth))
        for age, actor in enumerate(reversed(policies)):
            data = problem.data(actor, 0, np.random.default_rng(0))
            batches, chances = batches_of(data, problem.columns, exchangeable=variant.group_size == 1)
            assert chances is not None
            estimates = estimates_of(agent, data.trajectories, batches)
            mean = chances @ estimates
            variance = float(chances @ np.square(estimates - mean).sum(1))
            bias = float(np.linalg.norm(mean - truth))
            found.append(Aged(variant.algorithm.ratios, age, bias / size, variance**0.5 / size))
    return found


def _ascended(problem: FiniteProblem, policy: Policy, config: Config, updates: int) -> list[Policy]:
    """Take exact steps of gradient ascent; return the policy before each and after the last."""
    policies = [deepcopy(policy)]
    for _ in range(updates):
        gradient = torch.from_numpy(gradient_of_return(problem, policy, config.algorithm.gamma))
        parts = torch.split(gradient, [parameter.numel() for parameter in policy.parameters()])
        with torch.no_grad():
            for parameter, part in zip(policy.parameters(), parts, strict=True):
                parameter.add_(part.view_as(parameter), alpha=config.optimizer.learning_rate)
        policies.append(deepcopy(policy))
    return policies


def draw_age(config: Config, oldest: int, output: Path) -> Path:
    """Draw bias and standard deviation over the age of the data, and return the file.

    Raises: RunDirectoryError: if the file cannot be written; UsageError, as `over_age`, and for another kind of file.
    """
    suffix = output.suffix.lower()[1:]
    if suffix not in ("png", "svg", "pdf"):
        raise UsageError(f"{output}: not a .png, .svg or .pdf file", "for example -o ratios.png")
    check_output(output)
    write_output(output, _as_figure(over_age(config, oldest), suffix))
    return output


def _as_figure(rows: Sequence[Aged], suffix: str) -> bytes:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    kinds, stream = list(dict.fromkeys(row.ratios for row in rows)), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        panels: Any = figure.subplots(1, 2, sharex=True)
        for axes, column in zip(panels, ("bias", "standard_deviation"), strict=True):
            for number, kind in enumerate(kinds):
                own = [row for row in rows if row.ratios == kind]
                x, y = [row.age for row in own], [getattr(row, column) for row in own]
                axes.plot(x, y, marker="os^v"[number], markersize=4, color=COLORS[number], label=kind)
            axes.set_xlabel("age of the data, in updates")
            axes.set_title(f"{column.replace('_', ' ')} / |∇J|", loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels[0].legend(frameon=False, title="algorithm.ratios")
        mark = {"png": {"Software": "pgcli"}, "svg": {"Date": None, "Creator": "pgcli"}}
        metadata: Any = mark.get(suffix, {"CreationDate": None, "Creator": "pgcli"})
        figure.savefig(stream, format=suffix, dpi=200, metadata=metadata)
    return stream.getvalue()
