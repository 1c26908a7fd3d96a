"""Load an agent from a checkpoint: for `eval`, videos and notebooks."""

from __future__ import annotations

import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pgcli.algorithm.learner import Learner, build_agent
from pgcli.config import Config
from pgcli.config.choices import Mode
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
    """A trained policy. `act` draws from its own random stream, derived from `seed`."""

    def __init__(self, policy: Policy, config: Config, counters: dict[str, int], path: Path, seed: int) -> None:
        self.policy = policy
        self.config = config
        self.counters = counters
        self.path = path
        self._generator = generator(seed, Purpose.TEST_ACT)
        self._acting: ActingState | None = None

    def reset(self) -> None:
        """Start new episodes: clear the state of a recurrent policy, and draw new noise where steps share it."""
        self._acting = None

    def act(self, obs: Any, mode: Mode = "sampled", action_mask: Any = None) -> Any:
        """Return an action for one observation, or actions [N] for N observations, batched as in Gymnasium's vectors.

        Calls are the steps of one episode, or of N, until `reset` begins the next: a recurrent policy keeps its state,
        and a state_dependent_gaussian its noise. So the policy is the one that `pgcli eval` measures.

        Args: action_mask: the permitted actions, where the environment reports them in `info["action_mask"]`.
        Raises: ValueError: if `obs` is not in the policy's space, or N changes during episodes.
        """
        if action_mask is not None and self.policy.encoder.layout.action_mask:
            obs = {**(obs if isinstance(obs, dict) else {"observation": obs}), ACTION_MASK: action_mask}
        batch, single = self._packed(obs)
        if len(non_finite_rows(self.policy.encoder.layout, batch)):
            raise ValueError("an observation that is not finite")
        actor = self.policy.actor(mode)
        acting, carries = self._acting, bool(actor.state_size or actor.noise_steps)
        if acting is None or not carries:
            acting = ActingState(actor, self._generator, len(batch), rows=1)
        if acting.columns != len(batch):
            raise ValueError(
                f"{len(batch)} observations during {acting.columns} episodes: call reset() to begin new episodes"
            )
        acting.actor = actor
        self._acting = acting if carries else self._acting
        actions: NDArray[Any] = actor.for_environment(acting.act(batch))
        return actions[0] if single else actions

    def _packed(self, obs: Any) -> tuple[NDArray[Any], bool]:
        """Return observations as the policy reads them, [N, …], and whether `obs` is a single one."""
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
    if checkpoint.unordered:
        warnings.warn(
            f"{path}: an earlier version of pgcli wrote it without the order of {', '.join(checkpoint.unordered)}, and "
            "there is no config.yaml of its run beside it: sorted keys may build another environment",
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
    """Raise EnvironmentFailure for modules that Gymnasium does not ship: importing them runs their code."""
    wrappers = [wrapper.name for env in (config.env, config.evaluation_env) for wrapper in env.wrappers]
    for name in (config.env.id, *wrappers):
        module, colon, _ = name.rpartition(":")
        own = module == "gymnasium.wrappers" if name in wrappers else module.partition(".")[0] == "gymnasium"
        own = own and not module.endswith(".py")  # a file of the current folder
        if colon and not own:
            raise EnvironmentFailure(
                f"{path} wants the module `{module}` imported, which Gymnasium does not ship, or not for this",
                "--trust imports it, and so does trust=True in Python, which runs its code",
            )
