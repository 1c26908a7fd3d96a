"""Checkpoints: safetensors files without code, verified by checksums inside them.

The metadata has one key, `pgcli`: canonical JSON with the format version, the config, the counters and two sha256
checksums: of the tensors (names, types, shapes, bytes) and of the rest of this JSON. Canonical JSON sorts keys; `order`
lists the mappings in `kwargs` that are not sorted, each as [path, keys].
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.numpy
import safetensors.torch
from torch import Tensor

from pgcli.config import Config, config_from_data
from pgcli.config.messages import dotted
from pgcli.config.order import arranged, arranged_like, mappings, orders_of
from pgcli.config.yaml import parse, read_bytes
from pgcli.errors import CheckpointError, ConfigError, RunDirectoryError, typed
from pgcli.runs.files import Folder, open_file, opened, read_json

FORMAT = 1
OPTIONAL = "normalizer.origin"  # zeros where earlier versions did not write it
MAX_BYTES = 4 * 2**30
MAX_HEADER_BYTES = 2**24
COUNTERS = {"iteration", "env_steps", "episodes"}
_NAME = re.compile(r"iteration-([0-9]{6}|[1-9][0-9]{6,17})\.safetensors")
_BAD = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # raised for JSON with an unexpected structure
_BYTES = {"BOOL": 1, "F16": 2, "F32": 4, "F64": 8} | {f"{sign}{8 * n}": n for sign in "IU" for n in (1, 2, 4, 8)}


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `counters["iteration"]` updates."""

    config: dict[str, Any]
    counters: dict[str, int]
    tensors: dict[str, Tensor]
    unordered: tuple[str, ...] = ()  # the mappings in `kwargs` whose order an earlier version did not store

    def read_config(self, name: str) -> Config:
        """Validate the config; keys missing in earlier versions get their defaults."""
        try:
            return config_from_data(self.config, name)
        except ConfigError as error:
            raise CheckpointError(f"{name}: its config is not valid in this version: {error.message}") from None

    @property
    def agent(self) -> dict[str, Tensor]:
        """The tensors that evaluation and training need."""
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith("sampler.")}

    @property
    def sampler(self) -> dict[str, Tensor]:
        """The tensors that only training needs: the state of its environments."""
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith("sampler.")}


def file_name(iteration: int) -> str:
    """Return the file name of the state after `iteration` updates."""
    return f"iteration-{iteration:06d}.safetensors"


def save(folder: Path | Folder, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under a new name, and point `latest.json` to it."""
    arrays = {name: tensor.contiguous().numpy() for name, tensor in checkpoint.tensors.items()}
    header, body = _split(safetensors.numpy.save(arrays))
    metadata = {
        "format": FORMAT,
        "config": checkpoint.config,
        "counters": checkpoint.counters,
        "tensors_sha256": _tensor_digest(header, body),
    }
    if (orders := orders_of(checkpoint.config)) is not None:
        metadata["order"] = orders
    metadata["metadata_sha256"] = _sha256(_canonical(metadata))
    content = safetensors.numpy.save(arrays, {"pgcli": _canonical(metadata).decode()})
    with opened(folder) as there:
        path = there.path / file_name(checkpoint.counters["iteration"])
        there.write(path.name, content, replace=False)
        point(there, "latest.json", path, _sha256(content))
    return path


def load(path: Path) -> Checkpoint:
    """Read and verify a checkpoint without executing code.

    Checkpoints of earlier versions lack the order of `kwargs`; it is read from the run's config.yaml.
    Raises: CheckpointError with the file, the failed check, and another checkpoint of the run as a hint.
    """
    try:
        checkpoint = _load(path)
        return _ordered_as_the_run(checkpoint, path) if checkpoint.unordered else checkpoint
    except CheckpointError as error:
        error.hint = error.hint or _offer(path)
        raise


def decode(content: bytes, name: str) -> Checkpoint:
    """Verify the bytes of a checkpoint and return its content; `name` appears in messages."""
    return _decode(io.BytesIO(content), len(content), name)


def _ordered_as_the_run(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return the checkpoint with its config in the order of the config.yaml beside it, if there is one."""
    for file in (path.parent.parent / "config.yaml", path.parent / "config.yaml"):
        with suppress(FileNotFoundError, ConfigError):
            config, missing = arranged_like(checkpoint.config, parse(read_bytes(file), str(file)).data)
            checkpoint = replace(checkpoint, config=config, unordered=tuple(missing))
            if not missing:
                break
    return checkpoint


def _load(path: Path) -> Checkpoint:
    try:
        with open_file(path) as file:
            checkpoint = _decode(file, os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    iteration = checkpoint.counters["iteration"]
    if _NAME.fullmatch(path.name) and iteration_of(path) != iteration:
        raise CheckpointError(f"{path}: its name does not match its iteration, {iteration}")
    return checkpoint


def _decode(file: BinaryIO, size: int, name: str) -> Checkpoint:
    """Read and verify a checkpoint, its header before its tensors."""
    try:
        header = _read_header(file, size)
        text = header.pop("__metadata__")
        metadata = _parse(text["pgcli"])
        canonical = _canonical(metadata)
        found_format, digest = metadata["format"], metadata.pop("metadata_sha256")
        damaged = text != {"pgcli": canonical.decode()} or _sha256(_canonical(metadata)) != digest
    except _BAD:
        raise CheckpointError(f"{name}: not a pgcli checkpoint{_looks_like(file, size)}") from None
    if found_format != FORMAT:
        raise CheckpointError(f"{name}: has format {found_format}, but this version of pgcli reads format {FORMAT}")
    if damaged:
        raise CheckpointError(f"{name}: damaged: the metadata do not match their checksum")
    try:
        config, counters, tensors_digest = metadata["config"], metadata["counters"], metadata["tensors_sha256"]
        _check_counters(counters)
        _check_layout(header, size - file.tell())
        dict.keys(config)
        config = arranged(config, metadata.get("order", []))
        unordered = () if "order" in metadata else tuple(dotted(where) for where, _ in mappings(config))
    except _BAD as error:
        raise CheckpointError(f"{name}: damaged: {error}") from None
    start = file.tell()
    file.seek(0)
    content = file.read(size)
    if _tensor_digest(header, memoryview(content)[start:]) != tensors_digest:
        raise CheckpointError(f"{name}: damaged: the tensors do not match their checksum")
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"{name}: not a valid safetensors file: {error}") from None
    return Checkpoint(config, counters, tensors, unordered)


def _check_counters(counters: dict[str, Any]) -> None:
    if counters.keys() != COUNTERS:
        raise ValueError(f"the counters are not {', '.join(sorted(COUNTERS))}")
    if not all(type(count) is int and 0 <= count < 2**63 for count in counters.values()):
        raise ValueError("a counter is not a non-negative integer")


def _check_layout(header: dict[str, Any], size: int) -> None:
    """Raise an error unless the tensors of a header exactly fill the rest of the file."""
    end = 0
    for entry in sorted(header.values(), key=lambda entry: entry["data_offsets"]):
        begin, stop = entry["data_offsets"]
        shape, width = entry["shape"], _BYTES.get(entry["dtype"])
        if entry.keys() != {"dtype", "shape", "data_offsets"} or width is None:
            raise ValueError(f"a tensor has the unknown type {entry['dtype']}")
        if any(type(number) is not int or not 0 <= number <= MAX_BYTES for number in (begin, stop, *shape)):
            raise ValueError("a tensor has an impossible size")
        if len(shape) > 16 or math.prod(max(n, 1) for n in shape) > MAX_BYTES:
            raise ValueError("a tensor has an impossible size")
        if begin != end or stop - begin != math.prod(shape) * width:
            raise ValueError("tensors overlap, leave gaps, or have wrong sizes")
        end = stop
    if end != size:
        raise ValueError(f"the tensors need {end:,} bytes, but the file has {size:,} for them")


def _looks_like(file: BinaryIO, size: int) -> str:
    """Describe a file that is not a checkpoint."""
    file.seek(0)
    begin = file.read(512)
    if not size:
        return ": it is empty"
    if begin.startswith(b"PK"):
        return "; it looks like a zip file, such as torch.save and Stable-Baselines3 write"
    if begin.startswith(b"\x80"):
        return "; it looks like a pickle"
    if begin[8:9] == b"{":
        return "; it looks like a safetensors file, but truncated or not written by pgcli"
    if begin.startswith(b"version https://git-lfs"):
        return "; it is a Git LFS pointer; `git lfs pull` downloads the file"
    if min(begin) >= ord("\t"):
        return "; it looks like text; `pgcli train` writes checkpoints"
    return ", or truncated"


def point(folder: Path | Folder, pointer: str, target: Path, sha256: str) -> None:
    """Write a pointer file (`latest.json`, `best.json`) to a checkpoint in the same folder."""
    data = {"file": target.name, "iteration": iteration_of(target), "sha256": sha256}
    with opened(folder) as there:
        there.write_json(pointer, data)


def follow(pointer: Path) -> Path:
    """Return the checkpoint that a pointer file names, after verifying its sha256.

    Raises: RunDirectoryError, with another checkpoint of the run as a hint.
    """
    bad = pointer
    try:
        bad, digest = target_of(pointer)
        if digest_of(bad) != digest:
            raise CheckpointError(f"{bad}: damaged: does not match the sha256 in {pointer.name}")
    except RunDirectoryError as error:
        error.hint = _offer(bad)
        raise
    return bad


def target_of(pointer: Path) -> tuple[Path, str]:
    """Return the checkpoint that a pointer file names, and its sha256. Raises: RunDirectoryError."""
    data = read_json(pointer)
    if not (isinstance(name := data.get("file"), str) and _NAME.fullmatch(name)):
        raise CheckpointError(f"{pointer}: does not name a checkpoint")
    return pointer.parent / name, str(data.get("sha256"))


def _offer(bad: Path) -> str:
    """Return a hint with the newest valid checkpoint beside a damaged one, and commands to use it."""
    for path in reversed(list_checkpoints(bad.parent)):
        try:
            _load(path)
        except CheckpointError:
            continue
        if bad.parent.name != "checkpoints":
            return f"the checkpoint of iteration {iteration_of(path)} is valid: `pgcli eval {typed(path)}`"
        words = f"{typed(bad.parent.parent)} --which {iteration_of(path)}"
        return f"another checkpoint is valid: `pgcli resume {words}` or `pgcli eval {words}`"
    return ""


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, oldest iteration first."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def iteration_of(path: Path) -> int:
    """Return the iteration in a checkpoint's file name."""
    match = _NAME.fullmatch(path.name)
    if not match:
        raise CheckpointError(f"{path}: the file name is not that of a checkpoint")
    return int(match[1])


def digest_of(path: Path) -> str:
    """Compute the sha256 of a file."""
    try:
        with open_file(path) as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise CheckpointError(f"{path}: too large for a checkpoint")
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """Raise CheckpointError unless tensors have the `expected` names, shapes and types, and are finite.

    The second moments of an optimizer may be infinite, after an overflow.
    """
    optional = {name for name in expected if name.endswith(OPTIONAL)}
    missing, extra = sorted(expected.keys() - found.keys() - optional), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"{name}: does not match its config: missing {missing or 'nothing'}, unexpected {extra or 'nothing'}"
        )
    for key, tensor in expected.items():
        if key not in found:
            continue
        if found[key].shape != tensor.shape or found[key].dtype != tensor.dtype:
            raise CheckpointError(
                f"{name}: {key} is {found[key].dtype} {list(found[key].shape)}, "
                f"but its config needs {tensor.dtype} {list(tensor.shape)}"
            )
        if (found[key].isnan() if "optimizer." in key else ~found[key].isfinite()).any():
            raise CheckpointError(f"{name}: {key} has a value that is not finite")


def _split(content: bytes) -> tuple[dict[str, Any], memoryview]:
    """Split a safetensors file into its header and the bytes of its tensors."""
    file = io.BytesIO(content)
    header = _read_header(file, len(content))
    return header, memoryview(content)[file.tell() :]


def _read_header(file: BinaryIO, size: int) -> dict[str, Any]:
    """Read only the header of a safetensors file."""
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES) or size > MAX_BYTES:
        raise ValueError("truncated, or too large for a checkpoint")
    header = _parse(file.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header


def _parse(text: str) -> Any:
    """Parse JSON; reject duplicate keys, which parsers treat differently."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(data := dict(pairs)) < len(pairs):
            raise ValueError("duplicate key")
        return data

    return json.loads(text, object_pairs_hook=unique)


def _tensor_digest(header: dict[str, Any], body: memoryview) -> str:
    digest = hashlib.sha256(_canonical(header))
    digest.update(body)
    return digest.hexdigest()


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
