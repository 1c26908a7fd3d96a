"""Small problems with a known ∇J.

∇J comes from all trajectories, from a model solved backwards in time, or in closed form.

J(θ) = E[Σ_t γ^t r_t] is written as a function of the policy's probabilities and differentiated. Neither sampling nor
the policy gradient theorem is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.distributions import StateDependentGaussian, TanhGaussian
from pgcli.policies.policy import Policy
from pgcli.policies.trajectory_outputs import trajectory_log_probs

Array = NDArray[Any]
Outcome = tuple[float, int, float, bool]  # probability, next state, reward, terminated


@dataclass(frozen=True)
class ProblemData:
    """Columns for batches.

    These are all possible columns with their `probabilities` [N], or a sample without them.
    """

    trajectories: Trajectories
    probabilities: Array | None


def initialize_linear(policy: Policy, logits: Sequence[float] | None = None) -> None:
    """Set parameters under which no two actions are alike."""
    random = np.random.default_rng(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            values = random.normal(0, 0.6, tuple(parameter.shape))
            if logits is not None and name == "network.0.bias" and len(logits) == len(values):
                values = np.array(logits)
            if "standard_deviation" in name:
                values = np.full(tuple(parameter.shape), math.log(0.7))
            parameter.copy_(torch.from_numpy(values))


def _sampled(obs: Array, actions: Array, rewards: Array, terminated: Array, mask: Array) -> Trajectories:
    """Return trajectories of whole episodes, truncated in the last row unless they terminate."""
    truncated = np.zeros_like(mask)
    truncated[-1] = mask[-1] & ~terminated[-1]
    return Trajectories(*map(torch.from_numpy, (obs, actions, rewards, terminated, truncated, mask)))


# ---------------------------------------------------------------------------------------------------- finite problems


@dataclass(frozen=True)
class FiniteMDP:
    """`moves[s][a]` lists the outcomes of an action.

    Episodes start in state 0 and are truncated at `horizon`.
    """

    moves: Sequence[Sequence[Sequence[Outcome]]]
    features: Array  # the observation of each state, [S, F]
    horizon: int


class Trajectory(NamedTuple):
    """A trajectory of a finite problem, whole or cut.

    It has one more state than actions. Actions are indices of a list.
    """

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: tuple[float, ...]
    terminated: bool
    truncated: bool


def enumerate_trajectories(
    mdp: FiniteMDP, rows: int | None = None, state: int = 0, t: int = 0
) -> Iterator[tuple[float, Trajectory]]:
    """Yield all possible trajectories from `state` at time `t`.

    Each comes with the product of its transition probabilities.

    They are whole episodes; with `rows`, at most that many steps of each.
    """
    for action, outcomes in enumerate(mdp.moves[state]):
        for p, after, reward, terminated in outcomes:
            truncated = not terminated and t + 1 == mdp.horizon
            if terminated or truncated or t + 1 == rows:
                yield p, Trajectory((state, after), (action,), (reward,), terminated, truncated)
                continue
            for q, rest in enumerate_trajectories(mdp, rows, after, t + 1):
                joined = ((state, *rest.states), (action, *rest.actions), (reward, *rest.rewards))
                yield p * q, Trajectory(*joined, rest.terminated, rest.truncated)


def enumerate_segments(mdp: FiniteMDP, rows: int) -> Iterator[tuple[float, list[Trajectory]]]:
    """Yield all possible segments of `rows` rows from a reset.

    A masked row follows each episode that ended.
    """
    for p, first in enumerate_trajectories(mdp, rows):
        left = rows - len(first.actions) - 1
        if left <= 0 or not (first.terminated or first.truncated):
            yield p, [first]
            continue
        for q, rest in enumerate_segments(mdp, left):
            yield p * q, [first, *rest]


def to_trajectories(mdp: FiniteMDP, actions: Array, columns: Sequence[Sequence[Trajectory]]) -> Trajectories:
    """Lay out columns as rollouts do: each trajectory, then one masked row, then the next."""
    rows = max(sum(len(one.actions) + 1 for one in column) - 1 for column in columns)
    shape = (rows, len(columns))
    states = np.zeros((rows + 1, len(columns)), int)
    chosen, rewards = np.zeros(shape, int), np.zeros(shape)
    terminated, truncated, mask = np.zeros((3, *shape), bool)
    for n, column in enumerate(columns):
        t = 0
        for one in column:
            end = t + len(one.actions)
            states[t : end + 1, n] = one.states
            chosen[t:end, n], rewards[t:end, n], mask[t:end, n] = one.actions, one.rewards, True
            terminated[end - 1, n], truncated[end - 1, n] = one.terminated, one.truncated
            t = end + 1
    arrays = (mdp.features[states], actions[chosen], rewards, terminated, truncated, mask)
    return Trajectories(*map(torch.from_numpy, arrays))


def _all_actions(kind: type, count: int) -> tuple[spaces.Space[Any], Array]:
    """Return a space of `count` actions, and all actions as a policy draws them.

    `count` is a power of 2, except for Discrete.
    """
    if kind is spaces.Discrete:
        return spaces.Discrete(count), np.arange(count)
    bits = int(math.log2(count))
    actions = np.stack(np.meshgrid(*[np.arange(2)] * bits, indexing="ij"), -1).reshape(count, bits)
    if kind is spaces.MultiDiscrete:
        return spaces.MultiDiscrete([2] * bits), actions
    return spaces.MultiBinary(bits), actions.astype(np.int8)


@dataclass
class FiniteProblem:
    """A finite MDP whose trajectories are enumerated, or `sampled` where there are too many."""

    name: str
    about: str
    mdp: FiniteMDP
    kind: type
    columns: int  # of one estimate
    logits: Sequence[float] | None = None  # of a policy without observations
    sampled: bool = False
    off_policy: bool = False
    rows: int | None = None  # of segments; None: whole episodes

    def __post_init__(self) -> None:
        self.horizon = self.mdp.horizon
        self.observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, self.mdp.features.shape[1:], np.float64)
        self.action_space, self.actions = _all_actions(self.kind, len(self.mdp.moves[0]))
        episodes = [] if self.sampled else [episode for _, episode in enumerate_trajectories(self.mdp)]
        self.lengths_vary = self.sampled or len({len(episode.actions) for episode in episodes}) > 1
        self.truncates = self.sampled or any(episode.truncated for episode in episodes)

    def initialize(self, policy: Policy) -> None:
        """Set the parameters of a linear policy; a recurrent one keeps its own."""
        if policy.memory is None:
            initialize_linear(policy, self.logits)

    def data(self, policy: Policy, estimates: int, random: np.random.Generator) -> ProblemData:
        """Return all possible columns with their probabilities under the behavior policy, or a sample."""
        if self.sampled:
            return ProblemData(self._sample(policy, estimates * self.columns, random), None)
        if self.rows is None:
            columns = [(p, [episode]) for p, episode in enumerate_trajectories(self.mdp)]
        else:
            columns = list(enumerate_segments(self.mdp, self.rows))
        trajectories = to_trajectories(self.mdp, self.actions, [column for _, column in columns])
        with torch.no_grad():
            log_probs = trajectory_log_probs(policy, trajectories)
        if self.off_policy:  # the behavior policy is an earlier one, closer to uniform
            log_probs = torch.where(trajectories.mask, (0.25 * log_probs.exp() + 0.75 / len(self.actions)).log(), 0)
        probabilities = np.array([p for p, _ in columns]) * np.exp(log_probs.sum(0).numpy())
        return ProblemData(replace(trajectories, behavior_log_probs=log_probs), probabilities)

    def expected_return(self, policy: Policy, gamma: float) -> Tensor:
        """Compute J: Σ_τ P(τ) R(τ) over all episodes. If `sampled`, use dynamic programming."""
        if self.sampled:
            return self._value_of_start(policy, gamma)
        episodes = list(enumerate_trajectories(self.mdp))
        trajectories = to_trajectories(self.mdp, self.actions, [[episode] for _, episode in episodes])
        returns = [p * sum(gamma**t * r for t, r in enumerate(episode.rewards)) for p, episode in episodes]
        weighted = torch.tensor(returns, dtype=torch.float64)
        return (weighted * trajectory_log_probs(policy, trajectories).sum(0).exp()).sum()

    def _value_of_start(self, policy: Policy, gamma: float) -> Tensor:
        """Compute V_0(s_0) backwards: V_t(s) = Σ_a π(a|s) [r(s,a) + γ Σ_s' p(s'|s,a) V_t+1(s')]."""
        moves, states, count = self.mdp.moves, len(self.mdp.moves), len(self.actions)
        rewards, transitions = np.zeros((states, count)), np.zeros((states, count, states))
        for state, row in enumerate(moves):
            for action, outcomes in enumerate(row):
                rewards[state, action] = sum(p * r for p, _, r, _ in outcomes)
                for p, after, _, terminated in outcomes:
                    transitions[state, action, after] += 0.0 if terminated else p
        obs = torch.from_numpy(self.mdp.features).repeat_interleave(count, 0)
        actions = torch.from_numpy(np.concatenate([self.actions] * states))
        pi = policy.distribution.log_probs(policy(obs), actions).exp().view(states, count)
        values = torch.zeros(states, dtype=torch.float64)
        for _ in range(self.mdp.horizon):
            values = (pi * (torch.from_numpy(rewards) + gamma * torch.from_numpy(transitions) @ values)).sum(1)
        return values[0]

    def _sample(self, policy: Policy, count: int, random: np.random.Generator) -> Trajectories:
        """Run `count` episodes together."""
        mdp, actor = self.mdp, policy.actor("sampled")
        most = max(len(outcomes) for row in mdp.moves for outcomes in row)
        table = np.zeros((len(mdp.moves), len(self.actions), most, 4))
        for state, row in enumerate(mdp.moves):
            for action, outcomes in enumerate(row):
                table[state, action, : len(outcomes)] = outcomes
        cumulative = table[..., 0].cumsum(2)
        noise = actor.noise(random, mdp.horizon, count)
        states, running, steps = np.zeros(count, int), np.ones(count, bool), []
        for t in range(mdp.horizon):
            drawn = actor.act(mdp.features[states], noise[t])
            equal = drawn.reshape(count, 1, -1) == self.actions.reshape(1, len(self.actions), -1)
            chosen = equal.all(2).argmax(1)
            outcome = (cumulative[states, chosen] <= random.random(count)[:, None]).sum(1).clip(max=most - 1)
            after, reward, over = table[states, chosen, outcome, 1:].T
            steps.append((states, drawn, np.where(running, reward, 0.0), (over > 0) & running, running))
            states, running = after.astype(int), running & (over == 0)
        seen, actions, rewards, terminated, mask = (np.stack(column) for column in zip(*steps, strict=True))
        return _sampled(mdp.features[np.concatenate((seen, states[None]))], actions, rewards, terminated, mask)


# ------------------------------------------------------------------------------------------------ continuous problems


@dataclass
class ContinuousProblem:
    """A linear-quadratic problem: s' = s + a and r = -s² - (a - 1)², from s = 1.

    With one step, it is a target.

    Under a linear policy with Gaussian noise, s is Gaussian, so J follows from its mean and variance. A single step is
    computed by quadrature, which covers the squashed Gaussian too.
    """

    name: str
    about: str
    horizon: int
    columns: int  # of one estimate
    bounded: bool = False
    lengths_vary = off_policy = False
    rows = None  # whole episodes
    pace = 1.0  # of s, per unit of an action

    def __post_init__(self) -> None:
        self.observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        bound = 2.0 if self.bounded else np.inf
        self.action_space: spaces.Space[Any] = spaces.Box(-bound, bound, (1,), np.float64)
        self.truncates = self.horizon > 1

    def initialize(self, policy: Policy) -> None:
        """Set a policy that moves s slowly towards 0."""
        initialize_linear(policy)
        with torch.no_grad():
            for name, parameter in policy.network.named_parameters():
                parameter.fill_(-0.4 if name == "0.weight" else 0.3)

    def data(self, policy: Policy, estimates: int, random: np.random.Generator) -> ProblemData:
        """Return a sample for so many estimates."""
        count, actor = estimates * self.columns, policy.actor("sampled")
        noise = actor.noise(random, self.horizon, count)
        s, steps = np.ones((count, 1)), []
        for t in range(self.horizon):
            drawn = actor.act(self.observe(s), noise[t])
            a = actor.for_environment(drawn)
            steps.append((self.observe(s), drawn, -(s**2 + (a - 1) ** 2)[:, 0]))
            s = s + self.pace * a
        seen, actions, rewards = (np.stack(column) for column in zip(*steps, strict=True))
        mask, terminated = np.ones(rewards.shape, bool), np.zeros(rewards.shape, bool)
        terminated[-1] = self.horizon == 1
        obs = np.concatenate((seen, self.observe(s)[None]))
        return ProblemData(_sampled(obs, actions, rewards, terminated, mask), None)

    def observe(self, s: Array) -> Array:
        """Return the observations of states [N, 1]."""
        return s

    def expected_return(self, policy: Policy, gamma: float) -> Tensor:
        """Compute J from the moments of s. One step uses Gauss-Hermite quadrature, exact for a quadratic."""
        distribution: Any = policy.distribution
        if self.horizon == 1:
            outputs = policy(torch.ones(1, 1, dtype=torch.float64))[0]
            deviation = distribution.log_standard_deviation.exp()
            if isinstance(distribution, StateDependentGaussian):
                deviation = ((outputs[1:].square() @ deviation.square()) + 1e-6).sqrt()
            nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(100))
            a = outputs[:1] + deviation * nodes
            if isinstance(distribution, TanhGaussian):
                a = 2 * a.tanh()
            cost: Tensor = ((1 + (a - 1).square()) * weights).sum() / weights.sum()
            return -cost
        gain, bias = (parameter.flatten()[0] for parameter in policy.network.parameters())
        noise = (2 * distribution.log_standard_deviation[0]).exp()
        mean, variance, total = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64).unbind()
        for t in range(self.horizon):
            cost = variance + mean**2 + gain**2 * variance + noise + (gain * mean + bias - 1) ** 2
            total = total - gamma**t * cost
            mean, variance = mean + gain * mean + bias, (1 + gain) ** 2 * variance + noise
        return total


@dataclass
class ExplorationProblem(ContinuousProblem):
    """A problem for noise that depends on the state: s' = s + 0.3 a.

    (s, 1) is observed, and a = μ + σ₁ s z₁ + σ₂ z₂.

    Steps that share z are a polynomial in it, so Gauss-Hermite quadrature over it is exact, and the value stays a
    quadratic in s.
    """

    pace = 0.3  # slow enough for noise that lasts: it multiplies s by a constant

    def __post_init__(self) -> None:
        super().__post_init__()
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def initialize(self, policy: Policy) -> None:
        """Set a policy that moves s down, too far for any number of steps.

        ∇J is then large and has one direction.
        """
        super().initialize(policy)
        head: Any = policy.network[0]
        distribution: Any = policy.distribution
        with torch.no_grad():
            head.weight[:, 1] = 0.0
            head.bias.fill_(-0.8)
            distribution.log_standard_deviation.fill_(math.log(0.4))

    def observe(self, s: Array) -> Array:
        """Return the observations of states [N, 1]."""
        return np.concatenate((s, np.ones_like(s)), 1)

    def expected_return(self, policy: Policy, gamma: float) -> Tensor:
        """Compute J backwards over the blocks of steps that share z.

        Before each block, the value is v₀ + v₁ s + v₂ s².
        """
        gain, constant, bias = torch.cat([parameter.flatten() for parameter in policy.network.parameters()])
        distribution: Any = policy.distribution
        first, second = distribution.log_standard_deviation.flatten().exp()
        steps = kept_steps(policy, self.horizon)
        nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(steps + 2))
        weight = torch.outer(weights, weights) / weights.sum() ** 2
        slope = gain + first * nodes[:, None] + torch.zeros_like(weight)  # a = slope · s + shift, under each z
        shift = constant + bias + second * nodes + torch.zeros_like(weight)
        value = torch.zeros(3, dtype=torch.float64)
        for start in reversed(range(0, self.horizon, steps)):
            length = min(steps, self.horizon - start)
            x, y = torch.ones_like(weight), torch.zeros_like(weight)  # s_t = x s + y
            total = [torch.zeros_like(weight)] * 3
            for t in range(length):
                a, b = slope * x, slope * y + shift
                squares = (y**2 + (b - 1) ** 2, 2 * (x * y + a * (b - 1)), x**2 + a**2)
                total = [one - gamma**t * square for one, square in zip(total, squares, strict=True)]
                x, y = x + self.pace * a, y + self.pace * b
            later = (value[0] + value[1] * y + value[2] * y**2, value[1] * x + 2 * value[2] * x * y, value[2] * x**2)
            parts = [(weight * (one + gamma**length * v)).sum() for one, v in zip(total, later, strict=True)]
            value = torch.stack(parts)
        return value.sum()


def kept_steps(policy: Policy, horizon: int) -> int:
    """Return for how many steps of an episode a policy keeps its noise: 1 if each step has its own."""
    noise = policy.actor("sampled").noise(np.random.default_rng(0), horizon, 1)
    same = [bool(row.size and np.array_equal(row, noise[0])) for row in noise]
    return max(same.index(False) if False in same else horizon, 1)


CheckProblem = FiniteProblem | ContinuousProblem


# ----------------------------------------------------------------------------------------------------------- the MDPs


def bandit_mdp(rewards: Sequence[float]) -> FiniteMDP:
    """One step and one reward for each action, without observations."""
    return FiniteMDP([[[(1.0, 0, reward, True)] for reward in rewards]], np.zeros((1, 1)), 1)


def chain_mdp(steps: int, each: float, end: float, features: Array | None = None) -> FiniteMDP:
    """Right (1) continues and pays `each`; left (0) ends the episode.

    The last step right ends it and adds `end`.
    """
    moves = [
        [[(1.0, 0, each, True)], [(1.0, k + 1, each, False) if k < steps - 1 else (1.0, 0, each + end, True)]]
        for k in range(steps)
    ]
    return FiniteMDP(moves, np.zeros((steps, 1)) if features is None else features, steps)


def corridor_mdp(limit: int, features: Array | None = None) -> FiniteMDP:
    """Four places, left and right, from the second.

    Rewards depend on place and action; the last place ends it.
    """
    places = (1, 0, 2, 3)  # state 0 is the second place
    state_of = {place: state for state, place in enumerate(places)}
    rewards = {0: (0.0, 0.5), 1: (-0.5, 1.0), 2: (0.25, 2.0)}
    moves = []
    for place in places[:3]:
        left, right = state_of[max(place - 1, 0)], state_of[place + 1]
        moves.append([[(1.0, left, rewards[place][0], False)], [(1.0, right, rewards[place][1], place == 2)]])
    return FiniteMDP([*moves, moves[0]], np.eye(4) if features is None else features, limit)


def grid_mdp(side: int, slip: float, limit: int) -> FiniteMDP:
    """A grid whose far corner pays 1 and ends it.

    A step goes sideways with probability `slip` and costs 0.05.
    """
    directions = ((-1, 0), (1, 0), (0, -1), (0, 1))
    possible = ((0, 2, 3), (1, 2, 3), (0, 1, 2), (0, 1, 3))  # for each action: itself and the two sideways

    def outcome(state: int, action: int, taken: int) -> Outcome:
        moved = zip(divmod(state, side), directions[taken], strict=True)
        x, y = (min(max(at + step, 0), side - 1) for at, step in moved)
        reached = x == y == side - 1
        return 1 - slip if taken == action else slip / 2, x * side + y, 0.95 if reached else -0.05, reached

    moves = [[[outcome(s, a, taken) for taken in possible[a]] for a in range(4)] for s in range(side * side)]
    return FiniteMDP(moves, np.eye(side * side), limit)


def lake_mdp(tiles: str, limit: int) -> FiniteMDP:
    """A slippery FrozenLake: a square of tiles S, F, H and G.

    An action goes in its direction or to a side, 1/3 each.

    The goal pays 1 and ends it, as a hole does; a step costs 0.1.
    """
    side = math.isqrt(len(tiles))
    directions = ((0, -1), (1, 0), (0, 1), (-1, 0))  # left, down, right, up: their neighbours are the sides
    moves: list[list[list[Outcome]]] = []
    for state in range(len(tiles)):
        row: list[list[Outcome]] = []
        for action in range(4):
            shares: dict[int, float] = {}
            for taken in (action - 1, action, (action + 1) % 4):
                moved = zip(divmod(state, side), directions[taken], strict=True)
                x, y = (min(max(at + step, 0), side - 1) for at, step in moved)
                shares[x * side + y] = shares.get(x * side + y, 0.0) + 1 / 3
            row.append([(p, s, float(tiles[s] == "G") - 0.1, tiles[s] in "GH") for s, p in shares.items()])
        moves.append(row)
    return FiniteMDP(moves, np.eye(len(tiles)), limit)
