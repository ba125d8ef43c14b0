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
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}]}]


def call(name: str, arguments: dict[str, Any], id_: str) -> dict[str, Any]:
    return {"type": "function", "id": id_, "function": {"name": name, "arguments": arguments}}


ASKED = call("weather", {"city": "Zürich", "days": 2, "at": {"lat": 47.37, "é": None}}, "call00001")
CALLED = [
    *TURN,
    {"role": "assistant", "content": None, "tool_calls": [ASKED]},
    {"role": "tool", "content": '{"temp": 21.5}', "name": "weather", "tool_call_id": "call00001"},
]
ANSWERED = [*CALLED, {"role": "assistant", "content": "It is 21.5 °C."}, {"role": "user", "content": "Thanks!"}]
TWICE = [
    *TURN,
    {"role": "assistant", "content": "Both:", "tool_calls": [ASKED, call("now", {}, "call00002")]},
    {"role": "tool", "content": "sun", "tool_call_id": "call00001"},
    {"role": "tool", "content": "noon", "tool_call_id": "call00002"},
]
WRITTEN = [*TURN, {"role": "assistant", "content": None, "tool_calls": [call("now", '{"a": 1}', "call00003")]}]  # type: ignore[arg-type]
REASONED = [
    *TURN,
    {"role": "assistant", "content": "Yes.", "reasoning_content": "2 is less"},
    {"role": "user", "content": "Sure?"},
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "turn": TURN,
    "system": SYSTEM,
    "long": LONG,
    "named": NAMED,
    "out of turn": [*TURN, *TURN],
    "nothing": [],
    "parts": PARTS,
    "called": CALLED,
    "answered": ANSWERED,
    "twice": TWICE,
    "written": WRITTEN,
    "reasoned": REASONED,
    "unfinished": [*TURN, {"role": "assistant", "content": "It is "}],
    "developer": [{"role": "developer", "content": "Be kind."}, *TURN],
}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The weather of a "city".',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where <exactly>"},
                "unit": {"type": "string", "enum": ["°C", "°F"]},
                "days": {"type": "integer", "minimum": 1},
                "at": {"type": "object", "properties": {"lat": {"type": "number"}}},
            },
            "required": ["city"],
        },
    },
}
NOW = {
    "type": "function",
    "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}
DOCUMENTS = [{"title": "Zürich", "text": "A city.\nBig."}, {"text": "No title here"}]
# What else a rendering is told, by name.
SETTINGS: dict[str, dict[str, Any]] = {
    "": {"opens": True},
    "closed": {"opens": False},
    "tools": {"opens": True, "tools": [WEATHER, NOW]},
    "documents": {"opens": True, "documents": DOCUMENTS, "tools": [NOW]},
    "told": {
        "opens": True,
        "variables": {
            "enable_thinking": False,
            "reasoning_effort": "high",
            "date_string": "1 Jan 2026",
            "controls": {"length": "short"},
        },
    },
}


def rendered(template: str, messages: list[dict[str, Any]], setting: dict[str, Any]) -> str | None:
    """What transformers makes of a conversation; None if the template refuses it.

    Raises TypeError where the template is a program that does not run on it.
    """
    try:
        texts, _ = render_jinja_template(
            [messages],
            tools=setting.get("tools"),
            documents=setting.get("documents"),
            chat_template=template,
            add_generation_prompt=setting["opens"],
            bos_token="<s>",
            eos_token="</s>",
            **setting.get("variables", {}),
        )
    except TemplateError:
        return None
    return texts[0]


def main() -> None:
    cases: list[dict[str, Any]] = []
    for path in sorted(HERE.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        for setting_name, setting in SETTINGS.items():
            for name, messages in CONVERSATIONS.items():
                # The plain setting meets every conversation, the others those that say most about them.
                if setting_name and name not in ("system", "called", "answered", "unfinished"):
                    continue
                conversation = f"{name}, {setting_name}" if setting_name else name
                try:
                    expected = rendered(template, messages, setting)
                except TypeError:
                    continue
                cases.append(
                    {"template": path.name, "conversation": conversation, "messages": messages}
                    | setting
                    | {"expected": expected}
                )
    text = json.dumps(cases, ensure_ascii=False, separators=(",", ":")).replace('{"template":', '\n{"template":')
    (HERE / "expected.json").write_text(text + "\n", encoding="utf-8")
    refused = sum(case["expected"] is None for case in cases)
    print(f"{len(cases)} renderings, {refused} refused")


if __name__ == "__main__":
    main()
