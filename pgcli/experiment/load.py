"""Load an agent from a checkpoint: for `eval`, videos and notebooks."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgcli.algorithm.learner import Learner, build_agent
from pgcli.config import Config
from pgcli.config.choices import Mode
from pgcli.config.schema import EnvConfig
from pgcli.environments.single import make_environment
from pgcli.errors import EnvironmentFailure
from pgcli.policies.observations import ACTION_MASK
from pgcli.policies.policy import Policy
from pgcli.runs import checkpoints
from pgcli.runs.directory import find_checkpoint
from pgcli.seeding import Purpose, generator
from pgcli.system.process_state import kept


class Agent:
    """A trained policy. `act` draws from its own random stream, derived from `seed`."""

    def __init__(self, policy: Policy, config: Config, counters: dict[str, int], path: Path, seed: int) -> None:
        self.policy = policy
        self.config = config
        self.counters = counters
        self.path = path
        self._generator = generator(seed, Purpose.TEST_ACT)
        self._memory: NDArray[Any] | None = None

    def reset(self) -> None:
        """Start a new episode: clear what a recurrent policy remembers."""
        self._memory = None

    def act(self, obs: Any, mode: Mode = "sampled", action_mask: Any = None) -> Any:
        """Return an action for one observation, or actions [N] for N observations, batched as in Gymnasium's vectors.

        `action_mask` is what the environment permits, where it says so beside the observation: `info["action_mask"]`.
        A policy with memory remembers from call to call; `reset` begins an episode.
        Raises: ValueError for what is no observation of the policy's space.
        """
        if action_mask is not None:
            obs = {**(obs if isinstance(obs, dict) else {"observation": obs}), ACTION_MASK: action_mask}
        batch, single = self._packed(obs)
        if batch.dtype.kind == "f" and not np.isfinite(batch).all():
            raise ValueError("an observation that is not finite")
        actor = self.policy.actor(mode)
        memory = actor.start(len(batch)) if self._memory is None else self._memory
        if len(memory) != len(batch):
            raise ValueError(
                f"{len(batch)} observations, and {len(memory)} episodes are remembered: reset() forgets them"
            )
        drawn, self._memory = actor.respond(batch, actor.noise(self._generator, 1, len(batch))[0], memory)
        actions: NDArray[Any] = actor.for_environment(drawn)
        if not actor.state_size:
            self._memory = None
        return actions[0] if single else actions

    def _packed(self, obs: Any) -> tuple[NDArray[Any], bool]:
        """Give observations as the policy reads them, and whether it is one alone."""
        layout = self.policy.encoder.layout
        if layout.action_mask and not (isinstance(obs, dict) and ACTION_MASK in obs):
            raise ValueError('the policy acts under a mask: act(obs, action_mask=info["action_mask"])')
        try:
            return layout.pack(obs)[None], True
        except ValueError as error:
            try:
                return layout.pack(obs, batch=True), False
            except ValueError:
                raise error from None


@kept()
def load(run_or_checkpoint: str | Path, which: str = "latest", *, seed: int = 0, trust: bool = False) -> Agent:
    """Load an agent from a run directory or a checkpoint file.

    Args:
        run_or_checkpoint: the folder that `pgcli train` made, or one file of its checkpoints.
        which: for a folder: latest, best, or the number of an iteration.
        seed: of the random stream that `act` draws from.
        trust: import the environment's and wrappers' modules even if Gymnasium does not ship them.

    Raises: CheckpointError, EnvironmentFailure.
    """
    path = find_checkpoint(Path(run_or_checkpoint), which)
    checkpoint = checkpoints.load(path)
    config = checkpoint.read_config(str(path))
    if not trust:
        refuse_foreign_modules(config.env, path)
    with closing(make_environment(config.env)) as env:
        learner = Learner(build_agent(env.observation_space, env.action_space, config))
    checkpoints.check_tensors(checkpoint.agent, learner.state_dict(), str(path))
    learner.load_state_dict(checkpoint.agent)
    return Agent(learner.policy, config, checkpoint.counters, path, seed)


def refuse_foreign_modules(config: EnvConfig, path: Path) -> None:
    """Raise EnvironmentFailure for modules that Gymnasium does not ship: importing them runs their code."""
    wrappers = [wrapper.name for wrapper in config.wrappers]
    for name in (config.id, *wrappers):
        module, colon, _ = name.rpartition(":")
        own = module == "gymnasium.wrappers" if name in wrappers else module.partition(".")[0] == "gymnasium"
        if colon and not own:
            raise EnvironmentFailure(
                f"{path} wants the module `{module}` imported, which Gymnasium does not ship, or not for this",
                "--trust imports it, and so does trust=True in Python, which runs its code",
            )
