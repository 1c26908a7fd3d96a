"""Modules that a config names: installed ones, those of the current folder, and files."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from pgcli.environments.failures import describe, is_user_error, line_of
from pgcli.errors import EnvironmentFailure, PgcliError, closest

HERE = str(Path.cwd())  # before an environment can change it


def module_of(name: str) -> ModuleType | None:
    """Import the module of `module:Name` or `FILE.py:Name`; return None for a name alone."""
    module, colon, _ = name.rpartition(":")
    return import_module(module, f"`{name}`") if colon else None


def import_module(name: str, wanted_by: str) -> ModuleType:
    """Import a module, or a file whose name ends in .py.

    The current folder is searched last, so a local file never hides a package.
    Raises: EnvironmentFailure, with the line of the module that failed.
    """
    if HERE not in sys.path:
        sys.path.append(HERE)
    try:
        if is_file(name):
            return _import_file(_path_of(name))
        if not all(part.isidentifier() for part in name.split(".")):
            raise ModuleNotFoundError(name=name)  # for example a path, or empty
        return importlib.import_module(name)
    except BaseException as error:
        if not is_user_error(error):
            raise
        raise _import_failure(name, wanted_by, error) from error


def is_file(module: str) -> bool:
    """Return whether a module name is the path of a file."""
    return module.endswith(".py")


def hidden_file(module: ModuleType) -> str | None:
    """Return the file in the current folder that an installed module of the same name hides, if any."""
    path, found = Path(HERE, *module.__name__.split(".")), getattr(module, "__file__", None)
    for file in (Path(f"{path}.py"), path / "__init__.py"):
        if file.is_file():
            return None if found and Path(found).resolve() == file.resolve() else str(file.relative_to(HERE))
    return None


def suggestion(name: str, names: Iterable[str], prefix: str = "", suffix: str = "") -> str:
    """Suggest the most similar of `names`, ignoring case; "" if none is similar."""
    spelled = {one.lower(): one for one in names}
    close = closest(name.lower(), spelled)
    return f"did you mean `{prefix}{spelled[close]}{suffix}`?" if close else ""


def _path_of(file: str) -> Path:
    """Return the path of a file, relative to the current folder of this process or of its parent."""
    paths = [Path(folder, file).resolve() for folder in (HERE, *sys.path)]
    return next((path for path in paths if path.is_file()), paths[0])


def _import_file(path: Path) -> ModuleType:
    """Import a file under its own name, unless another module has it; its folder is searched last."""
    if not path.is_file():
        raise FileNotFoundError(str(path))
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    if _origin(path.stem) == path:
        return importlib.import_module(path.stem)
    name = str(path)
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None  # of a file with the suffix .py
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _origin(name: str) -> Path | None:
    """Return the file that `import name` executes; None if there is no such module."""
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # `a.b` without a package `a`; a module without a spec
        return None
    return Path(found.origin).resolve() if found and found.origin else None


def _import_failure(name: str, wanted_by: str, error: BaseException) -> PgcliError:
    line = f" ({line_of(error)})" if line_of(error) else ""
    if is_file(name) and not _path_of(name).is_file():
        hint = suggestion(name, (path.name for path in Path(HERE).glob("*.py")), suffix=wanted_by[1:-1][len(name) :])
        return EnvironmentFailure(f"{wanted_by}: no file {name} in {HERE}", hint)
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (f"{name}.".startswith(f"{missing}.") or missing.startswith(f"{name}.")):
        file = f"{name.replace('.', '/')}.py"
        if Path(HERE, file).is_file():
            message = f"{wanted_by}: no module `{name}`: an installed `{name.partition('.')[0]}` hides {file}"
            return EnvironmentFailure(message, f"name the file: `{file}:{wanted_by[1:-1].rpartition(':')[2]}`")
        known = (one.name for one in pkgutil.iter_modules())
        hint = suggestion(name.removeprefix("./"), known)
        hint = hint or "install its package, or run pgcli in the folder of its file"
        message = f"{wanted_by}: no module `{name}`, neither installed nor in the current folder"
        return EnvironmentFailure(message, hint)
    if missing:
        message = f"{wanted_by}: the module `{name}` needs `{missing}`, which is not installed{line}"
        return EnvironmentFailure(message, "install the package that provides it")
    if isinstance(error, SystemExit):
        message = f"{wanted_by}: the module `{name}` exits Python when it is imported{line}"
        return EnvironmentFailure(message, 'move the code of the program under `if __name__ == "__main__":`')
    return EnvironmentFailure(f"{wanted_by}: importing `{name}` raised {describe(error)}")
