//! Why a packet was transmitted, passed or dropped. Each reason is the index of its counter, and
//! determines the verdict: the tables of operators and the program cannot disagree.

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Sent out of the interface it came in by (`XDP_TX`).
    Tx,
    /// Sent out of another interface (`XDP_REDIRECT`).
    Redirect,
    /// Left to the kernel, untouched (`XDP_PASS`).
    Pass,
    /// Thrown away (`XDP_DROP`).
    Drop,
}

impl Verdict {
    /// The word that `simulate` and `stats` print.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tx => "tx",
            Self::Redirect => "redirect",
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $index:literal, $name:literal, $verdict:ident;)+) => {
        /// The reason for a verdict; also the index of its counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant = $index,)+
        }

        impl Reason {
            /// Every reason, in the order of its index.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// How many counters there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The word that operators see.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// What it means, in a line.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// What happens to a packet with this reason.
            #[inline(always)]
            #[must_use]
            pub const fn verdict(self) -> Verdict {
                match self { $(Self::$variant => Verdict::$verdict,)+ }
            }

            /// Whether the packet was written over with an answer that goes back to its sender.
            #[must_use]
            pub const fn is_answer(self) -> bool {
                matches!(
                    self,
                    Self::ArpReply
                        | Self::NeighborReply
                        | Self::ResetSent
                        | Self::TooBigAnswered
                        | Self::EchoReply
                        | Self::TtlExceededAnswered
                )
            }

            /// The reason with this index, if there is one.
            #[must_use]
            pub const fn from_index(index: u32) -> Option<Self> {
                match index { $($index => Some(Self::$variant),)+ _ => None }
            }
        }
    };
}

reasons! {
    /// Sent to a backend by the interface it came in by. Not counted by reason but by backend, as is
    /// `redirected`: forwarded packets are counted once.
    Transmitted = 0, "transmitted", Tx;
    /// Sent to a backend by another interface.
    Redirected = 1, "redirected", Redirect;
    /// An ARP request for a service address was answered (`announce = "l2"`).
    ArpReply = 2, "arp_reply", Tx;
    /// A neighbour solicitation for a service address was answered (`announce = "l2"`).
    NeighborReply = 3, "neighbor_reply", Tx;
    /// Neither IPv4 nor IPv6 (ARP, LLDP, ...), or a frame too short to tell.
    NotIp = 4, "not_ip", Pass;
    /// A VLAN tag: not looked into, or with `vlans` neither IP nor ARP behind two of them at most.
    Vlan = 5, "vlan", Pass;
    /// An IP header that is cut short or contradicts itself; no address to go by.
    BadHeader = 6, "bad_header", Pass;
    /// No service has this address, port and protocol.
    NotService = 7, "not_service", Pass;
    /// Neither TCP nor UDP, nor ICMP that concerns a service.
    OtherProtocol = 8, "other_protocol", Pass;
    /// The frame already bears the MAC of the backend that the packet belongs to: a switch flooded it.
    Flooded = 9, "flooded", Pass;
    /// To a service, but no backend may take it.
    NoBackend = 10, "no_backend", Drop;
    /// The chosen backend's next hop is not known.
    NoNextHop = 11, "no_next_hop", Drop;
    /// To a service, but the packet is cut short or its lengths contradict each other.
    Malformed = 12, "malformed", Drop;
    /// A later fragment to a service address whose first one was not seen, or too long ago.
    Fragment = 13, "fragment", Drop;
    /// To a service address, with more extension headers than are followed.
    ExtensionHeaders = 14, "extension_headers", Drop;
    /// Does not fit the way to the backend, and its sender could not be told: too many at a time, an IPv6 way below
    /// 1280 bytes, a later fragment, or itself an ICMP error.
    TooBig = 15, "too_big", Drop;
    /// No room before the packet for the outer header, or the outgoing interface cannot transmit.
    CannotSend = 16, "cannot_send", Drop;
    /// The backend of the connection is DOWN: the client was told by a reset in its name (`on_down = "reset"`).
    ResetSent = 17, "reset_sent", Tx;
    /// Does not fit the way to the backend: the sender was told by ICMP how long packets may be.
    TooBigAnswered = 18, "too_big_answered", Tx;
    /// An echo request to a service address was answered.
    EchoReply = 19, "echo_reply", Tx;
    /// An ICMP error to a service address that does not tell whose packet it is about.
    IcmpUnmatched = 20, "icmp_unmatched", Drop;
    /// The access list of the service does not let the client in.
    Denied = 21, "denied", Drop;
    /// A SYN beyond what the service takes in a second (`new_flows`).
    FlowLimit = 22, "flow_limit", Drop;
    /// A SYN beyond what the service takes from its client prefix in a second (`new_flows_per_client`).
    ClientFlowLimit = 23, "client_flow_limit", Drop;
    /// A datagram beyond what the service takes from its client prefix in a second (`udp_packets_per_client`).
    ClientPacketLimit = 24, "client_packet_limit", Drop;
    /// A backend's answer was sent on to the client by the interface it came in by (`nat`, `full-nat`).
    NatReply = 25, "nat_reply", Tx;
    /// A backend's answer was sent on to the client by another interface.
    NatReplyRedirected = 26, "nat_reply_redirected", Redirect;
    /// The table of translated flows is full: the new flow was refused.
    NatRefused = 27, "nat_refused", Drop;
    /// No address and port of ours is free towards the backend (`nat`: the client's own is taken): the new flow was
    /// refused.
    SnatPorts = 28, "snat_ports", Drop;
    /// To be translated, but its TTL or hop limit is used up, and its sender could not be told: too many at a time, a later
    /// fragment, or itself an ICMP error.
    TtlExceeded = 29, "ttl_exceeded", Drop;
    /// For a service of `nat` or `full-nat` while the part of the program that translates is missing.
    Nat = 30, "nat", Drop;
    /// To be translated, but its TTL or hop limit is used up: the sender was told by ICMP.
    TtlExceededAnswered = 31, "ttl_exceeded_answered", Tx;
    /// IPv4 without Don't Fragment that does not fit the way to the backend: passed to the kernel, whose routing table sends
    /// it to the interface `fragment_by` in pieces.
    LeftToFragment = 32, "left_to_fragment", Pass;
}

const _: () = assert!(Reason::COUNT <= crate::layout::REASON_SLOTS as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_dense_and_names_distinct() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert_eq!(Reason::from_index(index as u32), Some(*reason));
            assert_eq!(
                Reason::ALL
                    .iter()
                    .filter(|other| other.name() == reason.name())
                    .count(),
                1
            );
        }
        assert_eq!(Reason::from_index(Reason::COUNT as u32), None);
    }

    #[test]
    fn meanings_are_a_line_that_needs_no_source_to_read() {
        for reason in Reason::ALL {
            let meaning = reason.meaning();
            assert!(meaning.len() > 20 && !meaning.contains("[`"), "{meaning}");
            assert!(
                meaning.starts_with(|first: char| first.is_uppercase()),
                "{meaning}"
            );
            assert!(!meaning.contains("  ") && !meaning.contains('\n'), "{meaning}");
        }
    }
}
