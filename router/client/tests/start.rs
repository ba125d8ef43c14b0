//! Getting ready: who is there, do they agree, what have they room for.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millrace_client::fake::{FakeOptions, FakeWorker, ServedFake};
use millrace_client::{Backoff, PrepareRequest, ShardedClient, StartError, Workers, connect_with_retry};
use support::{EVERYWHERE, Group, Job, REQUEST, Transport, generate, soon};
use tokio::time::Instant;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

const QUICK: Backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(8) };

#[tokio::test]
async fn a_group_describes_itself_and_prepares_what_every_rank_has() {
    for (transport, world_size) in EVERYWHERE {
        let mut group = Group::new(transport, world_size, &FakeOptions::default());
        let connected = group.connect().await.unwrap();
        let description = connected.description();
        assert_eq!((description.world_size, description.rank), (world_size, 0));
        assert_eq!((description.vocab_size, description.page_size, description.max_positions), (1000, 16, 4096));
        assert_eq!(description.capabilities, ["prompt_logprobs"]);
        assert_eq!(connected.instances().len(), world_size as usize);

        let prepared = soon(connected.prepare(REQUEST)).await.unwrap();
        assert_eq!((prepared.num_pages, prepared.max_sequence_tokens), (256, 4096));
        let capped = PrepareRequest { max_pool_tokens: 100, max_sequence_tokens: 96, ..REQUEST };
        let prepared = soon(connected.prepare(capped)).await.unwrap();
        assert_eq!((prepared.num_pages, prepared.max_sequence_tokens), (6, 96));
        let open = PrepareRequest { max_pool_tokens: 100, max_sequence_tokens: 0, ..REQUEST };
        let prepared = soon(connected.prepare(open)).await.unwrap();
        assert_eq!((prepared.num_pages, prepared.max_sequence_tokens), (6, 96));
    }
}

/// Ranks that differ, each at its socket.
fn serve(folder: &Path, options: &[FakeOptions]) -> Vec<ServedFake> {
    let world_size = options.len() as u32;
    let worker = |(rank, options): (usize, &FakeOptions)| {
        let worker = FakeWorker::of_group(options.clone(), rank as u32, world_size);
        worker.serve(&format!("unix:{}-{rank}", folder.join("worker").display())).unwrap()
    };
    options.iter().enumerate().map(worker).collect()
}

#[tokio::test]
async fn the_rank_with_the_fewest_pages_decides() {
    let folder = tempfile::tempdir().unwrap();
    let pages = |num_pages| FakeOptions { num_pages, ..FakeOptions::default() };
    let _served = serve(folder.path(), &[pages(64), pages(50), pages(70)]);
    let connected = soon(ShardedClient::unix(&folder.path().join("worker"), 3).connect()).await.unwrap();
    assert_eq!(soon(connected.prepare(REQUEST)).await.unwrap().num_pages, 50);
}

#[tokio::test]
async fn the_rank_with_the_fewest_rows_decides() {
    let folder = tempfile::tempdir().unwrap();
    let rows = |max_rows| FakeOptions { max_rows, ..FakeOptions::default() };
    let _served = serve(folder.path(), &[rows(0), rows(3), rows(5)]);
    let connected = soon(ShardedClient::unix(&folder.path().join("worker"), 3).connect()).await.unwrap();
    assert_eq!(soon(connected.prepare(REQUEST)).await.unwrap().max_rows, 3);
}

#[tokio::test]
async fn ranks_that_disagree_are_refused_with_the_difference() {
    let folder = tempfile::tempdir().unwrap();
    let pages_of_32 = FakeOptions { page_size: 32, ..FakeOptions::default() };
    let served = serve(folder.path(), &[FakeOptions::default(), pages_of_32]);
    let endpoint = |rank: usize| served[rank].endpoint().to_owned();
    let disagreement = async |endpoints: Vec<String>| {
        let error = soon(ShardedClient::new(endpoints).connect()).await.unwrap_err();
        assert!(error.is_permanent(), "{error}");
        error.to_string()
    };
    assert_eq!(
        disagreement(vec![endpoint(0), endpoint(1)]).await,
        "workers disagree about page_size: 16 was expected of rank 1, which says 32"
    );
    assert_eq!(
        disagreement(vec![endpoint(1), endpoint(0)]).await,
        "workers disagree about rank: 0 was expected of rank 0, which says 1"
    );
    assert_eq!(
        disagreement(vec![endpoint(0)]).await,
        "workers disagree about world_size: 1 was expected of rank 0, which says 2"
    );
}

#[tokio::test]
async fn a_refused_prepare_is_permanent_and_says_why() {
    for (transport, world_size) in EVERYWHERE {
        let mut group = Group::new(transport, world_size, &FakeOptions::default());
        let rank = world_size as usize - 1;
        let connected = group.connect().await.unwrap();
        group.workers[rank].refuse_prepare(Some("the pool needs 3 GiB, 2 GiB are free"));
        let error = soon(connected.prepare(REQUEST)).await.unwrap_err();
        let message = "the pool needs 3 GiB, 2 GiB are free".to_owned();
        assert_eq!(error, StartError::Refused { rank, message });
        assert!(error.is_permanent());

        group.workers[rank].refuse_prepare(None);
        soon(connected.prepare(REQUEST)).await.unwrap();
        let impossible = PrepareRequest { max_sequence_tokens: 4097, ..REQUEST };
        let error = soon(connected.prepare(impossible)).await.unwrap_err();
        assert!(error.to_string().contains("max_sequence_tokens must be at most 4096"), "{error}");
    }
}

#[tokio::test]
async fn a_refusal_beside_a_dead_rank_is_a_loss() {
    for _ in 0..20 {
        let mut group = Group::new(Transport::Unix, 3, &FakeOptions::default());
        let connected = group.connect().await.unwrap();
        group.workers[0].refuse_prepare(Some("a collective has failed"));
        group.kill(2);
        let error = soon(connected.prepare(REQUEST)).await.unwrap_err();
        assert!(matches!(error, StartError::Lost { rank: 2, .. }), "{error}");
    }
}

#[tokio::test]
async fn a_stream_without_prepare_is_refused() {
    let mut group = Group::new(Transport::Unix, 1, &FakeOptions::default());
    let error = soon(group.connect().await.unwrap().run()).await.unwrap_err();
    assert_eq!(error, StartError::Refused { rank: 0, message: "Run before Prepare".to_owned() });
}

#[tokio::test]
async fn describe_waits_for_the_load_while_health_already_answers() {
    let options = FakeOptions { load_time: Duration::from_secs(2), ..FakeOptions::default() };
    let group = FakeWorker::new(options);
    let served = group.serve("http://127.0.0.1:0").unwrap();
    let channel =
        tonic::transport::Endpoint::from_shared(served.endpoint().to_owned()).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    let mut status = async || {
        let answer = soon(health.check(tonic_health::pb::HealthCheckRequest::default())).await;
        ServingStatus::try_from(answer.unwrap().into_inner().status).unwrap()
    };
    assert_eq!(status().await, ServingStatus::NotServing);
    soon(ShardedClient::new(vec![served.endpoint().to_owned()]).connect()).await.unwrap();
    while status().await != ServingStatus::Serving {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn connecting_is_retried_until_every_rank_listens() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("worker");
    let mut client = ShardedClient::unix(&prefix, 2);
    let error = soon(client.connect()).await.unwrap_err();
    assert!(matches!(error, StartError::Unreachable { .. }) && !error.is_permanent(), "{error}");
    assert!(error.to_string().contains("No such file or directory"), "{error}");

    let endpoint = |rank: u32| format!("unix:{}-{rank}", prefix.display());
    let worker = |rank| FakeWorker::of_group(FakeOptions::default(), rank, 2);
    let _first = worker(0).serve(&endpoint(0)).unwrap();
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        worker(1).serve(&endpoint(1)).unwrap()
    };
    let (connected, _second) = soon(async { tokio::join!(connect_with_retry(&mut client, QUICK, None), later) }).await;
    assert_eq!(connected.unwrap().instances().len(), 2);
}

#[tokio::test]
async fn retrying_ends_at_the_deadline_and_at_once_when_it_is_in_vain() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = ShardedClient::unix(&folder.path().join("worker"), 1);
    let deadline = Instant::now() + Duration::from_millis(500);
    let error = soon(connect_with_retry(&mut client, QUICK, Some(deadline))).await.unwrap_err();
    assert!(matches!(error, StartError::Unreachable { rank: 0, .. }), "{error}");

    let slow = FakeOptions { load_time: Duration::from_secs(3600), ..FakeOptions::default() };
    let _served = serve(folder.path(), &[slow]);
    let deadline = Instant::now() + Duration::from_secs(2);
    let error = soon(connect_with_retry(&mut client, QUICK, Some(deadline))).await.unwrap_err();
    assert_eq!(error, StartError::TimedOut);

    let _served = serve(folder.path(), &[FakeOptions::default(), FakeOptions::default()]);
    let error = soon(connect_with_retry(&mut client, QUICK, None)).await.unwrap_err();
    assert!(matches!(error, StartError::Disagree { field: "world_size", .. }), "{error}");
}

#[test]
fn pauses_double_up_to_the_longest() {
    let pauses: Vec<u128> = QUICK.pauses().take(6).map(|pause| pause.as_millis()).collect();
    assert_eq!(pauses, [1, 2, 4, 8, 8, 8]);
}

/// The program, ended with its test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-fake-worker"));
    command.args(arguments).stderr(Stdio::piped());
    command
}

#[tokio::test]
async fn the_program_serves_and_its_kill_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("worker");
    let uds_path = prefix.to_str().unwrap();
    let arguments = ["--vocab", "50", "--tokens", "40..50", "--at-output", "2=7", "--cheap", "--uds-path", uds_path];
    let start = |rank| Program(program(&arguments).args(["--world-size", "2", "--rank", rank]).spawn().unwrap());
    let (_first, second) = (start("0"), start("1"));
    let mut client = ShardedClient::unix(&prefix, 2);
    let connected = soon(connect_with_retry(&mut client, QUICK, None)).await.unwrap();
    soon(connected.prepare(REQUEST)).await.unwrap();
    let mut steps = soon(connected.run()).await.unwrap();
    let (outputs, _) = generate(&mut steps, &[Job::greedy(0..9, 5)], 16).await.unwrap();
    for (index, token) in outputs[0].iter().enumerate() {
        assert!(if index == 2 { *token == 7 } else { (40..50).contains(token) }, "{outputs:?}");
    }
    drop(second);
    assert_eq!(soon(steps.next()).await.unwrap_err().rank, 1);
}

#[test]
fn the_program_refuses_what_it_does_not_understand() {
    for (arguments, says) in [
        (&["--uds-path", "p", "--colour", "red"][..], "there is no flag --colour"),
        (&["--uds-path", "p", "--rank", "first"], "--rank first: invalid digit"),
        (&["--uds-path", "p", "--rank"], "--rank needs a value"),
        (&["--rank", "0"], "one of --uds-path and --listen is needed"),
        (&["--uds-path", "p", "--vocab", "9", "--at-output", "0=9"], "need ids below --vocab 9"),
        (&["--uds-path", "p", "--at-output", "0"], "must be two numbers with = between"),
        (&["--uds-path", "p", "--rank", "1"], "--rank must be below --world-size"),
        (&["--uds-path", "/nowhere/at/all"], "cannot serve at unix:/nowhere/at/all-0"),
    ] {
        let output = program(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && stderr.contains(says), "{arguments:?}: {stderr}");
    }
}
