"""The JSON Schema of a config: editors and pgcli accept the same configs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from jsonschema import Draft202012Validator

from pgcli.config import flat, load_config, reference, shipped, shipped_configs, to_data
from pgcli.config.schema import Config
from pgcli.config.yaml import parse
from pgcli.errors import UsageError
from pgcli.runs.checkpoints import Checkpoint, save

CONFIGS = Path(__file__).parent.parent / "configs"
SCHEMA = json.loads((CONFIGS / "schema.json").read_text())
VALIDATOR = Draft202012Validator(SCHEMA)


def referenced(path: Path) -> str:
    """Find the schema as the YAML language server does: in a comment, without spaces, of the lines at the top."""
    found = re.search(r"^# yaml-language-server: \$schema=(\S+)$", path.read_text(), re.MULTILINE)
    assert found
    assert found.start() < path.read_text().index("\nname:"), "an editor's user sees it at the top"
    return found[1]


def test_the_shipped_schema_is_up_to_date() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert Config.model_json_schema() == SCHEMA, "`make schema` brings it up to date"
    assert (CONFIGS.parent / "docs/config.md").read_text() == reference.markdown() + "\n", "so does it with this page"


def test_the_reference_explains_every_key() -> None:
    explained = {key.name: key for key in reference.keys(None)}
    assert explained.keys() == flat(to_data(Config())).keys()
    assert all(key.description and key.rule for key in explained.values())
    assert explained["algorithm.gamma"][1:3] == ("0.99", "number ≥ 0, ≤ 1")
    assert explained["env.num_envs"].rule == "integer ≥ 1, ≤ 65536"
    assert "`lambda_return`" in explained["algorithm.returns"].rule
    with pytest.raises(UsageError) as caught:
        reference.keys("polisy")
    assert caught.value.hint == "did you mean `policy`?"


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_config_names_the_schema_and_fits_it_and_so_does_its_copy(name: str, tmp_path: Path) -> None:
    path = shipped_configs()[name]
    assert (path.parent / referenced(path)).resolve() == CONFIGS / "schema.json"
    assert not list(VALIDATOR.iter_errors(parse(path.read_bytes(), path.name).data))
    copy = shipped.copy(name, tmp_path / "a folder" / "mine.yaml")
    assert Path(unquote(urlparse(referenced(copy)).path)).samefile(CONFIGS / "schema.json")
    (first, *copied), (_, *original) = copy.read_text().splitlines(), path.read_text().splitlines()
    assert shlex.split(first)[1:] == ["pgcli", "train", str(copy)]
    assert [line.replace(referenced(copy), referenced(path)) for line in copied] == original
    assert load_config(str(copy)) == load_config(str(path))


def test_a_copy_finds_the_schema_where_pgcli_is_installed_in_a_folder_with_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "site packages" / "configs"
    shutil.copytree(CONFIGS, home)
    monkeypatch.setattr(shipped, "shipped_configs", lambda: {"cartpole/ppo": home / "cartpole/ppo.yaml"})
    copy = shipped.copy("cartpole/ppo", tmp_path)
    assert Path(unquote(urlparse(referenced(copy)).path)) == home / "schema.json"


def test_a_resolved_config_with_all_of_its_defaults_fits() -> None:
    assert not list(VALIDATOR.iter_errors(to_data(Config())))


@pytest.mark.parametrize(
    "wrong",
    [
        {"algoritm": {}},
        {"algorithm": {"gama": 0.9}},
        {"algorithm": {"gamma": 1.5}},
        {"algorithm": {"returns": "monte_carlo"}},
        {"env": {"wrappers": [{"nam": "ClipReward"}]}},
        {"env": {"num_envs": 0}},
        {"env": {"num_envs": "8"}},
        {"policy": {"hidden_sizes": [64, 0]}},
        {"name": "a/b"},
    ],
    ids=str,
)
def test_a_typo_or_a_bad_value_is_underlined(wrong: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(wrong))


def test_the_schema_accepts_every_valid_config() -> None:
    taken = "{env: {num_envs: 1e1, wrappers: [ClipReward, {name: FlattenObservation}]}, training: {env_steps: 1e5}}"
    assert not list(VALIDATOR.iter_errors(parse(taken.encode(), "taken").data))


def test_comments_do_not_affect_checkpoints(tmp_path: Path) -> None:
    text = (CONFIGS / "cartpole.yaml").read_text()
    bare = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    written = []
    for number, content in enumerate((text, bare)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "cartpole.yaml").write_text(content)
        counters = {"iteration": 0, "env_steps": 0, "episodes": 0}
        config = to_data(load_config(str(folder / "cartpole.yaml")))
        written.append(save(folder, Checkpoint(config, counters, {})).read_bytes())
    assert written[0] == written[1]
