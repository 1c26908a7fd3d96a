"""Process-wide settings that environments may change, and how pgcli restores them.

An environment may change a default of torch, replace a stream, close a descriptor or change the current folder. Within
`kept()`, `restore_process()` undoes such changes before each update, evaluation and write. The code of environments
runs within `environments_turn()`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes ten times as long, because of its enumerations
import ctypes
import gc
import locale
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from operator import eq
from typing import Any, ClassVar

from pgcli.system.leaving import SAVE, STOP

FOUND: Any = object()  # marks settings that keep their value at `kept`
_DENORMAL, _ONE = 5e-324, 1.0
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Setting:
    """A process-wide setting.

    `value` is the value that pgcli needs. Settings of a `module` apply once it is imported, but never import it.
    `is_kept(wanted, found)` returns whether no restoring is needed.
    """

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], object]
    value: Any = FOUND
    module: str = "sys"
    is_kept: Callable[[Any, Any], bool] = eq


class _State:
    """The wanted value of each setting, by name."""

    wanted: dict[str, Any] | None = None  # None: outside `kept`
    copies: tuple[int | None, ...] = (None, None, None)  # of descriptors 0 to 2
    folder: str | None = None  # chosen by the environments
    handlers_restored = 0  # how often
    changed: ClassVar[dict[str, None]] = {}


@contextmanager
def kept() -> Iterator[None]:
    """Keep all settings (numpy and torch: defaults); at the end, restore their original values."""
    outer = _State.wanted, _State.copies, _State.folder
    found = {one.name: one.get() for one in _present()}
    ours = {one.name: found[one.name] if one.value is FOUND else one.value for one in _present()}
    _State.wanted, _State.copies, _State.folder = ours, tuple(map(_copy, range(3))), None
    try:
        _restore()
        yield
    finally:
        _State.wanted = found
        _restore()
        for copy in filter(None, _State.copies):
            os.close(copy)
        _State.wanted, _State.copies, _State.folder = outer


def restore_process() -> None:
    """Restore all settings that changed since `kept` began; record their names for `changes`."""
    _State.changed |= dict.fromkeys(_restore())


def require(name: str, value: Any) -> None:
    """Change a setting and keep the new value."""
    next(one for one in SETTINGS if one.name == name).set(value)
    if _State.wanted is not None:
        _State.wanted[name] = value


def restore_handlers() -> None:
    """Restore the signal handlers only; fast enough for every step."""
    wanted = (_State.wanted or {}).get("signal handlers", {})
    if wanted and _signal.getsignal(STOP[0]) is not wanted.get(STOP[0]):
        _set_handlers(wanted)
        _State.changed |= {"signal handlers": None}
        _State.handlers_restored += 1


def restore_modes() -> None:
    """Restore the floating-point modes if they have changed, quickly enough for every step."""
    if _State.wanted is not None and _processor() != _State.wanted["floating-point modes"]:
        restore_process()


def handlers_restored() -> int:
    """Return how often signal handlers were restored; an environment's may have received signals."""
    return _State.handlers_restored


def changes() -> list[str]:
    """Return the names of the settings that were restored since the last call."""
    names, _State.changed = list(_State.changed), {}
    return names


def report_changes(names: Iterable[str]) -> None:
    """Add the changes that another process restored."""
    _State.changed |= dict.fromkeys(names)


@contextmanager
def environments_turn() -> Iterator[None]:
    """Run environment code in the environments' current folder, then restore all settings."""
    if _State.folder is not None:
        _set_folder(_State.folder)
    try:
        yield
    finally:
        restore_process()


def _present() -> list[Setting]:
    return [one for one in SETTINGS if one.module in sys.modules]


def _restore() -> list[str]:
    wanted = _State.wanted
    changed = list[str]()
    if wanted is None:
        return changed
    for one in SETTINGS:
        if one.module not in sys.modules or (value := wanted.get(one.name, one.value)) is FOUND:
            continue
        found = one.get()
        if not one.is_kept(value, found):
            if one.name == "the current folder":
                _State.folder = found
            _State.handlers_restored += one.name == "signal handlers"
            one.set(value)
            changed.append(one.name)
    _set_handlers(wanted.get("signal handlers", {}))  # a C library may have replaced them without Python's knowledge
    return changed


# -------------------------------------------------------------------------------------------------------- the system


def _identity(descriptor: int) -> tuple[int, int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_rdev


def _identities() -> list[tuple[int, int, int] | None]:
    return [_identity(descriptor) for descriptor in range(3)]


def _copy(descriptor: int) -> int | None:
    """Duplicate a descriptor, above the three."""
    if os.name != "posix":
        return None
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:  # closed, or no free descriptor
        return None


def _set_descriptors(wanted: list[tuple[int, int, int] | None]) -> None:
    for descriptor, (copy, identity) in enumerate(zip(_State.copies, wanted, strict=True)):
        if copy is not None and identity not in (None, _identity(descriptor)) and _identity(copy) == identity:
            os.dup2(copy, descriptor)


def _streams() -> list[Any]:
    return [None if getattr(one, "closed", False) else one for one in (sys.stdin, sys.stdout, sys.stderr)]


def _set_streams(streams: list[Any]) -> None:
    for number, stream in enumerate(streams):
        if getattr(stream, "closed", False):
            streams[number] = open(number, "w" if number else "r", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = streams


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _set_folder(folder: str | None) -> None:
    if folder is not None:
        with suppress(OSError):
            os.chdir(folder)


def handlers() -> dict[int, Any]:
    """Return the handlers of the signals that pgcli handles."""
    return {number: _signal.getsignal(number) for number in (*STOP, *SAVE)}


def _set_handlers(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():  # only the main thread may
        for number, handler in handlers.items():
            if handler is not None:
                _signal.signal(number, handler)


def _blocked() -> set[int]:
    if not hasattr(signal, "pthread_sigmask"):
        return set()
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ()) if number in STOP}


def _set_blocked(blocked: set[int]) -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, set(STOP) - blocked)
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_path(path: list[str]) -> None:
    sys.path[:] = [*path, *(one for one in sys.path if one not in path)]  # entries of environments come last


def _set_threads(values: list[str | None]) -> None:
    for name, value in zip(_THREADS, values, strict=True):
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def _errors() -> list[Any]:
    return [one for one in warnings.filters if one[0] == "error"]


def _set_errors(errors: list[Any]) -> None:
    filters = [one for one in warnings.filters if one[0] != "error" or one in errors]
    warnings.resetwarnings()
    warnings.filters[:] = filters  # type: ignore[index]  # a list


def _collector() -> tuple[bool, Any]:
    return gc.isenabled(), gc.get_threshold()


def _set_collector(value: tuple[bool, Any]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


# ----------------------------------------------------------------------------------------------------------- numbers

_C = ctypes.CDLL(None) if os.name == "posix" else None
_modes = ctypes.create_string_buffer(512)  # of the processor; fenv_t has up to 32 bytes
_rounding, _traps = getattr(_C, "fegetround", int), getattr(_C, "fegetexcept", int)
if _C is not None:
    _C.fegetenv(_modes)


def _processor() -> tuple[int, int, bool]:
    """Return the rounding mode, the traps (known to glibc), and whether denormals are zero."""
    return _rounding(), _traps(), _DENORMAL * _ONE == 0


def _set_processor(value: object) -> None:
    if _C is not None:
        _C.fesetenv(_modes)


def _torch() -> Any:
    return sys.modules["torch"]


@cache
def _precisions() -> list[Any]:
    """Return torch's settings for the precision of float32 products on CPUs; none in old versions."""
    backends = _torch().backends
    parts = (backends, *(getattr(backends.mkldnn, name, None) for name in ("matmul", "conv", "rnn")))
    return [part for part in parts if hasattr(part, "fp32_precision")]


def _precision() -> set[str]:
    try:
        overall = _torch().get_float32_matmul_precision()
    except RuntimeError:  # set in the places alone
        overall = "mixed"
    return {overall, *(part.fp32_precision for part in _precisions())} - {"none", "ieee"}


def _set_precision(value: set[str]) -> None:
    for part in _precisions():
        part.fp32_precision = "none"
    _torch().set_float32_matmul_precision(min(value))


def _deterministic() -> tuple[bool, bool]:
    return _torch().are_deterministic_algorithms_enabled(), _torch().is_deterministic_algorithms_warn_only_enabled()


SETTINGS = (
    Setting("descriptors 0 to 2", _identities, _set_descriptors),
    Setting("the standard streams", _streams, _set_streams),
    Setting("the current folder", _folder, _set_folder),
    Setting("signal handlers", handlers, _set_handlers),
    Setting("blocked signals", _blocked, _set_blocked),
    Setting("the umask", _umask, os.umask),
    Setting("the locale", lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, is_kept=lambda ours, now: now >= ours),
    Setting("sys.path", lambda: list(sys.path), _set_path, is_kept=lambda ours, now: now[: len(ours)] == ours),
    Setting("the variables of threads", lambda: [os.environ.get(name) for name in _THREADS], _set_threads),
    Setting("warnings as errors", _errors, _set_errors),
    Setting("the garbage collector", _collector, _set_collector),
    Setting("floating-point modes", _processor, _set_processor, _processor()),
    Setting(
        "numpy's errors",
        lambda: sys.modules["numpy"].geterr(),
        lambda value: sys.modules["numpy"].seterr(**value),
        {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"},  # numpy's defaults
        "numpy",
    ),
    Setting(
        "torch's default dtype",
        lambda: str(_torch().get_default_dtype()),
        lambda name: _torch().set_default_dtype(getattr(_torch(), name.removeprefix("torch."))),
        "torch.float32",
        "torch",
    ),
    Setting(
        "torch's default device",
        lambda: str(_torch().get_default_device()),
        lambda name: _torch().set_default_device(None if name == "cpu" else name),
        "cpu",
        "torch",
    ),
    Setting("torch's precision of float32", _precision, _set_precision, {"highest"}, "torch"),
    Setting(
        "torch's deterministic algorithms",
        _deterministic,
        lambda value: _torch().use_deterministic_algorithms(value[0], warn_only=value[1]),
        (False, False),
        "torch",
    ),
    Setting(
        "torch's gradients", lambda: _torch().is_grad_enabled(), lambda x: _torch().set_grad_enabled(x), True, "torch"
    ),
    Setting(
        "torch's automatic casts",
        lambda: _torch().is_autocast_enabled("cpu"),
        lambda value: _torch().set_autocast_enabled("cpu", value),
        False,
        "torch",
    ),
    Setting(
        "torch's anomaly detection",
        lambda: _torch().is_anomaly_enabled(),
        lambda value: _torch().autograd.set_detect_anomaly(value),
        False,
        "torch",
    ),
    Setting(
        "torch's oneDNN",
        lambda: _torch().backends.mkldnn.enabled,
        lambda value: setattr(_torch().backends.mkldnn, "enabled", value),
        True,
        "torch",
    ),
    Setting(
        "torch's threads", lambda: _torch().get_num_threads(), lambda n: _torch().set_num_threads(n), module="torch"
    ),
)
