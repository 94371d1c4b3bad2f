//! The `icmp` check on loopback. Who may have no ping socket and no raw socket is told so.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::health::CheckKind;
use crate::health::probe::probe;
use crate::health::probe::tests::{PLENTY, SHORT, seen, subject};

fn may_not() -> bool {
    let probe = Probe {
        kind: CheckKind::Icmp,
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        source: None,
    };
    let refused = open(probe.address, &probe).is_err();
    if refused {
        println!("left out: neither ping sockets nor raw sockets for this user");
    }
    refused
}

#[tokio::test]
async fn this_machine_answers() {
    if may_not() {
        return;
    }
    let result = probe(
        &subject(CheckKind::Icmp, SocketAddr::from((Ipv4Addr::LOCALHOST, 80))),
        PLENTY,
    )
    .await;
    assert_eq!(seen(&result), (CheckCode::L4ok, "echo"));
    if tokio::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0))
        .await
        .is_err()
    {
        println!("left out: no IPv6 on this machine's loopback");
        return;
    }
    let result = probe(
        &subject(CheckKind::Icmp, SocketAddr::from((Ipv6Addr::LOCALHOST, 80))),
        PLENTY,
    )
    .await;
    assert_eq!(seen(&result), (CheckCode::L4ok, "echo"));
}

/// Probes that run at the same time do not take each other's echoes.
#[tokio::test]
async fn many_at_once() {
    if may_not() {
        return;
    }
    let probes = (1..=50).map(|last| async move {
        let address = SocketAddr::from(([127, 0, 0, last], 0));
        probe(&subject(CheckKind::Icmp, address), PLENTY).await.code
    });
    let codes = futures::future::join_all(probes).await;
    assert_eq!(codes, [CheckCode::L4ok; 50]);
}

/// The kernel sends nothing to a broadcast address for us.
#[tokio::test]
async fn what_cannot_be_sent_is_no_verdict() {
    if may_not() {
        return;
    }
    let broadcast = SocketAddr::from(([127, 255, 255, 255], 0));
    let result = probe(&subject(CheckKind::Icmp, broadcast), SHORT).await;
    assert_eq!(result.code, CheckCode::Sockerr, "{}", result.detail);
}

#[test]
fn only_the_echo_of_our_request_counts() {
    let nonce = 0x0102_0304_0506_0708;
    let mut reply = request(true, nonce);
    reply[0] = ECHO_REPLY;
    assert!(is_reply(&reply, SockType::Datagram, true, nonce));
    assert!(!is_reply(&reply, SockType::Datagram, true, nonce + 1));
    assert!(!is_reply(&reply[..15], SockType::Datagram, true, nonce));
    assert!(!is_reply(&[], SockType::Raw, true, nonce));
    assert!(
        !is_reply(&request(true, nonce), SockType::Datagram, true, nonce),
        "the request"
    );

    let behind_header = [&[0x46][..], &[0; 23], &reply].concat();
    assert!(is_reply(&behind_header, SockType::Raw, true, nonce));
    assert!(!is_reply(&behind_header, SockType::Raw, false, nonce));
}

/// A packet with its checksum in it sums up to all ones (RFC 1071).
#[test]
fn the_checksum_is_right() {
    for nonce in [0, 1, u64::MAX, 0xffff_0000_ffff_0001] {
        assert_eq!(checksum(&request(true, nonce)), 0, "{nonce:x}");
    }
}
