//! The `dns` and `udp` checks against servers on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hickory_proto::op::OpCode;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record};
use tokio::net::UdpSocket as TokioSocket;

use super::*;
use crate::config::UdpCheck;
use crate::health::probe::probe;
use crate::health::probe::tests::{PLENTY, SHORT, seen, subject};
use crate::health::{CheckKind, ProbeResult};

/// A server that answers every datagram with those that `answer` makes of it.
async fn server(answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = TokioSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            for datagram in answer(&buffer[..length]) {
                let _ = socket.send_to(&datagram, from).await;
            }
        }
    });
    address
}

fn check() -> DnsCheck {
    DnsCheck {
        query: "www.example.com".to_owned(),
        ..DnsCheck::default()
    }
}

async fn probed(check: DnsCheck, address: SocketAddr) -> ProbeResult {
    probe(&subject(CheckKind::Dns(Arc::new(check)), address), PLENTY).await
}

/// The answer to a question, with one address.
fn answer_to(question: &[u8], code: ResponseCode) -> Message {
    let question = Message::from_vec(question).unwrap();
    let mut answer = Message::new();
    answer
        .set_id(question.id())
        .set_message_type(MessageType::Response)
        .set_op_code(OpCode::Query)
        .set_response_code(code)
        .add_query(question.queries()[0].clone());
    if code == ResponseCode::NoError {
        let data = RData::A(A(Ipv4Addr::new(192, 0, 2, 80)));
        answer.add_answer(Record::from_rdata(question.queries()[0].name().clone(), 60, data));
    }
    answer
}

#[tokio::test]
async fn an_answer_passes() {
    let address = server(|question| {
        let asked = Message::from_vec(question).unwrap();
        assert_eq!(asked.queries()[0].name().to_ascii(), "www.example.com.");
        assert_eq!(asked.queries()[0].query_type(), RecordType::A);
        vec![answer_to(question, ResponseCode::NoError).to_vec().unwrap()]
    })
    .await;
    assert_eq!(
        seen(&probed(check(), address).await),
        (CheckCode::L7ok, "NOERROR")
    );
    let expecting = |address: [u8; 4]| DnsCheck {
        expect_address: vec![IpAddr::from(address)],
        ..check()
    };
    assert_eq!(
        seen(&probed(expecting([192, 0, 2, 80]), address).await),
        (CheckCode::L7ok, "NOERROR, 192.0.2.80")
    );
    assert_eq!(
        seen(&probed(expecting([192, 0, 2, 81]), address).await),
        (CheckCode::L7rsp, "NOERROR, without an expected address")
    );
}

#[tokio::test]
async fn the_response_code_decides() {
    for (code, word) in [
        (ResponseCode::ServFail, "SERVFAIL"),
        (ResponseCode::NXDomain, "NXDOMAIN"),
        (ResponseCode::Refused, "REFUSED"),
        (ResponseCode::NotAuth, "response code 9"),
    ] {
        let address = server(move |question| vec![answer_to(question, code).to_vec().unwrap()]).await;
        assert_eq!(seen(&probed(check(), address).await), (CheckCode::L7sts, word));
        let tolerant = DnsCheck {
            expect_rcode: vec![Rcode::ServFail, Rcode::NxDomain, Rcode::Refused],
            ..check()
        };
        let expected = code != ResponseCode::NotAuth;
        assert_eq!(
            probed(tolerant, address).await.code == CheckCode::L7ok,
            expected,
            "{word}"
        );
    }
}

#[tokio::test]
async fn an_answer_that_was_cut_short_counts() {
    let address = server(|question| {
        let mut answer = answer_to(question, ResponseCode::NoError);
        answer.answers_mut().clear();
        answer.set_truncated(true);
        vec![answer.to_vec().unwrap()]
    })
    .await;
    assert_eq!(probed(check(), address).await.code, CheckCode::L7ok);
}

#[tokio::test]
async fn answers_to_other_questions_are_passed_over() {
    let address = server(|question| {
        let mut other_number = answer_to(question, ResponseCode::ServFail);
        other_number.set_id(other_number.id().wrapping_add(1));
        let mut other_name = answer_to(question, ResponseCode::ServFail);
        other_name.queries_mut()[0].set_name(Name::from_ascii("other.example.").unwrap());
        let right = answer_to(question, ResponseCode::NoError);
        [other_number, other_name, right]
            .map(|answer| answer.to_vec().unwrap())
            .to_vec()
    })
    .await;
    assert_eq!(
        seen(&probed(check(), address).await),
        (CheckCode::L7ok, "NOERROR")
    );
}

#[tokio::test]
async fn garbage_and_floods_of_it_fail() {
    let address = server(|question| vec![question[..5].to_vec()]).await;
    assert_eq!(
        seen(&probed(check(), address).await),
        (CheckCode::L7rsp, "the answer is no DNS message")
    );
    let address = server(|question| {
        let other = [!question[0], question[1]];
        vec![other.to_vec(); 40]
    })
    .await;
    assert_eq!(
        seen(&probed(check(), address).await),
        (CheckCode::L7rsp, "16 datagrams that are no DNS message")
    );
}

#[tokio::test]
async fn silence_and_a_closed_port() {
    let silent = TokioSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = silent.local_addr().unwrap();
    let udp = UdpCheck {
        send: b"ping".to_vec(),
        expect: None,
    };
    let kinds = [CheckKind::Dns(Arc::new(check())), CheckKind::Udp(Arc::new(udp))];
    for kind in &kinds {
        let result = probe(&subject(kind.clone(), address), SHORT).await;
        assert_eq!(seen(&result), (CheckCode::L7tout, "no answer within 100ms"));
    }
    drop(silent);
    for kind in kinds {
        let result = probe(&subject(kind, address), PLENTY).await;
        assert_eq!(seen(&result), (CheckCode::L4con, "connection refused"));
    }
}

#[tokio::test]
async fn udp_looks_for_what_is_expected() {
    let address = server(|datagram| vec![[b"you said ", datagram].concat()]).await;
    let udp = |expect: Option<&[u8]>| UdpCheck {
        send: b"\x00ping".to_vec(),
        expect: expect.map(<[u8]>::to_vec),
    };
    for (expect, code, detail) in [
        (None, CheckCode::L7ok, "an answer of 14 bytes"),
        (
            Some(&b"said \x00pi"[..]),
            CheckCode::L7ok,
            "an answer of 14 bytes",
        ),
        (
            Some(b"pong"),
            CheckCode::L7rsp,
            "an answer of 14 bytes, not the expected one",
        ),
    ] {
        let kind = CheckKind::Udp(Arc::new(udp(expect)));
        let result = probe(&subject(kind, address), PLENTY).await;
        assert_eq!(seen(&result), (code, detail));
    }
}

#[tokio::test]
async fn udp_without_a_route_is_no_verdict() {
    let kind = CheckKind::Udp(Arc::new(UdpCheck {
        send: b"x".to_vec(),
        expect: None,
    }));
    let broadcast = SocketAddr::from(([127, 255, 255, 255], 9));
    let result = probe(&subject(kind, broadcast), PLENTY).await;
    assert_eq!(result.code, CheckCode::Sockerr, "{}", result.detail);
}
