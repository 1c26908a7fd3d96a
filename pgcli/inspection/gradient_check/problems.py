"""Small problems whose ∇J is known: from every episode that can happen, from a model, or in closed form.

J(θ) = E[Σ_t γ^t r_t] is written down as a function of the policy's probabilities and differentiated; neither sampling
nor the policy gradient theorem has a part in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from pgcli.estimators.trajectories import Trajectories
from pgcli.policies.distributions import StateDependentGaussian, TanhGaussian
from pgcli.policies.policy import Policy
from pgcli.policies.trajectory_outputs import log_probs_along

Array = NDArray[Any]
Outcome = tuple[float, int, float, bool]  # probability, next state, reward, terminated


class Told(NamedTuple):
    """A piece of an episode, whole or cut: one more state than actions, which are numbers of a list."""

    states: tuple[int, ...]
    actions: tuple[int, ...]
    rewards: tuple[float, ...]
    terminated: bool
    truncated: bool


@dataclass(frozen=True)
class World:
    """A finite world: `moves[s][a]` lists what may follow. It starts in state 0 and is truncated at `horizon`."""

    moves: Sequence[Sequence[Sequence[Outcome]]]
    features: Array  # what is observed of each state, [S, F]
    horizon: int


@dataclass(frozen=True)
class Data:
    """Columns to make batches of; with `probabilities` they are all that there are, else a sample."""

    trajectories: Trajectories
    probabilities: Array | None


class Problem(Protocol):
    """What an estimator is tried on."""

    name: str
    about: str
    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    columns: int  # of one estimate
    horizon: int
    lengths_vary: bool
    truncates: bool
    off_policy: bool
    rows: int | None  # of segments; None: whole episodes

    def start(self, policy: Policy) -> None:
        """Set the parameters of a linear policy; one with memory keeps its own."""

    def data(self, policy: Policy, estimates: int, random: np.random.Generator) -> Data:
        """Give every column that can be, or a sample for so many estimates."""

    def expected_return(self, policy: Policy, gamma: float) -> Tensor:
        """Compute J of the policy, a differentiable scalar in reward units."""


# ------------------------------------------------------------------------------------------------------ finite worlds


def futures(world: World, state: int = 0, t: int = 0) -> Iterator[tuple[float, Told]]:
    """Tell every episode that can happen from `state` at time `t`, with the world's part of its probability."""
    for action, outcomes in enumerate(world.moves[state]):
        for p, after, reward, over in outcomes:
            if over or t + 1 == world.horizon:
                yield p, Told((state, after), (action,), (reward,), over, not over)
                continue
            for q, rest in futures(world, after, t + 1):
                joined = ((state, *rest.states), (action, *rest.actions), (reward, *rest.rewards))
                yield p * q, Told(*joined, rest.terminated, rest.truncated)


def segments(world: World, rows: int) -> Iterator[tuple[float, list[Told]]]:
    """Tell every segment of `rows` rows from a reset: pieces of episodes, a masked row after each that ended."""
    pieces = dict.fromkeys(_first(told, rows) for _, told in futures(world))
    for piece in pieces:
        p, left = _chance(world, piece), rows - len(piece.actions) - 1
        if left <= 0 or not (piece.terminated or piece.truncated):
            yield p, [piece]
            continue
        for q, rest in segments(world, left):
            yield p * q, [piece, *rest]


def _first(told: Told, rows: int) -> Told:
    """Cut an episode after `rows` steps."""
    if len(told.actions) <= rows:
        return told
    return Told(told.states[: rows + 1], told.actions[:rows], told.rewards[:rows], terminated=False, truncated=False)


def _chance(world: World, piece: Told) -> float:
    """Compute the world's part of the probability of a piece."""
    chance = 1.0
    steps = zip(piece.states[:-1], piece.actions, piece.states[1:], piece.rewards, strict=True)
    for state, action, after, reward in steps:
        chance *= sum(p for p, to, r, _ in world.moves[state][action] if (to, r) == (after, reward))
    return chance


def laid_out(world: World, actions: Array, columns: Sequence[Sequence[Told]]) -> Trajectories:
    """Put columns of pieces side by side, as rollouts are: the last observation, then one masked row, then the next."""
    rows = max(sum(len(piece.actions) + 1 for piece in column) - 1 for column in columns)
    shape = (rows, len(columns))
    states = np.zeros((rows + 1, len(columns)), int)
    chosen, rewards = np.zeros(shape, int), np.zeros(shape)
    terminated, truncated, mask = np.zeros((3, *shape), bool)
    for n, column in enumerate(columns):
        t = 0
        for piece in column:
            end = t + len(piece.actions)
            states[t : end + 1, n] = piece.states
            chosen[t:end, n], rewards[t:end, n], mask[t:end, n] = piece.actions, piece.rewards, True
            terminated[end - 1, n], truncated[end - 1, n] = piece.terminated, piece.truncated
            t = end + 1
    return Trajectories(
        obs=torch.from_numpy(world.features[states]),
        actions=torch.from_numpy(actions[chosen]),
        rewards=torch.from_numpy(rewards),
        terminated=torch.from_numpy(terminated),
        truncated=torch.from_numpy(truncated),
        mask=torch.from_numpy(mask),
    )


def choices(kind: type, count: int) -> tuple[spaces.Space[Any], Array]:
    """Give a space of `count` actions (a power of 2, but for Discrete), and all of them as a policy draws them."""
    if kind is spaces.Discrete:
        return spaces.Discrete(count), np.arange(count)
    bits = int(math.log2(count))
    all_of_them = np.stack(np.meshgrid(*[np.arange(2)] * bits, indexing="ij"), -1).reshape(count, bits)
    if kind is spaces.MultiDiscrete:
        return spaces.MultiDiscrete([2] * bits), all_of_them
    return spaces.MultiBinary(bits), all_of_them.astype(np.int8)


@dataclass
class Finite:
    """A finite world, of which every episode is told, or, if `sampled`, too many."""

    name: str
    about: str
    world: World
    kind: type
    columns: int
    logits: Sequence[float] | None = None  # of a policy that observes nothing
    sampled: bool = False
    off_policy: bool = False
    rows: int | None = None

    def __post_init__(self) -> None:
        world = self.world
        self.horizon = world.horizon
        self.observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, world.features.shape[1:], np.float64)
        self.action_space, self.actions = choices(self.kind, len(world.moves[0]))
        ends = [] if self.sampled else [told for _, told in futures(world)]
        self.lengths_vary = self.sampled or len({len(told.actions) for told in ends}) > 1
        self.truncates = self.sampled or any(told.truncated for told in ends)

    def start(self, policy: Policy) -> None:
        """Set the parameters of a linear policy; one with memory keeps its own."""
        if policy.memory is None:
            begin(policy, self.logits)

    def data(self, policy: Policy, estimates: int, random: np.random.Generator) -> Data:
        """Give every column that can be, with its probability under the policy that acts; or a sample."""
        if self.sampled:
            return Data(self._sample(policy, estimates * self.columns, random), None)
        if self.rows is None:
            told = [(p, [episode]) for p, episode in futures(self.world)]
        else:
            told = list(segments(self.world, self.rows))
        trajectories = laid_out(self.world, self.actions, [column for _, column in told])
        with torch.no_grad():
            log_probs = log_probs_along(policy, trajectories)
        if self.off_policy:  # an earlier policy acted, which did everything a little more evenly
            log_probs = torch.where(trajectories.mask, (0.25 * log_probs.exp() + 0.75 / len(self.actions)).log(), 0)
        chances = np.array([p for p, _ in told]) * np.exp(log_probs.sum(0).numpy())
        return Data(replace(trajectories, behavior_log_probs=log_probs), chances)

    def expected_return(self, policy: Policy, gamma: float) -> Tensor:
        """Compute J: Σ_τ P(τ) R(τ) over all episodes; of a larger world, backwards from its horizon."""
        world = self.world
        if not self.sampled:
            told = list(futures(world))
            trajectories = laid_out(world, self.actions, [[episode] for _, episode in told])
            returns = [sum(gamma**t * r for t, r in enumerate(episode.rewards)) for _, episode in told]
            weighted = torch.tensor([p * r for (p, _), r in zip(told, returns, strict=True)], dtype=torch.float64)
            return (weighted * log_probs_along(policy, trajectories).sum(0).exp()).sum()
        states, count = len(world.features), len(self.actions)
        obs = torch.from_numpy(world.features).repeat_interleave(count, 0)
        actions = torch.from_numpy(np.concatenate([self.actions] * states))
        pi = policy.distribution.log_probs(policy(obs), actions).exp().view(states, count)
        paid, going = (torch.from_numpy(x) for x in self._model())
        values = torch.zeros(states, dtype=torch.float64)
        for _ in range(world.horizon):
            values = (pi * (paid + gamma * going @ values)).sum(1)
        return values[0]

    def _model(self) -> tuple[Array, Array]:
        """Give the expected reward [S, A] and the chances to go on [S, A, S]."""
        moves = self.world.moves
        paid = np.array([[sum(p * r for p, _, r, _ in outcomes) for outcomes in row] for row in moves])
        going = np.zeros((*paid.shape, len(moves)))
        for state, row in enumerate(moves):
            for action, outcomes in enumerate(row):
                for p, after, _, over in outcomes:
                    going[state, action, after] += 0.0 if over else p
        return paid, going

    def _sample(self, policy: Policy, count: int, random: np.random.Generator) -> Trajectories:
        """Play `count` episodes side by side."""
        world, actor = self.world, policy.actor("sampled")
        most = max(len(outcomes) for row in world.moves for outcomes in row)
        table = np.zeros((len(world.moves), len(self.actions), most, 4))
        for state, row in enumerate(world.moves):
            for action, outcomes in enumerate(row):
                table[state, action, : len(outcomes)] = outcomes
        cumulative = table[..., 0].cumsum(2)
        noise = actor.noise(random, world.horizon, count)
        states, running, told = np.zeros(count, int), np.ones(count, bool), []
        numbers = {tuple(np.ravel(action).tolist()): n for n, action in enumerate(self.actions)}
        for t in range(world.horizon):
            drawn = actor.act(world.features[states], noise[t])
            chosen = np.array([numbers[tuple(np.ravel(action).tolist())] for action in drawn])
            which = (cumulative[states, chosen] <= random.random(count)[:, None]).sum(1).clip(max=most - 1)
            after, reward, over = table[states, chosen, which, 1:].T
            told.append((states, drawn, np.where(running, reward, 0.0), (over > 0) & running, running))
            states, running = after.astype(int), running & (over == 0)
        seen, actions, rewards, terminated, mask = (np.stack(column) for column in zip(*told, strict=True))
        return sampled(world.features[np.concatenate((seen, states[None]))], actions, rewards, terminated, mask)


def sampled(obs: Array, actions: Array, rewards: Array, terminated: Array, mask: Array) -> Trajectories:
    """Make trajectories of episodes that a time limit truncates if nothing else ends them."""
    truncated = np.zeros_like(mask)
    truncated[-1] = mask[-1] & ~terminated[-1]
    return Trajectories(*map(torch.from_numpy, (obs, actions, rewards, terminated, truncated, mask)))


def begin(policy: Policy, logits: Sequence[float] | None = None) -> None:
    """Give a linear policy parameters that treat no two actions alike."""
    random = np.random.default_rng(1)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            values = random.normal(0, 0.6, tuple(parameter.shape))
            if logits is not None and name == "network.0.bias" and len(logits) == len(values):
                values = np.array(logits)
            if "standard_deviation" in name:
                values = np.full(tuple(parameter.shape), math.log(0.7))
            parameter.copy_(torch.from_numpy(values))


# --------------------------------------------------------------------------------------------------- continuous worlds


@dataclass
class Continuous:
    """s' = s + a and r = -(s - c)² - (a - d)² on a line, from s = 1: a linear-quadratic problem; of one step, a target.

    A linear policy with Gaussian noise keeps s Gaussian, so J follows from the mean and the variance of s. The one step
    is computed by quadrature, for the squashed Gaussian too.
    """

    name: str
    about: str
    horizon: int
    columns: int
    bounded: bool = False
    cost: float = 1.0  # of (s - c)²
    off_policy: bool = False
    rows: int | None = None
    lengths_vary: bool = False

    def __post_init__(self) -> None:
        self.observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (1,), np.float64)
        side = 2.0 if self.bounded else np.inf
        self.action_space: spaces.Space[Any] = spaces.Box(-side, side, (1,), np.float64)
        self.truncates = self.horizon > 1

    def start(self, policy: Policy) -> None:
        """Set the parameters of a linear policy: it goes back to 0, not fast."""
        begin(policy)
        with torch.no_grad():
            for name, parameter in policy.network.named_parameters():
                parameter.fill_(-0.4 if name == "0.weight" else 0.3)

    def data(self, policy: Policy, estimates: int, random: np.random.Generator) -> Data:
        """Give a sample for so many estimates."""
        count, actor = estimates * self.columns, policy.actor("sampled")
        noise = actor.noise(random, self.horizon, count)
        s, told = np.ones((count, 1)), []
        for t in range(self.horizon):
            drawn = actor.act(s, noise[t])
            a = actor.for_environment(drawn)
            told.append((s, drawn, -(self.cost * s**2 + (a - 1) ** 2)[:, 0]))
            s = s + a
        seen, actions, rewards = (np.stack(column) for column in zip(*told, strict=True))
        mask, ends = np.ones(rewards.shape, bool), np.zeros(rewards.shape, bool)
        ends[-1] = self.horizon == 1
        return Data(sampled(np.concatenate((seen, s[None])), actions, rewards, ends, mask), None)

    def expected_return(self, policy: Policy, gamma: float) -> Tensor:
        """Compute J from the moments of s, or for one step by Gauss-Hermite quadrature, exact for a quadratic."""
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
            mean_cost: Tensor = ((self.cost + (a - 1).square()) * weights).sum() / weights.sum()
            return -mean_cost
        gain, bias = (parameter.flatten()[0] for parameter in policy.network.parameters())
        noise = (2 * distribution.log_standard_deviation[0]).exp()
        mean, variance = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        total = torch.zeros((), dtype=torch.float64)
        for t in range(self.horizon):
            paid = self.cost * (variance + mean**2) + gain**2 * variance + noise + (gain * mean + bias - 1) ** 2
            total = total - gamma**t * paid
            mean, variance = mean + gain * mean + bias, (1 + gain) ** 2 * variance + noise
        return total


# -------------------------------------------------------------------------------------------------------- the problems


def bandit_world(rewards: Sequence[float]) -> World:
    """One step, one reward for each action; nothing is observed."""
    return World([[[(1.0, 0, reward, True)] for reward in rewards]], np.zeros((1, 1)), 1)


def chain_world(steps: int, each: float, end: float, features: Array | None = None) -> World:
    """Go right (1), or end it by going left (0); so does the last step to the right, which pays `end`."""
    moves = [
        [[(1.0, 0, each, True)], [(1.0, k + 1, each, False) if k < steps - 1 else (1.0, 0, each + end, True)]]
        for k in range(steps)
    ]
    return World(moves, np.zeros((steps, 1)) if features is None else features, steps)


def corridor_world(limit: int, features: Array | None = None) -> World:
    """Walk left or right on four places from the second; what a step pays depends on both, the last place ends it."""
    places = (1, 0, 2, 3)  # state 0 is the second place
    number = {place: state for state, place in enumerate(places)}
    pays = {0: (0.0, 0.5), 1: (-0.5, 1.0), 2: (0.25, 2.0)}
    moves = []
    for place in places[:3]:
        left, right = number[max(place - 1, 0)], number[place + 1]
        moves.append([[(1.0, left, pays[place][0], False)], [(1.0, right, pays[place][1], place == 2)]])
    return World([*moves, moves[0]], np.eye(4) if features is None else features, limit)


def grid_world(side: int, slip: float, limit: int) -> World:
    """Go to the far corner of a grid, which pays 1, on a floor where a step goes astray with probability `slip`."""
    ways = ((-1, 0), (1, 0), (0, -1), (0, 1))
    moves = []
    for state in range(side * side):
        x, y = divmod(state, side)

        def after(way: tuple[int, int], x: int = x, y: int = y) -> tuple[int, float, bool]:
            place = [min(max(at + step, 0), side - 1) for at, step in zip((x, y), way, strict=True)]
            reached = place == [side - 1, side - 1]
            return place[0] * side + place[1], 0.95 if reached else -0.05, reached

        astray = [(0, 2, 3), (1, 2, 3), (0, 1, 2), (0, 1, 3)]
        chances = [[(1 - slip if way == a else slip / 2, way) for way in astray[a]] for a in range(4)]
        moves.append([[(p, *after(ways[way])) for p, way in row] for row in chances])
    return World(moves, np.eye(side * side), limit)
