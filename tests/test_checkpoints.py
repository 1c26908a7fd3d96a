"""Checkpoints: data only, that proves itself; and files that are whole or absent."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgcli.errors import CheckpointError, RunDirectoryError, RunInUse
from pgcli.runs import checkpoints
from pgcli.runs.checkpoints import Checkpoint, decode, follow, load, save
from pgcli.runs.files import Table, check_columns, cut_table, write_whole
from pgcli.runs.lock import lock

STATE = Checkpoint(
    config={"name": "pole 🎢", "seed": 3},
    counters={"iteration": 7, "env_steps": 70, "episodes": 14},
    tensors={"policy.network.0.weight": torch.arange(6.0).reshape(2, 3), "optimizer.step": torch.tensor(7.0)},
)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save(tmp_path_factory.mktemp("state"), STATE).read_bytes()


def test_a_checkpoint_reads_back_as_it_was(tmp_path: Path) -> None:
    path = save(tmp_path, STATE)
    assert path.name == "iteration-000007.safetensors"
    back = load(follow(tmp_path / "latest.json"))
    assert (back.config, back.counters) == (STATE.config, STATE.counters)
    assert all(torch.equal(back.tensors[key], tensor) for key, tensor in STATE.tensors.items())
    assert back.tensors.keys() == STATE.tensors.keys()
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_its_bytes_are_a_function_of_the_state_and_its_metadata_one_canonical_key(
    content: bytes, tmp_path: Path
) -> None:
    assert save(tmp_path, STATE).read_bytes() == content
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["pgcli"]
    text = header["__metadata__"]["pgcli"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_one_changed_bit_anywhere_is_found(content: bytes) -> None:
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(CheckpointError):
            decode(bytes(damaged), "damaged")


def test_a_checkpoint_cut_short_anywhere_is_found(content: bytes) -> None:
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            decode(content[:length], "short")
    with pytest.raises(CheckpointError):
        decode(content + b"\0", "long")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_in_a_sentence(noise: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode(noise, "noise")


def test_foreign_files_are_refused_and_nothing_of_theirs_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Malice:
        def __reduce__(self) -> tuple[object, ...]:
            return open, (str(canary), "w")

    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Malice()))
    torch.save({"weight": torch.zeros(2)}, tmp_path / "torch")
    (tmp_path / "pickle").write_bytes(pickle.dumps(Malice()))
    (tmp_path / "png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "huge").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (tmp_path / "empty").touch()
    for name in ("zip", "torch", "pickle", "png", "huge", "empty", "nowhere"):
        with pytest.raises(CheckpointError, match=name):
            load(tmp_path / name)
    assert not canary.exists()


def test_a_pointer_is_not_believed(tmp_path: Path) -> None:
    path = save(tmp_path, STATE)
    pointer = tmp_path / "latest.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="sha256"):
        follow(pointer)
    path.write_bytes(whole)
    follow(pointer)
    data = json.loads(pointer.read_text())
    for file in ("../../etc/passwd", "other.safetensors", None):
        pointer.write_text(json.dumps(data | {"file": file}))
        with pytest.raises(CheckpointError, match="names no checkpoint"):
            follow(pointer)


def test_a_checkpoint_of_another_network_is_told_apart(tmp_path: Path) -> None:
    loaded = load(save(tmp_path, STATE))
    checkpoints.check_tensors(loaded.tensors, STATE.tensors, "it")
    wider = STATE.tensors | {"policy.network.0.weight": torch.zeros(2, 4)}
    with pytest.raises(CheckpointError, match=r"policy.network.0.weight is torch.float32 \[2, 3\]"):
        checkpoints.check_tensors(loaded.tensors, wider, "it")
    with pytest.raises(CheckpointError, match="lacks"):
        checkpoints.check_tensors(loaded.tensors, STATE.tensors | {"more": torch.zeros(1)}, "it")


def test_a_new_name_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, b"one", replace=False)
    with pytest.raises(FileExistsError):
        write_whole(path, b"two", replace=False)
    assert path.read_bytes() == b"one"
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("tail", "rows"),
    [(b"", 3), (b"3,0.5", 3), (b"3,0.5\n", 4), (b"3,\0\0\n4,1\n", 3), (b"7,1\n", 3), (b"x,1\n", 3)],
)
def test_a_table_is_cut_back_to_whole_rows_before_an_iteration(tmp_path: Path, tail: bytes, rows: int) -> None:
    path = tmp_path / "table.csv"
    table = Table(path, ["iteration", "value"])
    table.append([(0, 0.1), (1, None), (2, 1 / 3)])
    table.close()
    whole = path.read_bytes()
    assert whole == b"iteration,value\n0,0.1\n1,\n2,0.3333333333333333\n"
    path.write_bytes(whole + tail)
    assert cut_table(path, 4) == rows
    assert path.read_bytes().startswith(whole)
    assert cut_table(path, 2) == 2
    assert path.read_bytes() == b"iteration,value\n0,0.1\n1,\n"
    assert cut_table(tmp_path / "nowhere", 2) == 0


def test_a_lock_is_held_by_one_and_let_go(tmp_path: Path) -> None:
    with lock(tmp_path), pytest.raises(RunInUse, match="process"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


def test_a_checkpoint_may_begin_with_the_byte_of_a_pickle(tmp_path: Path) -> None:
    """Its first byte is the low one of a length: one checkpoint in 32 begins like this."""
    for padding in range(400):
        counters = STATE.counters | {"iteration": padding}
        path = save(tmp_path, Checkpoint({"name": "x" * padding}, counters, STATE.tensors))
        if path.read_bytes().startswith(b"\x80"):
            assert load(path).config == {"name": "x" * padding}
            return
    raise AssertionError("no length was tried that begins with 0x80")


def test_a_table_of_other_columns_is_told_and_half_a_header_is_not(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    check_columns(path, ["iteration", "x"])
    Table(path, ["iteration", "x"]).close()
    check_columns(path, ["iteration", "x"])
    with pytest.raises(RunDirectoryError, match="other columns"):
        check_columns(path, ["iteration", "x", "y"])
    path.write_text("iterat")
    check_columns(path, ["iteration", "x"])
