"""Make the pictures of docs/images with the commands that the pages print beside them.

`make figures` makes all of them, and `make figures FIGURES="curve taxi"` only two. The runs lie in build/figures, in a
folder for this version of the code and the configs: complete ones are reused, and an interrupted one continues.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "docs/images"
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("lesson", "gradient_variance", "report", "environments")))
SCREENSHOTS = {  # of the pages of `pgcli report FOLDER`: the upper part, in pixels
    "report.png": ("runs/cartpole-compare-baseline", "1100,1150"),
    "report-run.png": ("runs/steep/seed-1", "1100,1500"),
}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def commands(text: str) -> list[list[str]]:
    """Return the pgcli commands of the `sh` and `console` blocks of a text."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = re.findall(r"^(?:\$ )?(pgcli .+)$", "".join(blocks), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def folder_of_runs(words: list[str]) -> str:
    """Return the folder in which `train` or `compare` writes, or the first part of its name."""
    named = [word for option, word in pairwise(words) if option in ("--run-dir", "-o")]
    return named[0] if named else f"runs/{words[2].replace('/', '-')}"


def makers() -> dict[str, tuple[str, list[list[str]]]]:
    """Return, for each picture, its page and its commands: the trainings of its section that it shows, and its own."""
    texts = {page: (ROOT / page).read_text() for page in PAGES}
    shown = set(re.findall(r"!\[[^\]]*\]\((?:docs/)?images/([^)]+)\)", "".join(texts.values())))
    found: dict[str, tuple[str, list[list[str]]]] = {}
    for page, text in texts.items():
        for section in re.split(r"^## ", text, flags=re.MULTILINE):
            trainings: list[list[str]] = []
            for words in commands(section):
                if words[1] in ("train", "compare"):
                    trainings.append(words)
                    continue
                reports = [name for name, (run, _) in SCREENSHOTS.items() if words[1:] == ["report", run]]
                for name in shown.intersection(reports or words[-1:]) - set(found):
                    needed = [line for line in trainings if folder_of_runs(line) in shlex.join(words)]
                    found[name] = page, [*needed, words]
    return found


def version() -> str:
    """Return the digest of the code and the configs."""
    files = sorted([*ROOT.glob("pgcli/**/*.py"), *ROOT.glob("configs/**/*.yaml")])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def run(words: list[str], folder: Path) -> None:
    """Run a command of a page; a training continues where it was interrupted."""
    print("$", shlex.join(words), flush=True)
    more = ["--resume"] if words[1] == "train" else []
    if subprocess.run([sys.executable, "-m", *words, *more], cwd=folder, check=False).returncode:
        sys.exit(f"{shlex.join(words)} failed in {folder}")


def photograph(page: Path, picture: Path, size: str) -> None:
    """Write a picture of the upper part of an HTML page."""
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={size}"]
    command = [str(CHROMIUM), *words, f"--screenshot={picture}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def main(names: list[str]) -> None:
    """Make the pictures with these names, with or without their ending; without names, all of them."""
    pictures, done = makers(), list[tuple[str, list[str]]]()
    if unknown := set(names) - set(pictures) - {Path(name).stem for name in pictures}:
        sys.exit(f"no picture has the name {', '.join(sorted(unknown))}; the pictures: {' '.join(pictures)}")
    for name, (page, lines) in pictures.items():
        if names and not {name, Path(name).stem} & set(names):
            continue
        if name in SCREENSHOTS and not CHROMIUM:
            print(f"{name} is left out: it needs Chromium")
            continue
        folder = ROOT / "build/figures" / version() / Path(page).stem
        folder.mkdir(parents=True, exist_ok=True)
        for words in lines:
            if (page, words) not in done:
                run(words, folder)
                done.append((page, words))
        if name in SCREENSHOTS:
            report, size = SCREENSHOTS[name]
            photograph(folder / report / "report.html", folder / name, size)
        shutil.copy(folder / name, IMAGES / name)


if __name__ == "__main__":
    main(sys.argv[1:])
