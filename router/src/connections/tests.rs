//! Connections over real sockets, with clients that read or write as they should not.

use std::sync::atomic::AtomicUsize;

use axum::body::{Body, Bytes};
use axum::routing::{get, post};
use futures::stream;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::time::{interval, timeout};

use super::*;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);
const LEFTOVER_BYTES: u64 = 1 << 20;
const REFUSAL: &str = "no, and that has to arrive whole";

/// Counts answers that have not ended.
#[derive(Clone, Default)]
struct Open(Arc<AtomicUsize>);

struct One(Open);

impl Open {
    fn one(&self) -> One {
        self.0.fetch_add(1, Ordering::SeqCst);
        One(self.clone())
    }

    /// One has begun and ended.
    async fn come_and_gone(&self) {
        for count in [1, 0] {
            while self.0.load(Ordering::SeqCst) != count {
                sleep(Duration::from_millis(1)).await;
            }
        }
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A server whose clients have so long to read. `/refuse` answers without reading, `/` never stops answering.
async fn serve_with(reader_patience: Duration) -> (std::net::SocketAddr, Open) {
    serve_as(Terms { patience: LONG, most: 16, slow: LONG, reader_patience, leftover_bytes: LEFTOVER_BYTES }).await
}

async fn serve_as(terms: Terms) -> (std::net::SocketAddr, Open) {
    let open = Open::default();
    let counted = open.clone();
    let endless = async move || {
        let pieces = stream::unfold(counted.one(), |one| async move {
            Some((Ok::<_, Infallible>(Bytes::from_static(&[b'a'; 4096])), one))
        });
        Body::from_stream(pieces)
    };
    let routes = Router::new()
        .route("/", get(endless))
        .route("/refuse", post(async || (axum::http::StatusCode::FORBIDDEN, REFUSAL)))
        .route("/echo", post(async |body: String| body));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, routes, CancellationToken::new(), terms, |_| {}));
    (address, open)
}

async fn connect() -> BufReader<TcpStream> {
    let (address, _) = serve_with(LONG).await;
    BufReader::new(TcpStream::connect(address).await.unwrap())
}

/// A request's head.
fn head(path: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: t\r\n{more}\r\n")
}

/// The next answer on a connection: its head in small letters, and its body.
async fn answer(connection: &mut BufReader<TcpStream>) -> (String, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let read = timeout(LONG, connection.read_line(&mut head)).await.expect("there is an answer").unwrap();
        assert!(read > 0, "the connection ended after {head:?}");
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    connection.read_exact(&mut body).await.unwrap();
    (head, String::from_utf8(body).unwrap())
}

/// The connection goes on with the next request.
async fn check_kept(connection: &mut BufReader<TcpStream>) {
    connection.write_all((head("/echo", "content-length: 5\r\n") + "hello").as_bytes()).await.unwrap();
    let (head, body) = answer(connection).await;
    assert!(head.starts_with("http/1.1 200") && body == "hello", "{head}{body}");
}

/// Nothing comes any more.
async fn check_ended(mut connection: BufReader<TcpStream>) {
    let mut rest = Vec::new();
    // What was not read may make the end a reset.
    let end = timeout(LONG, connection.read_to_end(&mut rest)).await.expect("the connection ends");
    assert!(rest.is_empty() || end.is_err(), "{rest:?}");
}

fn check_refusal((head, body): &(String, String), is_kept: bool) {
    assert!(head.starts_with("http/1.1 403") && body == REFUSAL, "{head}{body}");
    assert_eq!(!is_kept, head.contains("\r\nconnection: close\r\n"), "{head}");
}

#[tokio::test]
async fn a_connection_outlives_an_answer_that_came_before_its_body_was_read() {
    let mut connection = connect().await;
    for length in [1, 1_000, 900_000] {
        let body = "a".repeat(length);
        for (fields, body) in [
            (format!("content-length: {length}\r\n"), body.clone()),
            ("transfer-encoding: chunked\r\n".to_owned(), format!("{length:x}\r\n{body}\r\n0\r\n\r\n")),
        ] {
            connection.write_all(head("/refuse", &fields).as_bytes()).await.unwrap();
            connection.write_all(body.as_bytes()).await.unwrap();
            check_refusal(&answer(&mut connection).await, true);
            check_kept(&mut connection).await;
        }
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_to_be_thrown_away_ends_its_connection_and_the_answer_says_so() {
    let mut connection = connect().await;
    let length = LEFTOVER_BYTES + 1;
    connection.write_all((head("/refuse", &format!("content-length: {length}\r\n")) + "a").as_bytes()).await.unwrap();
    check_refusal(&answer(&mut connection).await, false);
    check_ended(connection).await;
}

#[tokio::test]
async fn a_body_that_never_ends_gets_its_answer_whole() {
    let (address, _) = serve_with(LONG).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(head("/refuse", "transfer-encoding: chunked\r\n").as_bytes()).await.unwrap();
    let (read, mut write) = connection.into_split();
    let sending = tokio::spawn(async move {
        let chunk = format!("10000\r\n{}\r\n", "a".repeat(1 << 16));
        while write.write_all(chunk.as_bytes()).await.is_ok() {}
    });
    let mut answer = String::new();
    // It ends by a reset if the client goes on after the answer.
    let _ = timeout(LONG, BufReader::new(read).read_to_string(&mut answer)).await.expect("the connection ends");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    check_refusal(&(format!("{}\r\n", head.to_lowercase()), body.to_owned()), false);
    timeout(LONG, sending).await.expect("the client is told that nobody listens").unwrap();
}

#[tokio::test]
async fn who_waits_to_be_asked_or_sends_nothing_is_answered_and_not_waited_for() {
    for (fields, sent) in [
        ("content-length: 5\r\nexpect: 100-continue\r\n", ""),
        ("content-length: 5\r\n", "he"),
        ("content-length: 5\r\n", ""),
    ] {
        let mut connection = connect().await;
        connection.write_all((head("/refuse", fields) + sent).as_bytes()).await.unwrap();
        check_refusal(&answer(&mut connection).await, false);
        check_ended(connection).await;
    }
}

/// Two connections at once; bodies are slow very soon.
async fn connect_two() -> (std::net::SocketAddr, [BufReader<TcpStream>; 2]) {
    let slow = Duration::from_millis(10);
    let terms = Terms { patience: LONG, most: 2, slow, reader_patience: LONG, leftover_bytes: LEFTOVER_BYTES };
    let (address, _) = serve_as(terms).await;
    let connect = async || BufReader::new(TcpStream::connect(address).await.unwrap());
    (address, [connect().await, connect().await])
}

#[tokio::test]
async fn a_client_that_leaves_without_a_word_is_gone() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (connection, _) = listener.accept().await.unwrap();
    drop(client);
    let begun = timeout(LONG, begin(&connection)).await.expect("nobody waits for it");
    assert_eq!(begun.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn nobody_makes_room_for_nobody() {
    let (address, mut both) = connect_two().await;
    for number in 0..6 {
        check_kept(&mut both[number % 2]).await;
        sleep(Duration::from_millis(20)).await;
    }
    check_kept(&mut BufReader::new(TcpStream::connect(address).await.unwrap())).await;
    let [first, mut second] = both;
    check_kept(&mut second).await;
    check_ended(first).await;
}

#[tokio::test]
async fn bodies_that_never_come_whole_keep_nobody_out() {
    let (address, mut both) = connect_two().await;
    for connection in &mut both {
        let fields = "content-length: 5\r\nexpect: 100-continue\r\n";
        connection.write_all(head("/echo", fields).as_bytes()).await.unwrap();
        // The server says that it reads the body now.
        let mut interim = [0; 25];
        connection.read_exact(&mut interim).await.unwrap();
        connection.write_all(b"h").await.unwrap();
        sleep(Duration::from_millis(20)).await;
    }
    let mut newcomer = BufReader::new(TcpStream::connect(address).await.unwrap());
    check_kept(&mut newcomer).await;
    let [mut first, _second] = both;
    let (head, body) = answer(&mut first).await;
    assert!(head.starts_with("http/1.1 400") && head.contains("connection: close"), "{head}{body}");
    check_ended(first).await;
}

#[tokio::test]
async fn a_client_that_reads_by_the_byte_is_cut_off() {
    let (address, open) = serve_with(Duration::from_millis(300)).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: t\r\n\r\n").await.unwrap();
    let reading = async {
        let mut ticks = interval(Duration::from_millis(5));
        while slow.read_u8().await.is_ok() {
            ticks.tick().await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = open.come_and_gone() => {}
        () = reading => {}
        () = sleep(LONG) => panic!("it holds its answer"),
    }
}

/// What opens a connection of HTTP/2 with streams that may carry nothing (a window of 0), and asks for `/`.
const HTTP2_DEAF: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\
    \0\0\x06\x04\0\0\0\0\0\0\x04\0\0\0\0\
    \0\0\x0c\x01\x05\0\0\0\x01\x82\x86\x84\x41\x07a.local";

#[tokio::test]
async fn a_stream_of_http2_that_takes_nothing_is_taken_back() {
    let (address, open) = serve_with(Duration::from_millis(300)).await;
    let mut deaf = TcpStream::connect(address).await.unwrap();
    deaf.write_all(HTTP2_DEAF).await.unwrap();
    timeout(LONG, open.come_and_gone()).await.expect("it holds its answer");
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    [&length[..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

#[tokio::test]
async fn an_answer_is_on_its_way_until_its_last_byte_is_written() {
    const WINDOW: u8 = 5;
    let unwritten = Arc::new(tokio::sync::Semaphore::new(1));
    let permits = Arc::clone(&unwritten);
    let answer = async move || {
        let kept = UntilWritten::new(Arc::clone(&permits).try_acquire_owned().unwrap());
        (axum::Extension(kept), REFUSAL)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let terms = Terms { patience: LONG, most: 16, slow: LONG, reader_patience: LONG, leftover_bytes: 0 };
    tokio::spawn(serve(listener, Router::new().route("/", get(answer)), CancellationToken::new(), terms, |_| {}));
    let settings = [0, 4, 0, 0, 0, WINDOW];
    let asked = [&PREFACE[..], &frame(4, 0, 0, &settings), &frame(1, 5, 1, b"\x82\x86\x84\x01\x01t")].concat();
    client.write_all(&asked).await.unwrap();
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains(&REFUSAL[..WINDOW.into()]) {
        assert!(timeout(LONG, client.read_buf(&mut read)).await.expect("the answer begins").unwrap() > 0);
    }
    sleep(GLANCE).await;
    assert_eq!(unwritten.available_permits(), 0);
    client.write_all(&frame(8, 0, 1, &1000_u32.to_be_bytes())).await.unwrap();
    let permit = timeout(LONG, unwritten.acquire()).await;
    drop(permit.expect("the answer is written").unwrap());
}

#[tokio::test]
async fn a_refused_body_of_http2_resets_nothing() {
    const DATA: u8 = 0;
    const RESET: u8 = 3;
    const PING: u8 = 6;
    let mut connection = connect().await;
    let head = b"\x83\x86\x04\x07/refuse\x01\x01t";
    let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    sent.extend([frame(4, 0, 0, b""), frame(1, 4, 1, head)].concat());
    connection.write_all(&sent).await.unwrap();
    // The answer is ready long before the end of the body.
    for flags in [0, 0, 1] {
        sleep(GLANCE).await;
        connection.write_all(&frame(DATA, flags, 1, &[b'a'; 16384])).await.unwrap();
    }
    let (mut body, mut is_answered) = (Vec::new(), false);
    loop {
        let mut head = [0; 9];
        timeout(LONG, connection.read_exact(&mut head)).await.expect("frames come").unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        connection.read_exact(&mut payload).await.unwrap();
        match head[3] {
            DATA => body.extend(payload),
            RESET => panic!("the stream is reset: {payload:?}"),
            PING => break,
            _ => {}
        }
        if head[3] == DATA && head[4] & 1 == 1 && !std::mem::replace(&mut is_answered, true) {
            // Nothing is left on its way when this comes back.
            connection.write_all(&frame(PING, 0, 0, &[0; 8])).await.unwrap();
        }
    }
    assert_eq!(String::from_utf8(body).unwrap(), REFUSAL);
}

#[tokio::test]
async fn a_client_of_http2_that_is_cut_short_and_goes_on_asking_is_not_kept() {
    let slow = Duration::from_millis(10);
    let terms = Terms { patience: LONG, most: 1, slow, reader_patience: LONG, leftover_bytes: LEFTOVER_BYTES };
    let (address, _) = serve_as(terms).await;
    let mut cut = TcpStream::connect(address).await.unwrap();
    let mut sent = PREFACE.to_vec();
    sent.extend([frame(4, 0, 0, b""), frame(1, 4, 1, b"\x83\x86\x04\x05/echo\x01\x01t")].concat());
    cut.write_all(&sent).await.unwrap();
    sleep(GLANCE).await;
    check_kept(&mut BufReader::new(TcpStream::connect(address).await.unwrap())).await;
    // It answers no ping, so that nobody knows whether it has been told of the end.
    for stream in (3..=255).step_by(2) {
        sleep(GLANCE * 2).await;
        if cut.write_all(&frame(1, 5, stream, b"\x83\x86\x04\x07/refuse\x01\x01t")).await.is_err() {
            return;
        }
    }
    panic!("it is kept");
}

#[tokio::test]
async fn a_request_in_the_moment_of_making_room_is_answered_and_the_last() {
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let (asked, answered) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let (begins, may_end) = (Arc::clone(&asked), Arc::clone(&answered));
        let routes = Router::new().route(
            "/",
            get(async move || {
                begins.notify_one();
                may_end.notified().await;
                REFUSAL
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (connection, _) = listener.accept().await.unwrap();
        let (graceful, crowd) = (GracefulShutdown::new(), Crowd::new(16, LONG));
        let visit = crowd.enter().await;
        let standing = Arc::clone(&visit.standing);
        let terms = Terms { patience: LONG, most: 16, slow: LONG, reader_patience: LONG, leftover_bytes: 0 };
        let session = Session { visit, routes, terms, _inside: graceful.watcher() };
        let serving = tokio::spawn(session.run(connection, CancellationToken::new()));
        let request: &[u8] = match protocol {
            Protocol::Http1 => b"GET / HTTP/1.1\r\nhost: t\r\n\r\n",
            // What says that streams may carry as much as they like, and asks for `/`.
            Protocol::Http2 => {
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\
                \0\0\x0c\x01\x05\0\0\0\x01\x82\x86\x84\x41\x07a.local"
            }
        };
        client.write_all(request).await.unwrap();
        timeout(LONG, asked.notified()).await.expect("the request comes");
        standing.evict();
        sleep(GLANCE).await;
        answered.notify_one();
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(REFUSAL) {
            let read = timeout(LONG, client.read_buf(&mut answer)).await.expect("the answer comes").unwrap();
            assert!(read > 0, "{protocol:?} {:?}", String::from_utf8_lossy(&answer));
        }
        match protocol {
            Protocol::Http1 => assert_eq!(client.read(&mut [0]).await.unwrap(), 0, "it is the last"),
            // Such a connection ends when its client says that it knows.
            Protocol::Http2 => drop(client),
        }
        timeout(LONG, serving).await.expect("the connection is gone").unwrap();
    }
}
