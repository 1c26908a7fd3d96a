"""Keys without effect: rejected in user configs, ignored in configs of earlier versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import pgcli
from helpers import config

from pgcli.config import Config, config_from_data, flat, load_config, override, to_data, to_yaml
from pgcli.config.rules import CONDITIONAL, RULES, without_effect
from pgcli.errors import ConfigError, UsageError
from pgcli.experiment.run import Request, run_experiment
from pgcli.studies.variants import parse_comparison

# With any other keys, each of these has an effect: on the result, its measure, the files or the speed.
ALWAYS = {
    *("name", "seed", "env.id", "env.chunk_size", "env.kwargs", "env.wrappers", "env.max_episode_steps"),
    *("env.vectorization", "rollout.episodes", "rollout.steps", "rollout.horizon"),
    *("policy.init", "policy.distribution", "policy.normalize_obs", "policy.image_network"),
    *(
        "policy.memory",
        "policy.action_mask",
        "policy.network",
        "algorithm.objective",
        "algorithm.gamma",
        "algorithm.estimator",
    ),
    *("algorithm.entropy_coef", "optimizer.name"),
    *("sampling.workers", "sampling.backend", "training.iterations", "training.env_steps"),
    *("training.seconds", "training.device", "training.threads", "evaluation.every", "evaluation.episodes"),
    *("evaluation.mode", "checkpoint.every", "checkpoint.keep", "logging.tensorboard", "logging.wandb"),
    "logging.mlflow",
    *("evaluation.env.kwargs", "evaluation.env.wrappers", "evaluation.env.max_episode_steps", "logging.info"),
    "diagnostics.every",
}
# Rules refuse these where they would have no effect: the reason is a stronger one.
REFUSED = {
    *("algorithm.group_size", "algorithm.reuse", "algorithm.update_epochs", "algorithm.num_minibatches"),
    *("evaluation.stop_at_return", "evaluation.stop_at", "evaluation.patience", "evaluation.stop_evaluations"),
    "diagnostics.shadows",
}
KEYS = flat(to_data(Config()))


def test_every_key_always_has_an_effect_or_has_a_rule() -> None:
    assert set(KEYS) == ALWAYS | REFUSED | CONDITIONAL, "a new key belongs to one of them"
    assert not ALWAYS & CONDITIONAL
    assert not REFUSED & CONDITIONAL
    assert {key for rule in RULES for key in rule.when} >= REFUSED


# For each row of the table: other keys under which its keys are without effect, and values that are not the default.
IDLE: dict[str, tuple[list[str], Any]] = {
    "env.num_envs": (["env.chunk_size=4"], 3),
    "logging.wandb_mode": ([], "online"),
    "logging.wandb_project": ([], "p"),
    "logging.wandb_entity": ([], "e"),
    "logging.wandb_tags": ([], ["t"]),
    "logging.wandb_group": ([], "g"),
    "logging.mlflow_uri": ([], "sqlite:///x.db"),
    "logging.mlflow_experiment": ([], "x"),
    "env.rebuild": (["env.vectorization=native"], False),
    "policy.hidden_sizes": (["policy.network=my.py:Net"], [8]),
    "policy.activation": (["policy.hidden_sizes=[]"], "relu"),
    "policy.layer_norm": (["policy.network=my.py:Net"], True),
    "policy.residual": (["policy.hidden_sizes=[]"], True),
    "policy.network_kwargs": ([], {"width": 3}),
    "policy.initial_standard_deviation": (["policy.distribution=softmax"], 0.5),
    "policy.log_std_bounds": (["policy.distribution=bernoulli"], [-2, 1]),
    "policy.noise_steps": ([], 8),
    "policy.memory_size": ([], 32),
    "policy.backpropagation_steps": ([], 8),
    "algorithm.ratios": ([], "trajectory"),
    "algorithm.returns": (["algorithm.estimator=my.py:f"], "total"),
    "algorithm.baseline": (["algorithm.estimator=my.py:f"], "none"),
    "algorithm.average": (["algorithm.estimator=my.py:f"], "episodes"),
    "algorithm.standardize": (["algorithm.estimator=my.py:f"], "batch"),
    "algorithm.discount_weighting": (["algorithm.gamma=1"], True),
    "algorithm.gae_lambda": ([], 0.9),
    "algorithm.group_mean": ([], "leave_one_out"),
    "algorithm.clip_range": ([], 0.1),
    "algorithm.clip_range_schedule": ([], "linear"),
    "algorithm.importance_bound": (["algorithm.objective=clip"], 2),
    "algorithm.self_normalize": ([], True),
    "algorithm.kl_coef": (["algorithm.objective=clip"], 0.1),
    "algorithm.target_kl": (["algorithm.objective=clip", "algorithm.reuse=2"], 0.01),
    "algorithm.entropy_coef_schedule": ([], "linear"),
    "algorithm.value_coef": ([], 1),
    "optimizer.learning_rate": (["optimizer.name=natural", "optimizer.max_kl=0.01"], 0.1),
    "optimizer.schedule": (["optimizer.name=natural", "optimizer.max_kl=0.01"], "linear"),
    "optimizer.max_grad_norm": (["optimizer.name=natural", "optimizer.max_kl=0.01"], 0.5),
    "optimizer.clip_gradients": (["algorithm.baseline=value"], "together"),
    "optimizer.epsilon": (["optimizer.name=sgd"], 1e-5),
    "optimizer.betas": (["optimizer.name=rmsprop"], [0.9, 0.99]),
    "optimizer.weight_decay": (["optimizer.name=natural"], 0.1),
    "optimizer.momentum": ([], 0.9),
    "optimizer.damping": ([], 0.01),
    "optimizer.cg_iterations": (["optimizer.name=sgd"], 20),
    "optimizer.max_kl": ([], 0.01),
    "optimizer.line_search": ([], True),
    "value.hidden_sizes": ([], [8]),
    "value.shared_trunk": ([], True),
    "value.learning_rate": ([], 0.1),
    "value.update_epochs": ([], 3),
    "value.clip_range": (["algorithm.baseline=value"], 0.2),
    "value.normalize_returns": ([], True),
    "training.compile": (["algorithm.estimator=my.py:f"], True),
}

NOTICED = {"algorithm.discount_weighting", "algorithm.kl_coef", "algorithm.target_kl", "value.clip_range"}


def test_each_key_of_the_table_has_a_test_case() -> None:
    assert IDLE.keys() == CONDITIONAL


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        override(Config(), overrides)
    return str(error.value)


def word(key: str, value: Any) -> str:
    return f"{key}={json.dumps(value)}"


@pytest.mark.parametrize("key", sorted(CONDITIONAL - NOTICED))
def test_a_key_without_effect_is_an_error_that_names_the_missing_key(key: str) -> None:
    others, value = IDLE[key]
    text = refused(*others, word(key, value))
    assert f"command line: {word(key, value)}: `{key}` has no effect with `" in text
    assert text.count("error: ") == text.count("hint: remove it, or set `") == 1
    override(Config(), [*others, word(key, KEYS[key])])  # its default is fine
    fix = text.rpartition(" or set `")[2].rstrip("`").replace(": ", "=")
    needed = {
        "algorithm.returns=lambda_return": ["algorithm.baseline=value"],
        "algorithm.baseline=group": ["algorithm.group_size=8"],
        "optimizer.name=natural": ["optimizer.max_kl=0.02"],
    }
    override(Config(), [*others, word(key, value), *needed.get(fix, []), fix])


@pytest.mark.parametrize("key", sorted(NOTICED))
def test_a_number_that_disables_another_key_is_no_error(key: str) -> None:
    others, value = IDLE[key]
    (one,) = without_effect(override(Config(), [*others, word(key, value)]))
    assert (one.key, one.refused) == (key, False)
    assert not without_effect(override(Config(), [*others, word(key, value), one.fix.split("`")[1].replace(": ", "=")]))


def test_a_run_reports_keys_without_effect_that_are_no_error(tmp_path: Path) -> None:
    words = ["algorithm.objective=clip", "algorithm.clip_range=0.1", "policy.initial_standard_deviation=0.5"]
    done = pgcli("train", "cartpole", *words, "training.iterations=1", cwd=tmp_path)
    assert "`algorithm.clip_range` has no effect with `algorithm.update_epochs: 1`, `algorithm" in done.stderr
    assert "`policy.initial_standard_deviation` has no effect: the actions are not continuous" in done.stderr


def test_all_of_them_are_reported_at_once_and_with_other_errors(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("algorithm:\n  gae_lambda: 0.9\n  clip_range: 0.1\n  gama: 1\nvalue: {learning_rate: 0.1}\n")
    with pytest.raises(ConfigError) as error:
        load_config(str(path), ["policy.memory_size=8", "algorithm={clip_range: 0.3}"])
    assert [problem.where.rpartition("/")[2] for problem in error.value.problems] == [
        *("c.yaml:5:9", "command line: policy.memory_size=8", "command line: algorithm={clip_range: 0.3}")
    ]
    with pytest.raises(ConfigError) as error:
        load_config(str(path))
    assert [problem.where.rpartition(":c")[2].partition("yaml:")[2] for problem in error.value.problems] == [
        *("2:3", "3:3", "4:3", "5:9")
    ]


def test_an_override_may_make_keys_of_the_file_ineffective(tmp_path: Path) -> None:
    assert load_config("tutorial", ["algorithm.estimator=my.py:f"]).algorithm.baseline == "none"
    assert load_config("cartpole/ppo", ["algorithm.objective=importance_sampling"]).algorithm.clip_range == 0.2
    with pytest.raises(ConfigError):
        load_config("tutorial", ["algorithm.estimator=my.py:f", "algorithm.baseline=leave_one_out"])


def test_a_measured_shadow_makes_lambda_effective() -> None:
    value = ["algorithm.baseline=value", "algorithm.gae_lambda=0.9", "diagnostics.shadows=[lambda_return+value]"]
    assert override(Config(), [*value, "diagnostics.every=1"]).algorithm.gae_lambda == 0.9


def test_a_user_estimator_may_learn_from_one_episode() -> None:
    assert override(Config(), ["algorithm.estimator=my.py:f", "rollout.episodes=1"]).rollout.episodes == 1


# What an earlier version wrote: a run with keys that have no effect, in its config.yaml and its checkpoints.
EARLIER: dict[str, Any] = {
    "env": {"num_envs": 4},
    "rollout": {"episodes": 4, "horizon": 5},
    "policy": {"hidden_sizes": [4], "memory_size": 8, "initial_standard_deviation": 0.5},
    "algorithm": {"gae_lambda": 0.5, "clip_range": 0.1, "value_coef": 1.0},
    "value": {"learning_rate": 0.1, "shared_trunk": True},
    "training": {"iterations": 2},
    "evaluation": {"episodes": 2},
}


def test_a_run_of_an_earlier_version_with_such_keys_works_as_before(tmp_path: Path) -> None:
    run_experiment(Request(config(**EARLIER), tmp_path / "run", ["train"]))
    for words in (
        *(["eval", "run", "--episodes", 2], ["show", "run"], ["verify", "run"], ["plot", "run"]),
        ["resume", "run", "training.iterations=3"],
        ["train", "run/config.yaml", "--run-dir", "again"],
        ["eval", "again", "--episodes", 2],
    ):
        done = pgcli(*words, cwd=tmp_path)
        notices = [
            key for key in ("gae_lambda", "initial_standard_deviation") if f".{key}` has no effect" in done.stderr
        ]
        assert len(notices) == (2 if words[0] in ("resume", "train") else 0), words
    same = [(tmp_path / name / "metrics.csv").read_bytes() for name in ("run", "again")]
    assert same[0] == same[1]
    assert (
        "`algorithm.gae_lambda` has no effect"
        in pgcli(*("train", "run/config.yaml", "algorithm.gae_lambda=0.6"), cwd=tmp_path, code=2).stderr
    )


def test_data_of_a_checkpoint_and_a_copied_config_keep_such_keys(tmp_path: Path) -> None:
    before = config(**EARLIER)
    assert config_from_data(to_data(before), "checkpoint") == before
    copy = tmp_path / "copy.yaml"
    copy.write_text(to_yaml(before))
    assert load_config(str(copy), ["training.iterations=9"]).algorithm == before.algorithm
    assert len(without_effect(before)) == 6


UNCHANGED: list[tuple[dict[str, Any], str, Any]] = [
    ({"algorithm": {"objective": "clip"}}, "algorithm.clip_range", 0.01),
    ({"algorithm": {"objective": "clip"}}, "algorithm.kl_coef", 3.0),
    ({"algorithm": {"objective": "importance_sampling"}}, "algorithm.self_normalize", True),
    ({"algorithm": {"objective": "importance_sampling"}}, "algorithm.importance_bound", 1.0),
    ({"algorithm": {"objective": "clip"}}, "algorithm.target_kl", 1e-9),
    ({"algorithm": {"baseline": "value"}}, "value.clip_range", 1e-3),
    ({"env": {"chunk_size": 3}}, "env.num_envs", 2),
    ({"policy": {"hidden_sizes": []}, "algorithm": {"baseline": "value"}}, "policy.activation", "relu"),
]


@pytest.mark.parametrize(("sections", "key", "value"), UNCHANGED, ids=[key for _, key, _ in UNCHANGED])
def test_a_key_without_effect_changes_no_byte(sections: dict[str, Any], key: str, value: Any, tmp_path: Path) -> None:
    base = config(**{**EARLIER, "policy": {"hidden_sizes": [4]}, "algorithm": {}, "value": {}} | sections)
    section, name = key.split(".")
    changed = base.model_copy(update={section: getattr(base, section).model_copy(update={name: value})})
    assert [one.key for one in without_effect(changed)] == [key]
    tables = []
    for settings, path in ((base, tmp_path / "a"), (changed, tmp_path / "b")):
        run_experiment(Request(settings, path, ["train"]))
        rows = [line.split(",") for line in (path / "metrics.csv").read_text().splitlines()]
        skip = {rows[0].index("clip_range"), rows[0].index("clip_fraction")} if name == "clip_range" else set()
        tables.append([[cell for at, cell in enumerate(row) if at not in skip] for row in rows])
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("cartpole", ["algorithm.gae_lambda=0.9,0.95"], "`algorithm.gae_lambda` has no effect with"),
        ("cartpole", ["value.learning_rate=0.1,0.2"], "`value.learning_rate` has no effect with"),
        ("cartpole/ppo", ["value.learning_rate=null,0.001"], "train the same run"),
        ("cartpole/ppo", ["value.hidden_sizes=null,[64, 64]"], "train the same run"),
        ("cartpole/ppo", ["env.chunk_size=null,8"], "train the same run"),
        ("cartpole/ppo", ["algorithm.objective=clip,importance_sampling", "algorithm.clip_range=0.1,0.3"], "same run"),
        ("cartpole", ["logging.tensorboard=true,false"], "cannot differ between variants"),
        ("cartpole", ["diagnostics.every=null,1"], "cannot differ between variants"),
    ],
)
def test_a_comparison_of_identical_variants_is_refused(name: str, words: list[str], told: str) -> None:
    with pytest.raises((UsageError, ConfigError)) as error:
        parse_comparison([name], [*words, "training.env_steps=100"], [0], None)
    assert told in str(error.value)
    assert "set `algorithm.returns: lambda_return`" in str(error.value) or "gae_lambda" not in words[0]


def test_a_comparison_may_set_a_key_that_has_an_effect_in_one_variant() -> None:
    words = ["algorithm.objective=clip,importance_sampling", "algorithm.clip_range=0.1", "training.env_steps=100"]
    assert len(parse_comparison(["cartpole/ppo"], words, [0], None).variants) == 2


@pytest.mark.parametrize("word", ["initial_standard_deviation=0.5,1", "log_std_bounds=null,[-2, 1]"])
def test_a_comparison_of_the_deviation_of_discrete_actions_is_refused(word: str, tmp_path: Path) -> None:
    words = [f"policy.{word}", "training.env_steps=100"]
    done = pgcli("compare", "cartpole", *words, cwd=tmp_path, code=2)
    assert f"`policy.{word.partition('=')[0]}` has no effect with action space Discrete(2)" in done.stderr
