"""numpy's instructions are chosen by the CPU, unless the user has chosen them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from millrace_worker.vectors import AVX512, VARIABLE, avoid_slow_vectors

CPUINFO = "processor\t: 0\nvendor_id\t: {}\ncpu family\t: {}\nmodel\t\t: 17\nflags\t\t: fpu avx2 {}\n"


@pytest.mark.parametrize(
    ("vendor", "family", "flag", "avoided"),
    [
        ("AuthenticAMD", "25", "avx512f", True),  # Zen 4
        ("AuthenticAMD", "25", "sse", False),  # Zen 3
        ("AuthenticAMD", "26", "avx512f", False),  # Zen 5
        ("GenuineIntel", "6", "avx512f", False),
    ],
)
def test_only_zen_4_goes_without_avx512(tmp_path: Path, vendor: str, family: str, flag: str, avoided: bool) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO.format(vendor, family, flag))
    environ: dict[str, str] = {}
    assert avoid_slow_vectors(environ, cpuinfo) == avoided
    assert environ == ({VARIABLE: AVX512} if avoided else {})
    environ = {VARIABLE: "AVX2"}
    assert not avoid_slow_vectors(environ, cpuinfo)
    assert environ == {VARIABLE: "AVX2"}


def test_a_machine_that_does_not_say_is_left_alone(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    assert not avoid_slow_vectors(environ, tmp_path / "absent")
    assert environ == {}


def test_numpy_takes_the_names() -> None:
    """Whatever its version and the CPU, with no warning and no error; and the worker's start has not imported it."""
    program = "import sys, millrace_worker.__main__; assert 'numpy' not in sys.modules; import numpy; numpy.sort([2.0])"
    environ = {VARIABLE: AVX512, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stderr == ""
