"""One update by pgcli and by its peers: the same weights, data and orders of minibatches.

`python tests/peers.py` (`make parity`) writes the table of docs/peers.md. The formulas of CleanRL, Spinning Up and
Tianshou are restated here, independently of pgcli's; Stable-Baselines3 runs its own code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from pgcli.algorithm.learner import Learner, build_agent
from pgcli.config import load_config, override
from pgcli.config.schema import Config
from pgcli.estimators.trajectories import Trajectories
from pgcli.seeding import Purpose, generator

PAGE = Path(__file__).parent.parent / "docs/peers.md"
STEPS, ENVS, PROGRESS = 32, 4, 0.25
OBSERVATIONS = spaces.Box(-np.inf, np.inf, (3,), np.float32)
LARGER = "policy.init=uniform"  # the output layer of `orthogonal` is so small that rounding is 1e-5 of it
Tensors = dict[str, Tensor]


@dataclass
class Case:
    """An agent of a shipped config before and after pgcli's update, and the data."""

    config: Config
    before: Learner
    after: Learner
    data: Trajectories

    @property
    def log_probs(self) -> Tensor:
        """The log π of the actions taken, before the update, [T, N]."""
        policy = self.before.policy
        outputs = policy(self.data.obs[:-1].flatten(0, 1))
        found = policy.distribution.log_probs(outputs, self.data.actions.flatten(0, 1)).detach()
        return found.view(STEPS, ENVS)

    @property
    def values(self) -> Tensor:
        """V before the update, [T + 1, N]."""
        assert self.before.agent.value is not None
        flat: Tensor = self.before.agent.value(self.before.policy, self.data.obs.flatten(0, 1))
        return flat.view(STEPS + 1, ENVS).detach()

    def order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The order of the steps t N + n in an epoch."""
        return generator(self.config.seed, Purpose.MINIBATCH, 0, epoch).permutation(STEPS * ENVS)


def case(name: str, *overrides: str) -> Case:
    """Update an agent of a config of peers/ on random data; one environment terminates in the last row."""
    continuous = name in ("spinningup_vpg", "tianshou_reinforce")
    sizes = f"{{episodes: {ENVS}}}" if continuous else f"{{episodes: null, steps: {STEPS}}}"
    config = override(load_config(f"peers/{name}"), [f"rollout={sizes}", f"env.num_envs={ENVS}", LARGER, *overrides])
    actions: spaces.Space[Any] = spaces.Box(-1, 1, (2,), np.float32) if continuous else spaces.Discrete(3)
    agent = build_agent(OBSERVATIONS, actions, config)
    draw = torch.Generator().manual_seed(4)
    taken = (
        torch.randn(STEPS, ENVS, 2, generator=draw) if continuous else torch.randint(3, (STEPS, ENVS), generator=draw)
    )
    ends = torch.zeros(STEPS, ENVS, dtype=torch.bool)
    ends[-1, 0] = True
    data = Trajectories(
        obs=torch.randn(STEPS + 1, ENVS, 3, generator=draw),
        actions=taken,
        rewards=torch.randn(STEPS, ENVS, generator=draw).double(),
        terminated=ends,
        truncated=torch.zeros_like(ends),
        mask=torch.ones_like(ends),
    )
    before, after = (Learner(deepcopy(agent)) for _ in range(2))
    before.load_state_dict(after.state_dict())
    after.update(data, 0, PROGRESS)
    return Case(config, before, after, data)


def differences(one: Case, updated: Tensors) -> dict[str, float]:
    """Return the largest difference of each parameter from pgcli's, relative to its largest entry.

    The update itself must have moved every parameter by more than 1e-4 of that.
    """
    found, own, start = {}, parameters(one.after), parameters(one.before)
    for name, expected in updated.items():
        largest = float(own[name].abs().max())
        assert float((own[name] - start[name]).abs().max()) > 1e-4 * largest, f"{name} has not moved"
        found[name] = float((own[name] - expected).abs().max()) / largest
    return found


def parameters(learner: Learner) -> Tensors:
    """Return the parameters of policy and value function by name."""
    modules = {"policy": learner.agent.policy, "value": learner.agent.value}
    named = ((part, module) for part, module in modules.items() if module is not None)
    return {f"{part}.{name}": x.detach() for part, module in named for name, x in module.named_parameters()}


def advantages(one: Case, lam: float) -> Tensor:
    """Compute GAE by the loop of the peers: δ_t + γ λ A_t+1, [T, N]."""
    values, rewards, ended = one.values, one.data.rewards.float(), one.data.terminated.float()
    found, last = torch.zeros(STEPS, ENVS), torch.zeros(ENVS)
    for t in range(STEPS - 1, -1, -1):
        error = rewards[t] + one.config.algorithm.gamma * values[t + 1] * (1 - ended[t]) - values[t]
        last = error + one.config.algorithm.gamma * lam * (1 - ended[t]) * last
        found[t] = last
    return found


# ------------------------------------------------------------------------------------------------- CleanRL, restated


def cleanrl_ppo() -> dict[str, float]:
    """Update by the formulas of CleanRL's ppo.py."""
    one = case("cleanrl_ppo")
    actor, critic = deepcopy(one.before.policy.network), deepcopy(one.before.agent.value.network)  # type: ignore[union-attr]
    weights = [*actor.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(weights, lr=2.5e-4 * (1 - PROGRESS), eps=1e-5)
    gae = advantages(one, 0.95)
    returns, old_values = (gae + one.values[:-1]).flatten(), one.values[:-1].flatten()
    obs, taken, old = one.data.obs[:-1].flatten(0, 1), one.data.actions.flatten(), one.log_probs.flatten()
    for epoch in range(4):
        for rows in np.split(one.order(epoch), 4):
            categorical: Any = torch.distributions.Categorical(logits=actor(obs[rows]))
            ratio = (categorical.log_prob(taken[rows]) - old[rows]).exp()
            a = gae.flatten()[rows]
            a = (a - a.mean()) / (a.std() + 1e-8)
            policy_loss = torch.max(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean()
            v, before, target = critic(obs[rows]).flatten(), old_values[rows], returns[rows]
            clipped = before + (v - before).clamp(-0.2, 0.2)
            value_loss = 0.5 * torch.max((v - target) ** 2, (clipped - target) ** 2).mean()
            loss = policy_loss - 0.01 * categorical.entropy().mean() + 0.5 * value_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 0.5)
            optimizer.step()
    return differences(one, named(actor, critic))


def named(actor: nn.Module, critic: nn.Module | None = None) -> Tensors:
    """Return the parameters of two networks under pgcli's names."""
    found = {f"policy.network.{name}": x.detach() for name, x in actor.named_parameters()}
    return found | ({} if critic is None else {f"value.network.{n}": x.detach() for n, x in critic.named_parameters()})


# ------------------------------------------------------------------------- Spinning Up and Tianshou, restated


def gaussian_update(one: Case, weights: Tensor, rate: float) -> Tensors:
    """Take one step of Adam along the mean of weight · log N(a; μ(s), σ)."""
    policy: Any = one.before.policy
    actor = deepcopy(policy.network)
    log_std = nn.Parameter(policy.distribution.log_standard_deviation.detach().clone())
    optimizer = torch.optim.Adam([*actor.parameters(), log_std], lr=rate)
    obs, actions = one.data.obs[:-1].flatten(0, 1), one.data.actions.flatten(0, 1)
    normal: Any = torch.distributions.Normal(actor(obs), log_std.exp())
    (-(normal.log_prob(actions).sum(1) * weights).mean()).backward()
    optimizer.step()
    return named(actor) | {"policy.distribution.log_standard_deviation": log_std.detach()}


def spinningup_vpg() -> dict[str, float]:
    """Update the policy by Spinning Up's VPG: advantages over their population deviation. V has other targets."""
    one = case("spinningup_vpg")
    gae = advantages(one, 0.97).flatten()
    return differences(one, gaussian_update(one, (gae - gae.mean()) / gae.std(correction=0), 3e-4))


def tianshou_reinforce() -> dict[str, float]:
    """Update by Tianshou's PGPolicy without its running normalization of returns and observations.

    Its tanh is part of the environment, and so is not in log π: that term has no gradient.
    """
    one = case("tianshou_reinforce", "algorithm.standardize=none", "policy.normalize_obs=false")
    to_go, last = torch.zeros(STEPS, ENVS), torch.zeros(ENVS)
    for t in range(STEPS - 1, -1, -1):
        last = one.data.rewards[t].float() + 0.99 * last
        to_go[t] = last
    return differences(one, gaussian_update(one, to_go.flatten(), 1e-3 * (1 - PROGRESS)))


# --------------------------------------------------------------------------------------- Stable-Baselines3's own code


class Blank(gym.Env[Any, Any]):
    """Has the spaces of the data, and is never stepped."""

    observation_space, action_space = OBSERVATIONS, spaces.Discrete(3)


def sb3(name: str, *overrides: str) -> dict[str, float]:
    """Update by `train` of Stable-Baselines3's PPO or A2C, on a rollout buffer with the same data."""
    import stable_baselines3
    from stable_baselines3.common.logger import Logger

    one = case(f"sb3_{name}", *overrides)
    kind = getattr(stable_baselines3, name.upper())
    environments = stable_baselines3.common.vec_env.DummyVecEnv([Blank] * ENVS)
    batch = {"batch_size": STEPS * ENVS // one.config.algorithm.num_minibatches} if name == "ppo" else {}
    model = kind("MlpPolicy", environments, n_steps=STEPS, device="cpu", **batch)
    model.set_logger(Logger(None, []))
    networks = (
        (model.policy.mlp_extractor.policy_net, model.policy.action_net),
        (
            model.policy.mlp_extractor.value_net,
            model.policy.value_net,
        ),
    )
    actor, critic = (nn.Sequential(*hidden, last) for hidden, last in networks)
    actor.load_state_dict(one.before.policy.network.state_dict())
    critic.load_state_dict(one.before.agent.value.network.state_dict())  # type: ignore[union-attr]
    data, buffer = one.data, model.rollout_buffer
    buffer.reset()
    for t in range(STEPS):
        starts = np.ones(ENVS) if t == 0 else data.terminated[t - 1].numpy()
        step = data.obs[t].numpy(), data.actions[t].numpy()[:, None], data.rewards[t].numpy(), starts
        buffer.add(*step, one.values[t], one.log_probs[t])
    buffer.compute_returns_and_advantage(one.values[-1], data.terminated[-1].numpy())

    def orders() -> Iterator[Any]:
        for epoch in range(one.config.algorithm.update_epochs):
            order = one.order(epoch)  # of t N + n; a buffer has n T + t
            yield order % ENVS * STEPS + order // ENVS

    with patch("numpy.random.permutation", side_effect=orders()):
        model.train()
    return differences(one, named(actor, critic))


def sb3_ppo() -> dict[str, float]:
    """PPO, with four minibatches instead of 128."""
    return sb3("ppo", "algorithm.num_minibatches=4")


def sb3_a2c() -> dict[str, float]:
    """A2C."""
    return sb3("a2c")


UPDATES: dict[str, Callable[[], dict[str, float]]] = {
    "CleanRL's PPO": cleanrl_ppo,
    "Stable-Baselines3's PPO": sb3_ppo,
    "Stable-Baselines3's A2C": sb3_a2c,
    "Spinning Up's VPG, policy": spinningup_vpg,
    "Tianshou's REINFORCE": tianshou_reinforce,
}


def table() -> str:
    """Return the parity table in Markdown."""
    rows = ["| update | parameter | largest difference |", "|---|---|--:|"]
    for peer, update in UPDATES.items():
        rows += [f"| {peer} | `{name}` | {x:.1e} |" for name, x in update().items()]
    return "\n".join(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    text = PAGE.read_text()
    PAGE.write_text(re.sub(r"\| update \| parameter.*?\n\n", lambda _: table() + "\n\n", text, flags=re.DOTALL))
    sys.stdout.write(f"{PAGE}\n")
