"""Files of a run directory: written atomically, safe after any crash, and named in every error.

`Folder` opens files for writing: relative to a descriptor of the folder, never through links, only regular files
with a single name. `open_file` opens regular files for reading.
"""

from __future__ import annotations

import errno
import io
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pgcli.errors import RunDirectoryError
from pgcli.system.limits import limit_of
from pgcli.system.turns import sync_file

TEMPORARY = ".writing-"
FILE_MODE, FOLDER_MODE = 0o664, 0o775  # limits under any umask: other users cannot write to a run
MAX_JSON_BYTES = 2**24
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNABLE = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)  # to open or sync a folder
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Windows opens no folder and follows every link: there, a name is joined to the path of its folder.
_RELATIVE = {os.open, os.stat, os.unlink, os.mkdir, os.rename} <= os.supports_dir_fd
_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_NOINHERIT", 0)
_OWN = _BINARY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO must not block


class NotRegular(OSError):
    """A file of a run directory is a link, folder, FIFO, device, or hard link."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(errno.EINVAL, what, str(path))


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Convert an OSError (disk full, read-only, file deleted) to a RunDirectoryError with the file."""
    try:
        yield
    except OSError as error:
        if limit := limit_of(error):
            raise RunDirectoryError(*limit) from error
        hint = ""
        if isinstance(error, NotRegular):
            hint = "replace it by a regular file, or delete it"
        elif error.errno in _FULL:
            home = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
            hint = f"{shutil.disk_usage(home).free:,} bytes are free; earlier saved data are intact"
        raise RunDirectoryError(f"{error.filename or path}: {error.strerror or error}", hint) from error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path` into an OSError, instead of a descriptor or a temporary name."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def open_file(path: Path) -> io.BufferedReader:
    """Open a regular file for reading. Raises: OSError at once for others, such as a FIFO."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _BINARY)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise NotRegular(path, f"is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, not a regular file")
    return open(descriptor, "rb")


class Folder:
    """An open folder, to create, write, rename and delete files in it, even if its path changes."""

    def __init__(self, path: Path, *, above: Folder | None = None) -> None:
        """Open `path`, following links; with `above`, `path` is the name of a subfolder and not a link."""
        self.path: Path = above.path / path if above else path
        self._descriptor: int | None = None
        if _RELATIVE:
            flags = os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if above else 0)
            name, parent = (str(path), above._descriptor) if above else (path, None)
            try:
                self._descriptor = os.open(name, flags, dir_fd=parent)
            except NotADirectoryError:
                is_link = self.path.is_symlink()
                raise NotRegular(self.path, f"is {'a link' if is_link else 'a file'}, not a folder") from None
            except OSError as error:
                error.filename = str(self.path)
                raise
        self._identity = _identity(os.stat(self.path if self._descriptor is None else self._descriptor))

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def check(self) -> None:
        """Raise RunDirectoryError unless the path still names this folder."""
        try:
            same = _identity(os.stat(self.path)) == self._identity
        except (FileNotFoundError, NotADirectoryError):
            same = False
        if not same:
            raise RunDirectoryError(
                f"{self.path}: was deleted, moved or replaced during the run",
                "if it was moved, continue with `pgcli resume` in its new place",
            )

    def subfolder(self, name: str) -> Folder:
        """Open a subfolder; create it if it is missing."""
        with suppress(FileExistsError), naming(self.path / name):
            os.mkdir(self._name(name), FOLDER_MODE, dir_fd=self._descriptor)
            self.sync()
        return Folder(Path(name), above=self)

    def open(self, name: str, flags: int) -> int:
        """Open a file for writing and return its descriptor. Raises: NotRegular, OSError."""
        path = self.path / name
        with naming(path):
            try:
                descriptor = os.open(self._name(name), flags | _OWN, FILE_MODE, dir_fd=self._descriptor)
            except OSError:
                with suppress(FileNotFoundError):
                    mode = os.stat(self._name(name), dir_fd=self._descriptor, follow_symlinks=False).st_mode
                    if kind := _KINDS.get(stat.S_IFMT(mode)):
                        raise NotRegular(path, f"is {kind}, not a regular file") from None
                raise
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                os.close(descriptor)
                kind = _KINDS.get(stat.S_IFMT(found.st_mode), "")
                what = f"is {kind}, not a regular file" if kind else "is a hard link: another file has the same bytes"
                raise NotRegular(path, what)
        return descriptor

    def holds(self, name: str, descriptor: int) -> bool:
        """Return whether `name` is still the file open as `descriptor`."""
        try:
            found = os.stat(self._name(name), dir_fd=self._descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return _identity(found) == _identity(os.fstat(descriptor))

    def write(self, name: str, content: bytes, *, replace: bool = True) -> None:
        """Write a file atomically: after a crash it has either all of `content` or its old content.

        The temporary name begins with a dot: no reader matches it.
        Raises: OSError; FileExistsError if the file exists, with `replace=False`.
        """
        path, temporary = self.path / name, f"{TEMPORARY}{secrets.token_hex(8)}"
        if not replace and name in self.names():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        with naming(path):
            descriptor = self.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                try:
                    write_all(descriptor, content)
                    sync_file(descriptor)
                    if not _holds_bytes(descriptor, content):
                        raise OSError(errno.EIO, "the file content differs from the written data")
                finally:
                    os.close(descriptor)
                self.rename(temporary, name)
            except BaseException:
                with suppress(OSError):
                    self.delete(temporary)
                raise

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        """Write `data` as indented JSON, atomically."""
        self.write(name, json_bytes(data))

    def rename(self, old: str, new: str) -> None:
        """Rename a file durably; replace an existing file of the new name."""
        there = self._descriptor
        os.replace(self._name(old), self._name(new), src_dir_fd=there, dst_dir_fd=there)
        self.sync()

    def delete(self, name: str) -> None:
        """Delete a file, if it exists; delete a link itself."""
        with suppress(FileNotFoundError), naming(self.path / name):
            os.unlink(self._name(name), dir_fd=self._descriptor)

    def truncate(self, name: str, size: int) -> None:
        """Truncate a file to `size` bytes, durably."""
        descriptor = self.open(name, os.O_WRONLY)
        try:
            with naming(self.path / name):
                os.ftruncate(descriptor, size)
                sync_file(descriptor)
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        """List the names in the folder."""
        return os.listdir(self.path if self._descriptor is None else self._descriptor)

    def remove_temporary(self) -> None:
        """Delete the unfinished files of a killed process. The caller holds the lock of the run."""
        for name in self.names():
            if name.startswith(TEMPORARY):
                try:
                    self.delete(name)
                except (IsADirectoryError, PermissionError):  # the folder of a film
                    shutil.rmtree(self.path / name, ignore_errors=True)

    def sync(self) -> None:
        """Make changes in the folder survive a power loss, if the system supports it."""
        if self._descriptor is None:
            return
        try:
            with naming(self.path):
                sync_file(self._descriptor)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise

    def _name(self, name: str) -> str:
        return name if self._descriptor is not None else str(self.path / name)


@contextmanager
def opened(folder: Path | Folder) -> Iterator[Folder]:
    """Open a folder, unless it is already open."""
    if isinstance(folder, Folder):
        yield folder
        return
    found = Folder(folder)
    try:
        yield found
    finally:
        found.close()


def own_folder(path: Path, name: str) -> Path:
    """Return a subfolder of a run for other libraries to write in; create it if missing.

    Raises: NotRegular.
    """
    with opened(path) as run:
        run.subfolder(name).close()
    return path / name


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(FOLDER_MODE, exist_ok=True)
        with opened(path.parent) as parent:
            parent.sync()


def write_whole(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write `content` to `path` atomically. Raises: OSError; FileExistsError without `replace`."""
    with opened(path.parent) as folder:
        folder.write(path.name, content, replace=replace)


def json_bytes(data: dict[str, Any]) -> bytes:
    """Return `data` as the indented JSON of a file."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode(errors="backslashreplace")  # a JSON escape, for names that are not UTF-8


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises: RunDirectoryError if the file is missing, too large or not an object."""
    try:
        with open_file(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
        data = json.loads(content) if len(content) <= MAX_JSON_BYTES else None
    except OSError as error:
        raise RunDirectoryError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise RunDirectoryError(f"{path}: not JSON") from None
    if len(content) > MAX_JSON_BYTES:
        raise RunDirectoryError(f"{path}: is larger than {MAX_JSON_BYTES // 2**20} MiB")
    if not isinstance(data, dict):
        raise RunDirectoryError(f"{path}: not a JSON object")
    return data


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`, in several writes if necessary."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _holds_bytes(descriptor: int, content: bytes) -> bool:
    """Return whether the file open as `descriptor` has exactly these bytes."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    with open(descriptor, "rb", closefd=False) as file:
        return file.read() == content


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
