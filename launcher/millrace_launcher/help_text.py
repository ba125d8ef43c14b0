"""`--help` and `--version`, made from the flag table."""

from __future__ import annotations

from millrace_launcher.flag import Group, NamedFlag, Status
from millrace_launcher.flags import FLAG_TABLE


def usage(program: str) -> str:
    return f"Usage: {program} [OPTIONS]"


def version(program: str) -> str:
    from importlib.metadata import version as distribution_version

    return f"{program} {distribution_version('millrace')}"


def help_text(program: str) -> str:
    """All flags by group, each with its environment variable and default."""
    parts = ["Serves a large language model over HTTP.", "", usage(program)]
    for group in Group:
        parts += ["", f"{group.value}:"]
        parts += [entry for row in FLAG_TABLE if row.flag.group is group for entry in _entry(row)]
    parts += ["", "Other:", "  -h, --help", "          Print this help.", "  -V, --version"]
    return "\n".join([*parts, "          Print the version.", ""])


def default_text(row: NamedFlag) -> str | None:
    """The default in words, or None when the flag is simply not given by default."""
    if row.flag.default_text is not None:
        return row.flag.default_text
    if row.default is None or row.default == ():
        return None
    return str(row.default).lower() if isinstance(row.default, bool) else str(row.default)


def description(row: NamedFlag) -> str:
    """The help sentence, with what a refused or idle flag means."""
    text = row.flag.help
    if row.flag.status is not Status.SERVED:
        verb = "Refused" if row.flag.status is Status.REFUSED else "No effect"
        text += f" {verb}: {row.flag.note}."
    elif row.flag.refused:
        text += f" Other values are refused: {row.flag.note}."
    return text


def _entry(row: NamedFlag) -> list[str]:
    kind = row.flag.kind
    short = f"-{row.flag.short}, " if row.flag.short else "    "
    placeholder = f" <{kind.placeholder}>" if kind.takes_value else ""
    facts = [f"env: {row.environment}"] if row.environment else []
    default = default_text(row)
    if default is not None and kind.takes_value:
        facts.append(f"default: {default}")
    if kind.choices:
        facts.append(f"one of: {', '.join(kind.choices)}")
    notes = " ".join(f"[{fact}]" for fact in facts)
    lines = [f"  {short}{row.long}{placeholder}", f"          {description(row)}"]
    return lines + ([f"          {notes}"] if notes else [])
