use std::sync::Arc;
use std::time::Instant;

use super::{Ask, Checked, Names, Parameters, Prompt, ValidationError, Validator};
use crate::config::Config;
use crate::health::{Health, Limits};
use crate::tokenizer::{Conversation, fixture};

fn validator(flags: &[&str]) -> Validator {
    let arguments = ["millrace-router", "--model-id", "m"].iter().chain(flags).copied();
    let config = Config::read(arguments, |_| None).unwrap();
    Validator::new(&config, Arc::new(fixture::text_model()))
}

fn ready() -> Health {
    let health = Health::default();
    health.serve(Limits { max_input_tokens: 20, max_total_tokens: 30, vocab_size: fixture::VOCAB_SIZE });
    health
}

fn ask(prompt: Prompt, parameters: Parameters) -> Ask {
    let (request_id, received) = (Arc::from("id"), Instant::now());
    Ask {
        prompt,
        parameters,
        stream: false,
        names: &Names::GENERATE,
        request_id,
        tenant: Arc::default(),
        received,
        deadline: None,
    }
}

async fn check(text: &str, parameters: Parameters) -> Result<Checked, ValidationError> {
    validator(&[]).check(ask(Prompt::Text(text.to_owned()), parameters), &ready()).await
}

#[tokio::test]
async fn truncation_keeps_the_end_of_the_prompt() {
    let with = |truncate| Parameters { truncate: Some(truncate), ..Parameters::default() };
    let prompt = |checked: Checked| checked.request.prompt;
    let whole = prompt(check("abcdef", with(20)).await.unwrap());
    assert_eq!(whole.len(), 7);
    assert_eq!(prompt(check("abcdef", with(3)).await.unwrap()), whole[4..]);
    assert_eq!(prompt(check(&"x".repeat(500), with(20)).await.unwrap()).len(), 20);
}

#[tokio::test]
async fn a_text_that_can_not_fit_is_refused_without_being_tokenized() {
    let error = check(&"x".repeat(100_000), Parameters::default()).await.unwrap_err();
    assert!(error.to_string().contains("`inputs` has at least 7693 tokens"), "{error}");
    // One that might fit is counted, and one that is to be cut has no length of its own.
    let error = check(&"x".repeat(25), Parameters::default()).await.unwrap_err();
    assert!(error.to_string().contains("`inputs` has 26 tokens"), "{error}");
    assert!(check(&"x".repeat(1000), Parameters { truncate: Some(5), ..Parameters::default() }).await.is_ok());
}

#[tokio::test]
async fn sampling_is_on_if_anything_shapes_the_distribution() {
    let cases = [
        (Parameters::default(), false),
        (Parameters { temperature: Some(1.0), ..Parameters::default() }, false),
        (Parameters { seed: Some(7), ..Parameters::default() }, false),
        (Parameters { repetition_penalty: Some(2.0), ..Parameters::default() }, false),
        (Parameters { do_sample: Some(true), ..Parameters::default() }, true),
        (Parameters { temperature: Some(0.5), ..Parameters::default() }, true),
        (Parameters { top_k: Some(1), ..Parameters::default() }, true),
        (Parameters { top_p: Some(0.5), ..Parameters::default() }, true),
        (Parameters { typical_p: Some(0.5), ..Parameters::default() }, true),
    ];
    for (parameters, expected) in cases {
        let described = format!("{parameters:?}");
        let checked = check("a", parameters).await.unwrap();
        assert_eq!(checked.request.sampling[0].do_sample, expected, "{described}");
    }
}

#[tokio::test]
async fn a_seed_is_kept_and_an_absent_one_differs_each_time() {
    let sampled = |seed| Parameters { do_sample: Some(true), seed, ..Parameters::default() };
    let seed_of = |checked: Checked| checked.request.sampling[0].seed;
    assert_eq!(seed_of(check("a", sampled(Some(u64::MAX))).await.unwrap()), u64::MAX);
    let first = seed_of(check("a", sampled(None)).await.unwrap());
    assert_ne!(first, seed_of(check("a", sampled(None)).await.unwrap()));
}

#[tokio::test]
async fn best_of_makes_sequences_that_differ_in_nothing_but_their_seeds() {
    let parameters = Parameters { best_of: Some(2), temperature: Some(0.5), ..Parameters::default() };
    let sampling = check("a", parameters).await.unwrap().request.sampling;
    assert_eq!(sampling.len(), 2);
    assert_ne!(sampling[0].seed, sampling[1].seed);
    let seedless = millrace_scheduler::Sampling { seed: sampling[1].seed, ..(*sampling[0]).clone() };
    assert_eq!(seedless, *sampling[1]);
}

#[tokio::test]
async fn numbers_beyond_a_float_do_not_become_infinite() {
    let parameters: Parameters = serde_json::from_str(r#"{"temperature":1e39,"repetition_penalty":1e39}"#).unwrap();
    let sampling = check("a", parameters).await.unwrap().request.sampling;
    assert!(sampling[0].temperature.is_finite() && sampling[0].repetition_penalty.is_finite());
}

#[tokio::test]
async fn limits_are_those_in_force_and_without_any_nothing_is_checked() {
    let validator = validator(&[]);
    let health = Health::default();
    let request = || ask(Prompt::Text("abc".to_owned()), Parameters::default());
    assert_eq!(validator.check(request(), &health).await.unwrap_err(), ValidationError::NotReady);
    health.serve(Limits { max_input_tokens: 2, max_total_tokens: 10, vocab_size: fixture::VOCAB_SIZE });
    assert!(validator.check(request(), &health).await.is_err());
    health.serve(Limits { max_input_tokens: 9, max_total_tokens: 10, vocab_size: fixture::VOCAB_SIZE });
    assert_eq!(validator.check(request(), &health).await.unwrap().request.stopping.max_new_tokens, 6);
}

#[tokio::test]
async fn a_conversation_is_tokenized_without_added_tokens_and_its_errors_are_the_templates() {
    let said = |role: &str| {
        let messages = vec![serde_json::json!({ "role": role, "content": "a" })];
        Prompt::Chat(Box::new(Conversation { messages, ..Conversation::default() }))
    };
    let checked = validator(&[]).check(ask(said("user"), Parameters::default()), &ready()).await.unwrap();
    assert_eq!(checked.request.prompt, [0, 2, fixture::byte(b'a'), 5, 3]);
    assert_eq!(checked.prompt, "<s><|user|>a<|end|><|assistant|>");
    let error = validator(&[]).check(ask(said("nobody"), Parameters::default()), &ready()).await.unwrap_err();
    assert!(matches!(&error, ValidationError::Template(reason) if reason.contains("nobody")), "{error}");
}

#[tokio::test]
async fn errors_use_the_routes_own_names() {
    let ask = Ask {
        names: &Names::COMPLETIONS,
        ..ask(Prompt::Text("a".to_owned()), Parameters { max_new_tokens: Some(0), ..Parameters::default() })
    };
    let error = validator(&[]).check(ask, &ready()).await.unwrap_err();
    assert!(error.to_string().starts_with("Input validation error: `max_tokens` must"), "{error}");
    assert_eq!(error.culprit(), Some("max_tokens"));
}

#[tokio::test]
async fn a_conversation_that_can_not_fit_is_refused_before_it_is_tokenized() {
    let messages = vec![serde_json::json!({ "role": "user", "content": "a".repeat(100_000) })];
    let prompt = Prompt::Chat(Box::new(Conversation { messages, ..Conversation::default() }));
    let error = validator(&[]).check(ask(prompt, Parameters::default()), &ready()).await.unwrap_err();
    assert!(matches!(error, ValidationError::TooLong { .. }) && error.to_string().contains("at least"), "{error}");
}
