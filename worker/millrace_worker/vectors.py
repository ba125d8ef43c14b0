"""Which vector instructions numpy should leave alone on this CPU. To be decided before numpy is imported."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from pathlib import Path

VARIABLE = "NPY_DISABLE_CPU_FEATURES"

# numpy's names for AVX-512, those before version 2.4 among them.
AVX512 = "X86_V4 AVX512_SKX AVX512_ICL AVX512_SPR"

# AMD's family of Zen 3 and Zen 4, of which the latter has AVX-512.
ZEN4_FAMILY = "25"


def avoid_slow_vectors(environ: MutableMapping[str, str], cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Has numpy sort with AVX2 on Zen 4; answers whether it had to. What the user has set stays.

    There the instruction that stores the chosen lanes of a 512-bit vector, on which numpy's sort is built, runs in
    microcode: sorting 16 rows of 8,192 floats takes 1.7 ms with it and 0.44 ms without.
    """
    if VARIABLE in environ or not _is_zen4(cpuinfo):
        return False
    environ[VARIABLE] = AVX512
    return True


def _is_zen4(cpuinfo: Path) -> bool:
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    found = {
        name: re.search(rf"^{name}\s*:\s*(.*)$", text, re.MULTILINE) for name in ("vendor_id", "cpu family", "flags")
    }
    vendor, family, flags = (match[1] if match else "" for match in found.values())
    return vendor == "AuthenticAMD" and family == ZEN4_FAMILY and "avx512f" in flags.split()
