use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Ids of the special tokens of these tests, and the id of the byte 0.
const CALL: u32 = 3;
const SIZE: u32 = 10;

pub(super) fn vocabulary() -> Vocabulary {
    Vocabulary::new([(CALL, "<|call|>"), (4, "[CALLS]")], SIZE)
}

pub(super) fn compile(grammar: &Grammar) -> Result<String, String> {
    let compiled = Compiler::new(&vocabulary()).compile(grammar);
    compiled.map(|text| text.to_string()).map_err(|error| error.to_string())
}

/// What of an output is a special token, and what is text.
#[derive(Clone, Copy)]
enum Out<'a> {
    Text(&'a str),
    Token(u32),
}

/// Whether the grammar lets a model write this and end there.
fn allows_all(grammar: &Grammar, output: &[Out<'_>]) -> bool {
    let text = compile(grammar).unwrap_or_else(|error| panic!("{error}"));
    let mut factory = ParserFactory::new(vocabulary().tokens(), InferenceCapabilities::default(), &[]).unwrap();
    let parser = factory.quiet().create_parser(TopLevelGrammar::from_lark_or_grammar_list(&text).unwrap());
    let mut matcher = Matcher::new(parser);
    let ids: Vec<u32> = output
        .iter()
        .flat_map(|out| match *out {
            Out::Text(text) => text.bytes().map(|byte| SIZE + u32::from(byte)).collect(),
            Out::Token(id) => vec![id],
        })
        .collect();
    matcher.try_consume_tokens(&ids).is_ok_and(|taken| taken == ids.len()) && matcher.is_accepting().unwrap()
}

pub(super) fn allows(grammar: &Grammar, text: &str) -> bool {
    allows_all(grammar, &[Out::Text(text)])
}

fn schema(schema: Value) -> Grammar {
    Grammar::Json(schema)
}

#[test]
fn json_holds_to_its_schema_with_little_whitespace() {
    let grammar = schema(json!({
        "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"], "additionalProperties": false
    }));
    for good in ["{\"a\":1}", "{ \"a\": 1}", "{\n    \"a\" : -12\n}"] {
        assert!(allows(&grammar, good), "{good}");
    }
    let long = format!("{{{}\"a\":1}}", " ".repeat(60));
    for bad in ["", "{}", "{\"a\":1.5}", "{\"a\":1,\"b\":2}", " {\"a\":1}", "{\"a\":1", "{\n\n\"a\":1}", &long] {
        assert!(!allows(&grammar, bad), "{bad}");
    }
}

#[test]
fn a_key_cannot_be_spelled_by_escapes() {
    let grammar = schema(json!({ "type": "object", "properties": { "a": { "type": "integer" } },
                               "additionalProperties": true }));
    assert!(allows(&grammar, "{\"b\":\"text\"}"));
    assert!(!allows(&grammar, "{\"a\":\"text\"}"));
    assert!(!allows(&grammar, "{\"\\u0061\":\"text\"}"));
}

#[test]
fn regexes_match_the_whole_text_and_mean_ascii() {
    let grammar = Grammar::Regex("[a-c]+\\d/?".to_owned());
    assert!(allows(&grammar, "abc1") && allows(&grammar, "a0/"));
    for bad in ["abc", "xabc1", "abc1x", "", "a\u{663}"] {
        assert!(!allows(&grammar, bad), "{bad}");
    }
    assert!(allows(&Grammar::Regex("^ab$".to_owned()), "ab"));
}

#[test]
fn a_bad_regex_is_refused_with_its_column() {
    for (pattern, says) in [
        ("ab(?=c)", "column 3"),
        ("a(b", "column 2"),
        ("\\d\\bx", "word boundaries are not supported (column 3)"),
        ("(a)\\1", "column 4"),
        ("a{3,100000}", "column 2"),
        ("x[z-a]", "column 3"),
        ("\\p{Nothing}", "column 1"),
    ] {
        let error = compile(&Grammar::Regex(pattern.to_owned())).unwrap_err();
        assert!(error.contains(says), "{pattern}: {error}");
    }
}

#[test]
fn choices_are_exactly_these_texts() {
    let texts = ["yes", "no", "\"quoted\"\n", "a\u{7f}b", "é😀", "yes, sir"];
    let grammar = Grammar::Choice(texts.iter().map(|text| (*text).to_owned()).collect());
    for text in texts {
        assert!(allows(&grammar, text), "{text:?}");
    }
    assert!(!allows(&grammar, "ye") && !allows(&grammar, "yesno") && !allows(&grammar, ""));
    assert!(compile(&Grammar::Choice(Vec::new())).is_err());
}

#[test]
fn what_allows_nothing_is_told_with_its_place() {
    let never = json!({ "type": "integer", "minimum": 3, "maximum": 2 });
    let object = |fields: Value| {
        let mut object = json!({ "type": "object" });
        object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        object
    };
    for (schema, place) in [
        (never.clone(), ""),
        (object(json!({ "properties": { "a/b": never }, "required": ["a/b"] })), "/properties/a~1b"),
        (json!({ "type": "array", "items": never, "minItems": 2 }), "/items"),
        (json!({ "type": "array", "prefixItems": [{ "type": "null" }, never], "minItems": 2 }), "/prefixItems/1"),
        (
            json!({ "type": "array", "minItems": 1, "items": { "$ref": "#/$defs/n" }, "$defs": { "n": never } }),
            "/$defs/n",
        ),
        (object(json!({ "properties": { "x": { "anyOf": [never, never] } }, "required": ["x"] })), "/properties/x"),
    ] {
        let error = compile(&Grammar::Json(schema.clone())).unwrap_err();
        assert!(error.contains("allows no "), "{schema}: {error}");
        let told = error.strip_prefix("at `").map_or("", |rest| rest.split('`').next().unwrap());
        assert_eq!(told, place, "{schema}: {error}");
    }
    // What may be left out does no harm.
    let optional = object(json!({ "properties": { "a": never, "b": { "type": "null" } }, "required": ["b"] }));
    assert!(allows(&Grammar::Json(optional), "{\"b\":null}"));
}

#[test]
fn what_llguidance_refuses_is_told_with_its_place_and_in_words_to_act_on() {
    let loose =
        json!({ "oneOf": [{ "type": "object", "properties": { "a": {} } }, { "type": "object", "required": ["b"] }] });
    let short = json!({ "type": "string", "minLength": 5, "maxLength": 2 });
    let within = |inner: &Value| json!({ "type": "object", "properties": { "x": inner }, "required": ["x"] });
    let error = |schema: Value| compile(&Grammar::Json(schema)).unwrap_err();
    let overlap = error(within(&loose));
    assert!(overlap.contains("at `/properties/x/oneOf`") && overlap.contains("`const`"), "{overlap}");
    let two = error(json!({ "anyOf": [loose, within(&loose)] }));
    assert!(two.contains("at `/anyOf/0/oneOf` or `/anyOf/1/properties/x/oneOf`"), "{two}");
    let none = error(within(&within(&short)));
    assert!(none.contains("no value") && none.contains("minLength (5)"), "{none}");
    assert!(none.contains("at `/properties/x/properties/x`: "), "{none}");
    assert!(!none.contains("nsatisfiable schema"), "{none}");
    let hard = json!({ "type": "string", "format": "email", "minLength": 9000, "pattern": "^(a|b)*a(a|b){14}$" });
    let hard = error(hard);
    assert!(hard.contains("pattern"), "{hard}");
    let place = |name: &str| name.to_owned();
    let shape = Shape::OneOf(vec![
        Shape::Json { schema: json!({ "type": "integer" }), place: place("first") },
        Shape::Sequence(vec![Shape::Json { schema: within(&loose), place: place("second") }]),
    ]);
    for _ in 0..2 {
        let error = Compiler::new(&vocabulary()).compile(&Grammar::Structural(shape.clone())).unwrap_err();
        assert_eq!((error.field.as_deref(), error.place.as_str()), (Some("second"), "/properties/x/oneOf"));
    }
}

#[test]
fn attributes_without_effect_are_refused_by_name() {
    for (rules, name, place) in [
        ("start: \"a\"\nb[temperature=0.5]: /b/", "`temperature`", "line 2, column 2"),
        ("start[lazy, capture=\"x\"] : /a/", "`capture`", "line 1, column 6"),
        ("start[capture]: /a/", "`capture`", "line 1"),
        ("start[stop=\"a\", stop_capture=\"b\"]: /.*/", "`stop_capture`", "line 1"),
        ("start: \"a\" & \"b\"", "`&`", "line 1, column 12"),
    ] {
        let error = compile(&Grammar::Lark(rules.to_owned())).unwrap_err();
        assert!(error.contains(name) && error.contains(place), "{rules}: {error}");
    }
    for rules in [
        "start[max_tokens=3]: /a+/",
        "start[lazy]: /a+b/",
        "start: capture // [temperature]:\ncapture: \"[temperature]:\" | /[capture]:/ | \"&\"",
        "start: \"a\" [temperature]\ntemperature: \"1\"",
    ] {
        assert!(compile(&Grammar::Lark(rules.to_owned())).is_ok(), "{rules}");
    }
}

#[test]
fn rules_are_larks_and_errors_have_their_line() {
    let grammar = Grammar::Lark("start: \"a\" b+\nb: \"b\" | %json {\"type\": \"boolean\"}\n".to_owned());
    assert!(allows(&grammar, "abbtrue"));
    assert!(!allows(&grammar, "a"));
    let error = compile(&Grammar::Lark("start: \"a\"\nb: nowhere c (\n".to_owned())).unwrap_err();
    assert!(error.contains("2("), "{error}");
    assert!(compile(&Grammar::Lark("{\"grammars\": []}".to_owned())).unwrap_err().contains("Lark"));
}

fn call(trigger: Trigger) -> Shape {
    let schema = json!({ "type": "object", "properties": { "x": { "type": "integer" } }, "required": ["x"] });
    let json = Shape::Json { schema, place: "tools[0].function.parameters".to_owned() };
    let then = Shape::Sequence(vec![json, Shape::Text("</call>".to_owned())]);
    Shape::Tagged { parts: vec![Tag { trigger, then }], required: false, several: true }
}

#[test]
fn a_trigger_in_free_text_must_be_followed_by_its_part() {
    for (trigger, out) in
        [(Trigger::Text("<call>".to_owned()), Out::Text("<call>")), (Trigger::Token(CALL), Out::Token(CALL))]
    {
        let grammar = Grammar::Structural(call(trigger));
        let text = Out::Text;
        let whole =
            [text("Let me <see>.\n"), out, text("{\"x\": 1}</call>"), text(" And "), out, text("{\"x\":2}</call>")];
        assert!(allows_all(&grammar, &whole));
        assert!(allows_all(&grammar, &[text("no call at all <cal")]));
        assert!(allows_all(&grammar, &[text("")]));
        assert!(!allows_all(&grammar, &[text("so: "), out]));
        assert!(!allows_all(&grammar, &[text("so: "), out, text("{\"x\": \"one\"}</call>")]));
        assert!(!allows_all(&grammar, &[out, text("{\"x\": 1}</call>"), out, text("anything")]));
    }
}

#[test]
fn parts_can_be_required_and_kept_to_one() {
    let tags = |required, several| {
        let part = |name: &str| Tag { trigger: Trigger::Text("<".to_owned()), then: Shape::Text(format!("{name}>")) };
        Grammar::Structural(Shape::Tagged { parts: vec![part("a"), part("b")], required, several })
    };
    for (required, several) in [(false, false), (false, true), (true, false), (true, true)] {
        let grammar = tags(required, several);
        assert_eq!(allows(&grammar, "text"), !required);
        assert!(allows(&grammar, "text <b>") && allows(&grammar, "<a>"));
        assert_eq!(allows(&grammar, "<a> and <b>"), several);
        assert!(!allows(&grammar, "<c>") && !allows(&grammar, "<a><c>"));
    }
}

#[test]
fn shapes_combine() {
    let word = || Shape::Regex("[a-z]+".to_owned());
    let more = Shape::Sequence(vec![Shape::Text(", ".to_owned()), word()]);
    let list = Shape::Sequence(vec![
        Shape::Token(4),
        Shape::Text("[".to_owned()),
        Shape::OneOf(vec![word(), Shape::Lark("start: \"7\"".to_owned())]),
        Shape::Repeat { shape: Box::new(more), least: 0, most: Some(2) },
        Shape::Text("]".to_owned()),
    ]);
    let grammar = Grammar::Structural(list);
    let after = |text| allows_all(&grammar, &[Out::Token(4), Out::Text(text)]);
    assert!(after("[a]") && after("[7, a, b]"));
    assert!(!after("[]") && !after("[a, b, c, d]") && !after("[a,b]"));
    assert!(!allows(&grammar, "[a]"));
}

#[test]
fn a_refusal_names_the_part_as_clients_call_it() {
    let json = Shape::Json { schema: json!(7), place: "tools[0].function.parameters".to_owned() };
    let error = Compiler::new(&vocabulary()).compile(&Grammar::Structural(json)).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("tools[0].function.parameters"));
}

#[test]
fn equal_grammars_share_one_text() {
    let compiler = Compiler::new(&vocabulary());
    let grammar = schema(json!({ "type": "boolean" }));
    let first = compiler.compile(&grammar).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &compiler.compile(&grammar).unwrap()));
}

#[test]
fn the_originals_forms_are_read() {
    let read = |value: Value| serde_json::from_value::<Grammar>(value).map_err(|error| error.to_string());
    let any = json!({ "type": "object" });
    for (sent, grammar) in [
        (json!({ "type": "json", "value": any }), schema(any.clone())),
        (json!({ "type": "json", "value": "{\"type\":\"object\"}" }), schema(any.clone())),
        (json!({ "type": "json_object", "value": any }), schema(any.clone())),
        (json!({ "type": "json_object" }), schema(any.clone())),
        (
            json!({ "type": "json_schema", "value": { "name": "n", "schema": any, "strict": true } }),
            schema(any.clone()),
        ),
        (json!({ "type": "regex", "value": "a+" }), Grammar::Regex("a+".to_owned())),
        (json!({ "type": "lark", "value": "start: \"a\"" }), Grammar::Lark("start: \"a\"".to_owned())),
        (json!({ "type": "choice", "value": ["a"] }), Grammar::Choice(vec!["a".to_owned()])),
    ] {
        assert_eq!(read(sent.clone()), Ok(grammar), "{sent}");
    }
    for (sent, says) in [
        (json!({}), "`type` must be"),
        (json!({ "type": "xml", "value": "a" }), "`type` must be"),
        (json!({ "type": "regex", "value": {} }), "`value` must be"),
        (json!({ "type": "json", "value": "{" }), "`value` must be a JSON schema, but is no JSON"),
        (json!({ "type": "json_schema", "value": { "name": "n" } }), "`value.schema` is missing"),
        (json!({ "type": "choice", "value": ["a", 1] }), "`value` must be"),
    ] {
        let error = read(sent.clone()).unwrap_err();
        assert!(error.contains(says), "{sent}: {error}");
    }
}

#[test]
fn openais_forms_are_read() {
    let any = json!({ "type": "object" });
    for (sent, grammar) in [
        (json!({ "type": "text" }), None),
        (json!({ "type": "json_object" }), Some(schema(any.clone()))),
        (json!({ "type": "json_object", "schema": any }), Some(schema(any.clone()))),
        (json!({ "type": "json_schema", "json_schema": { "name": "n", "schema": any } }), Some(schema(any.clone()))),
        (json!({ "type": "json", "value": any }), Some(schema(any.clone()))),
        (json!({ "type": "json_schema", "value": { "schema": any } }), Some(schema(any.clone()))),
        (json!({ "type": "regex", "value": "a" }), Some(Grammar::Regex("a".to_owned()))),
    ] {
        assert_eq!(response_format(&sent), Ok(grammar), "{sent}");
    }
    for (sent, place) in [
        (json!("json"), ""),
        (json!({}), "type"),
        (json!({ "type": "json_schema" }), "json_schema"),
        (json!({ "type": "json_schema", "json_schema": {} }), "json_schema.schema"),
    ] {
        assert_eq!(response_format(&sent).unwrap_err().place, place, "{sent}");
    }
}

/// Text that is nearly a regex or nearly rules.
fn pieces() -> impl Strategy<Value = String> {
    let pieces = vec![
        "a",
        "b",
        "[a-z]",
        "[^",
        "]",
        "(",
        ")",
        "(?:",
        "|",
        "*",
        "+",
        "?",
        "{2,3}",
        "{",
        "\\d",
        "\\",
        "^",
        "$",
        ".",
        "é",
        "/",
        "\"",
        "start: ",
        "start",
        ": ",
        "\n",
        "A: ",
        "A",
        "%json {}",
        "%ignore /x/",
        "<",
        ">",
        "<[3]>",
        "<|call|>",
        "@",
        "-> ",
        "#",
        "//",
        "\u{0}",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever is sent is compiled or refused with words; what a choice allows is its texts.
    #[test]
    fn any_text_is_compiled_or_refused(text in pieces()) {
        for grammar in [Grammar::Regex(text.clone()), Grammar::Lark(text.clone()), Grammar::Lark(format!("start: {text}"))] {
            if let Err(error) = compile(&grammar) {
                prop_assert!(!error.is_empty() && !error.contains("panic"), "{:?}: {}", grammar, error);
            }
        }
        let (longer, other) = (format!("{text}!"), format!("{text}?"));
        let choice = Grammar::Choice(vec![text.clone(), longer.clone()]);
        prop_assert!(allows(&choice, &text) && allows(&choice, &longer) && !allows(&choice, &other));
    }
}
