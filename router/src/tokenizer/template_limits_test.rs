//! What a template costs when a client writes what it goes through.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::json;

use super::template::{ChatTemplate, Scene};

/// A template over some messages and variables; its answer or its complaint.
fn render(source: &str, num_messages: usize, variables: &serde_json::Value) -> Result<String, String> {
    let messages = (0..num_messages).map(|at| json!({ "role": "user", "content": format!("{at}") })).collect();
    let variables = variables.as_object().unwrap().clone().into_iter().collect();
    let scene = Scene { messages, variables, opens: true, ..Scene::default() };
    let template = ChatTemplate::compile(source, &BTreeMap::new()).map_err(|error| error.to_string())?;
    template.render(&scene).map_err(|error| format!("{error:#}"))
}

#[test]
fn lists_within_lists_run_out_of_fuel_and_long_conversations_do_not() {
    let nested = "{% for a in messages %}{% for b in messages %}{% set c = b.content %}{% endfor %}{% endfor %}";
    let error = render(nested, 40_000, &json!({})).unwrap_err();
    assert!(error.contains("fuel"), "{error}");
    let honest = "{% for m in messages %}{% if m.role == 'user' and not loop.last %}<{{ m.role }}>{{ m.content | trim }}\
                  {% elif m.tools is defined %}{{ m.tools | tojson }}{% else %}[{{ m.content }}]{% endif %}{% endfor %}";
    assert!(render(honest, 40_000, &json!({})).unwrap().ends_with("<user>39998[39999]"));
}

#[test]
fn a_prompt_that_repeats_what_a_client_wrote_has_an_end() {
    let repeats = "{% for m in messages %}{{ text }}{% endfor %}";
    let error = render(repeats, 1000, &json!({ "text": "x".repeat(100_000) })).unwrap_err();
    assert!(error.contains("longer than 67108864 bytes"), "{error}");
    assert_eq!(render(repeats, 10, &json!({ "text": "x".repeat(100_000) })).unwrap().len(), 1_000_000);
}

#[test]
fn numbers_that_a_client_chooses_make_no_text_out_of_nothing() {
    for source in [
        "{{ [1] | tojson(indent=n) }}",
        "{{ 'x' * n }}",
        "{{ ([1] * n) | length }}",
        "{{ range(n) | list | length }}",
        "{% for i in range(n) %}{{ i }}{% endfor %}",
        "{{ 'a\\nb' | indent(n) }}",
        "{{ 'a\\nb' | indent(width=n) }}",
        "{{ [1, 2] | slice(n) | list | length }}",
        "{{ [1, 2] | batch(n, 0) | list | length }}",
    ] {
        let answer = render(source, 1, &json!({ "n": 1_u64 << 40 }));
        assert!(answer.is_err(), "{source}");
        let answer = render(source, 1, &json!({ "n": 3 }));
        assert!(answer.is_ok(), "{source}: {answer:?}");
    }
}

#[test]
fn a_template_reaches_nothing_but_what_it_is_told() {
    for source in [
        "{% include 'file' %}",
        "{% import 'os' as os %}",
        "{% extends '/etc/passwd' %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__ }}",
        "{{ open('/etc/passwd').read() }}",
    ] {
        let answer = render(source, 1, &json!({}));
        assert!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(String::is_empty), "{source}: {answer:?}");
    }
}

#[test]
fn what_a_client_writes_is_never_a_template() {
    let mut text = String::new();
    write!(text, "{{{{ 7 * 7 }}}}{{% for i in range(9) %}}x{{% endfor %}}{{# gone #}}").unwrap();
    let source = "{{ messages[0].content }}{{ text }}";
    let scene = Scene {
        messages: vec![json!({ "role": "user", "content": text })],
        variables: [("text".to_owned(), json!(text))].into(),
        ..Scene::default()
    };
    let template = ChatTemplate::compile(source, &BTreeMap::new()).unwrap();
    assert_eq!(template.render(&scene).unwrap(), text.repeat(2));
}
