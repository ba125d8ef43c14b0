"""The demo model's text: the standard library of the running interpreter, as files and as chat examples.

Everything is deterministic for one Python version: files in sorted order, and every choice (held out or not, which
phrasing) by a hash of names. Another Python version has other sources and hence gives another model.
"""

import ast
import hashlib
import re
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Test suites repeat themselves, and the others are tables of characters or escaped prose rather than code.
EXCLUDED_FOLDERS = {
    "__pycache__", "dist-packages", "encodings", "idle_test", "lib-dynload", "pydoc_data", "site-packages",
    "test", "tests",
}  # fmt: skip
EXCLUDED_FILES = {"entities.py", "stringprep.py", "_sysconfigdata.py", "__phello__.foo.py"}
HELD_OUT_SHARE = 20  # one file in 20 is never trained on
MAX_ANSWER_CHARS = 1600  # about 480 tokens: a chat example fits into one training window

WRITE_REQUESTS = (
    "Write a Python function named {name}. {summary}",
    "Write a function {name}. {summary}",
    "Implement `{signature}` in Python: {summary}",
    "Write a Python function: {summary}",
    "Please write `{name}`. {summary}",
)
EXPLAIN_REQUESTS = ("What does this function do?\n{source}", "Explain this code:\n{source}")
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You write Python code.")


@dataclass(frozen=True)
class SourceFile:
    name: str  # path below the standard library, with slashes
    text: str
    held_out: bool


@dataclass(frozen=True)
class ChatExample:
    system: str  # empty: no system message
    user: str
    assistant: str


def stable_hash(text: str) -> int:
    """64 bits that depend on `text` alone (`hash` is salted per process)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def read_standard_library() -> list[SourceFile]:
    """All source files in sorted order, one in `HELD_OUT_SHARE` of them marked as held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files: list[SourceFile] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if EXCLUDED_FOLDERS & set(relative.parts) or relative.name in EXCLUDED_FILES:
            continue
        if relative.name.startswith("_sysconfigdata") or relative.parts[0].startswith("config-"):
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            name = relative.as_posix()
            files.append(SourceFile(name, text, held_out=stable_hash(name) % HELD_OUT_SHARE == 0))
    return files


def chat_examples(file: SourceFile) -> Iterator[ChatExample]:
    """An instruction and its answer for every documented function of `file` that is short enough."""
    try:
        tree = ast.parse(file.text)
    except SyntaxError:  # lib2to3 keeps deliberately broken or Python 2 sources
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or not (docstring := ast.get_docstring(node)):
            continue
        source = _function_source(file.text, node)
        if len(source) <= MAX_ANSWER_CHARS:
            yield _example(f"{file.name}:{node.name}:{node.lineno}", node, docstring, source)


def _function_source(text: str, node: ast.FunctionDef) -> str:
    first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    lines = text.splitlines()[first_line - 1 : node.end_lineno]
    return textwrap.dedent("\n".join(lines))


def _example(key: str, node: ast.FunctionDef, docstring: str, source: str) -> ChatExample:
    """Three of four examples ask for the function, the fourth asks for its explanation."""
    choice = stable_hash(key)
    summary = re.sub(r"\s+", " ", docstring.split("\n\n", maxsplit=1)[0]).strip()
    system = SYSTEM_PROMPTS[choice // 7 % 2] if choice // 11 % 5 == 0 else ""
    if choice % 4 == 0:
        request = EXPLAIN_REQUESTS[choice // 4 % len(EXPLAIN_REQUESTS)]
        return ChatExample(system, request.format(source=_without_docstring(node, source)), summary)
    request = WRITE_REQUESTS[choice // 4 % len(WRITE_REQUESTS)]
    signature = f"{node.name}({ast.unparse(node.args)})"
    return ChatExample(system, request.format(name=node.name, signature=signature, summary=summary), source)


def _without_docstring(node: ast.FunctionDef, source: str) -> str:
    """`source` with the docstring's lines cut out, so that the explanation is not in the question."""
    first_line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    doc = node.body[0]
    lines = source.splitlines()
    end = doc.end_lineno or doc.lineno
    return "\n".join(lines[: doc.lineno - first_line] + lines[end - first_line + 1 :])
