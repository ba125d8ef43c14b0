//! How requests end: stop strings, lengths, failures, clients and readers that leave.

use millrace_scheduler::{SequenceId, StepResult};

use super::*;

#[tokio::test]
async fn dropping_a_generation_ends_its_sequences() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    for read in [0, 1, 5] {
        let mut generation = server.generate(seeded(prompt(read, 30), 2000, &[1, 2]));
        read_tokens(&mut generation, &mut Outcome::default(), read as usize).await;
        drop(generation);
    }
    check_all(&server, mixed_load(4)).await;
    while server.metric("millrace_rows_used") > 0.0 || server.metric("millrace_kv_pages_used") > 0.0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    server.end().await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_given_up() {
    let options = FakeOptions { delay: Duration::from_millis(2), ..options() };
    let server = start_with(FakeGroup::single(&options), "", Duration::from_millis(20));
    let unread = server.generate(request(prompt(1, 20), 2000));
    // While somebody else reads 200 steps, the first reader's patience is long over.
    let read = request(prompt(2, 20), 200);
    let expected = server.expected(&read, 0);
    assert_eq!(collect(server.generate(read), 1).await.ids(0), expected);
    assert_eq!(collect(unread, 1).await.failed, Some(Failed::Incomplete));
    server.end().await;
}

#[tokio::test]
async fn a_reader_that_leaves_too_much_unread_is_given_up_however_patient_one_is() {
    let options = FakeOptions { delay: Duration::from_millis(1), ..options() };
    let server = start_with(FakeGroup::single(&options), "", Duration::from_secs(3600));
    let top = |mut wanted: ValidRequest| {
        let sampling = wanted.sampling.iter().map(|one| Arc::new(Sampling { top_n_tokens: 5, ..(**one).clone() }));
        wanted.sampling = sampling.collect();
        wanted
    };
    let unread = server.generate(top(seeded(prompt(1, 20), 700, &[1, 2, 3, 4])));
    // Its 24 tokens and top tokens of a step are too many after 342 steps, and that is seen within a fifth of a second.
    collect(server.generate(request(prompt(2, 20), 650)), 1).await;
    assert_eq!(collect(unread, 4).await.failed, Some(Failed::Incomplete));
    server.end().await;
}

#[tokio::test]
async fn a_failed_sequence_fails_its_request_alone() {
    let server = start(&options(), "");
    server.workers.rank(0).inject(6, Fault::FailSequence(1));
    let requests = (0..4).map(|number| request(prompt(number, 20), 30));
    let running: Vec<_> = requests
        .map(|request| (server.expected(&request, 0), tokio::spawn(collect(server.generate(request), 1))))
        .collect();
    let mut num_failed = 0;
    for (expected, task) in running {
        let outcome = task.await.unwrap();
        match &outcome.failed {
            Some(failed) => {
                num_failed += 1;
                assert!(matches!(failed, Failed::Generation(_)));
                assert_eq!(outcome.ids(0), expected[..outcome.ids(0).len()]);
            }
            None => assert_eq!(outcome.ids(0), expected),
        }
    }
    assert_eq!(num_failed, 1);
    assert_eq!(server.workers.rank(0).streams(), 1);
    server.end().await;
}

#[tokio::test]
async fn a_failed_sequence_takes_its_siblings_along() {
    let server = start(&options(), "");
    server.workers.rank(0).inject(8, Fault::FailSequence(0));
    let outcome = collect(server.generate(seeded(prompt(1, 20), 1000, &[1, 2])), 2).await;
    assert!(matches!(outcome.failed, Some(Failed::Generation(_))));
    check_all(&server, mixed_load(3)).await;
    assert!(server.workers.rank(0).steps() < 200, "the sibling ended too");
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_gets_nothing_more_though_a_sibling_ends_in_that_step() {
    for (step, index) in (1..8).flat_map(|step| [(step, 0), (step, 1)]) {
        let server = start(&options(), "");
        server.workers.rank(0).inject(step, Fault::FailSequence(index));
        let mut generation = server.generate(seeded(prompt(1, 20), 5, &[1, 2]));
        let mut outcome = Outcome::default();
        while outcome.failed.is_none() && outcome.finished.len() < 2 {
            outcome.note_all(generation.next().await);
        }
        let more = tokio::time::timeout(Duration::from_secs(5), generation.next()).await;
        assert!(more.is_err(), "{step} {index}: {more:?} behind the end");
        drop(generation);
        server.end().await;
    }
}

#[test]
fn news_of_who_is_not_there_are_none() {
    let (metrics, recorder) = Metrics::new();
    metrics::with_local_recorder(&recorder, || {
        let (unknown, now) = (SequenceId(7), Instant::now());
        let mut requests = Requests::new(Arc::new(Detokenizer::new(&byte_level())), Arc::from([EOS]));
        requests.started(unknown, now);
        requests.prefilled(unknown, 0, &[]);
        requests.finished(unknown, FinishReason::Length, now);
        assert!(requests.failed(unknown, "test".to_owned()).is_empty());
        assert!(requests.cancel(&Mailbox::new()).is_empty() && requests.is_empty());
        let config = Config::read(["millrace-router", "--model-id", "m"], |_| None).unwrap();
        Meters::new(Backlog::new(&config), 16).answered(&StepResult::default(), now);
    });
    let text = metrics.render();
    assert!(text.contains("tgi_batch_inference_success{method=\"decode\"} 0"), "{text}");
}

#[tokio::test]
async fn a_stop_string_ends_the_sequence() {
    let server = start(&options(), "");
    let mut request = request(prompt(1, 20), 200);
    let expected = server.expected(&request, 0);
    let text = text_of(&expected);
    request.stopping.stop = vec![text[10..14].to_owned()];
    let end = text.find(&text[10..14]).unwrap() + 4;
    let outcome = collect(server.generate(request.clone()), 1).await;
    let finished = &outcome.finished[&0];
    assert_eq!(finished.reason, FinishReason::StopSequence);
    assert_eq!(finished.generated_text, text[..end]);
    assert_eq!(finished.generated_tokens as usize, end);
    let shown: String = outcome.tokens[&0].iter().map(|token| token.delta.as_str()).collect();
    assert_eq!(shown + &finished.delta, text[..end - 4]);
    // Within the tokens that are wanted at least it ends nothing.
    request.sampling = vec![Arc::new(Sampling { min_new_tokens: end as u32, ..Sampling::default() })];
    let later = text[end - 3..].find(&text[10..14]).map_or(200, |start| end + 1 + start);
    assert_eq!(collect(server.generate(request), 1).await.ids(0).len(), later);
    server.end().await;
}

#[tokio::test]
async fn the_reason_is_length_before_end_before_stop() {
    let model = ToyModel { token_ids: LETTERS, at_output: BTreeMap::from([(4, EOS)]), ..ToyModel::default() };
    let server = start(&FakeOptions { model, ..options() }, "");
    let run = |max_new_tokens: u32, ignore_eos: bool, stop: &[&str]| {
        let mut request = request(prompt(1, 9), max_new_tokens);
        request.stopping.ignore_eos = ignore_eos;
        request.stopping.stop = stop.iter().map(ToString::to_string).collect();
        collect(server.generate(request), 1)
    };
    let ended = run(20, false, &[]).await;
    assert_eq!((ended.finished[&0].reason, ended.ids(0).len()), (FinishReason::EosToken, 5));
    assert!(ended.tokens[&0][4].special && ended.tokens[&0][4].delta.is_empty());
    assert_eq!((ended.tokens[&0][4].text.as_str(), ended.finished[&0].generated_text.len()), ("<s>", 4));
    assert_eq!(run(5, false, &[]).await.finished[&0].reason, FinishReason::Length);
    assert_eq!(run(5, false, &["<s>"]).await.finished[&0].reason, FinishReason::Length);
    assert_eq!(run(6, false, &["<s>"]).await.finished[&0].reason, FinishReason::EosToken);
    assert_eq!(run(6, true, &["<s>"]).await.finished[&0].reason, FinishReason::StopSequence);
    let ignored = run(20, true, &[]).await;
    assert_eq!((ignored.finished[&0].reason, ignored.ids(0).len()), (FinishReason::Length, 20));
    server.end().await;
}
