//! The `grpc` check against a server of `h2`, and against servers that are none.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hyper::Response;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::config::TlsCheck;
use crate::health::probe::probe;
use crate::health::probe::tests::{PLENTY, SHORT, listen, refusing, seen, subject};
use crate::health::tls::tests::{Authority, acceptor};
use crate::health::{CheckKind, ProbeResult};

/// An answer: HTTP status, headers, body, trailers.
#[derive(Clone, Default)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: Option<Vec<u8>>,
    trailers: Option<Vec<(&'static str, &'static str)>>,
}

fn serving(status: u8) -> Answer {
    Answer {
        status: 200,
        headers: vec![("content-type", "application/grpc")],
        body: Some(vec![0, 0, 0, 0, 2, 0x08, status]),
        trailers: Some(vec![("grpc-status", "0")]),
    }
}

fn header_map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
    headers
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
        .collect()
}

/// Serves one connection; the question of each request goes through `asked`.
async fn serve<S>(stream: S, answer: Answer, asked: tokio::sync::mpsc::UnboundedSender<(String, Vec<u8>)>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (answer, asked) = (answer.clone(), asked.clone());
        // The connection has to be driven meanwhile.
        tokio::spawn(async move {
            let target = request.uri().to_string();
            let mut body = request.into_body();
            let mut question = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                question.extend_from_slice(&data);
            }
            asked.send((target, question)).unwrap();
            let mut head = Response::builder().status(answer.status).body(()).unwrap();
            *head.headers_mut() = header_map(&answer.headers);
            let only_headers = answer.body.is_none() && answer.trailers.is_none();
            let Ok(mut stream) = respond.send_response(head, only_headers) else {
                return;
            };
            if let Some(body) = answer.body {
                let _ = stream.send_data(body.into(), answer.trailers.is_none());
            }
            if let Some(trailers) = answer.trailers {
                let _ = stream.send_trailers(header_map(&trailers));
            }
        });
    }
}

/// A server in the clear, and what it was asked.
async fn server(
    answer: Answer,
) -> (
    SocketAddr,
    tokio::sync::mpsc::UnboundedReceiver<(String, Vec<u8>)>,
) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, questions) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, answer.clone(), asked.clone()));
        }
    });
    (address, questions)
}

async fn probed(check: GrpcCheck, address: SocketAddr) -> ProbeResult {
    probe(&subject(CheckKind::Grpc(Arc::new(check)), address), PLENTY).await
}

#[tokio::test]
async fn it_asks_as_the_protocol_says() {
    let (address, mut questions) = server(serving(1)).await;
    let result = probed(GrpcCheck::default(), address).await;
    assert_eq!(seen(&result), (CheckCode::L7ok, "SERVING"));
    let (target, question) = questions.recv().await.unwrap();
    assert_eq!(target, format!("http://{address}/grpc.health.v1.Health/Check"));
    assert_eq!(question, [0, 0, 0, 0, 0]);

    let named = GrpcCheck {
        service: "a.B".to_owned(),
        host: Some("grpc.example".to_owned()),
        ..GrpcCheck::default()
    };
    assert_eq!(probed(named, address).await.code, CheckCode::L7ok);
    let (target, question) = questions.recv().await.unwrap();
    assert_eq!(target, "http://grpc.example/grpc.health.v1.Health/Check");
    assert_eq!(question, *b"\0\0\0\0\x05\x0a\x03a.B");
}

#[tokio::test]
async fn what_the_server_says_of_itself() {
    for (answer, code, detail) in [
        (serving(0), CheckCode::L7sts, "UNKNOWN"),
        (serving(2), CheckCode::L7sts, "NOT_SERVING"),
        (serving(3), CheckCode::L7sts, "SERVICE_UNKNOWN"),
        (serving(9), CheckCode::L7sts, "serving status 9"),
        (
            Answer {
                status: 503,
                ..serving(1)
            },
            CheckCode::L7sts,
            "HTTP status 503",
        ),
        (
            Answer {
                headers: vec![("content-type", "application/grpc"), ("grpc-status", "12")],
                body: None,
                trailers: None,
                status: 200,
            },
            CheckCode::L7sts,
            "gRPC status 12 (UNIMPLEMENTED)",
        ),
        (
            Answer {
                trailers: Some(vec![("grpc-status", "5")]),
                ..serving(1)
            },
            CheckCode::L7sts,
            "gRPC status 5 (NOT_FOUND)",
        ),
        (
            Answer {
                trailers: Some(vec![("grpc-status", "fine")]),
                ..serving(1)
            },
            CheckCode::L7rsp,
            "a gRPC status that is no number",
        ),
        (
            Answer {
                body: Some(b"<html>".to_vec()),
                ..serving(1)
            },
            CheckCode::L7rsp,
            "not an answer of the gRPC health service",
        ),
        (
            Answer {
                body: Some(vec![0; 5000]),
                ..serving(1)
            },
            CheckCode::L7rsp,
            "not an answer of the gRPC health service",
        ),
        (
            Answer {
                body: None,
                ..serving(1)
            },
            CheckCode::L7rsp,
            "not an answer of the gRPC health service",
        ),
    ] {
        let (address, _questions) = server(answer).await;
        let result = probed(GrpcCheck::default(), address).await;
        assert_eq!(seen(&result), (code, detail));
    }
}

#[tokio::test]
async fn over_tls() {
    let authority = Authority::new();
    let acceptor = acceptor(&authority.identity("grpc.example"), None, b"h2");
    let (listener, address) = listen().await;
    let (asked, mut questions) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serve(stream, serving(1), asked.clone()));
            }
        }
    });
    let check = GrpcCheck {
        over_tls: true,
        host: Some("grpc.example".to_owned()),
        tls: TlsCheck {
            ca_file: Some(authority.path()),
            ..TlsCheck::default()
        },
        ..GrpcCheck::default()
    };
    let stranger = GrpcCheck {
        host: Some("other.example".to_owned()),
        ..check.clone()
    };
    assert_eq!(seen(&probed(check, address).await), (CheckCode::L7ok, "SERVING"));
    assert_eq!(
        questions.recv().await.unwrap().0,
        "https://grpc.example/grpc.health.v1.Health/Check"
    );
    assert_eq!(
        seen(&probed(stranger, address).await),
        (CheckCode::L6rsp, "the certificate is for another name")
    );
}

#[tokio::test]
async fn what_is_no_http_2_fails() {
    for (says, detail) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
            Some("not HTTP/2 as it should be"),
        ),
        (b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", None),
        (b"", None),
    ] {
        let (listener, address) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(says).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let result = probed(GrpcCheck::default(), address).await;
        assert_eq!(result.code, CheckCode::L7rsp, "{}", result.detail);
        let detail = detail.unwrap_or("connection closed before an answer");
        assert!(result.detail.starts_with(detail), "{}", result.detail);
        server.await.unwrap();
    }
}

#[tokio::test]
async fn silence_and_refusal() {
    let check = || CheckKind::Grpc(Arc::new(GrpcCheck::default()));
    let (listener, address) = listen().await;
    let result = probe(&subject(check(), address), SHORT).await;
    assert_eq!(
        seen(&result),
        (CheckCode::L7tout, "no answer to the request within 100ms")
    );
    drop(listener);
    let (_socket, address) = refusing();
    let result = probe(&subject(check(), address), PLENTY).await;
    assert_eq!(seen(&result), (CheckCode::L4con, "connection refused"));
}

/// A body that never ends, within the window that we grant.
#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let endless = Answer {
        body: Some(vec![0; 10_000_000]),
        ..serving(1)
    };
    let (address, _questions) = server(endless).await;
    let result = probed(GrpcCheck::default(), address).await;
    assert_eq!(result.code, CheckCode::L7rsp, "{}", result.detail);
}

#[test]
fn fields_that_are_not_known_are_passed_over() {
    let framed = |message: &[u8]| [&[0, 0, 0, 0, message.len() as u8], message].concat();
    for (message, status) in [
        (&b""[..], Some(0)),
        (b"\x08\x01", Some(1)),
        (b"\x12\x02ab\x08\x02", Some(2)),
        (b"\x15abcd\x08\x01", Some(1)),
        (b"\x11abcdefgh\x08\x01", Some(1)),
        (b"\x08\x81\x01", Some(129)),
        (b"\x08", None),
        (b"\x12\x05ab", None),
        (b"\x0b", None),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", None),
    ] {
        assert_eq!(serving_status(&framed(message)), status, "{message:x?}");
    }
    assert_eq!(serving_status(b"\x01\0\0\0\x02\x08\x01"), None, "compressed");
    assert_eq!(serving_status(b"\0\0\0\0\x03\x08\x01"), None, "cut short");
}
