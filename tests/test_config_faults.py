"""All faults of a config are reported together, with place, key, rule, value and hint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pgcli.config import Config, config_from_data, load_config, override
from pgcli.config.yaml import MAX_BYTES, MAX_DEPTH, parse
from pgcli.errors import ConfigError, Problem

BOMB = "a: &a [x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(text: str | bytes, *overrides: str) -> list[str]:
    """Return the printed lines for a bad config `c.yaml`: `error:` lines with their `hint:`."""
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as caught:
        load_config("c.yaml", overrides)
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines] == ["error:", "hint:"] * (len(lines) // 2), lines
    assert all(len(line) < 400 and line.isprintable() for line in lines), lines
    return lines


def accepted(text: str | bytes, *overrides: str) -> Config:
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config("c.yaml", overrides)


KEYS = [
    (
        "optimizer: {betas: [0.9]}",
        "1:13: `optimizer.betas` should be a list of at least 2 entries, got [0.9]",
        "Decay of the first and the second moment",
    ),
    (
        "algorithm: {objective: clip, clip_range: [0.1]}",
        "1:30: `algorithm.clip_range` should be a list of at least 2 entries, got [0.1]",
        "ε of objective clip",
    ),
    (
        "algorithm: {objective: clip, clip_range: [0.1, a]}",
        "1:48: `algorithm.clip_range[1]` should be a number, got 'a'",
        "write a number like",
    ),
    (
        "algorithm: {objective: clip, clip_range: [0.1, -1]}",
        "1:48: `algorithm.clip_range[1]` should be greater than 0, got -1",
        "ε of objective clip",
    ),
    (
        "algorithm: {objective: clip, clip_range: {low: 1}}",
        "1:30: `algorithm.clip_range` should be a number or a list, got {low: 1}",
        "ε of objective clip",
    ),
    (
        "algorithm: {objective: clip, kl_coef: {}}",
        "1:30: `algorithm.kl_coef` needs the key `target`",
        "add `target: …`. KL(μ‖π) of an update, in nats.",
    ),
    (
        "algorithm: {objective: clip, kl_coef: {target: a}}",
        "1:40: `algorithm.kl_coef.target` should be a number, got 'a'",
        "write a number like",
    ),
    (
        "algorithm: {objective: clip, kl_coef: {target: 0}}",
        "1:40: `algorithm.kl_coef.target` should be greater than 0, got 0",
        "KL(μ‖π) of an update",
    ),
    (
        "algorithm: {objective: clip, kl_coef: high}",
        "1:30: `algorithm.kl_coef` should be a number or a section with keys, got 'high'",
        "write a number like",
    ),
    (
        "algorithm: {objective: clip, kl_coef: -1}",
        "1:30: `algorithm.kl_coef` should be at least 0, got -1",
        "Weight of a penalty on KL",
    ),
    ("env: {rebuild: 3}", "1:7: `env.rebuild` should be 'auto', true or false, got 3", "true: build a new instance"),
    ("sampling: {workers: -1}", "1:12: `sampling.workers` should be at least 0, got -1", "0: collect in the main"),
    ("algorithm: {gama: 0.9}", "1:13: unknown key `algorithm.gama`", "did you mean `algorithm.gamma`?"),
    ("algorithm:\n  gama: 0.9", "2:3: unknown key `algorithm.gama`", "did you mean `algorithm.gamma`?"),
    ("gamma: 0.9", "1:1: unknown key `gamma`", "did you mean `algorithm.gamma`?"),
    ("rollout: {gamma: 1}", "1:11: unknown key `rollout.gamma`", "did you mean `algorithm.gamma`?"),
    ("lr: 3", "1:1: unknown key `lr`", "did you mean `optimizer.learning_rate` or `value.learning_rate`?"),
    ("optimizer: {lr: 3}", "1:13: unknown key `optimizer.lr`", "did you mean `optimizer.learning_rate`?"),
    ("episodes: 3", "1:1: unknown key `episodes`", "did you mean `rollout.episodes` or `evaluation.episodes`?"),
    ("Env: {id: x}", "1:1: unknown key `Env`", "did you mean `env`?"),
    ("kwargs: {}", "1:1: unknown key `kwargs`", "did you mean `env.kwargs`?"),
    ("env: {name: x}", "1:7: unknown key `env.name`", "did you mean `env.id`?"),
    ("policy: {zzz: 1}", "1:10: unknown key `policy.zzz`", "the keys here are hidden_sizes, activation"),
    ("env:{id: x}", "1:1: unknown key `'env:{id'`", "add a space after the colon"),
    ("algorithm.gamma: 1", "1:1: unknown key `'algorithm.gamma'`", "write `algorithm: {gamma: …}`; dotted"),
    ("'': 1", "1:1: unknown key `''`", "the keys here are name, seed, env"),
    ("seed: 1\nseed: 2", "2:1: duplicate key `seed`, first on line 1", "keep one of them"),
    ("env:\n  id: a\n  id: b", "3:3: duplicate key `env.id`, first on line 2", "keep one of them"),
    ("[a]: 1", "1:1: a key must be text, got a list", "write `key: value`"),
    ("? {a: 1}\n: 2", "1:3: a key must be text, got a mapping", "write `key: value`"),
    ("null: 1", "1:1: a key must be text, got null", "put it in quotes: 'null'"),
    ("~: 1", "1:1: a key must be text, got ~", "put it in quotes: '~'"),
    ("3: 1", "1:1: a key must be text, got 3", "put it in quotes: '3'"),
    ("true: 1", "1:1: a key must be text, got true", "put it in quotes: 'true'"),
    ("env: {kwargs: {x: {3: 4}}}", "1:20: a key must be text, got 3", "put it in quotes: '3'"),
    ("?\n: 1", "1:2: a key must be text, got nothing", "put it in quotes: ''"),
    ("<<: 1", "1:1: `<<` merges a mapping", "write `<<: *name`"),
    ("<<: [{seed: 1}, 2]", "1:1: `<<` merges a mapping", "write `<<: *name`"),
    ("<<: {seed: 1}\n<<: {name: a}", "2:1: a second `<<`", "merge a list"),
    ("env: &e {id: a}\nrollout: {<<: *e}", "1:10: unknown key `rollout.id`", "the keys here are episodes"),
    ("env: {<<: {3: a}}", "1:12: a key must be text, got 3", "put it in quotes: '3'"),
]

TYPES = [
    (
        "algorithm: {gamma: high}",
        "1:13: `algorithm.gamma` should be a number, got 'high'",
        "write a number like 0.99, 1e-3",
    ),
    ("algorithm: {gamma: [0.9]}", "1:13: `algorithm.gamma` should be a number, got [0.9]", "The default is 0.99."),
    ("algorithm: {gamma: true}", "1:13: `algorithm.gamma` should be a number, got true", "The default is 0.99."),
    ("algorithm: {gamma: null}", "1:13: `algorithm.gamma` should be a number, got null", "The default is 0.99."),
    *(
        (
            f"optimizer: {{learning_rate: {text}}}",
            f"1:13: `optimizer.learning_rate` should be a number, got '{text}'",
            "write a number like 0.99, 1e-3 or 200, without quotes or underscores",
        )
        for text in ("yes", "on", "1_000", "1:30", "017", "0o17", "0x1F", "1e", "1.2.3", "2001-01-01", "--1", "1e-3x")
    ),
    *(
        (f"seed: {text}", f"1:1: `seed` should be a whole number, got {got}", hint)
        for text, got, hint in (
            ("10.5", "10.5", "The default is 0."),
            ("true", "true", "The default is 0."),
            ("null", "null", "The default is 0."),
            ("1_000", "'1_000'", "write a whole number like 200 or 1e6"),
            ("1:30", "'1:30'", "write a whole number like 200 or 1e6"),
            ("'3'", "'3'", "write a whole number like 200 or 1e6, without quotes or underscores"),
        )
    ),
    ("seed: " + "9" * 5000, "1:1: `seed` should be a finite number, got .inf", "The default is 0."),
    ("seed: .inf", "1:1: `seed` should be a finite number, got .inf", "The default is 0."),
    (
        "training: {iterations: 1.5}",
        "`training.iterations` should be a whole number or null, got 1.5",
        "null: no limit",
    ),
    ("training: {seconds: .inf}", "`training.seconds` should be a finite number, got .inf", "null: no limit"),
    ("training: {seconds: .nan}", "`training.seconds` should be a finite number, got .nan", "null: no limit"),
    ("env: {kwargs: {x: [1, .nan]}}", "1:23: `env.kwargs.x[1]` should be a finite number, got .nan", "remove it"),
    ("env: {kwargs: {x: -.inf}}", "1:16: `env.kwargs.x` should be a finite number, got -.inf", "use 1e308"),
    ("evaluation: {stop_at_return: 1e400}", "should be a finite number, got .inf", "The default is null."),
    ("algorithm: {discount_weighting: yes}", "should be true or false, got 'yes'", "write true or false"),
    ("algorithm: {discount_weighting: 1}", "should be true or false, got 1", "The default is false."),
    ("env: {rebuild: yes}", "1:7: `env.rebuild` should be 'auto', true or false, got 'yes'", "default is 'auto'."),
    ("sampling: {workers: -1}", "1:12: `sampling.workers` should be at least 0, got -1", "The default is 0."),
    ("sampling: {workers: 2000}", "1:12: `sampling.workers` should be at most 1024, got 2000", "The default is 0."),
    ("sampling: {workers: all}", "1:12: `sampling.workers` should be 'auto' or a whole number, got 'all'", "cores"),
    ("env: {rebuild: 1}", "1:7: `env.rebuild` should be 'auto', true or false, got 1", "default is 'auto'."),
    ("env: {id: 3}", "1:7: `env.id` should be text, got 3", "put it in quotes: '3'"),
    ("name: 2024", "1:1: `name` should be text, got 2024", "put it in quotes: '2024'"),
    ("policy: {hidden_sizes: 64}", "`policy.hidden_sizes` should be a list, got 64", "did you mean `[64]`?"),
    ("policy:\n  hidden_sizes: [64,\n   a]", "3:4: `policy.hidden_sizes[1]` should be a whole number, got 'a'", "200"),
    ("policy: {hidden_sizes: [64, null]}", "1:29: `policy.hidden_sizes[1]` should be a whole number, got null", "["),
    ("policy: {activation: tanhh}", "should be 'tanh', 'relu', 'elu' or 'identity', got 'tanhh'", "mean `tanh`?"),
    ("policy: {activation: ReLU}", "should be 'tanh', 'relu', 'elu' or 'identity', got 'ReLU'", "mean `relu`?"),
    ("algorithm: {baseline: null}", "'group' or 'value', got null", "did you mean `none`?"),
    (
        "env: CartPole-v1",
        "1:1: `env` should be a section with keys, got 'CartPole-v1'",
        "{id: 'CartPole-v1'}",
    ),
    ("env:", "1:1: `env` should be a section with keys, got null", "remove it, or add a key"),
    ("policy: []", "should be a section with keys, got []", "the keys are hidden_sizes, activation"),
    ("env: {kwargs: [1]}", "1:7: `env.kwargs` should be a mapping, got [1]", "{key: value}"),
]

RANGES = [
    ("algorithm: {gamma: 1.5}", "1:13: `algorithm.gamma` should be at most 1, got 1.5", "Discount factor γ"),
    ("algorithm: {gae_lambda: -0.1}", "`algorithm.gae_lambda` should be at least 0, got -0.1", "The default is 0.95."),
    ("optimizer: {learning_rate: 0}", "`optimizer.learning_rate` should be greater than 0, got 0", "step size"),
    ("optimizer: {learning_rate: -1e-3}", "should be greater than 0, got -0.001", "step size"),
    ("algorithm: {clip_range: 0}", "`algorithm.clip_range` should be greater than 0, got 0", "The default is 0.2."),
    ("rollout: {episodes: 0}", "`rollout.episodes` should be at least 1, got 0", "The default is 64."),
    ("policy: {hidden_sizes: [0]}", "1:25: `policy.hidden_sizes[0]` should be at least 1, got 0", "[]: a linear"),
    ("policy: {hidden_sizes: [" + "1, " * 40 + "]}", "should be a list of at most 32 entries, got [1, 1", "[64, 64]"),
    (
        "training: {iterations: 1e12}",
        "`training.iterations` should be at most 1000000000, got 1000000000000",
        "limit",
    ),
    ("seed: -1", "1:1: `seed` should be at least 0, got -1", "The default is 0."),
    (f"seed: {2**63}", f"`seed` should be at most {2**63 - 1}, got {2**63}", "The default is 0."),
    (f"seed: {'9' * 300}", f"`seed` should be at most {2**63 - 1}, got 99999", "The default is 0."),
    ("env: {id: ''}", "`env.id` should be at least 1 character long, got ''", "Gymnasium id"),
    *(
        (f"name: '{name}'", f"1:1: `name` should be a valid folder name, got '{name}'", "used for the run directory")
        for name in ("", ".x", "-x", " x", "~x", "x.", "x ", "../x", "a/b", "a\\b", "a:b", "a*", "a?", 'a"', "a<", "a|")
    ),
    ("name: it's?", "1:1: `name` should be a valid folder name, got 'it''s?'", "used for the run directory"),
    ('name: "a\\nb"', r"`name` should be a valid folder name, got 'a\nb'", "used for the run directory"),
    ('name: "a\\u2028b"', r"`name` should be a valid folder name, got 'a\u2028b'", "used for the run directory"),
    ("name: " + "🚀" * 61, "`name` should be at most 60 characters long, got '🚀🚀", "used for the run directory"),
]

WRAPPERS = [
    ("Foo", "2:3: `env.wrappers` should be a list, got 'Foo'", "did you mean `['Foo']`?"),
    ("[A, 3]", "2:17: `env.wrappers[1]` should be the name of a wrapper or a mapping", "{name: …, kwargs: …}"),
    (
        "[A, null]",
        "2:17: `env.wrappers[1]` should be the name of a wrapper or a mapping of its",
        "{name: …, kwargs: …}",
    ),
    ("[A, '']", "2:17: `env.wrappers[1]` should be at least 1 character long, got ''", "names of Gymnasium wrappers"),
    ("[A, {}]", "2:17: `env.wrappers[1]` needs the key `name`", "add `name: …`. Name of a Gymnasium wrapper"),
    ("[A, {name: 3}]", "2:18: `env.wrappers[1].name` should be text, got 3", "put it in quotes: '3'"),
    ("[{name: A, kwarg: {}}]", "2:24: unknown key `env.wrappers[0].kwarg`", "did you mean `env.wrappers[0].kwargs`?"),
    ("[{name: A, id: {}}]", "2:24: unknown key `env.wrappers[0].id`", "did you mean `env.id`?"),
    ("\n  - A\n  - name: B\n    kwargs: 3", "5:5: `env.wrappers[1].kwargs` should be a mapping, got 3", "{key: value}"),
    (
        "\n  - A\n  - name: B\n    name: C",
        "5:5: duplicate key `env.wrappers[1].name`, first on line 4",
        "keep one of them",
    ),
]

COMBINATIONS = [
    (
        "rollout: {episodes: 1}",
        "1:11: `algorithm.baseline` and `rollout.episodes`: the mean over one",
        "baseline: none",
    ),
    (
        "rollout: {episodes: null}",
        "1:11: `rollout.episodes` and `rollout.steps`: an iteration",
        "set `rollout.episodes`",
    ),
    (
        "rollout: {steps: 8}",
        "1:11: `rollout.steps` and `rollout.episodes`: an iteration collects",
        "set `episodes: null`",
    ),
    (
        "algorithm: {update_epochs: 3}",
        "1:13: `algorithm.update_epochs` and `algorithm.objective`: ",
        "update_epochs: 1",
    ),
    ("algorithm: {num_minibatches: 3}", "1:13: `algorithm.num_minibatches` and `algorithm.objective`", "batches: 1"),
    (
        "algorithm: {group_size: 4}",
        "1:13: `algorithm.group_size` and `algorithm.baseline`: only",
        "remove group_size",
    ),
    (
        "algorithm: {baseline: group}",
        "1:13: `algorithm.baseline` and `algorithm.group_size`: `baseline: group`",
        "set `group_size`",
    ),
    ("algorithm: {baseline: group, group_size: 1}", "1:30: `algorithm.group_size`: the mean over one", "larger"),
    (
        "algorithm: {baseline: group, group_size: 5}",
        "1:30: `algorithm.group_size` and `rollout.episodes`: 64 episodes",
        "mult",
    ),
    (
        "algorithm: {baseline: group, group_size: 4}\nenv: {vectorization: native}",
        "2:7: `env.vectorization` and `algorithm.baseline`: native",
        "auto",
    ),
    ("algorithm: {standardize: group}", "1:13: `algorithm.standardize` and", "returns: total"),
    (
        "algorithm: {baseline: leave_one_out}\nrollout: {episodes: 1}",
        "1:13: `algorithm.baseline` and `rollout.episodes`: this baseline needs at least two",
        "baseline: none",
    ),
    ("algorithm: {returns: total, discount_weighting: true}", "1:29: `algorithm.discount_weighting` and", "to_go"),
    ("env: {wrappers: [A], vectorization: native}", "1:22: `env.vectorization` and `env.wrappers`: native", "sync"),
    ("env: {rebuild: true, vectorization: native}", "1:22: `env.vectorization` and `env.rebuild`: episodes of", "sync"),
    ("env: {kwargs: {max_episode_steps: 3}}", "1:16: `env.kwargs.max_episode_steps`: pgcli", "`env.max_episode_steps`"),
    ("env: {kwargs: {render_mode: human}}", "1:16: `env.kwargs.render_mode`: pgcli sets this", "remove it"),
    ("evaluation: {every: null, stop_at_return: 1}", "1:27: `evaluation.stop_at_return` and", "`evaluation.every`"),
]

SYNTAX: list[tuple[str | bytes, str, str]] = [
    ("", "1:1: empty config", "`env: {id: CartPole-v1}`"),
    ("# nothing\n", "1:1: empty config", "`env: {id: CartPole-v1}`"),
    ("null", "1:1: empty config", "`env: {id: CartPole-v1}`"),
    ("---\n...\n", "2:1: empty config", "`env: {id: CartPole-v1}`"),
    ("- a\n- b", "1:1: expected a mapping of keys to values, got ['a', 'b']", "`env: {id: CartPole-v1}`"),
    ("\nseed=1", "2:1: expected a mapping of keys to values, got 'seed=1'", "`env: {id: CartPole-v1}`"),
    ("seed: 1\n---\nseed: 2", "2:1: a second document begins here", "one document"),
    ("env: {id: x\nseed: 1", "1:6: unclosed `{`: expected `,` or `}` before line 2, column 5", "with `}`"),
    ("policy: {hidden_sizes: [1, 2}", "1:24: unclosed `[`: expected `,` or `]`", "close it with `]`"),
    ("env: [", "a value is missing", "close the open bracket"),
    ("env:\n\tid: x", "2:1: indentation with a tab", "indent with spaces"),
    ("env:\n  id: x\n\tseed: 1", "3:1: indentation with a tab", "indent with spaces"),
    ("env: {id: 'x}\n", "1:11: unclosed quote", "close it"),
    ("env:\n  id: a: b", "2:8: unexpected `:`", "in quotes"),
    ("seed: 1\n  name: x", "2:7: unexpected `:`", "indent all keys of a section"),
    ("  seed: 1\n name: x", "2:2: expected `key: value`, indented like the keys above", "indent"),
    ("seed: 1\n- a", "2:1: expected `key: value`, indented like the keys above", "indent"),
    ("seed: 1\nname\nenv: {}", "2:1: expected `key: value`", "a colon and a space"),
    ("name: @x", "1:7: a value cannot begin with '@'", "put it in quotes"),
    ("name: %x", "1:7: a value cannot begin with '%'", "put it in quotes"),
    ('name: "\\q"', "not valid YAML: found unknown escape character", "quote"),
    ("name: !!str x", "1:7: YAML tags (`!…`) are not allowed", "write the plain value"),
    ("name: !x y", "1:7: YAML tags (`!…`) are not allowed", "write the plain value"),
    ("name: *x", "1:7: this alias (`*…`) has no anchor (`&…`) above it", "in quotes"),
    ("name: &x a\nenv: {id: &x b}", "2:11: this anchor (`&…`) exists already", "another name"),
    ("env: &e {kwargs: {x: *e}}", "1:6: this value contains itself", "remove the alias"),
    (
        "\n".join(f"k{n}: &k{n} {{kwargs: {{x: {f'*k{n - 1}' if n else 1}}}}}" for n in range(20)),
        "17:20: nested deeper than 32 levels",
        "fewer",
    ),
    (b"\xef\xbb\xbfseed: x", "1:1: `seed` should be a whole number, got 'x'", "write a whole number"),
    (b"\xef\xbb\xbfseed: @", "1:7: a value cannot begin with '@'", "put it in quotes"),
    (b"\xef\xbb\xbfseed: \xe9", "1:7: this is not UTF-8", "save it as UTF-8"),
    (b"seed: 1\nname: \xe9", "2:7: this is not UTF-8", "save it as UTF-8"),
    ("seed: 1".encode("utf-16"), "1:1: UTF-16 is not UTF-8", "save it as UTF-8"),
    (b"seed: 1\nname: a\0b", "2:8: the character U+0000 is not allowed", "UTF-8"),
    (b"name: \x07", "1:7: the character U+0007 is not allowed", "remove it"),
    ("[" * 10_000, f"1:{MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH} levels", "fewer levels"),
    ("{a: " * 10_000, f"nested deeper than {MAX_DEPTH} levels", "fewer levels"),
    ("- " * 10_000, f"1:{2 * MAX_DEPTH + 1}: nested deeper than {MAX_DEPTH} levels", "fewer levels"),
    (
        "\n".join(" " * i + "a:" for i in range(700)),
        f"{MAX_DEPTH + 1}:{MAX_DEPTH + 1}: nested deeper than",
        "fewer levels",
    ),
    ("env: {kwargs: {a: " + "[" * 30 + "1" + "]" * 30 + "}}", "1:48: nested deeper than", "fewer levels"),
    (
        "env:\n kwargs:\n" + "".join(f"{'  ' * i}- a:\n" for i in range(1, 20)).replace("- ", "", 1),
        "`env.kwargs.a`",
        "fewer levels",
    ),
]


@pytest.mark.parametrize(("text", "error", "hint"), [*KEYS, *TYPES, *RANGES, *COMBINATIONS, *SYNTAX])
def test_a_fault_is_reported_at_its_place_with_rule_and_hint(text: str | bytes, error: str, hint: str) -> None:
    first, mend, *others = told(text)
    assert first.startswith("error: c.yaml:")
    assert error in first
    assert hint in mend
    assert not others


@pytest.mark.parametrize(("wrappers", "error", "hint"), WRAPPERS)
def test_a_fault_inside_a_wrapper_is_reported_at_its_line(wrappers: str, error: str, hint: str) -> None:
    first, mend, *others = told(f"env:\n  wrappers: {wrappers}")
    assert first.startswith(f"error: c.yaml:{error}")
    assert hint in mend
    assert not others


def test_all_faults_are_reported_together_in_file_then_command_line_order() -> None:
    text = """\
optimizer: {lr: 1}
algorithm:
  returns: total
  discount_weighting: true
  gamma: 2
  gamma: 3
env: {kwargs: {x: .nan, y: {1: 2}}, wrappers: [{nam: x}]}
seeed: 1
"""
    lines = told(text, "training.iterations=x", "oops", "seed=[", "name=-", "rollout.steps=3")
    assert [line.split(" ", 2)[1].rstrip(":") for line in lines[:16:2]] == [
        f"c.yaml:{place}" for place in ("1:13", "4:3", "5:3", "6:3", "7:16", "7:29", "7:48", "7:49")
    ]
    assert [line.split(": ")[2] for line in lines[18::2]] == [
        "training.iterations=x",
        "oops",
        "seed=[",
        "name=-",
        "rollout.steps=3",
    ]
    assert lines[16].startswith("error: c.yaml:8:1: unknown key `seeed`")


def test_the_number_of_reported_faults_is_limited_and_reporting_is_fast() -> None:
    start = time.process_time()
    lines = told("".join(f"key{i}: 1\n" for i in range(3000)))
    assert len(lines) == 2 * 21
    assert lines[-2] == "error: c.yaml: and 2980 more problems"
    assert time.process_time() - start < 2
    assert told("seed: 1\n" * 23)[-2] == "error: c.yaml: and 2 more problems"


def test_a_rule_between_keys_ignores_keys_that_are_already_invalid() -> None:
    assert len(told("env: {vectorization: native, wrappers: [3]}")) == 2
    assert len(told("rollout: {episodes: 1}\nalgorithm: {baseline: men}")) == 2
    assert len(told("rollout: {episodes: 1}\nalgorithm: []")) == 2


OVERRIDES = [
    (
        "algorithm.gamma=abc",
        "algorithm.gamma=abc: `algorithm.gamma` should be a number, got 'abc'",
        "0.99, 1e-3 or 200",
    ),
    ("algorithm.gama=1", "algorithm.gama=1: unknown key `algorithm.gama`", "did you mean `algorithm.gamma`?"),
    ("gamma=1", "gamma=1: unknown key `gamma`", "did you mean `algorithm.gamma`?"),
    ("algo.gamma=1", "algo.gamma=1: unknown key `algo`", "did you mean `algorithm`?"),
    ("seed = 3", "seed = 3: unknown key `'seed '`", "did you mean `seed`?"),
    ("algorithm.gamma==1", "algorithm.gamma==1: `algorithm.gamma` should be a number, got '=1'", "0.99"),
    ("algorithm.gamma", "algorithm.gamma: expected KEY=VALUE", "for example algorithm.gamma=0.99"),
    ("", ": expected KEY=VALUE", "for example algorithm.gamma=0.99"),
    ("=x", "=x: '' is not a key", "for example algorithm.gamma=0.99"),
    ("a..b=1", "a..b=1: 'a..b' is not a key", "for example algorithm.gamma=0.99"),
    (".=1", ".=1: '.' is not a key", "for example algorithm.gamma=0.99"),
    ("env.kwargs.=1", "env.kwargs.=1: 'env.kwargs.' is not a key", "for example algorithm.gamma=0.99"),
    ("env.kwargs." + "a." * 5000 + "a=1", "is not a key", "for example algorithm.gamma=0.99"),
    ("seed=", "seed=: `seed` should be a whole number, got null", "The default is 0."),
    ("seed=[1", "seed=[1: unclosed `[`: expected `,` or `]`", "close it with `]`"),
    ("seed=1\n---\n2", r"seed=1\n---\n2: a second document begins", "one document"),
    ("seed=!!python/object/apply:os.getpid []", "YAML tags (`!…`) are not allowed", "write the plain value"),
    ("seed=*a", "seed=*a: this alias (`*…`) has no anchor (`&…`) above it", "in quotes"),
    ("seed=a: b: c", "seed=a: b: c: unexpected `:`", "in quotes"),
    ("name=\udcff", r"name=\udcff: the character U+DCFF is not allowed", "remove it"),
    ("env.id.x=1", "env.id.x=1: `env.id` has no keys", "set the whole value: `env.id=…`"),
    ("policy.hidden_sizes.0=1", "`policy.hidden_sizes` has no keys", "`policy.hidden_sizes=…`"),
    ("policy.hidden_sizes=[1, x]", "`policy.hidden_sizes[1]` should be a whole number, got 'x'", "200 or 1e6"),
    ("env.kwargs.x.y=1", "env.kwargs.x.y=1: `env.kwargs.x` has no keys", "`env.kwargs.x=…`"),
    ("env.kwargs={a: 1, a: 2}", "env.kwargs={a: 1, a: 2}: duplicate key `env.kwargs.a`", "keep one of them"),
    ("env={id: x, idd: 2}", "env={id: x, idd: 2}: unknown key `env.idd`", "did you mean `env.id`?"),
    (
        "rollout.episodes=1",
        "rollout.episodes=1: `algorithm.baseline` and `rollout.episodes`: the mean",
        "`baseline: none`",
    ),
    ("env.kwargs.x=" + "x" * 300 + ": 1: 2", "env.kwargs.x=xxxxxxxx", "in quotes"),
]


@pytest.mark.parametrize(("text", "error", "hint"), OVERRIDES)
def test_a_fault_of_an_override_quotes_the_override(text: str, error: str, hint: str) -> None:
    first, mend, *others = told("env: {kwargs: {x: 1}}\nalgorithm:\n  baseline: mean", text)
    assert first.startswith("error: command line: ")
    assert error in first
    assert hint in mend
    assert not others


@pytest.mark.parametrize("text", [text for text, *_ in OVERRIDES if not text.startswith("env.kwargs.x.y")])
def test_an_override_of_a_config_object_is_rejected_like_that_of_a_file(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Config(), [text])
    assert str(caught.value).startswith("error: command line: ")


def test_a_broken_rule_between_keys_names_the_override_that_breaks_it() -> None:
    broken = Config.model_validate({"rollout": {"steps": 3}})
    for overrides, where in (["seed=1"], "config.yaml"), (["rollout.steps=4"], "command line: rollout.steps=4"):
        with pytest.raises(ConfigError) as caught:
            override(broken, overrides)
        assert str(caught.value).startswith(f"error: {where}: `rollout.steps` and `rollout.episodes`: an iteration")
    assert override(broken, ["rollout.steps=null"]).rollout.steps is None


def test_the_last_override_of_a_key_is_reported() -> None:
    assert told("", "seed=1")[0].endswith("empty config")
    assert "seed=y" in told("seed: 1", "seed=x", "seed=y")[0]
    lines = told("seed: 1", "env={id: 3, num_envs: x}", "env.id=4")
    assert "command line: env={id: 3, num_envs: x}: `env.num_envs`" in lines[0]
    assert "command line: env.id=4: `env.id`" in lines[2]


PLACES = [
    ("missing.yaml", "missing.yaml: no such file or shipped config", "name a YAML file or a shipped config"),
    ("cartpol", "cartpol: no such file or shipped config", "did you mean `cartpole`?"),
    ("cartpole.yml", "cartpole.yml: no such file or shipped config", "did you mean `cartpole`?"),
    ("-", "-: no such file or shipped config", "name a YAML file or a shipped config"),
    ("folder", "folder: is a directory", "a config is a YAML file of about one page"),
    ("", ".: is a directory", "a config is a YAML file of about one page"),
    ("dangling", "dangling: no such file", "name a YAML file or a shipped config"),
    ("loop", "loop: cannot be read: ", "permission to read it"),
    ("file.yaml/x", "file.yaml/x: cannot be read: ", "permission to read it"),
    ("x" * 5000, ": cannot be read: ", "permission to read it"),
    ("a\0b", r"a\x00b: no such file", "name a YAML file or a shipped config"),
    ("a\nb", r"a\nb: no such file", "name a YAML file or a shipped config"),
    ("\udcff", r"\udcff: no such file", "name a YAML file or a shipped config"),
    ("huge.yaml", f"huge.yaml: is larger than {MAX_BYTES // 1024} KiB", "a config is a YAML file of about one page"),
]


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links and their errors are those of POSIX")
@pytest.mark.parametrize(("location", "error", "hint"), PLACES)
def test_a_location_without_a_config_is_reported_with_a_hint(
    location: str, error: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgcli.config.load.shipped_configs", lambda: {"cartpole": Path("cartpole.yaml"), "ppo": Path()})
    Path("folder").mkdir()
    Path("file.yaml").touch()
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    with Path("huge.yaml").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(ConfigError) as caught:
        load_config(location)
    first, mend = str(caught.value).splitlines()
    assert error in first
    assert hint in mend


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_reported() -> None:
    Path("c.yaml").touch(mode=0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load_config("c.yaml")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no FIFOs on Windows")
def test_loading_does_not_block_on_a_fifo_or_a_device() -> None:
    os.mkfifo("fifo")
    code = """
from pgcli.config import load_config
from pgcli.errors import ConfigError, Problem
for location in ("fifo", "/dev/zero"):
    try:
        load_config(location)
    except ConfigError as error:
        print(error.problems[0].message)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.splitlines() == ["is not a regular file"] * 2


def test_a_yaml_bomb_is_rejected_before_it_expands() -> None:
    tracemalloc.start()
    start = time.process_time()
    lines = told(BOMB)
    assert time.process_time() - start < 0.05
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert len(lines) == 2
    assert "aliases expand to more than 10,000 values" in lines[0]
    assert lines[1] == "hint: repeat only what is needed"


@pytest.mark.parametrize(
    "payload",
    [
        "!!python/object/apply:pathlib.Path.touch [canary]",
        "!!python/object/apply:os.system ['touch canary']",
        "!!python/name:os.system",
        "__import__('os').system('touch canary')",
        "$(touch canary)",
    ],
)
def test_configs_and_overrides_never_execute_code(payload: str) -> None:
    for text, overrides in ((f"env: {{kwargs: {{x: {payload}}}}}", []), ("seed: 1", [f"env.kwargs.x={payload}"])):
        try:
            config = accepted(text, *overrides)
        except ConfigError:
            continue
        assert config.env.kwargs == {"x": payload}
    assert os.listdir() == ["c.yaml"]


NOT_DATA = [
    (None, "expected a mapping of keys to values, got null"),
    ([1], "expected a mapping of keys to values, got [1]"),
    ({3: 4}, "a key must be text, got 3"),
    ({None: 4}, "a key must be text, got null"),
    ({"env": {("a", "b"): 4}}, "a key must be text, got ('a', 'b')"),
    ({"env": {"kwargs": {"\ud800": 4}}}, r"a key must be text, got '\ud800'"),
    ({"env": {"id": "\ud800"}}, r"`env.id` should be Unicode text, got '\ud800'"),
    ({"env": {"kwargs": {"x": b"y"}}}, "`env.kwargs.x` should be text, a number, true, false, null, a list or a"),
    ({"env": {"kwargs": {"x": (1, 2)}}}, "`env.kwargs.x` should be text, a number, true, false, null, a list or a"),
    ({"policy": {"hidden_sizes": (1, 2)}}, "`policy.hidden_sizes` should be text, a number, true, false, null, a"),
    ({"seed": float("nan")}, "`seed` should be a finite number, got .nan"),
    ({"seed": 10**5000}, "`seed` should be a number below 1.8e308, got a number with hundreds of digits"),
    (
        {"env": {"kwargs": {"x": -(10**309)}}},
        "`env.kwargs.x` should be a number below 1.8e308, got a number with hundreds",
    ),
]


@pytest.mark.parametrize(("data", "error"), NOT_DATA)
def test_a_fault_in_data_names_the_origin_of_the_data(data: Any, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_data(data, "best.safetensors")
    assert str(caught.value).startswith(f"error: best.safetensors: {error}")


def test_endlessly_nested_data_is_rejected() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    endless: dict[str, Any] = {}
    endless["env"] = {"kwargs": {"x": endless}}
    for data in (deep, {"env": deep}, {"env": {"kwargs": {"x": deep}}}, endless):
        with pytest.raises(ConfigError):
            config_from_data(data, "best.safetensors")


WORDS = ["env", "id", "seed", "kwargs", "wrappers", "policy", "hidden_sizes", "name", "x", "<<", "~", "1e3", "é", "🚀"]
MARKS = [": ", ":", "\n", "\n  ", "\n - ", "- ", "{", "}", "[", "]", ", ", "'", '"', "|\n", ">", "# ", "? ", "\t", "\r"]
TOKENS = [*WORDS, *MARKS, "&a", "*a", "!!int ", "---\n", "...", "%YAML 1.2\n", "\\", "\0", "\ufeff", "\u2028", "\x85"]


TEXT = st.text() | st.lists(st.sampled_from(TOKENS), max_size=40).map("".join)
FUZZ = settings(max_examples=120, deadline=None, database=None)


def problems_of(build: Callable[..., object], *arguments: object) -> list[Problem]:
    """Return the problems that `build` reports; any other exception is a bug."""
    try:
        build(*arguments)
    except ConfigError as error:
        return error.problems
    return []


@FUZZ
@given(TEXT)
def test_any_text_is_loaded_or_rejected_with_a_valid_position(text: str) -> None:
    places = [tuple(map(int, problem.where.split(":")[1:])) for problem in problems_of(parse, text, "c.yaml")]
    lines = len(re.split("\r\n|[\r\n\x85\u2028\u2029]", text))
    assert all(1 <= line <= lines + 1 and column >= 1 for line, column in places)


@FUZZ
@given(st.binary() | TEXT.map(str.encode))
def test_any_bytes_are_loaded_or_rejected_with_a_hint(content: bytes) -> None:
    assert all(problem.hint for problem in problems_of(parse, content, "c.yaml"))


@FUZZ
@given(TEXT.map(str.encode) | st.binary() | st.tuples(st.sampled_from(WORDS), TEXT).map(": ".join).map(str.encode))
def test_any_file_is_loaded_or_rejected_quickly_with_a_hint(content: bytes) -> None:
    Path("c.yaml").write_bytes(content)
    start = time.process_time()
    assert all(problem.message and problem.hint for problem in problems_of(load_config, "c.yaml"))
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "part",
    ["[", "[],", "? ", "- ", "a: ", "a\n", "'", "&a ", "*a ", "!!a ", "# ", "\t", "\r", "--- ", "x: [1, 2]\n", "1"],
)
def test_a_huge_file_is_rejected_quickly_for_any_content(part: str) -> None:
    start = time.process_time()
    told(part * (MAX_BYTES // len(part)))
    assert time.process_time() - start < 5


@FUZZ
@given(TEXT)
def test_any_text_is_loaded_or_rejected_without_libyaml(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgcli.config.yaml.Loader", yaml.SafeLoader)
        assert all(problem.hint for problem in problems_of(parse, text, "c.yaml"))


KEY = st.sampled_from([*Config.model_fields, *WORDS, "gamma", "episodes"]) | st.text(max_size=3)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3) | st.just("auto"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(KEY, inner, max_size=4)
        | st.dictionaries(st.integers() | st.none(), inner, max_size=2)
        | st.tuples(inner)
    ),
    max_leaves=10,
)


@FUZZ
@given(st.dictionaries(KEY, ANYTHING, max_size=5) | ANYTHING)
def test_any_data_is_loaded_or_rejected_with_a_hint(data: Any) -> None:
    assert all(problem.message and problem.hint for problem in problems_of(config_from_data, data, "best.safetensors"))


@FUZZ
@given(
    st.lists(
        TEXT | st.tuples(st.sampled_from([*WORDS, "env.kwargs.x", "env.wrappers"]), TEXT).map("=".join), max_size=3
    )
)
def test_any_override_is_applied_or_rejected_with_a_hint(overrides: list[str]) -> None:
    assert all(problem.message and problem.hint for problem in problems_of(override, Config(), overrides))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("training: {device: gpu}", "did you mean `cuda`?"),
        ("training: {device: cpuu}", "did you mean `cpu`?"),
        ("evaluation: {mode: deterministic}", "did you mean `greedy`?"),
        ("algorithm: {objective: PPO}", "did you mean `clip`?"),
        ("optimizer: {name: gpu}", "Optimizer. "),
    ],
)
def test_other_libraries_names_for_a_choice_get_a_suggestion(text: str, hint: str) -> None:
    assert hint in told(text)[1]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("baseline", ["cartpole/baseline", "acrobot/baseline", "shows 1 more"]),
        ("baselnie", ["cartpole/baseline", "acrobot/baseline", "shows 1 more"]),
        ("reinforec", ["did you mean `reinforce`?"]),
        ("hopper", ["`hopper/ppo` or `hopper/reinforce`?"]),
        ("pendulum-ppo", ["did you mean `pendulum/ppo`?"]),
        ("cartpole/pp0", ["did you mean `cartpole/ppo`?"]),
        ("cartpol", ["did you mean `cartpole`?"]),
    ],
)
def test_a_name_that_several_shipped_configs_have_lists_them(name: str, found: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(name)
    assert all(one in caught.value.problems[0].hint for one in found)
