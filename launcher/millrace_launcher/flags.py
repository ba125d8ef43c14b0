"""Every flag of the launcher, as data: the fields of `Arguments` are the table.

From this one table come the parser (`parser.py`), `--help`, the command lines of router and workers (`resolve.py`) and
`docs/flags.md` (`flags_doc.py`). Names, environment variables and defaults are those of Text Generation Inference.
A field's flag is its name with dashes, its environment variable its name in upper case.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from millrace_launcher.flag import NamedFlag
from millrace_launcher.flags_model import ModelFlags
from millrace_launcher.flags_serving import ServingFlags


@dataclass(frozen=True, kw_only=True)
class Arguments(ServingFlags, ModelFlags):
    """What the user asked for, parsed but not yet resolved. None: not given."""


# The rows in the order of `Arguments`: a dataclass lists the fields of its last base first.
FLAG_TABLE = tuple(NamedFlag(item.name, item.default, item.metadata["flag"]) for item in fields(Arguments))
