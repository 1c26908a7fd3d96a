"""One update of pgcli gives the parameters of its peers, and docs/peers.md covers them."""

from __future__ import annotations

import importlib.util
import re

import peers
import pytest

from pgcli.config import Config, flat, shipped_configs, to_data
from pgcli.estimators import objectives

SB3 = importlib.util.find_spec("stable_baselines3") is not None


@pytest.mark.parametrize("peer", peers.UPDATES)
def test_one_update_gives_the_parameters_of_a_peer(peer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if peer.startswith("Stable-Baselines3") and not SB3:
        pytest.skip("needs the extra bench")
    found = peers.UPDATES[peer]()
    assert len(found) >= 7
    assert max(found.values()) < 1e-5, found


def test_another_standard_deviation_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = objectives.standardized
    monkeypatch.setattr("pgcli.algorithm.batch.standardized", lambda a, floor, correction=0: original(a, floor))
    assert max(peers.cleanrl_ppo().values()) > 1e-5


def test_the_page_names_existing_keys_and_every_peer() -> None:
    page = peers.PAGE.read_text()
    sections = {key.partition(".")[0] for key in flat(to_data(Config())) if "." in key}
    for section, key in re.findall(r"`(\w+)\.(\w+)", page.partition("| update |")[0]):
        if section in sections:
            assert key in type(getattr(Config(), section)).model_fields, f"{section}.{key}"
    assert all(f"| {peer} |" in page for peer in peers.UPDATES)
    for name in shipped_configs():
        assert not name.startswith("peers/") or f"`{name}`" in page


def test_the_table_of_the_page_has_only_small_differences() -> None:
    numbers = re.findall(r"^\| .+ \| `.+` \| (\S+) \|$", peers.PAGE.read_text(), re.MULTILINE)
    assert len(numbers) > 30
    assert all(float(number) < 1e-5 for number in numbers)
