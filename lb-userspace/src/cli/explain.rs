//! `xlb explain`.

use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::ensure;
use clap::Args;

use super::outcome::{Context, Outcome, Screen};
use super::source::Pins;
use crate::datapath::explain::{
    self, BackendSaid, EntrySaid, Explanation, Outer, Query, Rewritten, Sent, ServiceSaid, SlotSaid,
    TableSaid,
};
use crate::model::{Protocol, ServiceKey};

/// Say which way one packet goes, and why.
///
/// The packet runs through the program over the tables in force, beside the program that is attached: nothing is sent,
/// no entry is written, no counter changes. Needs root, but no agent.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  xlb explain 203.0.113.7:40000 192.0.2.10:80/tcp          a segment of a connection
  xlb explain 203.0.113.7:40000 192.0.2.10:80/tcp --syn    one that opens it
  xlb explain 10.0.1.11:8080 203.0.113.7:40000/tcp         a backend's answer, where addresses are translated
  xlb explain [2001:db8::7]:5353 [2001:db8::53]:53/udp --length 1500
  xlb explain 203.0.113.7:40000 192.0.2.10:443/udp --quic-dcid 00a1b2c3d4e5f607")]
pub(super) struct Arguments {
    /// Where the packet comes from, ADDRESS:PORT; an IPv6 address in brackets.
    #[arg(value_name = "SRC:PORT")]
    from: SocketAddr,
    /// Where it goes, ADDRESS:PORT/tcp or ADDRESS:PORT/udp.
    #[arg(value_name = "VIP:PORT/PROTOCOL", value_parser = service)]
    to: ServiceKey,
    /// It opens a connection (TCP, and QUIC with --quic-dcid).
    #[arg(long)]
    syn: bool,
    /// It is QUIC with this connection id, in hexadecimal: an Initial packet with --syn, else one with a short header (UDP).
    #[arg(long, value_name = "HEX", value_parser = connection_id)]
    quic_dcid: Option<ConnectionId>,
    /// Bytes of the IP packet; its headers at least, which is also the default.
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..=3400))]
    length: u16,
    #[command(flatten)]
    pins: Pins,
}

/// A connection id of QUIC.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ConnectionId(Vec<u8>);

/// The longest one (RFC 9000 section 17.2).
const LONGEST_ID: usize = 20;

fn connection_id(text: &str) -> Result<ConnectionId, String> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2) && digits.len() / 2 <= LONGEST_ID);
    let digits = digits.ok_or("expected at most 20 bytes in hexadecimal, such as 00a1b2c3d4e5f607")?;
    let bytes = digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8);
    Ok(ConnectionId(bytes.collect()))
}

fn service(text: &str) -> Result<ServiceKey, String> {
    let parse = || {
        let (place, protocol) = text.rsplit_once('/')?;
        let place: SocketAddr = place.parse().ok()?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return None,
        };
        Some(ServiceKey {
            address: place.ip(),
            port: place.port(),
            protocol,
        })
    };
    parse().ok_or_else(|| "expected ADDRESS:PORT/tcp or ADDRESS:PORT/udp, such as 192.0.2.10:80/tcp".into())
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let Arguments {
        from,
        to,
        syn,
        quic_dcid,
        length,
        pins,
    } = arguments;
    ensure!(
        from.is_ipv4() == to.address.is_ipv4(),
        "{from} and {to} are of different address families"
    );
    ensure!(
        !syn || to.protocol == Protocol::Tcp || quic_dcid.is_some(),
        "--syn is for TCP, and for QUIC with --quic-dcid; {to} is UDP"
    );
    ensure!(
        quic_dcid.is_none() || to.protocol == Protocol::Udp,
        "--quic-dcid is for UDP, and {to} is TCP"
    );
    let query = Query {
        source: *from,
        service: *to,
        syn: *syn,
        length: *length,
        quic_dcid: quic_dcid.clone().map(|ConnectionId(id)| id),
    };
    let explanation = explain::explain(&pins.pin_dir, &query)?;
    context.show(&explanation, render)
}

fn render(explanation: &Explanation, _: &Screen) -> String {
    let mut text = String::new();
    let mut line = |what: &str, how: String| {
        let _ = writeln!(text, "{what:<10} {how}");
    };
    let Explanation {
        packet,
        verdict,
        reason,
        service,
        table,
        slot,
        entry,
        backend,
        sent,
        notes,
    } = explanation;
    let kind = match (packet.protocol, packet.syn) {
        (Protocol::Tcp, true) => " SYN",
        _ => "",
    };
    line(
        "packet",
        format!(
            "{} > {}/{}{kind}",
            packet.source, packet.destination, packet.protocol
        ),
    );
    match service {
        None => line("service", "none has this address, port and protocol".into()),
        Some(ServiceSaid {
            name,
            forward,
            tracking,
        }) => {
            let forward = forward.map_or_else(|| "?".to_owned(), |forward| forward.to_string());
            line("service", format!("{name}, {forward}, tracking {tracking}"));
        }
    }
    let or_nobody =
        |place: &Option<SocketAddr>| place.map_or_else(|| "nobody".into(), |place| place.to_string());
    if let Some(TableSaid {
        slots,
        generation,
        resizing,
    }) = table
    {
        let resizing = if *resizing { ", being resized" } else { "" };
        line(
            "table",
            format!("{slots} slots, generation {generation}{resizing}"),
        );
    }
    if let Some(SlotSaid {
        number,
        new_flows,
        old_flows,
        moving,
    }) = slot
    {
        let owners = if *moving {
            format!(
                "moving: new flows to {}, old ones to {}",
                or_nobody(new_flows),
                or_nobody(old_flows)
            )
        } else {
            or_nobody(new_flows)
        };
        line("slot", format!("{number}, {owners}"));
        match entry {
            None if *moving => line("entry", "none".into()),
            None => {}
            Some(EntrySaid {
                backend,
                state,
                idle_ms,
            }) => line(
                "entry",
                format!("{}, {state}, last packet {idle_ms} ms ago", or_nobody(backend)),
            ),
        }
    }
    if let Some(BackendSaid {
        address,
        state,
        admin,
        standing,
        packet_mtu,
    }) = backend
    {
        line("backend", format!("{address}, {state} {admin}, {standing}"));
        if let Some(mtu) = packet_mtu {
            line("MTU", format!("packets of up to {mtu} bytes"));
        }
    }
    if let Some(sent) = sent {
        line("sent", way(sent));
    }
    line("verdict", format!("{verdict} ({reason})"));
    for note in notes {
        line("note", note.clone());
    }
    text
}

fn way(sent: &Sent) -> String {
    let Sent {
        interface,
        destination_mac,
        source_mac: _,
        vlans,
        outer,
        rewritten,
        bytes,
    } = sent;
    let interface = interface.as_deref().unwrap_or("an interface that is gone");
    let mut text = format!("by {interface} to {destination_mac}, {bytes} bytes");
    for vlan in vlans {
        let _ = write!(text, ", VLAN {vlan}");
    }
    if let Some(Outer {
        source,
        destination,
        source_port,
    }) = outer
    {
        let _ = write!(text, ", outer header {source} > {destination}");
        if let Some(port) = source_port {
            let _ = write!(text, " UDP {port} > {}", lb_common::layout::GUE_PORT);
        }
    }
    if let Some(Rewritten { source, destination }) = rewritten {
        let _ = write!(text, ", rewritten to {source} > {destination}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::explain::PacketSaid;
    use crate::model::{AdminState, Forward, OperState, Tracking};

    #[test]
    fn places_with_protocols() {
        let key = service("192.0.2.10:80/tcp").unwrap();
        assert_eq!(key.to_string(), "192.0.2.10:80/tcp");
        let key = service("[2001:db8::1]:53/udp").unwrap();
        assert_eq!(key.to_string(), "[2001:db8::1]:53/udp");
        for wrong in ["192.0.2.10:80", "192.0.2.10/tcp", "192.0.2.10:80/sctp", "web", ""] {
            assert!(service(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_a_translated_packet_becomes() {
        let sent = Sent {
            interface: Some("eth0".into()),
            destination_mac: "02:00:0a:00:01:0c".into(),
            source_mac: "02:00:00:00:00:01".into(),
            vlans: Vec::new(),
            outer: None,
            rewritten: Some(Rewritten {
                source: "[2001:db8::5]:1024".parse().unwrap(),
                destination: "[2001:db8:1::11]:8080".parse().unwrap(),
            }),
            bytes: 74,
        };
        let expected = "by eth0 to 02:00:0a:00:01:0c, 74 bytes, \
                        rewritten to [2001:db8::5]:1024 > [2001:db8:1::11]:8080";
        assert_eq!(way(&sent), expected);
    }

    #[test]
    fn ids_in_hexadecimal() {
        assert_eq!(connection_id("00A1b2"), Ok(ConnectionId(vec![0, 0xa1, 0xb2])));
        assert_eq!(connection_id(""), Ok(ConnectionId(vec![])));
        for wrong in ["0", "+1", "0x00", &"00".repeat(21)] {
            assert!(connection_id(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_way_of_a_packet() {
        let place = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let explanation = Explanation {
            packet: PacketSaid {
                source: place("203.0.113.7:40000"),
                destination: place("192.0.2.10:80"),
                protocol: Protocol::Tcp,
                syn: true,
                length: 0,
            },
            verdict: "redirect".into(),
            reason: "redirected".into(),
            service: Some(ServiceSaid {
                name: "web".into(),
                forward: Some(Forward::DsrGue),
                tracking: Tracking::Moved,
            }),
            table: Some(TableSaid {
                slots: 4093,
                generation: 7,
                resizing: false,
            }),
            slot: Some(SlotSaid {
                number: 17,
                new_flows: Some(place("10.0.1.12:80")),
                old_flows: Some(place("10.0.1.11:80")),
                moving: true,
            }),
            entry: None,
            backend: Some(BackendSaid {
                address: place("10.0.1.12:80"),
                state: OperState::Up,
                admin: AdminState::Ready,
                standing: "serves".into(),
                packet_mtu: Some(1472),
            }),
            sent: Some(Sent {
                interface: Some("eth0".into()),
                destination_mac: "02:00:0a:00:01:0c".into(),
                source_mac: "02:00:00:00:00:01".into(),
                vlans: vec![100],
                outer: Some(Outer {
                    source: "10.0.0.2".parse().unwrap(),
                    destination: "10.0.1.12".parse().unwrap(),
                    source_port: Some(50_000),
                }),
                rewritten: None,
                bytes: 86,
            }),
            notes: Vec::new(),
        };
        let expected = "\
packet     203.0.113.7:40000 > 192.0.2.10:80/tcp SYN
service    web, dsr-gue, tracking moved
table      4093 slots, generation 7
slot       17, moving: new flows to 10.0.1.12:80, old ones to 10.0.1.11:80
entry      none
backend    10.0.1.12:80, UP READY, serves
MTU        packets of up to 1472 bytes
sent       by eth0 to 02:00:0a:00:01:0c, 86 bytes, VLAN 100, outer header 10.0.0.2 > 10.0.1.12 UDP 50000 > 6080
verdict    redirect (redirected)
";
        assert_eq!(render(&explanation, &super::super::tests::screen(None)), expected);
    }
}
