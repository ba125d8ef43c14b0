//! Workers that die or talk nonsense: time is lost, no request and no token.

use super::*;

#[tokio::test]
async fn workers_that_die_cost_no_token() {
    for step in [1, 2, 3, 7, 12] {
        let server = start(&options(), "");
        server.workers.rank(0).inject(step, Fault::Die);
        check_all(&server, mixed_load(16)).await;
        assert_eq!(server.workers.rank(0).streams(), 2);
        assert_eq!(server.health.phase(), Phase::Serving);
        assert!((server.metric("millrace_worker_restarts_total") - 1.0).abs() < f64::EPSILON);
        let lost = ["prefill", "decode"].map(|method| format!("tgi_batch_inference_failure{{method=\"{method}\"}}"));
        assert!(lost.iter().map(|name| server.metric(name)).sum::<f64>() >= 1.0, "the step in which it died");
        server.end().await;
    }
}

#[tokio::test]
async fn one_dead_rank_of_three_costs_no_token() {
    let server = start_with(FakeGroup::new(&options(), 3), "--num-shard 3", READER_PATIENCE);
    server.workers.rank(2).inject(9, Fault::Die);
    check_all(&server, mixed_load(16)).await;
    assert_eq!(server.workers.rank(0).streams(), 2);
    server.end().await;
}

#[tokio::test]
async fn workers_that_talk_nonsense_are_replaced() {
    for nonsense in
        [Malformation::Ragged, Malformation::ExtraToken, Malformation::ForeignToken, Malformation::WrongStep]
    {
        let server = start(&options(), "");
        server.workers.rank(0).inject(5, Fault::Malformed(nonsense));
        check_all(&server, mixed_load(8)).await;
        assert_eq!(server.workers.rank(0).streams(), 2);
        server.end().await;
    }
}

#[tokio::test]
async fn an_answer_that_leaves_out_what_was_asked_is_not_believed() {
    let server = start(&options(), "");
    server.workers.rank(0).inject(1, Fault::Malformed(Malformation::NoPromptLogprobs));
    let asked = ValidRequest { prompt_logprobs: true, ..request(prompt(1, 30), 3) };
    let expected = server.expected(&asked, 0);
    let outcome = collect(server.generate(asked), 1).await;
    assert_eq!((outcome.ids(0), outcome.prefilled[0].prompt_logprobs.len()), (expected, 30));
    assert_eq!((server.workers.rank(0).streams(), server.health.hung()), (2, None));
    server.end().await;
}

#[tokio::test]
async fn requests_wait_while_workers_are_gone() {
    let server = start(&FakeOptions { delay: Duration::from_millis(1), ..options() }, "");
    let (first, second) = (request(prompt(1, 20), 50), request(prompt(2, 20), 5));
    let (first_ids, second_ids) = (server.expected(&first, 0), server.expected(&second, 0));
    let mut generation = server.generate(first);
    let mut outcome = Outcome::default();
    read_tokens(&mut generation, &mut outcome, 3).await;
    server.workers.rank(0).set_reachable(false);
    server.workers.rank(0).die();
    while server.health.phase() != Phase::Recovering {
        tokio::task::yield_now().await;
    }
    let waiting = server.generate(second);
    drop(server.generate(request(prompt(3, 20), 5)));
    server.workers.rank(0).set_reachable(true);
    assert_eq!(collect(waiting, 1).await.ids(0), second_ids);
    read_tokens(&mut generation, &mut outcome, 50).await;
    assert_eq!(outcome.ids(0), first_ids);
    assert_eq!(server.health.phase(), Phase::Serving);
    drop(generation);
    server.end().await;
}
