"""Renders the templates beside this file with transformers and writes what it gives to expected.json.

Run it after adding a template: `python router/tests/chat_templates/render.py`. The router's tests compare their own
rendering with expected.json and need neither Python nor transformers.
"""

import json
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

HERE = Path(__file__).resolve().parent

TURN = [{"role": "user", "content": "What is 2 < 3?"}]
SYSTEM = [{"role": "system", "content": "  Be brief.\n"}, *TURN]
LONG = [
    *SYSTEM,
    {"role": "assistant", "content": '<think>\nhm & co\n</think>\n\nYes, "of course".'},
    {"role": "user", "content": "Wörter? 日本語 😀\n\n  indented"},
]
NAMED = [{"role": "tool", "content": "{'a': 1}", "name": "weather", "tool_call_id": "call_1"}, *TURN]
OUT_OF_TURN = [*TURN, *TURN]
CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "turn": TURN,
    "system": SYSTEM,
    "long": LONG,
    "named": NAMED,
    "out of turn": OUT_OF_TURN,
    "nothing": [],
}


def rendered(template: str, messages: list[dict[str, str]]) -> str | None:
    """What transformers makes of a conversation; None if the template refuses it."""
    try:
        texts, _ = render_jinja_template(
            [messages],
            chat_template=template,
            add_generation_prompt=True,
            bos_token="<s>",
            eos_token="</s>",
        )
    except (TemplateError, TypeError):
        return None
    return texts[0]


def main() -> None:
    cases: list[dict[str, Any]] = []
    for path in sorted(HERE.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for name, messages in CONVERSATIONS.items():
            expected = rendered(template, messages)
            cases.append({"template": path.name, "conversation": name, "messages": messages, "expected": expected})
    text = json.dumps(cases, ensure_ascii=False, indent=1)
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
