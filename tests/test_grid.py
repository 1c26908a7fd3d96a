"""The full grid returns × baseline × objective: each cell is exact, biased as documented, or rejected.

A value that is added to one of the three and not classified here makes a test fail.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any, Literal, get_args

import pytest
import torch
from gymnasium import spaces
from helpers import World, ascent, chain, config, trajectories

from pgcli.algorithm.learner import build_agent
from pgcli.algorithm.policy_gradient import PolicyGradient
from pgcli.config import Config, config_from_data, override
from pgcli.config.schema import AlgorithmConfig
from pgcli.errors import ConfigError, UsageError
from pgcli.estimators.trajectories import Trajectories

EXACT = 1e-10
Kind = Literal["exact", "biased by design", "refused"]


def choices(key: str) -> tuple[str, ...]:
    return get_args(AlgorithmConfig.model_fields[key].annotation)


# The class of a pair of returns and baseline, for every objective on data of the policy's own.
# lambda_return and vtrace are exact with the value of the policy; what another V costs, a test below tells.
PAIRS: dict[tuple[str, str], Kind] = {
    ("total", "none"): "exact",
    ("total", "mean"): "biased by design",  # each trajectory is part of its own baseline: 1 - 1/N
    ("total", "leave_one_out"): "exact",
    ("total", "optimal"): "exact",
    ("total", "group"): "biased by design",  # 1 - 1/group_size; exact with group_mean leave_one_out
    ("total", "value"): "exact",
    ("reward_to_go", "none"): "exact",
    ("reward_to_go", "mean"): "biased by design",  # 1 - 1/N_t of the N_t that run at t
    ("reward_to_go", "leave_one_out"): "exact",
    ("reward_to_go", "optimal"): "refused",
    ("reward_to_go", "group"): "biased by design",
    ("reward_to_go", "value"): "exact",
    **{
        (returns, baseline): "refused"
        for returns in ("lambda_return", "vtrace")
        for baseline in ("none", "mean", "leave_one_out", "optimal", "group")
    },
    ("lambda_return", "value"): "exact",
    ("vtrace", "value"): "exact",
}
CELLS: dict[tuple[str, str, str], Kind] = {
    (*pair, objective): kind
    for pair, kind in PAIRS.items()
    for objective in ("policy_gradient", "importance_sampling", "clip")
} | {("vtrace", "value", "policy_gradient"): "refused"}
GRID = list(product(choices("returns"), choices("baseline"), choices("objective")))


# ----------------------------------------------------------------------------- a survival chain that shows the time

STEPS, THETA, GAMMA, LAMBDA = 3, 0.5, 0.9, 0.6
P = 1 / (1 + math.exp(-THETA))
SURVIVAL = chain(THETA, STEPS, every_step=1, at_the_end=0)  # a reward per step as long as it goes right
# J = 1 + pγ + (pγ)², with dp/dθ = p (1 - p); V_t is what remains of it
GRADIENT = (1 - P) * (P * GAMMA + 2 * (P * GAMMA) ** 2)
VALUES = [1 + P * GAMMA + (P * GAMMA) ** 2, 1 + P * GAMMA, 1.0, 0.0]
ANY_VALUES = [0.3, -1.0, 2.0, 0.5]  # a baseline may say anything of a state


def timed_agent(values: Sequence[float], **algorithm: Any) -> PolicyGradient:
    """Build an agent in float64 that sees t: the same π = softmax(0, θ) at every t, and V from a table.

    The gradient of its bias is that with respect to the logits, as in `softmax_agent`.
    """
    settings = config(
        policy={"hidden_sizes": []}, algorithm={"average": "episodes", "gamma": GAMMA, "gae_lambda": LAMBDA} | algorithm
    )
    agent = build_agent(spaces.Discrete(STEPS + 1), spaces.Discrete(2), settings)
    weight, bias = agent.policy.double().parameters()
    with torch.no_grad():
        weight.zero_()
        bias.copy_(torch.tensor([0.0, THETA]))
        if agent.value is not None:
            table, constant = agent.value.double().parameters()
            table.copy_(torch.tensor([values], dtype=torch.float64))
            constant.zero_()
    return agent


def timed(batch: Trajectories, own: bool) -> Trajectories:
    """Show t instead of 0; with `own`, the data is marked as the policy's own, and ratios are computed."""
    t = torch.arange(len(batch.obs))[:, None].expand(-1, batch.mask.shape[1])
    behavior = torch.tensor([1 - P, P], dtype=torch.float64).log()[batch.actions] * batch.mask
    return replace(batch, obs=t, behavior_log_probs=behavior if own else None)


def mean_gradient(agent: PolicyGradient, n: int, world: World = SURVIVAL) -> float:
    """Compute E[∂/∂θ] from every batch of n episodes."""
    mean = torch.zeros(())
    for each in product(world, repeat=n):
        batch = timed(
            trajectories(*(episode for _, episode in each)), agent.config.algorithm.objective != "policy_gradient"
        )
        mean = mean + math.prod(p for p, _ in each) * ascent(agent, batch)
    assert mean[0].item() == pytest.approx(-mean[1].item(), abs=EXACT)  # scores sum to zero over actions
    return mean[1].item()


def shrunk(per_step: bool, n: int) -> float:
    """Compute the factor left by own shares: 1 - 1/n of all, or 1 - 1/n_t of each step over the n_t of n that run.

    Step t brings γ^t p (1 - p) γ V_t+1 where it is reached, q = p^t; E[n_t - 1; n_t > 0] / n = q - (1 - (1 - q)^n) / n.
    """
    total = 0.0
    for t in range(STEPS):
        q = P**t
        running = q - (1 - (1 - q) ** n) / n if per_step else (1 - 1 / n) * q
        total += GAMMA**t * running * P * (1 - P) * GAMMA * VALUES[t + 1]
    return total


def of_cell(returns: str, baseline: str, objective: str) -> dict[str, Any]:
    """Return the cell's config with all keys that make it valid and discounted."""
    group = {"group_size": 2} if baseline == "group" else {}
    weighting = {"discount_weighting": True} if returns != "total" else {}
    return {"returns": returns, "baseline": baseline, "objective": objective, **group, **weighting}


def test_every_cell_is_classified_and_no_other() -> None:
    assert set(GRID) == set(CELLS)
    assert {kind: list(CELLS.values()).count(kind) for kind in get_args(Kind)} == {
        "exact": 26,
        "biased by design": 12,
        "refused": 34,
    }


REFUSED = [cell for cell in GRID if CELLS.get(cell) == "refused"]


@pytest.mark.parametrize("cell", REFUSED, ids="-".join)
def test_a_meaningless_cell_is_rejected(cell: tuple[str, str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_data({"rollout": {"episodes": 4}, "algorithm": of_cell(*cell)}, "cell")
    for problem in caught.value.problems:
        assert problem.message.startswith("`algorithm.")
        assert re.search(r"use `\w+: \w+`", problem.hint)


@pytest.mark.parametrize("cell", [cell for cell in GRID if cell not in REFUSED], ids="-".join)
def test_a_cell_is_exact_or_biased_as_documented(cell: tuple[str, str, str]) -> None:
    """On two trajectories, so that own shares are large. V is exact where returns bootstrap."""
    kind, algorithm = CELLS[cell], of_cell(*cell)
    config_from_data({"rollout": {"episodes": 4}, "algorithm": algorithm}, "cell")  # not refused
    by_value = cell[0] in ("lambda_return", "vtrace")
    g = mean_gradient(timed_agent(VALUES if by_value else ANY_VALUES, **algorithm), 2)
    if kind == "exact":
        assert g == pytest.approx(GRADIENT, abs=EXACT)
    else:
        assert g == pytest.approx(shrunk(per_step=cell[0] != "total", n=2), abs=EXACT)
        assert g < 0.9 * GRADIENT


@pytest.mark.parametrize("objective", choices("objective"))
@pytest.mark.parametrize("returns", ["total", "reward_to_go"])
def test_a_group_that_leaves_the_own_trajectory_out_is_exact(returns: str, objective: str) -> None:
    agent = timed_agent([], **of_cell(returns, "group", objective), group_mean="leave_one_out")
    assert mean_gradient(agent, 2) == pytest.approx(GRADIENT, abs=EXACT)


# ------------------------------------------------------------------------------- data of another policy, exactly

BEHAVIOR = -0.3  # μ's θ
Q = 1 / (1 + math.exp(-BEHAVIOR))
ACTED = chain(BEHAVIOR, STEPS, every_step=1, at_the_end=0)


def off_policy_kind(returns: str, baseline: str, objective: str, ratios: str) -> Kind:
    """Classify a cell on data of another policy μ: only products of ratios turn expectations over μ into those over π.

    V is exact where returns bootstrap.
    """
    pair = PAIRS[returns, baseline]
    if pair == "refused" or (objective == "policy_gradient" and (returns == "vtrace" or ratios != "step")):
        return "refused"
    if ratios != "step" and (returns == "vtrace" or (objective == "clip" and ratios != "sequence")):
        return "refused"
    return pair if ratios in ("per_decision", "trajectory") else "biased by design"


OFF_POLICY = {
    cell: off_policy_kind(*cell)
    for cell in product(*map(choices, ("returns", "baseline", "objective", "ratios")))
    if cell[2] != "policy_gradient"  # it is on-policy
}


def off_policy_gradient(agent: PolicyGradient, n: int) -> float:
    """Compute E[∂/∂θ] from every batch of n episodes of μ."""
    mean, behavior = 0.0, torch.tensor([1 - Q, Q], dtype=torch.float64).log()
    for each in product(ACTED, repeat=n):
        batch = timed(trajectories(*(episode for _, episode in each)), own=False)
        batch = replace(batch, behavior_log_probs=behavior[batch.actions] * batch.mask)
        mean += math.prod(p for p, _ in each) * float(ascent(agent, batch)[1])
    return mean


def test_every_off_policy_cell_is_classified() -> None:
    kinds = list(OFF_POLICY.values())
    assert {kind: kinds.count(kind) for kind in get_args(Kind)} == {
        "exact": 16,
        "biased by design": 58,
        "refused": 118,
    }


@pytest.mark.parametrize("cell", [cell for cell, kind in OFF_POLICY.items() if kind != "refused"], ids="-".join)
def test_an_off_policy_cell_is_exact_or_biased_as_documented(cell: tuple[str, str, str, str]) -> None:
    """With products of ratios, E[g] is ∇J to 1e-10, up to the own share of a baseline; else it is far off."""
    *point, ratios = cell
    algorithm = of_cell(*point) | {"ratios": ratios, "update_epochs": 2}
    config_from_data({"rollout": {"episodes": 4}, "algorithm": algorithm}, "cell")  # not refused
    by_value = cell[0] in ("lambda_return", "vtrace")
    g = off_policy_gradient(timed_agent(VALUES if by_value else ANY_VALUES, **algorithm), 2)
    if OFF_POLICY[cell] == "exact":
        assert g == pytest.approx(GRADIENT, abs=EXACT)
    else:
        assert abs(g - GRADIENT) > 0.01 * GRADIENT
    if (cell[0], ratios) == ("total", "trajectory") and cell[1] in ("mean", "group"):
        assert g == pytest.approx(GRADIENT / 2, abs=EXACT), "1 - 1/N, as on the policy's own data"


@pytest.mark.parametrize("cell", [cell for cell, kind in OFF_POLICY.items() if kind == "refused"], ids="-".join)
def test_a_meaningless_off_policy_cell_is_rejected(cell: tuple[str, str, str, str]) -> None:
    *point, ratios = cell
    algorithm = of_cell(*point) | {"ratios": ratios, "update_epochs": 2}
    with pytest.raises(ConfigError) as caught:
        config_from_data({"rollout": {"episodes": 4}, "algorithm": algorithm}, "cell")
    for problem in caught.value.problems:
        assert re.search(r"use `\w+: \w+`", problem.hint)


@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("returns", "objective"),
    [
        (r, o)
        for r, b, o in GRID
        if b == "value" and r in ("lambda_return", "vtrace") and CELLS.get((r, b, o)) == "exact"
    ],
)
def test_a_wrong_value_function_biases_bootstrapped_estimators_by_its_errors(
    returns: str, objective: str, lam: float
) -> None:
    """E[A_t | a_t] is off by (1 - λ) Σ_n λ^(n-1) γ^n E[e_t+n | a_t], with e = V - V_true; by nothing at λ = 1.

    V(s_t) itself is a baseline. After the last step there is no next state, so no error.
    V-trace is that at λ = 1 for its first step, and the λ-return from the next on: its q_t is r + γ v_t+1.
    """
    error = [v - true for v, true in zip(ANY_VALUES, VALUES, strict=True)]
    agent = timed_agent(ANY_VALUES, **of_cell(returns, "value", objective) | {"gae_lambda": lam})
    expected = GRADIENT
    for t in range(STEPS - 1):
        ahead = 0.0  # what going right at t makes of the error, in the mean over what follows
        for n in range(1, STEPS - t):
            reached = P ** (n - 1)  # s_t+n, given that t goes right
            if returns == "lambda_return":
                ahead += (1 - lam) * lam ** (n - 1) * GAMMA**n * reached * error[t + n]
            elif n > 1:
                ahead += (1 - lam) * lam ** (n - 2) * GAMMA**n * reached * error[t + n]
        expected += GAMMA**t * P**t * P * (1 - P) * ahead
    assert mean_gradient(agent, 1) == pytest.approx(expected, abs=EXACT)
    biased = lam < 1
    assert (abs(expected - GRADIENT) > 1e-3) == biased


@pytest.mark.parametrize("objective", choices("objective"))
@pytest.mark.parametrize("average", ["steps", "episode_means"])
def test_other_averages_weigh_short_trajectories_more(average: str, objective: str) -> None:
    """So they are not the gradient of the return; computed by hand from the four possible lengths."""
    agent = timed_agent([], **of_cell("total", "none", objective) | {"average": average})
    expected = 0.0
    for probability, episode in SURVIVAL:
        score = sum((a == 1) - P for a, _ in episode)
        expected += probability * score * sum(GAMMA**t for t in range(len(episode))) / len(episode)
    n = 1 if average == "steps" else 2  # a mean over all steps of two depends on both lengths
    assert mean_gradient(agent, n) == pytest.approx(expected, abs=EXACT)
    assert abs(expected - GRADIENT) > 0.05


# --------------------------------------------------------------------------------------------------- bad combinations

SEGMENTS = "rollout={episodes: null, steps: 8}"
OF_SEGMENTS = (SEGMENTS, "algorithm.returns=lambda_return", "algorithm.baseline=value")
OFF_POLICY_UPDATE = ("algorithm.objective=importance_sampling", "algorithm.update_epochs=2")
REASONS: list[tuple[tuple[str, ...], str, str, str, tuple[str, ...]]] = [
    # overrides; the keys that are blamed; a word of the reason; a word of the hint; overrides that fix it
    (
        ("algorithm.returns=lambda_return",),
        "returns baseline",
        "needs a value function",
        "baseline: value",
        ("algorithm.baseline=value",),
    ),
    (
        ("algorithm.returns=vtrace", "algorithm.objective=clip"),
        "returns baseline",
        "`vtrace` needs a value function",
        "reward_to_go",
        ("algorithm.baseline=value",),
    ),
    (
        ("algorithm.returns=vtrace", "algorithm.baseline=value"),
        "returns objective",
        "policy_gradient is on-policy",
        "importance_sampling",
        ("algorithm.objective=importance_sampling",),
    ),
    (("algorithm.baseline=optimal",), "baseline returns", "total return R(τ)", "total", ("algorithm.returns=total",)),
    (
        ("algorithm.baseline=optimal", "algorithm.returns=total", "rollout.episodes=1"),
        "baseline rollout.episodes",
        "at least two trajectories",
        "baseline: none",
        ("algorithm.baseline=none",),
    ),
    (
        ("algorithm.baseline=leave_one_out", "rollout.episodes=1"),
        "baseline rollout.episodes",
        "at least two trajectories",
        "more episodes",
        ("rollout.episodes=2",),
    ),
    (("rollout.episodes=1",), "baseline rollout.episodes", "would be zero", "none", ("algorithm.baseline=none",)),
    (
        ("algorithm.baseline=group",),
        "baseline group_size",
        "needs a group size",
        "group_size",
        ("algorithm.group_size=8",),
    ),
    (
        ("algorithm={baseline: group, group_size: 5}",),
        "group_size rollout.episodes",
        "64 episodes cannot be divided",
        "multiple",
        ("rollout.episodes=60",),
    ),
    (("algorithm={baseline: group, group_size: 1}",), "group_size", "zero", "larger", ("algorithm.group_size=2",)),
    (("algorithm.group_size=4",), "group_size baseline", "has groups", "remove", ("algorithm.baseline=group",)),
    (
        ("algorithm.group_mean=leave_one_out",),
        "group_mean",
        "no effect with `algorithm.baseline: mean`",
        "baseline: group",
        ("algorithm.baseline=group", "algorithm.group_size=4"),
    ),
    (
        ("algorithm={baseline: group, group_size: 4, standardize: group}",),
        "standardize baseline returns",
        "total returns",
        "returns: total",
        ("algorithm.returns=total",),
    ),
    *(
        ((f"algorithm.{key}=3",), f"{key} objective", "does not correct", f"{key}: 1", (f"algorithm.objective={fix}",))
        for key in ("update_epochs", "num_minibatches", "reuse")
        for fix in ("clip", "importance_sampling")
    ),
    *(
        ((f"algorithm.{key}=0.1",), f"{key} objective", "KL and its gradient are 0", key, ("algorithm.objective=clip",))
        for key in ("kl_coef", "target_kl")
    ),
    (
        ("algorithm.ratios=trajectory",),
        "ratios",
        "no effect with `algorithm.objective: policy_gradient`",
        "importance_sampling",
        ("algorithm.objective=importance_sampling",),
    ),
    *(
        (
            ("algorithm={objective: clip, update_epochs: 2}", f"algorithm.ratios={ratios}"),
            "ratios objective",
            "not a product of ratios",
            "ratios: sequence",
            (fix,),
        )
        for ratios in ("per_decision", "trajectory")
        for fix in ("algorithm.ratios=sequence", "algorithm.objective=importance_sampling")
    ),
    *(
        (
            (
                *OF_SEGMENTS,
                *OFF_POLICY_UPDATE,
                f"algorithm.ratios={ratios}",
            ),
            "ratios rollout.steps",
            "does not contain the whole trajectory",
            "ratios: step",
            ("algorithm.ratios=step",),
        )
        for ratios in ("per_decision", "trajectory", "sequence")
    ),
    (
        (
            *OFF_POLICY_UPDATE,
            *("algorithm.ratios=trajectory", "algorithm.returns=vtrace", "algorithm.baseline=value"),
        ),
        "ratios returns",
        "V-trace weights rewards itself",
        "lambda_return",
        ("algorithm.returns=lambda_return",),
    ),
    (
        (
            "algorithm={objective: importance_sampling, num_minibatches: 2, ratios: trajectory}",
            "policy={memory: gru, backpropagation_steps: 4}",
        ),
        "ratios policy.backpropagation_steps",
        "do not contain whole trajectories",
        "num_minibatches: 1",
        ("policy.backpropagation_steps=null",),
    ),
    (
        ("algorithm={objective: importance_sampling, reuse: 2, ratios: per_decision, standardize: batch}",),
        "ratios standardize",
        "no fixed mean",
        "ratios: trajectory",
        ("algorithm.ratios=trajectory",),
    ),
    (
        (
            "algorithm={objective: importance_sampling, reuse: 2, ratios: per_decision, self_normalize: true}",
            "diagnostics.every=1",
        ),
        "ratios self_normalize diagnostics.every",
        "no formula",
        "remove self_normalize",
        ("algorithm.ratios=trajectory",),
    ),
    *(
        (
            (f"algorithm.{key}={value}", f"algorithm.objective={objective}"),
            key,
            f"no effect with `algorithm.objective: {objective}`",
            "remove it",
            ("algorithm.objective=importance_sampling",),
        )
        for key, value in (("importance_bound", "2"), ("self_normalize", "true"))
        for objective in ("policy_gradient", "clip")
    ),
    (
        ("algorithm={returns: total, discount_weighting: true}",),
        "discount_weighting returns",
        "already gives the exact gradient",
        "reward_to_go",
        ("algorithm.discount_weighting=false",),
    ),
    (
        (SEGMENTS,),
        "rollout.steps baseline",
        "bootstrapping the rest needs a value function",
        "baseline: value",
        ("algorithm.baseline=value",),
    ),
    (
        (SEGMENTS, "algorithm={baseline: value, returns: total}"),
        "rollout.steps returns",
        "does not contain the total",
        "lambda_return",
        ("algorithm.returns=lambda_return",),
    ),
    (
        (*OF_SEGMENTS, "algorithm.discount_weighting=true"),
        "rollout.steps discount_weighting",
        "do not know the time t",
        "remove discount_weighting",
        ("algorithm.discount_weighting=false",),
    ),
    *(
        (
            (*OF_SEGMENTS, f"algorithm.average={average}"),
            "rollout.steps average",
            "not whole trajectories",
            "average: steps",
            ("algorithm.average=steps",),
        )
        for average in ("episodes", "episode_means")
    ),
    (
        (*OF_SEGMENTS, "rollout.horizon=5"),
        "rollout.steps rollout.horizon",
        "a segment ends after",
        "max_episode_steps",
        ("rollout.horizon=null", "env.max_episode_steps=5"),
    ),
    (
        (*OF_SEGMENTS, "algorithm.objective=clip", "algorithm.reuse=2"),
        "rollout.steps reuse",
        "needs whole episodes",
        "reuse: 1",
        ("algorithm.reuse=1",),
    ),
    (
        (*OF_SEGMENTS, "algorithm.objective=clip", "algorithm.num_minibatches=513"),
        "num_minibatches rollout.steps",
        "than the 512 steps",
        "fewer",
        ("algorithm.num_minibatches=512",),
    ),
    (
        ("rollout.steps=8", "algorithm.baseline=value"),
        "rollout.steps rollout.episodes",
        "either segments or whole episodes",
        "episodes: null",
        ("rollout.episodes=null",),
    ),
    *(
        (
            ("algorithm.baseline=value", "value.shared_trunk=true", f"value.{key}={value}"),
            f"value.shared_trunk value.{key}",
            "together with the policy",
            f"remove {key}",
            (f"value.{key}=null",),
        )
        for key, value in (("learning_rate", "0.1"), ("update_epochs", "3"), ("hidden_sizes", "[8]"))
    ),
    *(
        (
            ("algorithm.baseline=value", "optimizer={clip_gradients: together, max_grad_norm: 1}", f"value.{key}=3"),
            f"optimizer.clip_gradients value.{key}",
            "together with the policy",
            f"remove {key}",
            (f"value.{key}=null",),
        )
        for key in ("learning_rate", "update_epochs")
    ),
    *(
        (
            ("optimizer.name=natural", f"algorithm.objective={objective}"),
            "optimizer.name objective",
            "starts from the policy that acted",
            "objective: policy_gradient",
            (fix,),
        )
        for objective in ("clip", "importance_sampling")
        for fix in ("algorithm.objective=policy_gradient", "optimizer.name=adam")
    ),
    (
        ("optimizer.name=natural", "algorithm.baseline=value", "value.shared_trunk=true"),
        "optimizer.name value.shared_trunk",
        "cannot train a trunk",
        "remove shared_trunk",
        ("value={shared_trunk: false, learning_rate: 0.001}",),
    ),
    (
        (
            *("algorithm.baseline=value", "value.learning_rate=null"),
            "optimizer={name: natural, clip_gradients: per_network}",
        ),
        "optimizer.name value.learning_rate",
        "does not suit adam",
        "learning_rate: 0.001",
        ("value.learning_rate=0.001",),
    ),
    (
        ("optimizer={name: natural, line_search: true}",),
        "optimizer.line_search optimizer.max_kl",
        "at most max_kl",
        "max_kl: 0.01",
        ("optimizer.max_kl=0.01",),
    ),
    (
        (
            "optimizer={name: natural, max_kl: 0.01, line_search: true}",
            "algorithm={estimator: my.py:f, baseline: mean}",
        ),
        "optimizer.line_search estimator",
        "own estimator",
        "remove line_search",
        ("optimizer.line_search=false",),
    ),
    (
        ("policy.log_std_bounds=[1, -1]",),
        "policy.log_std_bounds",
        "lower bound comes first",
        "exchange",
        ("policy.log_std_bounds=[-1, 1]",),
    ),
    (
        ("optimizer={name: natural, max_kl: 0.01, learning_rate: 0.1}",),
        "optimizer.learning_rate",
        "no effect with `optimizer.name: natural` and `optimizer.max_kl: 0.01`",
        "max_kl: null",
        ("optimizer.max_kl=null",),
    ),
    (
        ("optimizer={clip_gradients: together, max_grad_norm: 1}",),
        "optimizer.clip_gradients",
        "no effect with `algorithm.baseline: mean`",
        "baseline: value",
        ("algorithm.baseline=value",),
    ),
]


@pytest.mark.parametrize(
    ("overrides", "keys", "reason", "hint", "fix"), REASONS, ids=[" ".join(row[0]) for row in REASONS]
)
def test_an_invalid_combination_is_rejected_with_a_hint_that_works(
    overrides: tuple[str, ...], keys: str, reason: str, hint: str, fix: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Config(), overrides)
    (problem,) = caught.value.problems  # one mistake, one complaint
    names = [key if "." in key else f"algorithm.{key}" for key in keys.split()]
    assert problem.message.startswith(" and ".join(f"`{name}`" for name in names) + (": " if names[1:] else ""))
    assert reason in problem.message
    assert hint in problem.hint
    assert override(Config(), [*overrides, *fix]) != Config()


def test_several_invalid_combinations_are_reported_together() -> None:
    bad = (
        SEGMENTS,
        "algorithm={baseline: value, returns: total, discount_weighting: true, average: episodes, reuse: 2}",
    )
    with pytest.raises(ConfigError) as caught:
        override(Config(), bad)
    told = str(caught.value)
    assert len(caught.value.problems) == 6  # total twice: in segments, and weighed by γ^t
    assert all(key in told for key in ("returns", "discount_weighting", "average", "reuse", "objective"))


@pytest.mark.parametrize(
    ("space", "names"),
    [
        (spaces.Discrete(3), ("gaussian", "tanh_gaussian", "state_dependent_gaussian", "bernoulli")),
        (spaces.MultiDiscrete([2, 3]), ("gaussian", "tanh_gaussian", "state_dependent_gaussian", "bernoulli")),
        (spaces.MultiBinary(3), ("softmax", "gaussian", "tanh_gaussian", "state_dependent_gaussian")),
        (spaces.Box(-1, 1, (2,)), ("softmax", "bernoulli")),
    ],
    ids=str,
)
def test_an_unsuitable_distribution_is_rejected_when_the_agent_is_built(
    space: spaces.Space[Any], names: tuple[str, ...]
) -> None:
    for name in names:
        with pytest.raises(
            UsageError, match=f"policy.distribution: {name} does not support the action space"
        ) as caught:
            build_agent(spaces.Box(-1, 1, (2,)), space, config(policy={"distribution": name}))
        fitting = caught.value.hint.removeprefix("use ").replace("`", "").split(" or ")
        assert name not in fitting
        for other in fitting:  # and each that the hint names can be built
            build_agent(spaces.Box(-1, 1, (2,)), space, config(policy={"distribution": other}))
