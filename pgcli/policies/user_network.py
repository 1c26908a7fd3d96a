"""The user's own network, `policy.network: FILE.py:NAME`: a torch module from features to features.

Loading runs FILE.py with the user's permissions: load only files that the user has named.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pgcli.errors import UsageError, closest
from pgcli.system.locations import split
from pgcli.system.streams import printable

ROWS = 3  # of a trial
SIGNATURE = (
    "write `class NAME(nn.Module)` with `__init__(self, features, **kwargs)` and `forward(self, x)`, x [N, features]"
)
_CLASSES: dict[str, Any] = {}  # a file runs once per process


def user_network(location: str, features: int, kwargs: dict[str, Any]) -> tuple[nn.Module, int]:
    """Build NAME(features, **kwargs), and return it with the number of features that it computes.

    The module must be a function of its parameters and of each row alone, because acting, learning and resuming must
    agree: no buffers, no noise, no statistics of the batch.

    Raises: UsageError, also for every error of the user's code.
    """
    made = _load(location)
    try:
        module = made(features, **kwargs)
        if not isinstance(module, nn.Module):
            raise UsageError(
                f"policy.network: {location} returned an object of type {type(module).__name__}, not a module",
                SIGNATURE,
            )
        x = torch.linspace(-1, 1, ROWS * features).view(ROWS, features)
        with torch.no_grad():
            y = module(x)
    except Exception as error:
        if isinstance(error, UsageError):
            raise
        described = printable(f"{type(error).__name__}: {error}")
        raise UsageError(
            f"policy.network: {location} with {features} features raised {described}", SIGNATURE
        ) from error
    _check(location, module, x, y)
    return module, int(y.shape[1])


def _check(location: str, module: nn.Module, x: Tensor, y: Any) -> None:
    """Raise UsageError for a module whose output depends on more than its parameters and the row."""
    buffer = next((name for name, _ in module.named_buffers()), None)
    found: list[tuple[bool, str, str]] = [
        (
            not (isinstance(y, Tensor) and y.dim() == 2 and len(y) == ROWS and y.is_floating_point()),
            f"returned {_described(y)} for x of shape {list(x.shape)}",
            "return numbers of shape [N, features]",
        ),
        (
            buffer is not None,
            f"has the buffer `{buffer}`, which checkpoints do not contain",
            "use parameters only, and LayerNorm instead of BatchNorm",
        ),
    ]
    if not found[0][0] and not y.is_meta:
        with torch.no_grad():
            again, alone = module(x), module(x[:1])
        found += [
            (
                not torch.equal(again, y),
                "gives different outputs for the same input",
                "remove dropout and other noise: the policy's distribution draws the actions",
            ),
            (
                not torch.allclose(alone, y[:1], rtol=1e-3, atol=1e-5),
                "gives other outputs for a row if other rows are in the batch",
                "use LayerNorm instead of BatchNorm",
            ),
            (not bool(y.isfinite().all()), "returned numbers that are not finite", "check the initial weights"),
        ]
    for wrong, what, hint in found:
        if wrong:
            raise UsageError(f"policy.network: {location} {what}", hint)


def _described(y: Any) -> str:
    return f"shape {list(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else f"a {type(y).__name__}"


def _load(location: str) -> Any:
    """Run FILE.py once, and return the object NAME. Raises: UsageError."""
    path, name = split(location)
    if path.suffix != ".py":
        raise UsageError(f"policy.network: {location}: not a .py file", "for example my.py:Network")
    key = str(path.resolve())
    if key not in _CLASSES:
        _CLASSES[key] = _executed(path, location)
    module = _CLASSES[key]
    if not callable(getattr(module, name, None)):
        close = closest(name, [one for one, value in vars(module).items() if callable(value)])
        hint = f"did you mean `{close}`?" if close else SIGNATURE
        raise UsageError(f"policy.network: {location}: the file has no callable `{name}`", hint)
    return getattr(module, name)


def _executed(path: Path, location: str) -> Any:
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that it can import its neighbours
    spec = importlib.util.spec_from_file_location(f"pgcli_network_{path.stem}", path)
    assert spec is not None  # of a file with the suffix .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        described = printable(f"{type(error).__name__}: {error}")
        hint = "correct the file; `python FILE.py` shows the line"
        raise UsageError(f"policy.network: {location}: running the file raised {described}", hint) from error
    return module
