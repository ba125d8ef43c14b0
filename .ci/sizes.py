"""Holds the code to its budget: files <= 400 lines, functions <= 60, parameters <= 6; tests: files <= 600.

Also checks the path of one token in `docs/architecture.md`: <= 24 files, <= 6,000 lines, every file exists.
Exceptions stand in `.ci/size-exceptions.txt`, one a line: `path` or `path:function`, then the reason.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES, TEST_FILE_LINES, FUNCTION_LINES, PARAMETERS = 400, 600, 60, 6
PATH_FILES, PATH_LINES = 24, 6000


@dataclass(frozen=True)
class Function:
    name: str
    lines: int
    parameters: int


def tracked() -> list[Path]:
    """Source files that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py", "*.rs"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    return [ROOT / name for name in sorted(set(names)) if (ROOT / name).is_file()]


def is_test(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return "tests" in parts or "integration-tests" in parts or path.stem in ("tests", "conftest")


def python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            counted = [a for a in given if a.arg not in ("self", "cls")]
            yield Function(node.name, (node.end_lineno or node.lineno) - node.lineno + 1, len(counted))


RUST_NOISE = re.compile(r"//[^\n]*|/\*.*?\*/|b?r(#*)\".*?\"\1|b?\"(?:\\.|[^\"\\])*\"|'(?:\\.[^']*|[^'\\])'", re.DOTALL)


def rust_functions(text: str) -> Iterator[Function]:
    """Good enough for formatted code: comments and literals are blanked, braces and parentheses counted."""
    bare = RUST_NOISE.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)
    for match in re.finditer(r"\bfn\s+(\w+)", bare):
        opening = bare.find("(", match.end())
        closing = closing_bracket(bare, opening)
        body = next((i for i in range(closing, len(bare)) if bare[i] in "{;"), len(bare) - 1)
        if bare[body] == ";":
            continue
        end = closing_bracket(bare, body)
        given = split_top(bare[opening + 1 : closing])
        parameters = [p for p in given if not re.match(r"(&\s*)?('\w+\s+)?(mut\s+)?self\b", p)]
        yield Function(match.group(1), bare.count("\n", match.start(), end) + 1, len(parameters))


def closing_bracket(text: str, opening: int) -> int:
    pairs = {"(": ")", "{": "}", "[": "]"}
    depth, first, last = 0, text[opening], pairs[text[opening]]
    for index in range(opening, len(text)):
        depth += (text[index] == first) - (text[index] == last)
        if depth == 0:
            return index
    return len(text) - 1


def split_top(text: str) -> list[str]:
    """Splits at commas outside every bracket; `->` does not close one."""
    parts, depth, current = [], 0, ""
    for char in text.replace("->", "  "):
        depth += (char in "([{<") - (char in ")]}>")
        if char == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += char
    return [p.strip() for p in [*parts, current] if p.strip()]


def exceptions() -> set[str]:
    lines = (ROOT / ".ci" / "size-exceptions.txt").read_text(encoding="utf-8").splitlines()
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


def problems(path: Path) -> Iterator[tuple[str, str]]:
    """Pairs of the name an exception would have, and what is wrong."""
    name, text = str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    limit = TEST_FILE_LINES if is_test(path) else FILE_LINES
    if (lines := text.count("\n")) > limit:
        yield name, f"{lines} lines (at most {limit})"
    for function in python_functions(text) if path.suffix == ".py" else rust_functions(text):
        if function.lines > FUNCTION_LINES:
            yield f"{name}:{function.name}", f"{function.lines} lines (at most {FUNCTION_LINES})"
        if function.parameters > PARAMETERS:
            yield f"{name}:{function.name}", f"{function.parameters} parameters (at most {PARAMETERS})"


def path_problems() -> Iterator[str]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.partition("## The path of one token")[2].partition("\n## ")[0]
    files = sorted(set(re.findall(r"`([\w./-]+\.(?:rs|py|proto))`", section)))
    missing = [f for f in files if not (ROOT / f).is_file()]
    lines = sum((ROOT / f).read_text(encoding="utf-8").count("\n") for f in files if f not in missing)
    print(f"the path of one token: {len(files)} files, {lines} lines")
    if missing or not files:
        yield f"docs/architecture.md: the path of one token names files that do not exist: {missing}"
    if len(files) > PATH_FILES or lines > PATH_LINES:
        yield f"docs/architecture.md: the path of one token is over {PATH_FILES} files or {PATH_LINES} lines"


def main() -> None:
    allowed, used, found = exceptions(), set[str](), list(path_problems())
    for path in tracked():
        for name, problem in problems(path):
            if name in allowed:
                used.add(name)
            else:
                found.append(f"{name}: {problem}")
    found += [f".ci/size-exceptions.txt: {name} is within the budget now" for name in sorted(allowed - used)]
    print("\n".join(found) or "sizes: every file and function is within its budget")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
