"""Holds dependencies to known licences and sources: crates of Cargo.lock, packages of constraints.txt.

A licence that is not in the list is not forbidden: somebody has to look at it, and add it. Advisories are not looked
up: their database is on the network (docs/security.md).
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"

# SPDX names under which a program that is distributed under Apache 2.0 may hold and link what it uses.
LICENCES = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CNRI-Python", "ISC", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unicode-3.0", "Unicode-DFS-2016",
    "Unlicense", "Zlib",
}  # fmt: skip
# What packages wrote before there were SPDX names, and classifiers: what it means.
OLD_NAMES = {
    "apache": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0", "apache 2.0 license": "Apache-2.0", "apache license": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0", "apache-2.0 license": "Apache-2.0", "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause", "new bsd": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause",
    "bsd-3-clause license": "BSD-3-Clause", "mit license": "MIT", "isc license (iscl)": "ISC",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0", "python software foundation license": "PSF-2.0",
    "the unlicense (unlicense)": "Unlicense", "mit": "MIT",
}  # fmt: skip
# Only on machines with such devices; NVIDIA's terms let them be installed beside, not shipped within.
PROPRIETARY = re.compile(r"nvidia-.*|cuda-.*")


def is_allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met with the licences above."""
    words = re.findall(r"\(|\)|[^\s()/]+(?: WITH [^\s()]+)?|/", expression)
    text = " ".join(_word(word) for word in words)
    try:
        tree = json.loads(f"[{_as_json(text)}]")
    except ValueError:
        return False
    return bool(tree) and tree[0]


def _word(word: str) -> str:
    if word in ("(", ")"):
        return word
    if word in ("OR", "/"):
        return "or"
    if word == "AND":
        return "and"
    return "true" if word in LICENCES else "false"


def _as_json(text: str) -> str:
    """What a formula of `true`, `false`, `and`, `or` and brackets comes to: innermost brackets first."""
    while (found := re.search(r"\(([^()]*)\)", text)) is not None:
        text = text[: found.start()] + _as_json(found[1]) + text[found.end() :]
    return str(any(all(word.strip() == "true" for word in part.split(" and ")) for part in text.split(" or "))).lower()


def crates() -> Iterator[str]:
    """What is wrong with crates."""
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text(encoding="utf-8"))
    for package in lock["package"]:
        source = package.get("source", "")
        if source not in ("", CRATES_IO):
            yield f"{package['name']} {package['version']} comes from {source}"
        if source and "checksum" not in package:
            yield f"{package['name']} {package['version']} has no checksum"
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline"]
    # Without the network cargo tells of what has been fetched: all that is built here.
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:
        told = subprocess.run(command[:-1], cwd=ROOT, capture_output=True, text=True, check=True)
    for package in json.loads(told.stdout)["packages"]:
        if not is_allowed(package["license"] or ""):
            yield f"{package['name']} {package['version']}: licence {package['license']!r}"


def licence_of(name: str) -> str:
    """Of an installed package: its SPDX expression, or what its older fields mean."""
    fields = metadata.metadata(name)
    expression = fields.get("License-Expression")
    if expression:
        return expression
    classified = [
        line.rsplit(" :: ", 1)[1] for line in fields.get_all("Classifier") or () if line.startswith("License ::")
    ]
    stated = [(fields.get("License") or "").split("\n", 1)[0].strip(), *classified]
    known = [OLD_NAMES.get(each.lower(), each) for each in stated if each]
    return next((each for each in known if is_allowed(each)), " / ".join(known) or "none")


def packages() -> Iterator[str]:
    """What is wrong with packages; those for other systems are not installed here."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = {match[1] for line in lines if (match := re.match(r"([A-Za-z0-9._-]+)==", line))}
    seen = 0
    for name in sorted(names):
        try:
            licence = licence_of(name)
        except metadata.PackageNotFoundError:
            continue
        seen += 1
        if not is_allowed(licence) and not PROPRIETARY.fullmatch(name):
            yield f"{name}: licence {licence!r}"
    if seen < 30:
        yield f"only {seen} packages of constraints.txt are installed: `make setup` first"
    yield from (
        f"constraints.txt: {line!r} names a source of its own" for line in lines if "://" in line or " @ " in line
    )


def main() -> int:
    wrong = [*crates(), *packages()]
    for line in wrong:
        print(f"dependencies: {line}")
    if not wrong:
        print("dependencies: licences and sources are known")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
