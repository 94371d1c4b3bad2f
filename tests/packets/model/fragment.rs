//! Fragments (RFC 791, RFC 8200 section 4.5): the first of a datagram goes where its flow goes, the others follow.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use lb_common::reason::Reason;

use super::{Expected, FRAGMENT, Model, Packet, TCP, UDP, be, walk};

/// What the fragments of a datagram have in common; the protocol counts for IPv4 only.
type Key = (IpAddr, IpAddr, u32, Option<u8>);

/// The service and the backend of datagrams, `None`: no service's; and when their first fragment came.
pub type Remembered = HashMap<Key, (Option<(usize, IpAddr)>, Instant)>;

/// So long a first fragment is remembered for certain. The program forgets it a second later.
const CERTAIN: Duration = Duration::from_secs(29);

impl Model {
    pub(super) fn fragment_v4(
        &mut self,
        packet: &Packet<'_>,
        protocol: u8,
        identification: u32,
        offset: usize,
        header: usize,
    ) -> Expected {
        if !self.has_address(packet.destination) {
            return Reason::NotService.into();
        }
        if !matches!(protocol, TCP | UDP) {
            return Reason::OtherProtocol.into();
        }
        let key = (packet.source, packet.destination, identification, Some(protocol));
        if offset == 0 {
            self.first(packet, key, true, protocol, header)
        } else {
            self.later(packet, &key)
        }
    }

    pub(super) fn fragment_v6(&mut self, packet: &Packet<'_>, offset: usize) -> Expected {
        if !self.has_address(packet.destination) {
            return Reason::NotService.into();
        }
        let Some(header) = packet.bytes.get(offset..offset + 8) else {
            return Reason::Malformed.into();
        };
        let identification = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let key = (packet.source, packet.destination, identification, None);
        let (place, more) = (be(header, 2) >> 3, header[3] & 1 != 0);
        if place != 0 {
            return self.later(packet, &key);
        }
        match walk(packet.bytes, header[0], offset + 8) {
            Ok((protocol @ (TCP | UDP), offset)) => self.first(packet, key, more, protocol, offset),
            Ok((FRAGMENT, _) | (_, _)) => Reason::OtherProtocol.into(),
            Err(_) => Reason::Malformed.into(),
        }
    }

    fn first(&mut self, packet: &Packet<'_>, key: Key, more: bool, protocol: u8, offset: usize) -> Expected {
        let expected = self.transport(packet, protocol, offset);
        match &expected {
            Expected::Placed { service, backend, .. } if more => {
                let place = Some((*service, *backend));
                self.fragments.insert(key, (place, Instant::now()));
            }
            Expected::Judged {
                reason: Reason::NotService,
                ..
            } => {
                self.fragments.insert(key, (None, Instant::now()));
            }
            _ => {}
        }
        expected
    }

    fn later(&mut self, packet: &Packet<'_>, key: &Key) -> Expected {
        let found = self.fragments.get(key);
        self.unsure = found.is_some_and(|(_, at)| at.elapsed() > CERTAIN);
        match found {
            None => Reason::Fragment.into(),
            Some((None, _)) => Reason::NotService.into(),
            Some((Some((service, backend)), _)) => Expected::Placed {
                service: *service,
                backend: *backend,
                length: packet.bytes.len(),
                quiet: true,
            },
        }
    }
}
