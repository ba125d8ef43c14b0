"""Prints the requirements of pyproject.toml and the named extras, but our own: they are built from source."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
wanted = list(project["dependencies"])
for extra in sys.argv[1:]:
    wanted += project["optional-dependencies"][extra]
print(*("".join(line.split()) for line in wanted if not line.startswith("millrace-")))
