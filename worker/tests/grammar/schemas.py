"""A corpus of JSON schemas over every keyword that grammars keep: by keyword, composed at random, and as met in life.

`corpus()` is the same list every time; `python -m worker.tests.grammar.schemas` writes it, a schema a line.
All of them are bounded: a model that says anything that is allowed comes to an end.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

DRAFT_7 = "http://json-schema.org/draft-07/schema#"
WORD: Schema = {"type": "string", "maxLength": 8}
SMALL: Schema = {"type": "integer", "minimum": -9, "maximum": 99}
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")


def corpus() -> list[tuple[str, Schema]]:
    """Named schemas; the names are unique."""
    families = (
        types, constants, integers, numbers, multiples, strings, patterns, formats, arrays, tuples, objects,
        open_objects, alternatives, intersections, references, recursions, lives, compositions,
    )  # fmt: skip
    return [(f"{family.__name__}-{index}", schema) for family in families for index, schema in enumerate(family())]


def closed(properties: dict[str, Any], required: list[str] | None = None, **further: Any) -> Schema:
    """An object with these properties only; all of them required if nobody says which."""
    names = list(properties) if required is None else required
    return {
        "type": "object",
        "properties": properties,
        "required": names,
        "additionalProperties": False,
        **further,
    }


def types() -> Iterator[Schema]:
    yield from ({"type": name} for name in ("null", "boolean"))
    yield from ({"type": [one, "null"], "maxLength": 5, "minimum": 0, "maximum": 7} for one in ("string", "integer"))
    yield {"type": ["boolean", "number"], "minimum": 0, "maximum": 1}
    yield {"type": ["string", "array"], "maxLength": 3, "maxItems": 2, "items": {"type": "boolean"}}
    yield {"type": ["object", "null"], "properties": {"a": SMALL}, "additionalProperties": False}
    yield {"type": ["integer", "string", "boolean", "null"], "maxLength": 4, "minimum": 1, "maximum": 20}
    yield {"title": "annotated", "description": "only", "type": "boolean", "default": True, "examples": [False]}


def constants() -> Iterator[Schema]:
    values: list[Any] = [
        None, True, False, 0, 7, -12, 2.5, -0.125, 1e3, "", "a", "two words", 'quo"ted', "back\\slash",
        "tab\tnew\nline", "Zürich", "日本", "🙂", "</s>", "<s>", "{}",
        [], [1, "a", None], [[], [[]]], {}, {"a": 1}, {"b": {"c": [1, 2]}},
    ]  # fmt: skip
    yield from ({"const": value} for value in values)
    yield {"enum": values}
    yield {"enum": ["red", "green", "blue"]}
    yield {"enum": [f"item-{index:03}" for index in range(200)]}
    yield {"enum": [1, 10, 100, 1000]}
    yield {"enum": ["a", "ab", "abc", "abcd"]}
    yield {"type": "string", "enum": ["x", 1, None, "y"]}
    yield {"type": "integer", "enum": [1, 2.5, "three", 4]}
    yield closed({"kind": {"const": "circle"}, "radius": {"enum": [1, 2, 3]}})


def integers() -> Iterator[Schema]:
    ends = [(-5, 5), (0, 0), (0, 9), (1, 31), (99, 101), (-1000, -10), (-1, 1), (0, 65535), (1900, 2100), (-273, 10**6)]
    for low, high in ends:
        yield {"type": "integer", "minimum": low, "maximum": high}
        yield {"type": "integer", "exclusiveMinimum": low - 1, "exclusiveMaximum": high + 1}
    yield {"type": "integer", "minimum": 10**15, "maximum": 10**15 + 20}
    yield {"type": "integer", "minimum": 1.5, "maximum": 3.5}
    yield {"type": "integer", "minimum": 0, "exclusiveMinimum": 4, "maximum": 9, "exclusiveMaximum": 8}
    yield closed({name: {"type": "integer", "minimum": at, "maximum": at * 3} for at, name in enumerate("abcde", 1)})


def numbers() -> Iterator[Schema]:
    for low, high in [
        (0, 1),
        (-1, 1),
        (-0.5, 0.5),
        (0, 100),
        (2.5, 2.75),
        (-10, -9.5),
        (1e-3, 1e-2),
        (-1000.5, 1000.5),
    ]:
        yield {"type": "number", "minimum": low, "maximum": high}
        yield {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high}
        yield {"type": "number", "minimum": low, "exclusiveMaximum": high}
    yield {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 10}, "minItems": 3, "maxItems": 3}


def multiples() -> Iterator[Schema]:
    for step in (1, 2, 3, 5, 7, 10, 25, 60):
        yield {"type": "integer", "multipleOf": step, "minimum": -100, "maximum": 500}
    for step in (0.5, 0.25, 0.1, 0.01):
        yield {"type": "number", "multipleOf": step, "minimum": 0, "maximum": 20}
    yield {"type": "integer", "allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "minimum": 0, "maximum": 200}


def strings() -> Iterator[Schema]:
    for least, most in [(0, 0), (0, 1), (1, 1), (2, 5), (8, 8), (10, 40), (0, 100), (30, 31)]:
        yield {"type": "string", "minLength": least, "maxLength": most}
        yield closed({"text": {"type": "string", "minLength": least, "maxLength": most}, "n": SMALL})


def patterns() -> Iterator[Schema]:
    wholes = [
        "[a-z]{1,8}", "[A-Z]{2}[0-9]{4}", "(foo|bar|baz)-[0-9]{1,3}", "\\d{3}-\\d{4}", "[^a-z]{1,5}",
        "\\w{3,6}", "a?b?c?d", "(ab){1,4}", "[0-9a-f]{8}", "(\\+[0-9]{1,3} )?[0-9]{5,9}", "[A-Za-z_][A-Za-z0-9_]{0,15}",
        "x{0,3}y{2}", "#[0-9a-fA-F]{6}", "v[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}", "[\\u00e4\\u00f6\\u00fc]{2,4}",
        "(a|ab)(c|bcd)d{0,2}", "[ \\t]{1,3}", "/[a-z]{1,5}(/[a-z]{1,5}){0,3}", "\\\\{1,2}", "(yes|no)(, (yes|no)){0,2}",
    ]  # fmt: skip
    yield from ({"type": "string", "pattern": f"^{pattern}$"} for pattern in wholes)
    yield from ({"type": "string", "pattern": pattern, "maxLength": 12} for pattern in ("^ab", "yz$", "mid", "^$|^q"))
    yield {"type": "string", "pattern": "^[a-z]+$", "minLength": 3, "maxLength": 6}
    yield {"allOf": [{"pattern": "^[a-z]{2,9}$"}, {"pattern": "x"}], "type": "string"}
    yield closed(
        {"id": {"type": "string", "pattern": "^[0-9]{4}$"}, "code": {"type": "string", "pattern": "^[A-F]{1,9}$"}}
    )


def formats() -> Iterator[Schema]:
    yield from ({"type": "string", "format": name, "maxLength": 60} for name in FORMATS)
    yield closed({name: {"type": "string", "format": name, "maxLength": 40} for name in ("date", "ipv4", "uuid")})
    yield {"type": "array", "items": {"type": "string", "format": "date"}, "minItems": 2, "maxItems": 2}


def arrays() -> Iterator[Schema]:
    for items in (SMALL, WORD, {"type": "boolean"}, {"enum": ["a", "b"]}):
        for least, most in [(0, 0), (0, 3), (1, 1), (2, 5)]:
            yield {"type": "array", "items": items, "minItems": least, "maxItems": most}
    matrix = {"type": "array", "items": SMALL, "minItems": 2, "maxItems": 2}
    yield {"type": "array", "items": matrix, "minItems": 2, "maxItems": 3}
    yield {"type": "array", "items": closed({"x": SMALL, "y": SMALL}), "maxItems": 3}
    yield {"type": "array", "items": False}
    yield {
        "type": "array",
        "items": {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
        "minItems": 4,
        "maxItems": 9,
    }


def tuples() -> Iterator[Schema]:
    first = [SMALL, WORD]
    yield {"type": "array", "prefixItems": first, "items": False, "minItems": 2}
    yield {"type": "array", "prefixItems": first, "items": False}
    yield {"type": "array", "prefixItems": first, "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}
    yield {"type": "array", "prefixItems": [{"const": "point"}, SMALL, SMALL], "items": False, "minItems": 3}
    yield {"type": "array", "prefixItems": [WORD], "items": False, "maxItems": 0}
    yield {"$schema": DRAFT_7, "type": "array", "items": first, "additionalItems": False, "minItems": 2}
    yield {"$schema": DRAFT_7, "type": "array", "items": first, "additionalItems": {"type": "null"}, "maxItems": 4}


def objects() -> Iterator[Schema]:
    parts = {"a": SMALL, "b": WORD, "c": {"type": "boolean"}}
    for count in range(4):
        yield from (closed(parts, list(names)) for names in itertools.combinations(parts, count))
    yield closed({})
    yield closed({f"field_{index}": {"type": "boolean"} for index in range(30)})
    yield closed({f"field_{index}": {"type": "null"} for index in range(30)}, [])
    yield closed({"": SMALL, " ": SMALL, 'quo"te': SMALL, "ключ": SMALL, "a.b": SMALL, "$ref": SMALL, "type": SMALL})
    yield closed({"a": parts["a"], "ab": parts["b"], "abc": parts["c"]}, [])
    nested: Schema = SMALL
    for _ in range(8):
        nested = closed({"in": nested})
    yield nested
    yield closed(parts, minProperties=2, maxProperties=3)
    yield closed({"never": False, "always": SMALL}, ["always"])


def open_objects() -> Iterator[Schema]:
    few = {"maxProperties": 3}
    yield {"type": "object", "additionalProperties": SMALL, **few}
    yield {
        "type": "object",
        "properties": {"a": WORD},
        "required": ["a"],
        "additionalProperties": {"type": "null"},
        **few,
    }
    yield {"type": "object", "required": ["given"], "additionalProperties": SMALL, **few}
    keyed = {"^[xyz]{1,2}$": SMALL}
    yield {"type": "object", "patternProperties": keyed, "additionalProperties": False, **few}
    yield {"type": "object", "patternProperties": {"^n_": SMALL, "^s_": WORD}, "additionalProperties": False, **few}
    yield {"type": "object", "patternProperties": keyed, "additionalProperties": WORD, **few}
    both = {"properties": {"x": {"type": "integer", "maximum": 50}}, "patternProperties": keyed}
    yield {"type": "object", **both, "required": ["x"], "additionalProperties": False, **few}


def alternatives() -> Iterator[Schema]:
    plain: list[Schema] = [SMALL, WORD, {"type": "boolean"}, {"type": "null"}, closed({"a": SMALL}), {"enum": ["q", 5]}]
    for one, other in itertools.combinations(plain, 2):
        yield {"anyOf": [one, other]}
    for one, other in itertools.combinations(plain[:5], 2):
        yield {"oneOf": [one, other]}
    shapes = [closed({"kind": {"const": kind}, "size": SMALL, kind: WORD}) for kind in ("circle", "square", "line")]
    yield {"oneOf": shapes}
    yield {"anyOf": shapes}
    yield {"type": "array", "items": {"oneOf": shapes}, "maxItems": 3}
    yield {
        "anyOf": [{"minimum": 5}, {"maximum": -5}],
        "type": "integer",
        "exclusiveMinimum": -20,
        "exclusiveMaximum": 20,
    }
    yield {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], **closed({"a": SMALL, "b": SMALL}, [])}
    yield {"anyOf": [{"anyOf": [{"const": 1}, {"const": 2}]}, {"oneOf": [{"const": "x"}, {"const": "y"}]}]}


def intersections() -> Iterator[Schema]:
    yield {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]}
    yield {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 6}, {"pattern": "^[a-m]*$"}]}
    yield {
        "allOf": [
            {"type": ["string", "integer"], "maxLength": 3},
            {"type": ["integer", "null"], "minimum": 1, "maximum": 5},
        ]
    }
    yield {"allOf": [closed({"a": SMALL, "b": WORD}, ["a"]), {"required": ["b"]}]}
    yield {"allOf": [{"properties": {"a": {"minimum": 4}}}, closed({"a": SMALL})]}
    yield {"allOf": [{"enum": [1, 2, 3, 4]}, {"enum": [3, 4, 5]}]}
    yield {"type": "array", "allOf": [{"minItems": 2}, {"maxItems": 3}, {"items": SMALL}]}
    yield {"allOf": [{"anyOf": [SMALL, WORD]}, {"anyOf": [WORD, {"type": "null"}]}]}
    yield {"const": 5, "type": "integer", "minimum": 0}
    yield {"allOf": [True, {"allOf": [SMALL, {"allOf": [{"minimum": 0}]}]}]}


def references() -> Iterator[Schema]:
    point = closed({"x": SMALL, "y": SMALL})
    yield {"$ref": "#/$defs/point", "$defs": {"point": point}}
    yield {"$ref": "#/definitions/point", "definitions": {"point": point}}
    line = closed({"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}})
    yield {**line, "$defs": {"point": point}}
    yield {"type": "array", "items": {"$ref": "#/$defs/line"}, "maxItems": 2, "$defs": {"point": point, "line": line}}
    yield {**closed({"a": SMALL, "b": {"$ref": "#/properties/a"}})}
    yield {"$ref": "#/$defs/n", "maximum": 5, "$defs": {"n": SMALL}}
    yield {
        "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "$defs": {"a": WORD, "b": {"$ref": "#/$defs/c"}, "c": SMALL},
    }
    yield {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"enum": ["slash"]}}}
    yield {"$ref": "#/$defs/a%20b", "$defs": {"a b": {"enum": ["space"]}}}


def recursions() -> Iterator[Schema]:
    """They end because going on is rare: among many ways to go on, one recurs."""
    node = closed({"value": SMALL, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}})
    yield {"$ref": "#/$defs/node", "$defs": {"node": node}}
    tree = closed({"name": WORD, "children": {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}}, ["name"])
    yield tree
    yield {
        "$ref": "#/$defs/list",
        "$defs": {"list": {"type": "array", "items": {"$ref": "#/$defs/list"}, "maxItems": 1}},
    }
    even = closed({"odd": {"$ref": "#/$defs/odd"}}, [])
    yield {**even, "$defs": {"odd": closed({"even": {"$ref": "#"}}, [])}}


def lives() -> Iterator[Schema]:
    """As people write them."""
    amount = {"type": "number", "minimum": 0, "maximum": 10000, "multipleOf": 0.01}
    day = {"type": "string", "format": "date"}
    address = closed(
        {
            "street": {"type": "string", "minLength": 1, "maxLength": 30},
            "city": {"type": "string", "maxLength": 20},
            "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            "country": {"enum": ["DE", "FR", "US", "JP"]},
        },
        ["street", "city"],
    )
    yield address
    yield closed({"name": WORD, "age": {"type": "integer", "minimum": 0, "maximum": 130}, "email": {"type": "string", "format": "email", "maxLength": 40}, "address": address}, ["name", "age"])  # fmt: skip # noqa: E501
    line_item = closed({"sku": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{3}$"}, "count": {"type": "integer", "minimum": 1, "maximum": 99}, "price": amount})  # fmt: skip # noqa: E501
    yield closed({"number": {"type": "string", "pattern": "^R-[0-9]{6}$"}, "date": day, "items": {"type": "array", "items": line_item, "minItems": 1, "maxItems": 3}, "total": amount, "paid": {"type": "boolean"}})  # fmt: skip # noqa: E501
    arguments = [
        closed(
            {"location": {"type": "string", "maxLength": 20}, "unit": {"enum": ["celsius", "fahrenheit"]}}, ["location"]
        ),
        closed(
            {"query": {"type": "string", "maxLength": 30}, "limit": {"type": "integer", "minimum": 1, "maximum": 50}}
        ),
        closed({}),
    ]
    calls = [closed({"name": {"const": f"tool_{index}"}, "arguments": each}) for index, each in enumerate(arguments)]
    yield from calls
    yield {"anyOf": calls}
    yield {"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": 3}
    yield closed(
        {"thought": {"type": "string", "maxLength": 60}, "action": {"anyOf": calls}, "done": {"type": "boolean"}}
    )
    position = {
        "type": "array",
        "items": {"type": "number", "minimum": -180, "maximum": 180},
        "minItems": 2,
        "maxItems": 2,
    }
    yield closed({"type": {"const": "Point"}, "coordinates": position})
    yield closed({"type": {"const": "LineString"}, "coordinates": {"type": "array", "items": position, "minItems": 2, "maxItems": 3}})  # fmt: skip # noqa: E501
    yield closed({"sentiment": {"enum": ["positive", "neutral", "negative"]}, "confidence": {"type": "number", "minimum": 0, "maximum": 1}})  # fmt: skip # noqa: E501
    yield closed({"title": WORD, "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z-]{2,12}$"}, "maxItems": 4}, "published": day, "draft": {"type": ["boolean", "null"]}})  # fmt: skip # noqa: E501
    yield closed({"steps": {"type": "array", "items": closed({"explanation": WORD, "output": WORD}), "minItems": 1, "maxItems": 3}, "final_answer": WORD})  # fmt: skip # noqa: E501
    yield closed({"host": {"type": "string", "format": "hostname", "maxLength": 30}, "port": {"type": "integer", "minimum": 1, "maximum": 65535}, "tls": {"type": "boolean"}, "mode": {"enum": ["fast", "safe"]}}, ["host", "port"])  # fmt: skip # noqa: E501
    yield closed({"start": {"type": "string", "format": "date-time", "maxLength": 30}, "minutes": {"type": "integer", "minimum": 5, "maximum": 480, "multipleOf": 5}})  # fmt: skip # noqa: E501


def compositions() -> Iterator[Schema]:
    """Random ones, the same every time."""
    draw = random.Random(20261121)
    for _ in range(80):
        yield _composed(draw, 3)


def _composed(draw: random.Random, depth: int) -> Schema:
    low, least = draw.randint(-50, 50), draw.randint(0, 3)
    letters = draw.choice(["a-z", "0-9", "A-F0-9", "x"])
    leaves: list[Schema] = [
        {"type": "integer", "minimum": low, "maximum": low + draw.randint(0, 1000)},
        {"type": "number", "minimum": low / 4, "maximum": low / 4 + draw.randint(1, 50)},
        {"type": "string", "minLength": least, "maxLength": least + draw.randint(0, 10)},
        {"type": "string", "pattern": f"^[{letters}]{{{least},{least + draw.randint(1, 4)}}}$"},
        {"enum": draw.sample(["one", "two", "three", 1, 2, 3, None, True], draw.randint(1, 5))},
        {"type": draw.choice([["boolean"], ["boolean", "null"]])},
    ]
    if depth == 0 or draw.random() < 0.3:
        return draw.choice(leaves)
    names = draw.sample(["id", "name", "kind", "size", "tags", "é", "a b"], draw.randint(1, 4))
    inner = {name: _composed(draw, depth - 1) for name in names}
    first, *others = inner.values()
    nodes: list[Schema] = [
        closed(inner, [name for name in names if draw.random() < 0.6]),
        {"type": "array", "items": first, "minItems": least, "maxItems": least + draw.randint(0, 2)},
        {"anyOf": [first, *others]},
    ]
    return draw.choice(nodes)


if __name__ == "__main__":
    for name, schema in corpus():
        sys.stdout.write(json.dumps({"name": name, "schema": schema}) + "\n")
