//! The whole router over real sockets: HTTP in front, a fake worker behind.

mod answers;
mod clients;
mod reloads;
mod start;
mod stop;
mod workers;

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
    /// What its launcher says.
    news: mpsc::UnboundedSender<News>,
}

async fn start(flags: &str) -> Router {
    start_with(flags, &[]).await
}

async fn start_with(flags: &str, environment: &[(&str, &str)]) -> Router {
    let folder = fixture::folder_with(&[]);
    let path = folder.path().display();
    let model = if flags.contains("--await-model") { String::new() } else { format!("--model-path {path}") };
    let line = format!(
        "millrace-router --model-id m {model} --worker-uds-path {path}/worker --port 0 --hostname 127.0.0.1 {flags}"
    );
    let (news, heard) = mpsc::unbounded_channel();
    let variable = |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let config = Config::read(line.split_whitespace(), variable).unwrap();
    let listener = listen(&Config { port: 0, ..config.clone() }).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let task = tokio::spawn(run_told(config, listener, Metrics::new().0, heard, shutdown));
    Router { address, stop, task, folder, news }
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

/// What comes back for these bytes until the server closes the connection.
async fn raw(address: SocketAddr, bytes: &[u8]) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    // The server may answer and close before it has read all.
    let _ = connection.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(20), connection.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}
