use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[derive(Default)]
struct Numbered(Arc<AtomicU64>);

impl Source for Numbered {
    async fn text(&self) -> Result<String, String> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            9 => Err("the agent is stopping".into()),
            n => Ok(format!("made {n}\n")),
        }
    }
}

async fn listening(source: Numbered) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, source));
    address
}

async fn ask(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

const GET: &str = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

#[tokio::test]
async fn only_metrics_are_served() {
    let made = Arc::new(AtomicU64::new(8));
    let address = listening(Numbered(Arc::clone(&made))).await;
    let answer = ask(address, GET).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("made 8\n"),
        "{answer}"
    );
    assert!(
        answer.contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(
        ask(address, &GET.replace("/metrics", "/"))
            .await
            .starts_with("HTTP/1.1 404")
    );
    assert!(
        ask(address, &GET.replace("GET", "POST"))
            .await
            .starts_with("HTTP/1.1 405")
    );
    assert!(
        ask(address, "no HTTP at all\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 400")
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_serves_all_who_ask_at_that_time_and_a_failure_nobody_else() {
    let answers = Answers {
        source: Numbered(Arc::new(AtomicU64::new(8))),
        last: Mutex::new(None),
    };
    assert_eq!(answers.text().await.unwrap(), "made 8\n");
    assert_eq!(answers.text().await.unwrap(), "made 8\n");
    tokio::time::advance(FRESH).await;
    assert_eq!(answers.text().await.unwrap_err(), "the agent is stopping");
    assert_eq!(answers.text().await.unwrap(), "made 10\n");
}

#[tokio::test]
async fn the_silent_and_the_endless_keep_nobody_out() {
    let address = listening(Numbered::default()).await;
    let mut silent = Vec::new();
    for _ in 0..3 * CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    assert!(ask(address, GET).await.starts_with("HTTP/1.1 200"));
    // The oldest made room.
    let mut byte = [0];
    assert!(matches!(silent[0].read(&mut byte).await, Ok(0) | Err(_)));

    let mut endless = TcpStream::connect(address).await.unwrap();
    endless.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
    let line = [b'x'; 1000];
    let mut sent = 0_usize;
    while endless.write_all(&line).await.is_ok() {
        sent += line.len();
        assert!(sent < 100 << 20, "nobody stops it");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_hung_up_on() {
    let address = listening(Numbered::default()).await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET /met").await.unwrap();
    let mut answer = Vec::new();
    let begun = Instant::now();
    let _ = silent.read_to_end(&mut answer).await;
    assert!(begun.elapsed() <= LIMIT + Duration::from_secs(1));
}
