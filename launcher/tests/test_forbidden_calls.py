"""Nothing in the launcher, the worker or the kernels' package turns bytes into code.

Workers and launcher listen on sockets and read files that strangers have made. A pickle is a program, and so is what
`eval` reads: this walks their syntax trees for everything that would run either, whatever it is called there.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("launcher/millrace_launcher", "worker/millrace_worker", "worker/kernels")

# Modules that load code, or whose transport is pickles.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "codeop", "runpy",
    "multiprocessing", "xmlrpc", "zmq", "yaml", "imp", "torch.multiprocessing", "torch.distributed.rpc",
    "torch.package",
}  # fmt: skip
# Functions and methods, by their last name.
CALLS = {
    "eval", "exec", "compile", "execfile", "__import__", "system", "popen", "getoutput", "getstatusoutput",
    "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "send_object_list",
    "recv_object_list", "execv", "execve", "execvp", "spawnv", "create_subprocess_shell", "import_module",
}  # fmt: skip

# What looks alike and is something else, by file: why it may stay.
ALLOWED = {
    ("worker/millrace_worker/models/hosted/library.py", "eval"): "torch's `Module.eval()`: dropout is switched off",
    ("worker/millrace_worker/convert.py", "load"): "`torch.load(weights_only=True)`: tensors and containers only",
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")) and "tests" not in path.parts:
                yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return []


def called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def keyword(node: ast.Call, name: str) -> object:
    values = [given.value for given in node.keywords if given.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


def offences(tree: ast.Module) -> Iterator[str]:
    """Names of what is found; imports under any name are found where they are imported."""
    for node in ast.walk(tree):
        for module in imported(node):
            if module in MODULES or module.split(".", maxsplit=1)[0] in MODULES:
                yield module
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
        is_regex = name == "compile" and isinstance(receiver, ast.Name) and receiver.id == "re"
        if name in CALLS and not is_regex:
            yield name
        if name == "load" and isinstance(receiver, ast.Name) and receiver.id in ("torch", "numpy", "np"):
            yield name
        if keyword(node, "shell") or keyword(node, "allow_pickle"):
            yield f"{name} with a shell or pickles"


def test_nothing_turns_bytes_into_code() -> None:
    found = {(path, name) for path, tree in sources() for name in offences(tree)}
    assert sorted(found - ALLOWED.keys()) == []
    assert sorted(ALLOWED.keys() - found) == [], "these are allowed, and nobody does them any more"


def test_pickled_weights_are_loaded_as_tensors_only() -> None:
    [loading] = [
        node
        for path, tree in sources()
        if path == "worker/millrace_worker/convert.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and called(node) == "load"
    ]
    assert keyword(loading, "weights_only") is True


def test_every_way_that_is_looked_for_is_found() -> None:
    for source in (
        "import pickle as p",
        "from pickle import loads as f",
        "from torch import multiprocessing",
        "from multiprocessing.connection import Listener",
        "eval(text)",
        "builtins.exec(text)",
        "compile(text, '', 'exec')",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "os.system(line)",
        "dist.broadcast_object_list(things)",
        "importlib.import_module(name)",
    ):
        assert list(offences(ast.parse(source))), source
    for source in ("re.compile(text)", "json.loads(text)", "subprocess.run(['ls'], shell=False)", "loader.load(path)"):
        assert not list(offences(ast.parse(source))), source
