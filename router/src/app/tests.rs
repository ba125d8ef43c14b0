//! The whole router over real sockets: HTTP in front, a fake worker behind.

use std::time::Duration;

use millrace_client::fake::{FakeOptions, FakeWorker, ServedFake, ToyModel};
use millrace_scheduler::Sampling;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::*;
use crate::tokenizer::fixture;

/// In the fixture's tokenizer these ids are the letters a to z.
const LETTERS: std::ops::Range<u32> = 71..97;

/// A router that serves, and where.
struct Router {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<Ending, AppError>>,
    folder: TempDir,
}

async fn start(flags: &str) -> Router {
    let folder = fixture::folder_with(&[]);
    let path = folder.path().display();
    let line = format!(
        "millrace-router --model-id m --model-path {path} --worker-uds-path {path}/worker --port 0 \
         --hostname 127.0.0.1 {flags}"
    );
    let config = Config::read(line.split_whitespace(), |_| None).unwrap();
    let listener = listen(&Config { port: 0, ..config.clone() }).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let task = tokio::spawn(run(config, listener, Metrics::new().0, shutdown));
    Router { address, stop, task, folder }
}

impl Router {
    fn serve_worker(&self, options: FakeOptions) -> ServedFake {
        let endpoint = format!("unix:{}/worker-0", self.folder.path().display());
        FakeWorker::new(options).serve(&endpoint).unwrap()
    }

    async fn is_healthy(&self) -> bool {
        get(self.address, "/health").await.starts_with("HTTP/1.1 200")
    }

    async fn wait_until_healthy(&self) {
        while !self.is_healthy().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn open_stream(&self, prompt: &str, max_new_tokens: u32) -> TcpStream {
        let body = json!({"inputs": prompt, "parameters": {"max_new_tokens": max_new_tokens, "details": true}});
        send(self.address, "POST", "/generate_stream", &body.to_string()).await
    }
}

fn options() -> FakeOptions {
    let model = ToyModel { token_ids: LETTERS, ..ToyModel::default() };
    FakeOptions { model, vocab_size: fixture::VOCAB_SIZE, delay: Duration::from_millis(1), ..FakeOptions::default() }
}

async fn send(address: SocketAddr, method: &str, path: &str, body: &str) -> TcpStream {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    connection
}

async fn rest(mut connection: TcpStream) -> String {
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn get(address: SocketAddr, path: &str) -> String {
    rest(send(address, "GET", path, "").await).await
}

fn events(answer: &str) -> Vec<Value> {
    answer.lines().filter_map(|line| line.strip_prefix("data: ")).map(|json| json.parse().unwrap()).collect()
}

/// Every token once, in order, those that the model says, and an end.
fn check_stream(answer: &str, worker: &FakeWorker, prompt: &str, max_new_tokens: u32) {
    let text = |byte: u8| u32::from(byte) - u32::from(b'a') + LETTERS.start;
    let prompt: Vec<u32> = std::iter::once(0).chain(prompt.bytes().map(text)).collect();
    let expected = worker.expected(&prompt, &Sampling::default(), max_new_tokens as usize);
    let events = events(answer);
    let ids: Vec<u64> = events.iter().filter_map(|event| event["token"]["id"].as_u64()).collect();
    assert_eq!(ids, expected.iter().map(|id| u64::from(*id)).collect::<Vec<_>>(), "{answer}");
    let indices: Vec<u64> = events.iter().filter_map(|event| event["index"].as_u64()).collect();
    assert_eq!(indices, (1..=u64::from(max_new_tokens)).collect::<Vec<_>>());
    assert_eq!(events.last().unwrap()["details"]["finish_reason"], "length");
}

/// Reads until some of the stream's events have come; answers what has been read.
async fn read_some(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("\"index\":5") {
        stream.read_buf(&mut read).await.unwrap();
    }
    String::from_utf8(read).unwrap()
}

#[tokio::test]
async fn the_port_is_open_before_there_are_workers() {
    let router = start("").await;
    assert!(get(router.address, "/health").await.starts_with("HTTP/1.1 503"));
    let refused = rest(router.open_stream("abc", 3).await).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.to_lowercase().contains("\r\nretry-after:"), "{refused}");
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    check_stream(&rest(router.open_stream("abc", 3).await).await, served.worker(), "abc", 3);
}

#[tokio::test]
async fn running_streams_finish_when_the_server_is_told_to_stop() {
    let router = start("").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut streams = Vec::new();
    for prompt in ["a", "bc", "def", "ghij"] {
        let mut stream = router.open_stream(prompt, 120).await;
        streams.push((prompt, read_some(&mut stream).await, stream));
    }
    let Router { address, stop, task, folder: _folder } = router;
    stop.send(()).unwrap();
    while !get(address, "/readyz").await.starts_with("HTTP/1.1 503") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Newcomers are told, not left before a closed door.
    let refused = rest(send(address, "POST", "/generate", r#"{"inputs":"a"}"#).await).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"), "{refused}");
    for (prompt, read, stream) in streams {
        check_stream(&(read + &rest(stream).await), served.worker(), prompt, 120);
    }
    assert_eq!(task.await.unwrap().unwrap(), Ending::Drained);
}

#[tokio::test]
async fn requests_that_need_too_long_end_with_an_error_when_the_server_stops() {
    let router = start("--graceful-termination-timeout 1").await;
    let _served = router.serve_worker(FakeOptions { delay: Duration::from_millis(50), ..options() });
    router.wait_until_healthy().await;
    let mut stream = router.open_stream("abc", 4000).await;
    let read = read_some(&mut stream).await;
    router.stop.send(()).unwrap();
    let answer = read + &rest(stream).await;
    let last = events(&answer).pop().unwrap();
    assert_eq!(last["error_type"], "incomplete_generation_stream", "{answer}");
    assert_eq!(router.task.await.unwrap().unwrap(), Ending::Cut);
}

#[tokio::test]
async fn a_lame_duck_serves_newcomers_and_says_that_they_should_not_come() {
    let router = start("--lame-duck-seconds 1").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let Router { address, stop, task, folder: _folder } = router;
    stop.send(()).unwrap();
    while !get(address, "/readyz").await.starts_with("HTTP/1.1 503") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(get(address, "/health").await.starts_with("HTTP/1.1 503"));
    let body = r#"{"inputs":"abc","parameters":{"max_new_tokens":5,"details":true}}"#;
    let answer = rest(send(address, "POST", "/generate_stream", body).await).await;
    check_stream(&answer, served.worker(), "abc", 5);
    assert_eq!(task.await.unwrap().unwrap(), Ending::Drained);
}

#[tokio::test]
async fn connections_that_bring_no_request_in_time_are_closed() {
    let router = start("--head-timeout-seconds 1").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    // A stream that takes longer is not meant.
    let stream = router.open_stream("abc", 1500).await;
    for sent in ["", "GET /health HTTP/1.1\r\nhost:", "PRI * HT", "GET /health HTTP/1.1\r\nhost: test\r\n\r\n"] {
        let mut slow = TcpStream::connect(router.address).await.unwrap();
        slow.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // What was not read may make the end a reset.
        let closed = tokio::time::timeout(Duration::from_secs(20), slow.read_to_string(&mut answer)).await;
        assert!(closed.is_ok(), "{sent:?} holds its connection");
        assert_eq!(answer.starts_with("HTTP/1.1 200"), sent.ends_with("\r\n\r\n"), "{sent:?}: {answer:?}");
    }
    check_stream(&rest(stream).await, served.worker(), "abc", 1500);
}

#[tokio::test]
async fn a_half_sent_request_is_refused_when_the_server_stops_and_does_not_keep_it() {
    let router = start("").await;
    let served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut stream = router.open_stream("abc", 60).await;
    let read = read_some(&mut stream).await;
    let mut half = TcpStream::connect(router.address).await.unwrap();
    let head = "POST /generate HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-type: application/json\r\n\
                content-length: 100\r\n\r\n";
    half.write_all(head.as_bytes()).await.unwrap();
    // The server says that it reads the body now.
    let mut interim = [0; 25];
    half.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    half.write_all(b"{\"inputs\":").await.unwrap();
    router.stop.send(()).unwrap();
    let refused = rest(half).await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("stopping"), "{refused}");
    check_stream(&(read + &rest(stream).await), served.worker(), "abc", 60);
    router.task.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn connections_that_ask_for_nothing_do_not_keep_a_server_that_stops() {
    let (stop, places) = (CancellationToken::new(), Arc::new(Semaphore::new(3)));
    let running = Arc::clone(&places).try_acquire_owned().unwrap();
    let (server, engine) = (tokio::spawn(std::future::pending()), tokio::spawn(std::future::pending()));
    let ending = end(server, engine, emptied(&stop, &places, 3));
    tokio::pin!(ending);
    let later = Duration::from_secs(3600);
    assert!(tokio::time::timeout(later, &mut ending).await.is_err(), "nobody has told it to stop");
    stop.cancel();
    assert!(tokio::time::timeout(later, &mut ending).await.is_err(), "a request is inside");
    drop(running);
    ending.await.unwrap();
}

#[tokio::test]
async fn a_server_that_never_had_workers_stops_too() {
    let router = start("").await;
    router.stop.send(()).unwrap();
    router.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn streams_go_on_where_they_were_when_the_worker_was_killed() {
    let router = start("").await;
    let mut served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut streams = Vec::new();
    for prompt in ["a", "bc", "def", "ghij"] {
        let mut stream = router.open_stream(prompt, 200).await;
        streams.push((prompt, read_some(&mut stream).await, stream));
    }
    served.kill();
    while router.is_healthy().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    served.restart().unwrap();
    for (prompt, read, stream) in streams {
        check_stream(&(read + &rest(stream).await), served.worker(), prompt, 200);
    }
    router.wait_until_healthy().await;
}

#[tokio::test]
async fn a_server_that_cannot_go_on_ends_its_streams_and_says_why() {
    let router = start("").await;
    let mut served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let mut stream = router.open_stream("abc", 1000).await;
    read_some(&mut stream).await;
    served.kill();
    let _other = router.serve_worker(FakeOptions { page_size: 32, ..options() });
    let error = router.task.await.unwrap().unwrap_err();
    assert!(matches!(error, AppError::Engine(EngineError::PageSizeChanged { before: 16, now: 32 })), "{error}");
    let last = events(&rest(stream).await).pop().unwrap();
    assert_eq!(last["error_type"], "incomplete_generation_stream");
}

#[tokio::test]
async fn a_total_left_open_is_what_the_pool_holds_and_stays_so_when_workers_come_back_with_more() {
    let router = start("").await;
    let mut served = router.serve_worker(FakeOptions { num_pages: 10, ..options() });
    router.wait_until_healthy().await;
    let total = async || {
        let info = get(router.address, "/info").await;
        let (_, body) = info.split_once("\r\n\r\n").unwrap();
        body.parse::<Value>().unwrap()["max_total_tokens"].take()
    };
    assert_eq!(total().await, 160);
    served.kill();
    while router.is_healthy().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let other = router.serve_worker(options());
    router.wait_until_healthy().await;
    assert_eq!(total().await, 160);
    check_stream(&rest(router.open_stream("abc", 156).await).await, other.worker(), "abc", 156);
}

#[tokio::test]
async fn limits_that_cannot_hold_end_the_server() {
    let router = start("--max-total-tokens 5000").await;
    let _served = router.serve_worker(options());
    let error = router.task.await.unwrap().unwrap_err();
    assert!(error.to_string().contains("`max_total_tokens` is 5000"), "{error}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let arguments = ["millrace-router", "--model-id", "m", "--hostname", "127.0.0.1", "--port", &port];
    let error = listen(&Config::read(arguments, |_| None).unwrap()).await.unwrap_err();
    assert!(error.to_string().contains(&port), "{error}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_takes_nothing_is_cut_off() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut connection, _) = listener.accept().await.unwrap();
    tune(&connection, Duration::from_millis(100));
    let chunk = vec![0_u8; 1 << 20];
    let error = loop {
        if let Err(error) = connection.write_all(&chunk).await {
            break error;
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
