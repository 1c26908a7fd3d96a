"""Configs: reading, writing, documentation, and light imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pgcli.config import Config, config_from_data, load_config, override, shipped_configs, to_data, to_yaml
from pgcli.config.rules import RULES, Not, Rule
from pgcli.config.yaml import MAX_DEPTH, dump, parse
from pgcli.errors import ConfigError


def read(text: str | bytes, folder: Path, *overrides: str) -> Config:
    file = folder / "walk.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(str(file), overrides)


# --- reading


def test_the_shortest_config_is_the_default_one_named_after_its_file(tmp_path: Path) -> None:
    assert read("env: {id: CartPole-v1}", tmp_path) == Config(name="walk")


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("1e-3", 1e-3),
        ("1E+3", 1e3),
        (".5", 0.5),
        ("+1.", 1.0),
        ("-0", 0),
        ("12", 12),
        ("9" * 309, int("9" * 309)),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("null", None),
        ("", None),
        *(
            (text, text)
            for text in ("yes", "on", "No", "017", "0o17", "0x1F", "1_000", "1:30", "2001-01-01", "1e", "=")
        ),
        *((f"'{text}'", text) for text in ("1", "null", "true", "1e-3", "")),
        ('"\\u00e9\\n"', "é\n"),
    ],
)
def test_scalars_follow_yaml_1_2(scalar: str, value: object) -> None:
    read_back = parse(f"x: {scalar}", "c.yaml").data["x"]
    assert read_back == value
    assert type(read_back) is type(value)


@pytest.mark.parametrize(("text", "number"), [("1e6", 10**6), ("100.0", 100), ("1.5e1", 15)])
def test_a_whole_number_may_be_written_as_a_float(text: str, number: int, tmp_path: Path) -> None:
    seed = read(f"seed: {text}", tmp_path).seed
    assert seed == number
    assert type(seed) is int


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbfseed: 7\nname: walk\n",
        b"seed: 7\r\nname: walk\r\n",
        b"seed: 7",
        b"# first\n---\nseed: 7\n...\n",
        b"%YAML 1.2\n---\nseed: 7\n",
        b"{seed: 7}",
        b'"seed": 7',
        b"seed: 7 # seven\n\n\n",
    ],
)
def test_harmless_ways_of_writing_are_accepted(text: bytes, tmp_path: Path) -> None:
    assert read(text, tmp_path) == Config(name="walk", seed=7)


@pytest.mark.parametrize("name", ["a", "my run", "x.y", "a-b_c", "é", "🚀 ppo", "e" * 60, "🚀" * 60, "con", "a~", "1"])
def test_a_name_may_be_any_valid_folder_name(name: str, tmp_path: Path) -> None:
    (tmp_path / Config(name=name).name).mkdir()


def test_a_wrapper_alone_is_its_name() -> None:
    short = config_from_data({"env": {"wrappers": ["FlattenObservation", {"name": "m:TimeAware"}]}}, "c")
    long = [{"name": "FlattenObservation", "kwargs": {}}, {"name": "m:TimeAware", "kwargs": {}}]
    assert to_data(short)["env"]["wrappers"] == long
    assert config_from_data({"env": {"wrappers": long}}, "c") == short


# --- overriding


def test_overrides_are_applied_in_order_before_validation(tmp_path: Path) -> None:
    text = "seed: no number\nalgorithm: {gamma: .nan, baseline: none}\nrollout: {episodes: 1}\nenv: []"
    overrides = ["seed=1", "seed=2", "algorithm.gamma=1e-1", "env={id: A-v0}", "env.id=B-v0"]
    config = read(text, tmp_path, *overrides)
    assert (config.seed, config.algorithm.gamma, config.algorithm.baseline, config.env.id) == (2, 0.1, "none", "B-v0")


@pytest.mark.parametrize(
    ("text", "kwargs"),
    [
        ("env.kwargs.some=1", {"x": {"y": 1}, "some": 1}),
        ("env.kwargs.a.b=[1, {c: d}]", {"x": {"y": 1}, "a": {"b": [1, {"c": "d"}]}}),
        ("env.kwargs.x.z=null", {"x": {"y": 1, "z": None}}),
        ("env.kwargs.x=", {"x": None}),
        ("env.kwargs={}", {}),
        ("env.kwargs.3=3", {"x": {"y": 1}, "3": 3}),
        ("env.kwargs.x=a=b==c", {"x": "a=b==c"}),
        ("env.kwargs.x= é🚀 ", {"x": "é🚀"}),
        ("env.kwargs.x='1'", {"x": "1"}),
        ("env.kwargs.x=__import__('os').getpid()", {"x": "__import__('os').getpid()"}),
        ("env.kwargs.x=1_000", {"x": "1_000"}),
        ("env.kwargs." + "a." * (MAX_DEPTH - 3) + "a=1", None),
    ],
)
def test_an_override_writes_its_value_at_its_key_and_nowhere_else(
    text: str, kwargs: dict[str, Any] | None, tmp_path: Path
) -> None:
    before = read("env: {kwargs: {x: {y: 1}}}", tmp_path)
    after = override(before, [text])
    assert kwargs is None or after.env.kwargs == kwargs
    assert after == read("env: {kwargs: {x: {y: 1}}}", tmp_path, text)
    assert after.model_copy(update={"env": before.env}) == before
    assert before.env.kwargs == {"x": {"y": 1}}


def test_validation_does_not_change_its_input() -> None:
    data = {"env": {"id": 3, "kwargs": {"x": [1]}}, "policy": {"hidden_sizes": [0]}, "extra": 1}
    with pytest.raises(ConfigError):
        config_from_data(data, "c")
    assert data == {"env": {"id": 3, "kwargs": {"x": [1]}}, "policy": {"hidden_sizes": [0]}, "extra": 1}


# --- shipped configs


def test_every_shipped_config_is_valid_and_loads_by_name() -> None:
    for name in shipped_configs():
        assert load_config(name) == load_config(str(shipped_configs()[name]))


def test_a_folder_of_the_same_name_does_not_hide_a_shipped_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped.yaml"
    shipped.write_text("seed: 5")
    monkeypatch.setattr("pgcli.config.load.shipped_configs", lambda: {"walk": shipped})
    monkeypatch.chdir(tmp_path)
    Path("walk").mkdir()
    assert load_config("walk").seed == 5
    Path("walk").rmdir()
    Path("walk").write_text("seed: 6")
    assert load_config("walk").seed == 6


# --- families of configs


def test_a_base_gives_the_keys_that_a_file_does_not_write(tmp_path: Path) -> None:
    base = load_config("cartpole/ppo")
    found = read("base: cartpole/ppo\nalgorithm: {clip_range: 0.1}", tmp_path, "seed=3")
    changed = base.model_copy(
        update={"algorithm": base.algorithm.model_copy(update={"clip_range": 0.1}), "name": "walk", "seed": 3}
    )
    assert found == changed
    assert "base" not in to_data(found)
    read(to_yaml(found), tmp_path)  # the config of a run stands alone


def test_a_base_beside_a_file_precedes_a_shipped_one_and_whole_values_replace_its_own(tmp_path: Path) -> None:
    (tmp_path / "cartpole").write_text("env: {id: A-v0, kwargs: {x: 1, y: 2}}\npolicy: {hidden_sizes: [1, 2]}")
    found = read("base: cartpole\nenv: {kwargs: {z: 3}}\npolicy: {hidden_sizes: [5]}", tmp_path)
    assert (found.env.id, found.env.kwargs, found.policy.hidden_sizes) == ("A-v0", {"z": 3}, [5])


def test_a_file_may_remove_the_effect_of_its_base_but_not_of_its_own_keys(tmp_path: Path) -> None:
    other = "base: cartpole/ppo\nalgorithm: {objective: policy_gradient, update_epochs: 1"
    assert read(f"{other}}}", tmp_path).algorithm.clip_range_schedule == "linear"
    with pytest.raises(ConfigError, match=r"`algorithm\.clip_range` has no effect"):
        read(f"{other}, clip_range: 0.1}}", tmp_path)


@pytest.mark.parametrize(
    ("text", "where", "message", "hint"),
    [
        ("seed: 1\nbase: cartpol/ppo", "walk.yaml:2:1", "no such file or shipped config", "did you mean"),
        ("base: other.yaml", "walk.yaml:1:1", "`base: other.yaml` has a base itself", "use `base: cartpole`"),
        ("base: wrong.yaml", "wrong.yaml:1:1", "unknown key `sed`", "did you mean `seed`"),
        ("base: 3", "walk.yaml:1:1", "`base` should be a shipped config or a YAML file, got 3", "cartpole/ppo"),
        ("base: cartpole/ppo\nalgorithm: {gama: 1}", "walk.yaml:2:13", "unknown key `algorithm.gama`", "gamma"),
        ("base: cartpole/ppo\nalgorithm: {baseline: mean}", "walk.yaml:2:13", "needs a value function", "baseline"),
    ],
)
def test_a_wrong_base_is_reported_where_it_is_written(
    text: str, where: str, message: str, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "other.yaml").write_text("base: cartpole")
    (tmp_path / "wrong.yaml").write_text("sed: 1")
    with pytest.raises(ConfigError) as caught:
        read(text, tmp_path)
    problem = caught.value.problems[0]
    assert problem.where.endswith(where)
    assert message in problem.message
    assert hint in problem.hint


def test_merge_keys_and_aliases_are_expanded_and_own_keys_precede() -> None:
    text = """
    x: &a {p: 1, q: 2}
    y: &b {q: 3, r: [4, {s: 5}]}
    z: {q: 6, <<: [*a, *b], t: *b}
    w: {<<: {<<: *b, p: 7}}
    """
    b = {"q": 3, "r": [4, {"s": 5}]}
    data = parse(text, "f").data
    assert data["z"] == {"p": 1, "q": 6, "r": [4, {"s": 5}], "t": b}
    assert data["w"] == b | {"p": 7}
    assert parse("'<<': 1", "f").data == {"<<": 1}, "quoted, it is a key"


# --- writing

NASTY = [
    *"~=-?!&*|>%@#:,[]{}'\"\\` \n\t\r\ufeff\u2028\x85\x00\ufffe🚀",
    *"1e5 1.0e5 yes Null true 0o17 017 1_000 1:30 .inf << - --- ... !x &a 2001-01-01 a: #x".split(),
    *(" lead", "trail ", "a: b", "a #b", "- a", "a\nb\n", "\n\na", "a\r\nb", "x" * 999, "x " * 999),
]
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(NASTY)
FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([1e-300, -0.0, 1e22, 5e-324, 1e16, 0.1])
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
IDS = TEXTS.filter(bool)
KWARGS = st.dictionaries(IDS.filter(lambda key: key not in ("render_mode", "max_episode_steps")), PLAIN, max_size=3)
WRAPPERS = IDS | st.fixed_dictionaries({"name": IDS, "kwargs": KWARGS})
NAMES = st.from_regex(r"\A[\w🚀'(&=,!#%@]([\w .🚀'(&=,!#%@{}]{0,50}[\w🚀'])?\Z") | st.sampled_from(
    ["yes", "null", "1e5", "0o17", "1", "a #b", "true", "="]
)
CONFIGS = st.fixed_dictionaries(
    {"env": st.fixed_dictionaries({"id": IDS, "kwargs": KWARGS, "wrappers": st.lists(WRAPPERS, max_size=2)})},
    optional={
        "name": NAMES,
        "seed": st.integers(0, 2**63 - 1),
        "policy": st.fixed_dictionaries({"hidden_sizes": st.lists(st.integers(1, 65536), max_size=32)}),
        "algorithm": st.fixed_dictionaries({"gamma": st.floats(0, 1), "entropy_coef": FLOATS.map(abs)}),
        "evaluation": st.fixed_dictionaries({"stop_at_return": st.none() | FLOATS}),
        "training": st.fixed_dictionaries({"env_steps": st.none() | st.integers(1, 10**12)}),
    },
)


@settings(max_examples=80, deadline=None, database=None)
@given(CONFIGS)
@example({"evaluation": {"stop_at_return": -0.0}, "optimizer": {"learning_rate": 1e-300}})
def test_a_written_config_round_trips(data: dict[str, Any]) -> None:
    config = config_from_data(data, "drawn")
    source = parse(to_yaml(config).encode(), "config.yaml")
    assert source.problems == []
    again = config_from_data(source.data, "config.yaml")
    assert again == config
    assert repr(again) == repr(config)  # -0.0 == 0.0 and True == 1
    assert to_yaml(again) == to_yaml(config)


def test_a_written_config_has_every_key_and_reads_like_a_page() -> None:
    text = to_yaml(Config(name="walk"))
    assert set(map(tuple, keys(parse(text, "c").data))) == {path for path, info in fields(Config)}
    assert "\n  hidden_sizes: [64, 64]\n" in text
    assert "\n  wrappers: []\n" in text
    assert "!!" not in text


def test_entries_that_were_written_before_keep_their_types() -> None:
    for value, text in ((1, "1"), (1.0, "1.0"), (True, "true"), ("1", "'1'"), (1, "1"), ([1], "[1]"), ([1.0], "[1.0]")):
        assert dump({"x": value, "y": {"z": value}}) == f"x: {text}\ny:\n  z: {text}\n"
    assert dump({}) == "{}\n"


def test_a_reader_of_yaml_1_1_reads_the_same_text() -> None:
    import yaml

    words = {"a": "yes", "on": "017", "b": "1_000", "c": "1:30", "d": "2001-01-01", "e": "0x1F", "f": "1e5", "g": "="}
    config = Config.model_validate({"env": {"kwargs": words}})
    assert yaml.safe_load(to_yaml(config)) == to_data(config)


# --- explaining itself


def fields(model: type[BaseModel], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from fields(info.annotation, (*prefix, name))
        else:
            yield (*prefix, name), info


def keys(data: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in data.items():
        if isinstance(value, dict) and key not in ("kwargs", "network_kwargs", "stop_at"):
            yield from keys(value, (*prefix, key))
        else:
            yield (*prefix, key)


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for info in annotation.model_fields.values():
            yield from models(info.annotation)
    for argument in get_args(annotation):
        yield from models(argument)


def test_every_key_has_a_sentence_and_a_default() -> None:
    seen = set(models(Config))
    assert len(seen) == 16
    for model in seen:
        assert model.__doc__
        for name, info in model.model_fields.items():
            assert info.description, (model, name)
            assert info.description.endswith("."), (model, name)
            assert not info.is_required() or (model.__name__, name) in (
                ("WrapperConfig", "name"),
                ("AdaptiveKL", "target"),
            )


def test_the_json_schema_explains_every_key_to_an_editor() -> None:
    schema = Config.model_json_schema()
    assert schema["additionalProperties"] is False
    for path, info in fields(Config):
        node = schema
        for key in path:
            node = node["properties"][key]
            node = {**node, **node.get("allOf", [{}])[0]}  # so does pydantic 2.8 write a $ref with neighbours
            description = node.get("description")  # left out where it is that of the section
            node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        assert (description or node["description"]) == info.description
        assert "default" in node, path
        assert node["default"] == info.get_default(call_default_factory=True), path
    algorithm = schema["$defs"]["AlgorithmConfig"]
    assert algorithm["additionalProperties"] is False
    assert algorithm["properties"]["gamma"]["maximum"] == 1
    assert algorithm["properties"]["returns"]["enum"] == ["total", "reward_to_go", "lambda_return", "vtrace"]
    kinds = schema["$defs"]["EnvConfig"]["properties"]["wrappers"]["items"]["anyOf"]
    assert kinds == [{"type": "string"}, {"$ref": "#/$defs/WrapperConfig"}]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "+".join(rule.when))
def test_a_rule_names_keys_and_values_that_exist(rule: Rule) -> None:
    for key, wanted in rule.when.items():
        section, name, *_ = key.split(".")
        assert name in type(getattr(Config(), section)).model_fields
        if not callable(wanted):
            Config.model_validate({section: {name: wanted.value if isinstance(wanted, Not) else wanted}})


# --- importing


def test_reading_a_config_imports_nothing_heavy() -> None:
    code = """
import sys
from pgcli.config import Config, load_config, to_yaml
from pgcli.errors import ConfigError
to_yaml(load_config(sys.argv[1]))
try:
    load_config("nowhere")
except ConfigError:
    pass
try:
    load_config(sys.argv[1], ["algorithm.gama=1", "seed=x"])
except ConfigError:
    print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    command = [sys.executable, "-c", code, next(iter(map(str, shipped_configs().values())))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "pydantic" in loaded
    assert not loaded & {"torch", "numpy", "scipy", "gymnasium", "matplotlib", "rich", "typer", "safetensors"}
