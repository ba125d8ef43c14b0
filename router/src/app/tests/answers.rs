//! Answers that are larger than what the system keeps of them, and clients that are slow to read them.

use tokio::time::{sleep, timeout};

use super::*;

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);
/// Each is a token of its own, which `/tokenize` answers with some forty bytes.
const LETTERS: usize = 400_000;

/// A client that has asked for a large answer and reads none of it.
async fn ask_for_much(address: SocketAddr) -> TcpStream {
    let body = json!({ "inputs": "a".repeat(LETTERS) }).to_string();
    let mut client = send(address, "POST", "/tokenize", &body).await;
    let mut begin = [0; 15];
    client.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200 OK");
    client
}

/// The status of a small request.
async fn status(address: SocketAddr) -> String {
    let answer = rest(send(address, "POST", "/tokenize", r#"{"inputs":"a"}"#).await).await;
    answer["HTTP/1.1 ".len()..][..3].to_owned()
}

async fn wait_for_a_place(address: SocketAddr) {
    let served = async {
        while status(address).await != "200" {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LONG, served).await.expect("the place comes back");
}

/// The number of tokens in an answer of `/tokenize`.
fn num_tokens(answer: &str) -> usize {
    let (_, json) = answer.split_once("\r\n\r\n").unwrap();
    json.parse::<Value>().expect("the answer is whole").as_array().unwrap().len()
}

#[tokio::test]
async fn who_reads_no_answer_holds_its_place_until_it_does_or_leaves() {
    let router = start("--max-concurrent-requests 1").await;
    let _served = router.serve_worker(options());
    router.wait_until_healthy().await;
    for leaves in [true, false] {
        let slow = ask_for_much(router.address).await;
        sleep(Duration::from_millis(50)).await;
        assert_eq!(status(router.address).await, "429");
        if leaves {
            drop(slow);
        } else {
            assert!(num_tokens(&rest(slow).await) >= LETTERS);
        }
        wait_for_a_place(router.address).await;
    }
}

#[tokio::test]
async fn a_server_that_stops_waits_for_who_still_reads_a_whole_answer() {
    let router = start("").await;
    let _served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let slow = ask_for_much(router.address).await;
    let Router { address: _, stop, task, folder: _folder, news: _ } = router;
    stop.send(()).unwrap();
    // Longer than connections get that ask for nothing.
    sleep(LAST_WORDS + Duration::from_secs(1)).await;
    assert!(!task.is_finished());
    assert!(num_tokens(&rest(slow).await) >= LETTERS);
    assert_eq!(timeout(LONG, task).await.unwrap().unwrap().unwrap(), Ending::Drained);
}

#[tokio::test]
async fn a_server_that_stops_says_that_it_has_cut_an_answer_that_nobody_reads() {
    let router = start("--graceful-termination-timeout 1").await;
    let _served = router.serve_worker(options());
    router.wait_until_healthy().await;
    let _deaf = ask_for_much(router.address).await;
    router.stop.send(()).unwrap();
    // Not after the minute that readers have.
    assert_eq!(timeout(READER_PATIENCE / 2, router.task).await.unwrap().unwrap().unwrap(), Ending::Cut);
}
