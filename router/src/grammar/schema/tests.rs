use proptest::prelude::*;
use serde_json::{Value, json};

use super::prepare;
use crate::grammar::Grammar;
use crate::grammar::tests::{allows, compile};

fn place_of(schema: &Value) -> String {
    prepare(schema).map_err(|error| error.place).expect_err(&schema.to_string())
}

#[test]
fn what_cannot_be_held_to_is_refused_by_name_and_place() {
    let text = json!({ "type": "string" });
    let refused = [
        ("uniqueItems", json!(true)),
        ("propertyNames", text.clone()),
        ("unevaluatedItems", json!(false)),
        ("unevaluatedProperties", json!(false)),
        ("not", text.clone()),
        ("if", text.clone()),
        ("then", text.clone()),
        ("else", text.clone()),
        ("contains", text.clone()),
        ("minContains", json!(1)),
        ("maxContains", json!(1)),
        ("dependencies", json!({})),
        ("dependentRequired", json!({})),
        ("dependentSchemas", json!({})),
        ("$dynamicRef", json!("#a")),
        ("$recursiveRef", json!("#")),
        ("$id", json!("other")),
        ("$anchor", json!("a")),
        ("format", json!("iban")),
        ("format", json!("unknown")),
    ];
    for (name, value) in refused {
        let schema = json!({ "type": "object", "properties": { "a/b": { name: value } } });
        let error = prepare(&schema).unwrap_err();
        assert!(error.place.starts_with("/properties/a~1b"), "{name}: {error}");
        let called = if name == "format" { value_of(&schema) } else { name.to_owned() };
        assert!(error.problem.contains(&called), "{name}: {error}");
    }
}

fn value_of(schema: &Value) -> String {
    schema.pointer("/properties/a~1b/format").and_then(Value::as_str).unwrap().to_owned()
}

#[test]
fn keywords_of_the_wrong_kind_have_their_place() {
    for (schema, place) in [
        (json!({ "type": "objekt" }), "/type"),
        (json!({ "type": [] }), "/type"),
        (json!({ "properties": [] }), "/properties"),
        (json!({ "properties": { "a": 5 } }), "/properties/a"),
        (json!({ "required": "a" }), "/required"),
        (json!({ "items": 5 }), "/items"),
        (json!({ "items": [{}, { "minimum": "1" }] }), "/items/1/minimum"),
        (json!({ "anyOf": [] }), "/anyOf"),
        (json!({ "allOf": [{}, { "minLength": -1 }] }), "/allOf/1/minLength"),
        (json!({ "minLength": 1.5 }), "/minLength"),
        (json!({ "maxLength": 1_000_000_000 }), "/maxLength"),
        (json!({ "maxItems": 1_000_000_000 }), "/maxItems"),
        (json!({ "enum": [] }), "/enum"),
        (json!({ "enum": ["a", "\u{1}"] }), "/enum/1"),
        (json!({ "const": 9_007_199_254_740_993_i64 }), "/const"),
        (json!({ "type": "integer", "minimum": i64::MAX - 1 }), "/minimum"),
        (json!({ "multipleOf": 0 }), "/multipleOf"),
        (json!({ "multipleOf": 999_983 }), "/multipleOf"),
        (json!({ "allOf": [{ "multipleOf": 9973 }, { "multipleOf": 9967 }] }), "/allOf/1/multipleOf"),
        (json!({ "pattern": "a(?=b)" }), "/pattern"),
        (json!({ "patternProperties": { "[": {} } }), "/patternProperties/["),
        (json!({ "$ref": 5 }), "/$ref"),
        (json!({ "$ref": "https://example.com/schema" }), "/$ref"),
        (json!({ "$ref": "other.json#/a" }), "/$ref"),
        (json!({ "$ref": "#/$defs/none" }), "/$ref"),
        (json!({ "$ref": "#/$defs/a", "$defs": { "a": { "not": {} } } }), "/$defs/a/not"),
        (json!({ "type": "object", "minProperties": 2 }), "/minProperties"),
    ] {
        assert_eq!(place_of(&schema), place, "{schema}");
    }
}

#[test]
fn what_only_describes_or_says_nothing_is_left_out() {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#", "$id": "https://example.com/top", "title": "T",
        "type": "object", "description": "d", "x-anything": { "type": 7 }, "deprecated": true, "uniqueItems": false,
        "properties": { "id": { "type": "integer", "format": "int64", "examples": [1] } },
        "additionalProperties": false, "unevaluatedProperties": true, "$defs": { "unused": { "not": {} } }
    });
    let prepared = prepare(&schema).unwrap();
    let keys: Vec<&str> = prepared.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["type", "properties", "additionalProperties", "x-guidance"]);
    assert!(prepared["properties"]["id"].get("format").is_none());
}

#[test]
fn a_client_cannot_loosen_how_a_schema_is_read() {
    let schema = json!({ "type": "array", "x-guidance": { "lenient": true, "whitespace_pattern": " *" } });
    assert!(prepare(&schema).unwrap()["x-guidance"].get("lenient").is_none());
    let rules = "start: %json {\"not\": {}, \"x-guidance\": {\"lenient\": true}}".to_owned();
    assert!(compile(&Grammar::Lark(rules)).unwrap_err().contains("`not` is not supported"));
}

#[test]
fn references_lead_to_where_they_point() {
    let grammar = Grammar::Json(json!({
        "$ref": "#/definitions/no%64e",
        "definitions": {
            "node": {
                "type": "object", "required": ["v"], "additionalProperties": false,
                "properties": { "v": { "$ref": "#/components/a~1b" }, "next": { "$ref": "#/definitions/node" } }
            }
        },
        "components": { "a/b": { "enum": [1, 2] } }
    }));
    assert!(allows(&grammar, "{\"v\":1,\"next\":{\"v\":2,\"next\":{\"v\":1}}}"));
    assert!(!allows(&grammar, "{\"v\":1,\"next\":{\"v\":3}}"));
    let root = Grammar::Json(json!({ "type": "array", "items": { "$ref": "#" } }));
    assert!(allows(&root, "[[],[[]]]") && !allows(&root, "[1]"));
}

#[test]
fn properties_mean_an_object_unless_that_would_widen_a_choice() {
    let bare = json!({ "properties": { "a": { "type": "integer" } }, "required": ["a"] });
    assert!(!allows(&Grammar::Json(bare.clone()), "7"));
    // 7 fits both options as they are written, and so neither alone.
    let choice = json!({ "oneOf": [bare, { "type": "number" }] });
    assert!(compile(&Grammar::Json(choice.clone())).map_or(true, |_| !allows(&Grammar::Json(choice), "7")));
}

#[test]
fn an_object_has_the_properties_it_lists_unless_schemas_are_merged() {
    let both = "{\"a\":1,\"b\":2}";
    let a = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
    let allows = |schema: Value| allows(&Grammar::Json(schema), both);
    let with = |name: &str, value: Value| {
        let mut schema = a.clone();
        schema[name] = value;
        schema
    };
    let b = json!({ "type": "object", "properties": { "b": {} }, "required": ["b"] });
    assert!(!allows(a.clone()));
    assert!(!allows(json!({ "anyOf": [a, b] })));
    assert!(!allows(json!({ "$ref": "#/$defs/a", "$defs": { "a": a } })));
    assert!(allows(with("additionalProperties", json!(true))));
    assert!(allows(with("patternProperties", json!({ "b": {} }))));
    assert!(allows(with("anyOf", json!([b]))));
    assert!(allows(json!({ "allOf": [a, b] })));
    // Of these two, what fits the closed form of one could fit the other as it is written.
    let loose = json!({ "oneOf": [a, { "type": "object", "properties": { "c": {} } }] });
    assert!(compile(&Grammar::Json(loose)).is_err());
}

#[test]
fn numbers_hold_to_their_limits_exactly() {
    let allows = |schema: &Value, text: &str| allows(&Grammar::Json(schema.clone()), text);
    for (schema, good, bad) in [
        (json!({ "type": "integer", "minimum": 3, "maximum": 7 }), &["3", "7"][..], &["2", "8", "30", "-3"][..]),
        (json!({ "type": "integer", "exclusiveMinimum": 3 }), &["4", "999"], &["3", "03"]),
        (json!({ "type": "integer" }), &["0", "-5", "999999999999999999"], &["9999999999999999999", "1.0", "1e3"]),
        (json!({ "type": "number", "minimum": -1.5, "maximum": 0.25 }), &["-1.5", "0.25", "0"], &["0.26", "-1.51"]),
        (json!({ "type": "integer", "multipleOf": 15 }), &["30", "-45", "0"], &["31", "5"]),
        (json!({ "const": 1.5 }), &["1.5"], &["1.4", "2"]),
        (json!({ "enum": [1, "a", null, true] }), &["1", "\"a\"", "null", "true"], &["2", "false", "a"]),
        (
            json!({ "maximum": u64::MAX, "type": "integer", "minimum": i64::MIN }),
            &["99999999999999999"],
            &["9999999999999999999"],
        ),
        (json!({ "type": "integer", "exclusiveMaximum": 1_i64 << 60 }), &["0"], &["1152921504606846976"]),
        (json!({ "type": "number", "maximum": 1e300, "minimum": 0 }), &["12.5", "0"], &["-1"]),
    ] {
        assert!(good.iter().all(|text| allows(&schema, text)), "{schema}: {good:?}");
        assert!(!bad.iter().any(|text| allows(&schema, text)), "{schema}: {bad:?}");
    }
}

#[test]
fn strings_hold_to_lengths_patterns_and_formats() {
    let allows = |schema: &Value, text: &str| allows(&Grammar::Json(schema.clone()), text);
    for (schema, good, bad) in [
        (
            json!({ "type": "string", "minLength": 2, "maxLength": 3 }),
            &["\"ab\"", "\"é😀\\n\""][..],
            &["\"a\"", "\"abcd\""][..],
        ),
        (json!({ "type": "string", "pattern": "b\\d" }), &["\"ab1c\""], &["\"ab\"", "\"b\u{663}\""]),
        (json!({ "type": "string", "pattern": "^\\D\\W$" }), &["\"a!\""], &["\"\u{663}!\"", "\"aé\""]),
        (json!({ "type": "string", "format": "date" }), &["\"2024-02-29\""], &["\"2024-13-01\"", "\"x\""]),
        (json!({ "const": "a\"\\\n/" }), &["\"a\\\"\\\\\\n/\""], &["\"a\""]),
    ] {
        assert!(good.iter().all(|text| allows(&schema, text)), "{schema}: {good:?}");
        assert!(!bad.iter().any(|text| allows(&schema, text)), "{schema}: {bad:?}");
    }
}

#[test]
fn whatever_could_cost_without_bound_is_refused() {
    let chain = |length: usize| {
        let mut definitions: serde_json::Map<String, Value> = (0..length)
            .map(|index| (format!("d{index}"), json!({ "$ref": format!("#/$defs/d{}", index + 1) })))
            .collect();
        definitions.insert(format!("d{length}"), json!({ "type": "null" }));
        json!({ "$ref": "#/$defs/d0", "$defs": definitions })
    };
    let patterns: Vec<Value> = (1..30).map(|count| json!({ "pattern": format!("(.*a){{{count}}}.*") })).collect();
    let choices = json!({ "anyOf": vec![json!({ "type": "object", "properties": { "a": {} } }); 20] });
    let doubled: serde_json::Map<String, Value> = (0..30)
        .map(|index| {
            (format!("d{index}"), json!({ "anyOf": vec![json!({ "$ref": format!("#/$defs/d{}", index + 1) }); 2] }))
        })
        .chain([("d30".to_owned(), json!({ "type": "null" }))])
        .collect();
    for schema in [
        chain(2_000),
        json!({ "type": "string", "allOf": patterns }),
        json!({ "allOf": vec![choices; 6] }),
        json!({ "$ref": "#/$defs/d0", "$defs": doubled }),
        json!({ "oneOf": vec![json!({ "type": "null" }); 101] }),
        json!({ "enum": (0..20_000).collect::<Vec<_>>() }),
        json!({ "anyOf": vec![json!({}); 6_000] }),
        json!({ "properties": (0..500).map(|n| (format!("p{n}"), json!({}))).collect::<serde_json::Map<_, _>>() }),
        json!({ "const": "x".repeat(1 << 20) }),
        json!({ "type": "integer", "multipleOf": 4_000_000_000_u64 }),
    ] {
        let described: String = schema.to_string().chars().take(80).collect();
        assert!(compile(&Grammar::Json(schema)).is_err(), "{described}");
    }
    assert!(compile(&Grammar::Json(chain(50))).is_ok());
}

#[test]
fn a_schema_that_never_ends_or_contradicts_itself_is_refused() {
    for schema in [
        json!({ "$ref": "#" }),
        json!({ "anyOf": [{ "$ref": "#" }] }),
        json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
        json!({ "allOf": [{ "$ref": "#" }] }),
        json!({ "type": "string", "const": 7 }),
        json!({ "type": "integer", "minimum": 5, "maximum": 4 }),
        json!({ "type": "array", "minItems": 2, "maxItems": 1 }),
    ] {
        assert!(compile(&Grammar::Json(schema.clone())).is_err(), "{schema}");
    }
}

#[test]
fn options_that_exclude_each_other_are_told_apart_also_behind_references() {
    let tagged = |tag: Value| json!({ "type": "object", "properties": { "kind": tag, "n": { "type": "integer" } }, "required": ["kind"] });
    let union = |options: [&str; 2]| {
        let definitions = json!({
            "cat": tagged(json!({ "const": "cat" })), "dog": tagged(json!({ "$ref": "#/$defs/name" })),
            "name": { "enum": ["dog", "hound"] }, "any": tagged(json!({ "type": "string" })), "text": { "type": "string" },
            "tree": { "type": "object", "required": ["left"], "additionalProperties": false, "properties": {
                "left": { "oneOf": [{ "$ref": "#/$defs/tree" }, { "$ref": "#/$defs/cat" }] } } }
        });
        let options = options.map(|name| json!({ "$ref": format!("#/$defs/{name}") }));
        Grammar::Json(json!({ "oneOf": options, "$defs": definitions }))
    };
    let pets = union(["cat", "dog"]);
    assert!(allows(&pets, "{\"kind\":\"cat\",\"n\":1}") && allows(&pets, "{\"kind\":\"hound\"}"));
    assert!(!allows(&pets, "{\"kind\":\"cow\"}"));
    assert!(allows(&union(["tree", "text"]), "{\"left\":{\"left\":{\"kind\":\"cat\"}}}"));
    for unclear in [["cat", "any"], ["cat", "cat"]] {
        assert!(compile(&union(unclear)).unwrap_err().contains("exclude each other"), "{unclear:?}");
    }
}

#[test]
fn what_requires_itself_is_refused_and_what_may_end_is_not() {
    let node = |required: &[&str], next: Value| json!({ "type": "object", "properties": { "v": { "type": "null" }, "next": next }, "required": required });
    let list = |least: usize| json!({ "type": "array", "items": { "$ref": "#" }, "minItems": least });
    let own = || json!({ "$ref": "#" });
    let mutual = |least: usize| {
        let a = json!({ "type": "array", "prefixItems": [{ "$ref": "#/$defs/b" }], "minItems": 1 });
        let b = json!({ "type": "array", "items": { "$ref": "#/$defs/a" }, "minItems": least });
        json!({ "$ref": "#/$defs/a", "$defs": { "a": a, "b": b } })
    };
    for endless in [node(&["next"], own()), list(1), mutual(1), json!({ "anyOf": [list(1), list(2)] })] {
        let error = compile(&Grammar::Json(endless.clone())).unwrap_err();
        assert!(error.contains("can never be complete"), "{endless}: {error}");
    }
    let optional = json!({ "anyOf": [{ "type": "null" }, { "$ref": "#" }] });
    for ending in [node(&["v"], own()), node(&["next"], optional), list(0), mutual(0)] {
        assert!(compile(&Grammar::Json(ending.clone())).is_ok(), "{ending}");
    }
}

#[test]
fn a_place_that_is_long_is_shortened() {
    let error = prepare(&json!({ "properties": { "ä".repeat(5_000): { "not": {} } } })).unwrap_err();
    assert!(error.place.len() < 400 && error.place.starts_with("/properties/ä") && error.place.ends_with("ä/not"));
}

/// JSON that looks like schemas and is not.
fn anything() -> impl Strategy<Value = Value> {
    let names = [
        "type",
        "properties",
        "items",
        "anyOf",
        "allOf",
        "oneOf",
        "$ref",
        "$defs",
        "enum",
        "const",
        "pattern",
        "minLength",
        "maximum",
        "multipleOf",
        "required",
        "additionalProperties",
        "format",
        "a",
        "~/",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop::sample::select(vec!["string", "object", "array", "#", "#/$defs/a", "a+", "(", "date"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(names.to_vec()), inner), 0..5).prop_map(
                |fields| Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            ),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any JSON is compiled or refused; nothing panics, and what is refused has words.
    #[test]
    fn any_json_is_compiled_or_refused(schema in anything()) {
        if let Err(error) = compile(&Grammar::Json(schema)) {
            prop_assert!(!error.is_empty() && !error.contains("panic"), "{}", error);
        }
    }
}
