"""A disk that can fail: calls that raise, and possible states after a power loss.

The model is the weakest behaviour that POSIX permits. Bytes that are not synced are lost or zeros. A created, moved or
deleted name is certain only after its folder is synced; before that, each name may exist or not, independently.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CALLS = ("open", "write", "fsync", "replace", "rename", "unlink", "mkdir", "ftruncate")


@dataclass
class Inode:
    """A file: its bytes now, and at its last sync."""

    now: bytes = b""
    synced: bytes = b""


@dataclass
class Folder:
    """Names now and at the last sync, and what happened to them since: (names set, names deleted)."""

    now: dict[str, Inode | Folder] = field(default_factory=dict)
    synced: dict[str, Inode | Folder] = field(default_factory=dict)
    since: list[dict[str, Inode | Folder | None]] = field(default_factory=list)

    def change(self, names: dict[str, Inode | Folder | None]) -> None:
        self.since.append(names)
        _apply(self.now, names)


def _apply(entries: dict[str, Inode | Folder], names: dict[str, Inode | Folder | None]) -> None:
    for name, node in names.items():
        entries.pop(name, None)
        if node is not None:
            entries[name] = node


class Disk:
    """Follows all changes below `home`, and calls `at_call` after each of them."""

    def __init__(self, home: Path, at_call: Callable[[], None]) -> None:
        self.home, self.root, self.at_call = home, Folder(), at_call
        self.open_nodes: dict[int, Inode | Folder] = {}
        self.open_paths: dict[int, Path] = {}
        self._read(home, self.root)

    def _read(self, path: Path, folder: Folder) -> None:
        for child in path.iterdir():
            if child.is_dir():
                inner = Folder()
                self._read(child, inner)
                folder.now[child.name] = inner
            else:
                folder.now[child.name] = Inode(child.read_bytes(), child.read_bytes())
        folder.synced = dict(folder.now)

    def _folder(self, path: Path) -> Folder | None:
        if path == self.home:
            return self.root
        if not path.is_relative_to(self.home):
            return None
        above = self._folder(path.parent)
        found = above.now.get(path.name) if above else None
        return found if isinstance(found, Folder) else None

    @contextmanager
    def watched(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        real = {name: getattr(os, name) for name in CALLS} | {"close": os.close}

        def call(name: str) -> Callable[..., Any]:
            def wrapper(*arguments: Any, **keywords: Any) -> Any:
                result = None if name == "fsync" else real[name](*arguments, **keywords)
                there = keywords.get("dir_fd", keywords.get("src_dir_fd"))
                if there is not None:  # names are relative to an open folder
                    arguments = tuple(self._below(there, one) for one in arguments)
                if getattr(self, f"_{name}")(result, *arguments):
                    self.at_call()
                return result

            return wrapper

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, call(name))
            yield

    def _below(self, descriptor: int, name: Any) -> Any:
        return self.open_paths[descriptor] / name if isinstance(name, str) and descriptor in self.open_paths else name

    def _open(self, descriptor: int, path: Any, flags: int = 0, *_: Any) -> bool:
        path = Path(os.fsdecode(path)) if isinstance(path, str | bytes | Path) else Path("/")
        folder, itself = self._folder(path.parent), self._folder(path)
        self.open_paths[descriptor] = path
        if itself is not None:
            self.open_nodes[descriptor] = itself
        elif folder is not None and path.name not in folder.now:
            folder.change({path.name: Inode()})
        if folder is not None and itself is None:
            self.open_nodes[descriptor] = folder.now[path.name]
            return bool(flags & os.O_CREAT)
        return False

    def _close(self, _: None, descriptor: int) -> bool:
        self.open_nodes.pop(descriptor, None)
        return False

    def _write(self, count: int, descriptor: int, content: Any) -> bool:
        node = self.open_nodes.get(descriptor)
        if isinstance(node, Inode):
            node.now += bytes(content)[:count]
        return node is not None

    def _ftruncate(self, _: None, descriptor: int, length: int) -> bool:
        node = self.open_nodes[descriptor]
        assert isinstance(node, Inode)
        node.now = node.now[:length]
        return True

    def _fsync(self, _: None, descriptor: int) -> bool:
        node = self.open_nodes[descriptor]
        if isinstance(node, Inode):
            node.synced = node.now
        else:
            node.synced, node.since = dict(node.now), []
        return True

    def _mkdir(self, _: None, path: Any, *__: Any) -> bool:
        folder = self._folder(Path(path).parent)
        if folder is not None:
            folder.change({Path(path).name: Folder()})
        return folder is not None

    def _unlink(self, _: None, path: Any) -> bool:
        folder = self._folder(Path(path).parent)
        if folder is not None:
            folder.change({Path(path).name: None})
        return folder is not None

    def _replace(self, _: None, old: Any, new: Any) -> bool:
        folder = self._folder(Path(old).parent)
        if folder is not None:
            assert Path(old).parent == Path(new).parent, "only renames within a folder are modelled"
            folder.change({Path(old).name: None, Path(new).name: folder.now[Path(old).name]})
        return folder is not None

    _rename = _replace

    def after_power_loss(self, draw: random.Random) -> dict[str, bytes | None]:
        """Return a possible state: the bytes of each file, None for a folder."""
        names, content = draw.choice(("none", "all", "some")), draw.choice(("cut", "zeros", "some"))

        def left(node: Inode) -> bytes:
            pairs = zip(node.now, node.synced, strict=False)
            same = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(node.now), len(node.synced)))
            if content == "cut" or node.now == node.synced:
                return node.synced
            end = draw.randint(same, len(node.now)) if content == "some" else same
            return node.now[:end] + bytes(len(node.now) - end)

        def walk(folder: Folder, prefix: str) -> Iterator[tuple[str, bytes | None]]:
            entries = dict(folder.synced)
            for change in folder.since:
                if names == "all" or (names == "some" and draw.random() < 0.5):
                    _apply(entries, change)
            for name, node in entries.items():
                if isinstance(node, Folder):
                    yield prefix + name, None
                    yield from walk(node, f"{prefix}{name}/")
                else:
                    yield prefix + name, left(node)

        return dict(walk(self.root, ""))


def lay_out(found: dict[str, bytes | None], home: Path) -> None:
    home.mkdir()
    for name, content in found.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(content)


@contextmanager
def fault(monkeypatch: pytest.MonkeyPatch, home: Path, number: int, code: int) -> Iterator[list[str]]:
    """Fail the `number`-th change below `home` and all later writes; return the calls.

    A failing write has written half of its bytes.
    """
    calls: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}
    ours: set[int] = set()

    def call(name: str) -> Callable[..., Any]:
        def wrapper(first: Any, *arguments: Any, **keywords: Any) -> Any:
            there = keywords.get("dir_fd", keywords.get("src_dir_fd"))
            if there is not None or isinstance(first, int):
                inside = (first if there is None else there) in ours
            else:
                inside = Path(os.fsdecode(first)).is_relative_to(home)
            changes = name != "open" or (arguments and arguments[0] & (os.O_CREAT | os.O_WRONLY))
            if inside and changes:
                calls.append(name)
                if len(calls) == number or (len(calls) > number and name != "unlink" and code == errno.ENOSPC):
                    if name == "write":
                        real[name](first, bytes(arguments[0])[: len(arguments[0]) // 2])
                    raise OSError(code, os.strerror(code), *([] if isinstance(first, int) else [str(first)]))
            result = real[name](first, *arguments, **keywords) if name != "fsync" else None
            if isinstance(result, int) and name == "open":
                (ours.add if inside else ours.discard)(result)
            return result

        return wrapper

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, call(name))
        yield calls
