//! The checkers against servers on loopback. Where an answer is expected the timeout is far away, so that a
//! slow machine changes nothing; where none can come it is short.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;
use crate::health::HttpCheck;

pub(in crate::health) const PLENTY: Duration = Duration::from_secs(60);
pub(in crate::health) const SHORT: Duration = Duration::from_millis(100);

pub(in crate::health) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A port that refuses: bound, so that nobody else gets it, but not listening.
pub(in crate::health) fn refusing() -> (OwnedFd, SocketAddr) {
    let socket = socket::socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(any_port)).unwrap();
    let bound: socket::SockaddrIn = socket::getsockname(socket.as_raw_fd()).unwrap();
    (socket, SocketAddr::from((Ipv4Addr::LOCALHOST, bound.port())))
}

/// A port whose accept queue is full, so that the kernel answers no SYN.
pub(in crate::health) async fn mute() -> (impl Sized, SocketAddr) {
    let (socket, address) = refusing();
    socket::listen(&socket, Backlog::new(0).unwrap()).unwrap();
    let mut queued = Vec::new();
    for _ in 0..16 {
        match tokio::time::timeout(SHORT, TcpStream::connect(address)).await {
            Ok(connected) => queued.push(connected.unwrap()),
            Err(_) => return ((socket, queued), address),
        }
    }
    panic!("the kernel goes on queueing connections");
}

/// A server for one connection: reads a request, then writes `pieces` one by one, closes, and tells the request
/// and how reading on ended.
async fn serve(pieces: Vec<Vec<u8>>) -> (JoinHandle<(String, Result<usize, ErrorKind>)>, SocketAddr) {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            assert_ne!(
                stream.read_buf(&mut request).await.unwrap(),
                0,
                "closed within the request"
            );
        }
        for piece in pieces {
            // A client that has seen enough may be gone.
            if stream.write_all(&piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = stream.shutdown().await;
        let ended = stream.read(&mut [0; 16]).await.map_err(|error| error.kind());
        (String::from_utf8(request).unwrap(), ended)
    });
    (server, address)
}

/// One probe.
pub(in crate::health) fn subject(kind: CheckKind, address: SocketAddr) -> Subject {
    Subject {
        probes: vec![Probe {
            kind,
            address,
            source: None,
        }],
        require: Require::All,
    }
}

fn tcp(address: SocketAddr) -> Subject {
    subject(CheckKind::Tcp, address)
}

fn http(address: SocketAddr) -> Subject {
    let check = HttpCheck::new("GET", "/healthz?full=1", None, vec![200..=299, 304..=304]).unwrap();
    subject(CheckKind::Http(Arc::new(check)), address)
}

pub(in crate::health) fn seen(result: &ProbeResult) -> (CheckCode, &str) {
    (result.code, &result.detail)
}

/// The result of an HTTP probe that is answered with these bytes.
async fn answered_with(bytes: &[u8]) -> ProbeResult {
    let (server, address) = serve(vec![bytes.to_vec()]).await;
    let result = probe(&http(address), PLENTY).await;
    let _: (String, Result<usize, ErrorKind>) = server.await.unwrap();
    result
}

/// A program that accepts sees nothing of a probe, or (where the kernel was too slow) a connection that was reset.
#[tokio::test]
async fn tcp_connects_without_the_program_seeing_it() {
    let (listener, address) = listen().await;
    for _ in 0..8 {
        let result = probe(&tcp(address), PLENTY).await;
        assert_eq!(seen(&result), (CheckCode::L4ok, "connected"));
    }
    let mut marker = TcpStream::connect(address).await.unwrap();
    marker.write_all(b"x").await.unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        match stream.read(&mut [0; 16]).await {
            Ok(length) => {
                assert_eq!(length, 1, "only the marker closes without a reset");
                break;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
}

#[tokio::test]
async fn tcp_over_ipv6() {
    let Ok(listener) = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await else {
        println!("left out: no IPv6 on this machine's loopback");
        return;
    };
    let result = probe(&tcp(listener.local_addr().unwrap()), PLENTY).await;
    assert_eq!(result.code, CheckCode::L4ok);
}

#[tokio::test]
async fn refused() {
    let (_socket, address) = refusing();
    for subject in [tcp(address), http(address)] {
        let result = probe(&subject, PLENTY).await;
        assert_eq!(seen(&result), (CheckCode::L4con, "connection refused"));
    }
}

#[tokio::test]
async fn no_answer_to_the_syn() {
    let (_full, address) = mute().await;
    for subject in [tcp(address), http(address)] {
        let result = probe(&subject, SHORT).await;
        assert_eq!(
            seen(&result),
            (CheckCode::L4tout, "no answer to the SYN within 100ms")
        );
        assert!(result.latency >= SHORT);
    }
}

/// The kernel refuses to connect to a broadcast address: nothing was sent, so nothing is known.
#[tokio::test]
async fn what_cannot_be_sent_is_no_verdict() {
    let broadcast = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 255, 255, 255)), 80);
    for subject in [tcp(broadcast), http(broadcast)] {
        let result = probe(&subject, PLENTY).await;
        assert_eq!(
            seen(&result),
            (CheckCode::Sockerr, "cannot connect: network is unreachable")
        );
        assert_eq!(result.code.passed(), None);
    }
}

#[tokio::test]
async fn no_check_says_nothing() {
    let result = probe(
        &Subject {
            probes: Vec::new(),
            require: Require::All,
        },
        PLENTY,
    )
    .await;
    assert_eq!(seen(&result), (CheckCode::Unk, "no check"));
}

#[tokio::test]
async fn http_sends_the_request_and_closes_without_a_reset() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello";
    let (server, address) = serve(vec![answer.to_vec()]).await;
    let result = probe(&http(address), PLENTY).await;
    assert_eq!(seen(&result), (CheckCode::L7ok, "200 OK"));

    let (request, ended) = server.await.unwrap();
    assert_eq!(ended, Ok(0), "a FIN");
    let request = request.to_lowercase();
    assert!(
        request.starts_with("get /healthz?full=1 http/1.1\r\n"),
        "{request}"
    );
    assert!(request.contains(&format!("\r\nhost: {address}\r\n")), "{request}");
    assert!(request.contains("\r\nconnection: close\r\n"), "{request}");
    assert!(request.contains("\r\nuser-agent: xlb/"), "{request}");
}

/// The body comes after the verdict: it is read all the same, and the server closes first.
#[tokio::test]
async fn a_late_body_is_read_out() {
    let (listener, address) = listen().await;
    let (verdict_is_there, verdict) = tokio::sync::oneshot::channel();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            .await
            .unwrap();
        verdict.await.unwrap();
        let mut rest = Vec::new();
        while !rest.ends_with(b"\r\n\r\n") {
            assert_ne!(
                stream.read_buf(&mut rest).await.unwrap(),
                0,
                "closed within the request"
            );
        }
        let closed_early = tokio::time::timeout(SHORT, stream.read(&mut [0; 16]))
            .await
            .is_ok();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let ended = stream.read(&mut [0; 16]).await.map_err(|error| error.kind());
        (closed_early, ended)
    });
    let result = probe(&http(address), PLENTY).await;
    assert_eq!(result.code, CheckCode::L7ok);
    verdict_is_there.send(()).unwrap();
    assert_eq!(server.await.unwrap(), (false, Ok(0)));
}

#[tokio::test]
async fn http_with_another_method_and_host() {
    let (server, address) = serve(vec![b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()]).await;
    let check = HttpCheck::new("HEAD", "/", Some("www.example.org"), vec![204..=204]).unwrap();
    let result = probe(&subject(CheckKind::Http(Arc::new(check)), address), PLENTY).await;
    assert_eq!(seen(&result), (CheckCode::L7ok, "204 No Content"));
    let (request, _) = server.await.unwrap();
    assert!(request.starts_with("HEAD / HTTP/1.1\r\n"), "{request}");
    assert!(
        request.to_lowercase().contains("\r\nhost: www.example.org\r\n"),
        "{request}"
    );
}

#[tokio::test]
async fn http_judges_by_the_expected_statuses() {
    for (status, code, detail) in [
        ("200 Fine", CheckCode::L7ok, "200 OK"),
        ("299", CheckCode::L7ok, "299"),
        ("300 x", CheckCode::L7sts, "300 Multiple Choices"),
        ("304 x", CheckCode::L7ok, "304 Not Modified"),
        ("503 Come back later", CheckCode::L7sts, "503 Service Unavailable"),
        (
            "101 Switching Protocols",
            CheckCode::L7sts,
            "101 Switching Protocols",
        ),
    ] {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        let result = answered_with(answer.as_bytes()).await;
        assert_eq!(seen(&result), (code, detail), "{status:?}");
    }
}

#[tokio::test]
async fn http_takes_an_answer_in_pieces_and_in_http_1_0() {
    let pieces = b"HTTP/1.0 200 OK\r\nServer: slow\r\n\r\nbody"
        .chunks(3)
        .map(<[u8]>::to_vec)
        .collect();
    let (server, address) = serve(pieces).await;
    let result = probe(&http(address), PLENTY).await;
    assert_eq!(seen(&result), (CheckCode::L7ok, "200 OK"));
    let _: (String, Result<usize, ErrorKind>) = server.await.unwrap();
}

#[tokio::test]
async fn what_is_no_http_fails() {
    for garbage in [
        &b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"[..],
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 20\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbroken header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    ] {
        let result = answered_with(garbage).await;
        assert_eq!(result.code, CheckCode::L7rsp, "{}", garbage.escape_ascii());
        assert!(
            result.detail.starts_with("not an HTTP answer: "),
            "{}",
            result.detail
        );
    }
}

#[tokio::test]
async fn an_answer_that_ends_early_fails() {
    for part in [&b""[..], b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\nServer:"] {
        let result = answered_with(part).await;
        assert_eq!(
            seen(&result),
            (CheckCode::L7rsp, "connection closed before an answer"),
            "{}",
            part.escape_ascii()
        );
    }
}

#[tokio::test]
async fn a_reset_in_place_of_an_answer_fails() {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // Closing with unread data is a reset.
        stream.read_exact(&mut [0; 1]).await.unwrap();
    });
    let result = probe(&http(address), PLENTY).await;
    assert_eq!(seen(&result), (CheckCode::L7rsp, "connection reset by peer"));
    server.await.unwrap();
}

#[tokio::test]
async fn accepting_and_saying_nothing_is_a_timeout() {
    let (listener, address) = listen().await;
    let result = probe(&http(address), SHORT).await;
    assert_eq!(
        seen(&result),
        (CheckCode::L7tout, "no answer to the request within 100ms")
    );
    assert!(result.latency >= SHORT);
    drop(listener);
}

/// A server that sends a byte of a header now and then does not hold a probe longer than its timeout.
#[tokio::test]
async fn a_header_without_end_is_a_timeout() {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nX-Slow: ").await.unwrap();
        while stream.write_all(b"z").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let result = probe(&http(address), SHORT).await;
    assert_eq!(result.code, CheckCode::L7tout);
    server.await.unwrap();
}

#[tokio::test]
async fn a_huge_head_fails() {
    let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
    for number in 0..50_000 {
        answer.extend(format!("X-{number}: {number}\r\n").bytes());
    }
    let result = answered_with(&answer).await;
    assert_eq!(result.code, CheckCode::L7rsp);
    assert!(
        result.detail.starts_with("not an HTTP answer: "),
        "{}",
        result.detail
    );
}

/// The verdict does not wait for a body, and reading it out ends long before this one does.
#[tokio::test]
async fn an_endless_body_passes_and_is_cut_off() {
    let (listener, address) = listen().await;
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut written = 0;
        while stream.write_all(&[b'x'; 4096]).await.is_ok() {
            written += 4096;
        }
        written
    });
    let result = probe(&http(address), PLENTY).await;
    assert_eq!(seen(&result), (CheckCode::L7ok, "200 OK"));
    // The bound, and what two socket buffers take.
    assert!(server.await.unwrap() < 64 * 1024 * 1024);
}

#[test]
fn what_http_cannot_send_is_refused() {
    let check = |method, path, host| HttpCheck::new(method, path, host, vec![200..=299]);
    assert!(check("GET", "/", Some("[2001:db8::1]:80")).is_ok());
    for path in ["", "healthz", "*", "/a b", "/a\r\nX: y", "/ä", "http://host/"] {
        assert!(check("GET", path, None).is_err(), "{path:?}");
    }
    assert!(check("G T", "/", None).is_err());
    assert!(check("GET", "/", Some("a\r\nX: y")).is_err());
}

/// Every path of printable characters can be sent, on one line and whole.
#[tokio::test]
async fn odd_characters_in_a_path_are_encoded() {
    let odd: String = (0x21..0x7f_u8).map(char::from).collect();
    let check = HttpCheck::new("GET", &format!("/{odd}"), None, vec![200..=299]).unwrap();
    let (server, address) = serve(vec![b"HTTP/1.1 200 OK\r\n\r\n".to_vec()]).await;
    assert_eq!(
        probe(&subject(CheckKind::Http(Arc::new(check)), address), PLENTY)
            .await
            .code,
        CheckCode::L7ok
    );
    let (request, _) = server.await.unwrap();
    let expected = "GET /!%22%23$%&'()*+,-./0123456789:;%3C=%3E?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[%5C]%5E_%60\
                    abcdefghijklmnopqrstuvwxyz%7B%7C%7D~ HTTP/1.1\r\n";
    assert!(request.starts_with(expected), "{request}");
}
