"""Checkpoints contain data only and verify themselves; files are complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import pickle
import re
import signal
import socket
import time
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgcli.errors import CheckpointError, RunDirectoryError, RunInUse
from pgcli.runs import checkpoints
from pgcli.runs.checkpoints import MAX_BYTES, Checkpoint, decode, follow, load, save
from pgcli.runs.directory import find_checkpoint
from pgcli.runs.files import opened, write_whole
from pgcli.runs.lock import is_held, lock
from pgcli.runs.tables import TableWriter, length_before, read_table

STATE = Checkpoint(
    config={"name": "pole 🎢", "seed": 3},
    counters={"iteration": 7, "env_steps": 70, "episodes": 14},
    tensors={"policy.network.0.weight": torch.arange(6.0).reshape(2, 3), "optimizer.step": torch.tensor(7.0)},
)


def cut_table(path: Path, iteration: int) -> int:
    header = path.read_bytes().partition(b"\n")[0].decode().split(",") if path.exists() else []
    rows, end = length_before(path, header, iteration)
    if path.exists():
        with opened(path.parent) as folder:
            folder.truncate(path.name, end)
    return rows


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save(tmp_path_factory.mktemp("state"), STATE).read_bytes()


def test_a_checkpoint_round_trips(tmp_path: Path) -> None:
    path = save(tmp_path, STATE)
    assert path.name == "iteration-000007.safetensors"
    back = load(follow(tmp_path / "latest.json"))
    assert (back.config, back.counters) == (STATE.config, STATE.counters)
    assert all(torch.equal(back.tensors[key], tensor) for key, tensor in STATE.tensors.items())
    assert back.tensors.keys() == STATE.tensors.keys()
    assert not [file.name for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_a_tensor_is_saved_by_value_for_any_memory_layout(tmp_path: Path) -> None:
    lying = {"turned": torch.arange(6.0).reshape(2, 3).t(), "one": torch.tensor(2), "every other": torch.arange(9)[::2]}
    back = load(save(tmp_path, replace(STATE, tensors=lying))).tensors
    assert all(torch.equal(back[name], tensor) for name, tensor in lying.items())


def test_the_bytes_depend_on_state_and_metadata_only(content: bytes, tmp_path: Path) -> None:
    assert save(tmp_path, STATE).read_bytes() == content
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header["__metadata__"]) == ["pgcli"]
    text = header["__metadata__"]["pgcli"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def test_any_flipped_bit_is_detected(content: bytes) -> None:
    for position in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[position] ^= 1 << bit
            with pytest.raises(CheckpointError):
                decode(bytes(damaged), "damaged")


def test_a_truncated_checkpoint_is_detected(content: bytes) -> None:
    for length in range(len(content)):
        with pytest.raises(CheckpointError):
            decode(content[:length], "short")
    with pytest.raises(CheckpointError):
        decode(content + b"\0", "long")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_rejected_with_one_sentence(noise: bytes) -> None:
    with pytest.raises(CheckpointError):
        decode(noise, "noise")


def test_foreign_files_are_rejected_and_never_executed(tmp_path: Path) -> None:
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


Json = dict[str, Any]


def forged(
    content: bytes, of_tensors: Json | None = None, of_metadata: Json | None = None, more: Json | None = None
) -> bytes:
    """Change the header of a checkpoint, and recompute its digests."""
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    metadata = json.loads(header.pop("__metadata__")["pgcli"]) | (of_metadata or {})
    weight = "policy.network.0.weight"
    header[weight] |= of_tensors or {}

    def canonical(data: Json) -> bytes:
        return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    del metadata["metadata_sha256"]
    metadata["tensors_sha256"] = hashlib.sha256(canonical(header) + body).hexdigest()
    metadata["metadata_sha256"] = hashlib.sha256(canonical(metadata)).hexdigest()
    texts = {"pgcli": canonical(metadata).decode()} | (more or {})
    text = json.dumps({"__metadata__": texts} | header).encode()
    return len(text).to_bytes(8, "little") + text + body


HOSTILE: list[tuple[str, dict[str, Json], str]] = [
    ("a shape of 10^18", {"of_tensors": {"shape": [10**9, 10**9]}}, "impossible size"),
    ("a shape below zero", {"of_tensors": {"shape": [-2, -3]}}, "impossible size"),
    ("a shape that is no number", {"of_tensors": {"shape": ["2", 3]}}, "impossible size"),
    ("a shape of many axes", {"of_tensors": {"shape": [1] * 1000 + [2, 3]}}, "impossible size"),
    ("offsets beyond the file", {"of_tensors": {"data_offsets": [4, 2**40]}}, "impossible size"),
    ("tensors that overlap", {"of_tensors": {"data_offsets": [0, 24]}}, "overlap"),
    ("a gap", {"of_tensors": {"data_offsets": [8, 28], "shape": [5]}}, "overlap, leave gaps"),
    ("a type that there is not", {"of_tensors": {"dtype": "OBJECT"}}, "unknown type OBJECT"),
    ("a key more", {"of_tensors": {"__reduce__": "os.system"}}, "unknown type"),
    (
        "counts below zero",
        {"of_metadata": {"counters": {"iteration": -1, "env_steps": 0, "episodes": 0}}},
        "non-negative integer",
    ),
    (
        "half a count",
        {"of_metadata": {"counters": {"iteration": 0.5, "env_steps": 0, "episodes": 0}}},
        "non-negative integer",
    ),
    ("a counter less", {"of_metadata": {"counters": {"iteration": 7}}}, "counters are not"),
    ("counters that are none", {"of_metadata": {"counters": [7]}}, "damaged"),
    ("a config that is none", {"of_metadata": {"config": ["import os"]}}, "damaged"),
    ("another format", {"of_metadata": {"format": 99}}, "has format 99, but this version of pgcli reads format 1"),
    ("more metadata", {"more": {"command": "rm"}}, "damaged"),
]


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in HOSTILE], ids=[row[0] for row in HOSTILE])
def test_a_signed_but_inconsistent_checkpoint_is_rejected_before_reading(
    change: dict[str, Json], words: str, content: bytes
) -> None:
    assert decode(forged(content), "good").counters == STATE.counters
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=re.escape(words)):
        decode(forged(content, **change), "forged")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**22


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"__metadata__": {"pgcli": "{}"}, "__metadata__": {"pgcli": "[]"}}',
        b"{" + b",".join(b'"%d": 1' % n for n in range(100_000)) + b"}",
        b'{"__metadata__": {"pgcli": "' + b"\xff" * 1000 + b'"}}',
        b'{"__metadata__": {"pgcli": "{\\"format\\": NaN}"}}',
    ],
    ids=["lists", "objects", "duplicate key", "many keys", "not UTF-8", "NaN"],
)
def test_a_malformed_header_is_rejected_with_one_sentence(header: bytes) -> None:
    for length in (len(header), 2**40, MAX_BYTES):
        with pytest.raises(CheckpointError, match="not a pgcli checkpoint"):
            decode(length.to_bytes(8, "little") + header, "odd")


def test_oversized_files_and_non_files_are_rejected_immediately(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name in ("sparse", "fifo", "folder"):
        with pytest.raises(CheckpointError, match=name):
            load(tmp_path / name)


def test_non_finite_parameters_are_rejected(tmp_path: Path) -> None:
    tensors = STATE.tensors | {"policy.network.0.weight": torch.full((2, 3), torch.nan)}
    back = load(save(tmp_path, replace(STATE, tensors=tensors)))
    with pytest.raises(CheckpointError, match="has a value that is not finite"):
        checkpoints.check_tensors(back.tensors, STATE.tensors, "nan")


def test_the_latest_pointer_is_verified(tmp_path: Path) -> None:
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
        with pytest.raises(CheckpointError, match="does not name a checkpoint"):
            follow(pointer)


def test_a_checkpoint_of_another_network_is_rejected(tmp_path: Path) -> None:
    loaded = load(save(tmp_path, STATE))
    checkpoints.check_tensors(loaded.tensors, STATE.tensors, "it")
    wider = STATE.tensors | {"policy.network.0.weight": torch.zeros(2, 4)}
    with pytest.raises(CheckpointError, match=r"policy.network.0.weight is torch.float32 \[2, 3\]"):
        checkpoints.check_tensors(loaded.tensors, wider, "it")
    with pytest.raises(CheckpointError, match="missing"):
        checkpoints.check_tensors(loaded.tensors, STATE.tensors | {"more": torch.zeros(1)}, "it")


def test_an_existing_file_is_not_overwritten_without_replace(tmp_path: Path) -> None:
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
    with opened(tmp_path) as folder:
        table = TableWriter(folder, path.name, ["iteration", "value"])
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


def test_a_locked_run_names_the_process_that_holds_it(tmp_path: Path) -> None:
    holder = os.fork()
    if not holder:
        with lock(tmp_path):
            time.sleep(60)
    try:
        while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_bytes().endswith(b"}"):
            time.sleep(0.01)
        assert is_held(tmp_path)
        with pytest.raises(RunInUse, match=f"in use by process {holder} on "), lock(tmp_path):
            pass
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    before = (tmp_path / ".lock").stat()
    assert is_held(tmp_path) is False
    assert (tmp_path / ".lock").stat().st_mtime_ns == before.st_mtime_ns, "asking writes nothing"
    with lock(tmp_path):
        pass
    assert is_held(tmp_path / "nowhere") is False


def test_a_checkpoint_may_begin_with_the_byte_of_a_pickle(tmp_path: Path) -> None:
    """The first byte is the low byte of a length: one checkpoint in 32 begins like this."""
    for padding in range(400):
        counters = STATE.counters | {"iteration": padding}
        path = save(tmp_path, Checkpoint({"name": "x" * padding}, counters, STATE.tensors))
        if path.read_bytes().startswith(b"\x80"):
            assert load(path).config == {"name": "x" * padding}
            return
    raise AssertionError("no length was tried that begins with 0x80")


def test_a_table_with_other_columns_is_reported_but_half_a_header_is_not(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert length_before(path, ["iteration", "x"], 1) == (0, 0)
    with opened(tmp_path) as folder:
        TableWriter(folder, path.name, ["iteration", "x"]).close()
    assert length_before(path, ["iteration", "x"], 1) == (0, 12)
    with pytest.raises(RunDirectoryError, match="columns differ"):
        length_before(path, ["iteration", "x", "y"], 1)
    path.write_text("iterat")
    assert length_before(path, ["iteration", "x"], 1) == (0, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x05\x06" + bytes(18), "a zip file"),
        (b"\x80\x04N.", "a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"env: {id: CartPole-v1}\n", "looks like text; `pgcli train` writes"),
        (bytes(4096), "or truncated"),
        (b"", "it is empty"),
        (b"\x10\0", "or truncated"),
    ],
)
def test_a_foreign_file_is_described_by_its_format(content: bytes, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        decode(content, "it")
    with pytest.raises(CheckpointError, match="a safetensors file"):
        decode(safetensors.torch.save({"a": torch.zeros(2)}), "it")


def test_a_body_size_that_contradicts_the_header_is_rejected_before_reading(tmp_path: Path) -> None:
    path = save(tmp_path, STATE)
    with path.open("r+b") as file:
        file.truncate(2**31)  # a hole, which takes no room on the disk
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="the tensors need"):
        load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_a_non_regular_file_is_reported_as_such(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            load(path)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", tmp_path / "socket", Path("/dev/zero")):
            with pytest.raises(CheckpointError, match="neither a file nor a folder"):
                find_checkpoint(path)


def test_an_overflowed_mean_square_of_an_optimizer_is_accepted() -> None:
    found = STATE.tensors | {"optimizer.step": torch.tensor(math.inf)}
    checkpoints.check_tensors(found, STATE.tensors, "it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON, JSON, st.dictionaries(st.text(max_size=12), JSON, max_size=2))
def test_any_metadata_with_valid_digests_gives_a_checkpoint_or_an_error(
    content: bytes, config: Any, counters: Any, entry: Json
) -> None:
    for changes in (
        {"of_metadata": {"config": config}},
        {"of_metadata": {"counters": counters}},
        {"of_tensors": entry},
    ):
        with contextlib.suppress(UnicodeEncodeError):  # a name that no JSON in UTF-8 has
            signed = forged(content, **changes)
            with contextlib.suppress(CheckpointError):
                decode(signed, "it").read_config("it")


ROW = st.text('0123456789,.-+einfa\n\0"\r', max_size=12).map(str.encode) | st.binary(max_size=12)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, max_size=8), st.integers(0, 12))
def test_any_table_bytes_are_cut_or_reported_and_cutting_is_idempotent(
    tmp_path: Path, lines: list[bytes], iteration: int
) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(b"iteration,return_mean\n0,1.5\n" + b"\n".join(lines))
    with contextlib.suppress(RunDirectoryError):
        rows = cut_table(path, iteration)
        whole = path.read_bytes()
        assert (cut_table(path, iteration), path.read_bytes()) == (rows, whole)
        assert rows == whole.count(b"\n") - 1
        read_table(path, {"return_mean"})
    read_table(path, {"return_mean"}, skip_damage=True)


def test_a_table_is_not_cut_at_a_damaged_row_between_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"iteration,x\n0,1\n1,\0\n2,1\n")
    with pytest.raises(RunDirectoryError, match="damaged before line 4"):
        cut_table(path, 3)
    assert cut_table(path, 1) == 1
    path.write_bytes(b"iteration,x\n" + b"9" * 5000 + b",1\n")
    assert cut_table(path, 3) == 0


def test_a_header_with_a_duplicate_key_is_rejected(content: bytes) -> None:
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'{"__metadata__":', b'{"__metadata__":{"pgcli":"x"},"__metadata__":', 1)
    with pytest.raises(CheckpointError, match="not a pgcli checkpoint"):
        decode(len(header).to_bytes(8, "little") + header + content[8 + length :], "twice")
