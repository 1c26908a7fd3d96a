"""Load an agent from a checkpoint: for `eval`, videos and notebooks."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pgcli.algorithm.learner import Learner, build_agent
from pgcli.config import Config
from pgcli.config.choices import Mode
from pgcli.config.schema import EnvConfig
from pgcli.environments.outputs import non_finite_rows
from pgcli.environments.single import make_environment
from pgcli.errors import EnvironmentFailure
from pgcli.policies.observations import ACTION_MASK
from pgcli.policies.policy import ActingState, Policy
from pgcli.runs import checkpoints
from pgcli.runs.directory import find_checkpoint
from pgcli.seeding import Purpose, generator
from pgcli.system.process_state import kept


class Agent:
    """A trained policy. `act` uses its own random stream, derived from `seed`."""

    def __init__(self, policy: Policy, config: Config, counters: dict[str, int], path: Path, seed: int) -> None:
        self.policy = policy
        self.config = config
        self.counters = counters
        self.path = path
        self._generator = generator(seed, Purpose.TEST_ACT)
        self._acting: ActingState | None = None

    def reset(self) -> None:
        """Start new episodes: clear the recurrent state, and draw new noise if steps share it."""
        self._acting = None

    def act(self, obs: Any, mode: Mode = "sampled", action_mask: Any = None) -> Any:
        """Return an action for one observation, or actions [N] for a batch as in Gymnasium.

        Consecutive calls are steps of the same episode, or of N episodes, until `reset`: a recurrent policy keeps its
        state and a state_dependent_gaussian its noise, exactly as in `pgcli eval`.

        Args: action_mask: the permitted actions, if the environment reports `info["action_mask"]`.
        Raises: ValueError: if `obs` is not in the policy's space, or N changes during episodes.
        """
        if action_mask is not None and self.policy.encoder.layout.action_mask:
            obs = {**(obs if isinstance(obs, dict) else {"observation": obs}), ACTION_MASK: action_mask}
        batch, single = self._packed(obs)
        if len(non_finite_rows(self.policy.encoder.layout, batch)):
            raise ValueError("the observation is not finite")
        actor = self.policy.actor(mode)
        acting, carries = self._acting, bool(actor.state_size or actor.noise_steps)
        if acting is None or not carries:
            acting = ActingState(actor, self._generator, len(batch), rows=1)
        if acting.columns != len(batch):
            raise ValueError(
                f"{len(batch)} observations for {acting.columns} running episodes: call reset() to start new episodes"
            )
        acting.actor = actor
        self._acting = acting if carries else self._acting
        actions: NDArray[Any] = actor.for_environment(acting.act(batch))
        return actions[0] if single else actions

    def _packed(self, obs: Any) -> tuple[NDArray[Any], bool]:
        """Return observations in the policy's form, [N, …], and whether `obs` is a single one."""
        layout = self.policy.encoder.layout
        if layout.action_mask and not (isinstance(obs, dict) and ACTION_MASK in obs):
            raise ValueError('the policy needs the action mask: act(obs, action_mask=info["action_mask"])')
        try:
            return layout.pack(obs)[None], True
        except ValueError as error:
            try:
                return layout.pack(obs, batch=True), False
            except ValueError:
                raise error from None


@kept()
def load(
    run_or_checkpoint: str | os.PathLike[str], which: str = "latest", *, seed: int = 0, trust: bool = False
) -> Agent:
    """Load an agent from a run directory or a checkpoint file.

    Args:
        run_or_checkpoint: a run directory of `pgcli train`, or a checkpoint file.
        which: latest, best, or an iteration number; for a run directory.
        seed: seed of the random stream of `act`.
        trust: also import environment and wrapper modules from outside Gymnasium.

    Raises: CheckpointError, EnvironmentFailure.
    """
    path = find_checkpoint(Path(run_or_checkpoint), which)
    checkpoint = checkpoints.load(path)
    config = checkpoint.read_config(str(path))
    if checkpoint.unordered:
        warnings.warn(
            f"{path}: an earlier version of pgcli did not save the order of {', '.join(checkpoint.unordered)}, and "
            "the config.yaml of the run is missing: sorted keys may build another environment",
            stacklevel=2,
        )
    if not trust:
        refuse_foreign_modules(config, path)
    with closing(make_environment(config.env)) as env:
        learner = Learner(build_agent(env.observation_space, env.action_space, config))
    checkpoints.check_tensors(checkpoint.agent, learner.state_dict(), str(path))
    learner.load_state_dict(checkpoint.agent)
    return Agent(learner.policy, config, checkpoint.counters, path, seed)


def refuse_foreign_modules(config: Config, path: Path) -> None:
    """Raise EnvironmentFailure for modules from outside Gymnasium: an import runs their code."""
    if config.policy.network is not None:
        raise EnvironmentFailure(
            f"{path} runs `{config.policy.network.rpartition(':')[0]}`, which contains the policy's network",
            "if you trust its code: --trust, or trust=True in Python, runs it",
        )
    for module in foreign_modules((config.env, config.evaluation_env)):
        raise EnvironmentFailure(
            f"{path} imports the module `{module}`, which is not Gymnasium's own for this purpose",
            "if you trust its code: --trust, or trust=True in Python, imports it",
        )


def foreign_modules(environments: Sequence[EnvConfig]) -> Iterator[str]:
    """Yield the modules outside Gymnasium that environments and their wrappers import."""
    wrappers = [wrapper.name for env in environments for wrapper in env.wrappers]
    for name in (*(env.id for env in environments), *wrappers):
        module, colon, _ = name.rpartition(":")
        own = module == "gymnasium.wrappers" if name in wrappers else module.partition(".")[0] == "gymnasium"
        if colon and not (own and not module.endswith(".py")):  # a file in the current folder is not Gymnasium's
            yield module
