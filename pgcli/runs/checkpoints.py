"""Checkpoints: one safetensors file each, data only, that proves itself by the digests inside.

The metadata has one key, `pgcli`: canonical JSON of the format version, the config, the counters, and two sha256:
of the tensors (their names, types, shapes and bytes) and of the rest of that JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from pgcli.config import Config, config_from_data
from pgcli.errors import CheckpointError, ConfigError
from pgcli.runs.files import read_json, write_json, write_whole

FORMAT = 1
MAX_BYTES = 4 * 2**30
_NAME = re.compile(r"iteration-(\d{6,})\.safetensors")
_LOOKS_LIKE = (
    (b"PK\x03\x04", "a zip file, such as torch.save and Stable-Baselines3 write"),
    (b"\x80", "a pickle"),
    (b"\x89PNG", "a picture"),
    (b"7z\xbc\xaf", "a 7z archive"),
)


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `counters["iteration"]` updates."""

    config: dict[str, Any]
    counters: dict[str, int]
    tensors: dict[str, Tensor]

    def read_config(self, name: str) -> Config:
        """Validate the config, with the defaults of this version for what an earlier one did not have."""
        try:
            return config_from_data(self.config, name)
        except ConfigError as error:
            raise CheckpointError(f"{name}: its config is not one of this version: {error.message}") from None

    @property
    def agent(self) -> dict[str, Tensor]:
        """The tensors that evaluation needs, and training too."""
        return {name: tensor for name, tensor in self.tensors.items() if not name.startswith("sampler.")}

    @property
    def sampler(self) -> dict[str, Tensor]:
        """The tensors that only training needs: where its environments are."""
        return {name: tensor for name, tensor in self.tensors.items() if name.startswith("sampler.")}


def file_name(iteration: int) -> str:
    """Give the file name of the state after `iteration` updates."""
    return f"iteration-{iteration:06d}.safetensors"


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint under a new name, verify it, and move the pointer `latest.json` to it."""
    header, body = _split(safetensors.torch.save(checkpoint.tensors))
    metadata = {
        "format": FORMAT,
        "config": checkpoint.config,
        "counters": checkpoint.counters,
        "tensors_sha256": _tensor_digest(header, body),
    }
    metadata["metadata_sha256"] = _sha256(_canonical(metadata))
    content = safetensors.torch.save(checkpoint.tensors, {"pgcli": _canonical(metadata).decode()})
    path = folder / file_name(checkpoint.counters["iteration"])
    write_whole(path, content, replace=False)
    point(folder / "latest.json", path, _sha256(content))
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and verify it. Nothing in it is ever executed.

    Raises: CheckpointError that names the file and the check it failed.
    """
    return decode(_read(path), str(path))


def decode(content: bytes, name: str) -> Checkpoint:
    """Verify the bytes of a checkpoint called `name`, and give what they hold."""
    try:
        header, body = _split(content)
        metadata = json.loads(header.pop("__metadata__")["pgcli"])
        found_format, digest = metadata["format"], metadata.pop("metadata_sha256")
    except (ValueError, KeyError, TypeError, RecursionError):
        # only now: a safetensors file begins with a length, which may begin with any byte
        looks_like = next((f"; it looks like {what}" for start, what in _LOOKS_LIKE if content.startswith(start)), "")
        raise CheckpointError(f"{name}: not a pgcli checkpoint{looks_like or ', or cut short'}") from None
    if found_format != FORMAT:
        raise CheckpointError(f"{name}: has format {found_format}, and this version of pgcli reads {FORMAT}")
    if _sha256(_canonical(metadata)) != digest:
        raise CheckpointError(f"{name}: damaged: its metadata do not match their sha256")
    if _tensor_digest(header, body) != metadata["tensors_sha256"]:
        raise CheckpointError(f"{name}: damaged: its tensors do not match their sha256")
    try:
        tensors = safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{name}: not a valid safetensors file: {error}") from None
    return Checkpoint(metadata["config"], metadata["counters"], tensors)


def point(pointer: Path, target: Path, sha256: str) -> None:
    """Move a pointer file (`latest.json`, `best.json`) to a checkpoint of its folder."""
    match = _NAME.fullmatch(target.name)
    assert match
    write_json(pointer, {"file": target.name, "iteration": int(match[1]), "sha256": sha256})


def follow(pointer: Path) -> Path:
    """Give the checkpoint that a pointer file names, once its bytes match the pointer's sha256."""
    data = read_json(pointer)
    if not _NAME.fullmatch(str(data.get("file"))):
        raise CheckpointError(f"{pointer}: names no checkpoint of its folder")
    path = pointer.parent / str(data["file"])
    if _sha256(_read(path)) != data.get("sha256"):
        others = [file for file in list_checkpoints(pointer.parent) if file != path]
        hint = f"an older one is there: pgcli eval {shlex.quote(str(others[-1]))}" if others else ""
        raise CheckpointError(f"{path}: damaged: does not match the sha256 in {pointer.name}", hint)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, oldest iteration first."""
    found = [(int(match[1]), path) for path in folder.glob("*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def iteration_of(path: Path) -> int:
    """Read the iteration off a checkpoint's file name."""
    match = _NAME.fullmatch(path.name)
    if not match:
        raise CheckpointError(f"{path}: not named like a checkpoint")
    return int(match[1])


def digest_of(path: Path) -> str:
    """Compute the sha256 of a file."""
    return _sha256(_read(path))


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """Raise CheckpointError unless a checkpoint's tensors have exactly the `expected` names, shapes and types."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"{name}: does not fit its config: lacks {missing or 'nothing'}, adds {extra or 'nothing'}"
        )
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape or found[key].dtype != tensor.dtype:
            raise CheckpointError(
                f"{name}: {key} is {found[key].dtype} {list(found[key].shape)}, "
                f"and its config makes it {tensor.dtype} {list(tensor.shape)}"
            )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path}: larger than any pgcli checkpoint")
    return content


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a safetensors file into its header and the bytes of its tensors."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 + size:
        raise ValueError("cut short")
    header = json.loads(content[8 : 8 + size])
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header, content[8 + size :]


def _tensor_digest(header: dict[str, Any], body: bytes) -> str:
    return _sha256(_canonical(header) + body)


def _canonical(data: dict[str, Any]) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
