//! Requests beside each other, on much room and on little.

use super::*;

#[tokio::test]
async fn concurrent_requests_get_their_own_tokens() {
    let server = start(&options(), "");
    check_all(&server, mixed_load(64)).await;
    assert!(server.metric("millrace_steps_total") > 40.0);
    assert!(server.metric("millrace_tenant_tokens_total{tenant=\"default\"}") > 40.0);
    assert!(server.metric("tgi_batch_inference_success{method=\"decode\"}") > 0.0);
    for gauge in ["tgi_queue_size", "tgi_batch_current_size", "millrace_rows_used", "millrace_kv_pages_used"] {
        // The engine shows its gauges once more after the last event; let it.
        while server.metric(gauge) > 0.0 {
            tokio::task::yield_now().await;
        }
    }
    server.end().await;
}

#[tokio::test]
async fn a_pool_too_small_for_the_load_changes_no_token() {
    let server = start(&FakeOptions { num_pages: 12, page_size: 8, ..options() }, "--max-batch-prefill-tokens 16");
    check_all(&server, mixed_load(24).into_iter().filter(|request| request.prompt.len() < 60).collect()).await;
    assert!(server.metric("millrace_preemptions_total") > 0.0);
    assert!(server.metric("tgi_batch_concat{reason=\"chunking\"}") > 0.0, "preempted sequences joined others");
    server.end().await;
}

#[tokio::test]
async fn why_a_request_joined_others_is_counted() {
    let slow = FakeOptions { delay: Duration::from_millis(1), ..options() };
    for (flags, counted) in [
        ("--waiting-served-ratio 1 --max-waiting-tokens 1000000", [1, 0, 0]),
        ("--waiting-served-ratio 9 --max-waiting-tokens 3", [0, 1, 0]),
    ] {
        let server = start(&slow, flags);
        let mut first = server.generate(request(prompt(1, 20), 2000));
        read_tokens(&mut first, &mut Outcome::default(), 1).await;
        collect(server.generate(request(prompt(2, 20), 3)), 1).await;
        let joined = ["backpressure", "wait_exceeded", "chunking"]
            .map(|reason| server.metric(&format!("tgi_batch_concat{{reason=\"{reason}\"}}")) as u32);
        assert_eq!(joined, counted, "{flags}");
        drop(first);
        server.end().await;
    }
}

#[tokio::test]
async fn best_of_computes_its_prompt_once() {
    let server = start(&options(), "");
    let request = seeded(prompt(1, 40), 12, &[5, 6, 7]);
    let generation = server.generate(request.clone());
    let outcome = collect(generation, 3).await;
    for sequence in 0..3 {
        assert_eq!(outcome.ids(sequence), server.expected(&request, sequence));
        assert_eq!(outcome.finished[&sequence].seed, Some(5 + sequence as u64));
    }
    assert_eq!(outcome.prefilled.len(), 1);
    assert!(server.metric("millrace_prompt_tokens_computed_total") < 40.0 + 3.0);
    server.end().await;
}

#[tokio::test]
async fn a_prefix_that_is_known_is_not_computed_again() {
    let server = start(&options(), "");
    let first = collect(server.generate(request(prompt(3, 64), 4)), 1).await;
    assert_eq!(first.prefilled[0].cached_tokens, 0);
    let second = collect(server.generate(request(prompt(3, 64), 4)), 1).await;
    assert_eq!(second.prefilled[0].cached_tokens, 48);
    assert_eq!(first.ids(0), second.ids(0));
    server.end().await;
}

#[tokio::test]
async fn workers_without_pages_serve_as_many_as_they_have_rows() {
    let options = FakeOptions { page_size: 0, num_pages: 0, max_rows: 3, ..options() };
    let server = start(&options, "--max-batch-prefill-tokens 16");
    server.workers.rank(0).inject(7, Fault::Die);
    check_all(&server, mixed_load(16)).await;
    check_all(&server, vec![seeded(prompt(1, 40), 12, &[5, 6, 7])]).await;
    assert_eq!(server.workers.rank(0).streams(), 2);
    for unknown in ["millrace_kv_pages_used", "millrace_kv_pages_free", "millrace_kv_pages_cached"] {
        assert!(server.metric(unknown).abs() < f64::EPSILON, "{unknown}");
    }
    assert!(server.metric("millrace_prompt_tokens_cached_total").abs() < f64::EPSILON);
    server.end().await;
}

#[tokio::test]
async fn a_budget_of_tokens_holds_without_pages() {
    let options = FakeOptions { page_size: 0, delay: Duration::from_millis(1), ..options() };
    let server = start(&options, "--max-batch-total-tokens 100 --max-batch-prefill-tokens 100");
    let mut first = server.generate(request(prompt(1, 20), 80));
    let mut outcome = Outcome::default();
    read_tokens(&mut first, &mut outcome, 1).await;
    let second = server.generate(request(prompt(2, 20), 3));
    read_tokens(&mut first, &mut outcome, 6).await;
    assert!((server.metric("tgi_batch_current_size") - 1.0).abs() < f64::EPSILON, "100 tokens are promised");
    drop(first);
    assert_eq!(collect(second, 1).await.ids(0).len(), 3);
    server.end().await;
}

#[tokio::test]
async fn prompt_logprobs_and_top_tokens_are_passed_on() {
    let server = start(&options(), "--max-batch-prefill-tokens 16");
    let mut request = request(prompt(1, 40), 3);
    request.prompt_logprobs = true;
    request.sampling = vec![Arc::new(Sampling { top_n_tokens: 2, prompt_top_tokens: 2, ..Sampling::default() })];
    let expected = server.workers.rank(0).expected_samples(&request.prompt, &request.sampling[0], 3);
    let outcome = collect(server.generate(request.clone()), 1).await;
    let logprobs = &outcome.prefilled[0].prompt_logprobs;
    assert_eq!(logprobs[0], None);
    let known: Vec<f32> = logprobs[1..].iter().map(|logprob| logprob.unwrap()).collect();
    assert_eq!(known, ToyModel::prompt_logprobs(&request.prompt));
    for (at, top) in outcome.prefilled[0].prompt_top_tokens.iter().enumerate() {
        assert_eq!(top.len(), if at == 0 { 0 } else { 2 });
        assert!(top.first().is_none_or(|first| first.id == request.prompt[at] && Some(first.logprob) == logprobs[at]));
    }
    assert_eq!(outcome.prefilled[0].prompt_top_tokens.len(), request.prompt.len());
    for (token, expected) in outcome.tokens[&0].iter().zip(&expected) {
        assert_eq!(token.logprob.to_bits(), expected.logprob.to_bits());
        let texts: Vec<String> = token.top_tokens.iter().map(|top| top.text.clone()).collect();
        let expected: Vec<String> = expected.top_tokens.iter().map(|top| letter(top.token_id).to_string()).collect();
        assert_eq!(texts, expected);
    }
    assert_eq!(outcome.finished[&0].seed, None);
    server.end().await;
}
