//! What a load balancer may know of a QUIC packet.
//!
//! Of all versions (RFC 8999) the first bit tells long headers from short ones, a long header names the version and the
//! length of the connection id, and a short header begins with the id that the server chose, whose length only the server
//! knows. Of versions 1 (RFC 9000 section 17.2) and 2 (RFC 9369 section 3.2) the type of a long header is known too.
//!
//! ```text
//! long header    1 | type .. | version 32 | length of the id 8 | id ...
//! short header   0 | ...     | id ...
//! ```
//!
//! An id that the server chose can say which server that is (draft-ietf-quic-load-balancers, section 3 and "unencrypted"):
//!
//! ```text
//! config 3 | length of the id, or random 5 | server id, 1 to 15 bytes | nonce, 4 bytes at least
//! ```
//!
//! Ids of the first packets are the client's choice: by chance they may name a server as well, and then that server is
//! where the connection is opened, since packets with equal ids go to one place.

/// How many bytes of the payload of a datagram are looked at. A QUIC packet is never shorter (RFC 9000 section 10.3).
pub const LOOKED_AT: usize = 16;

/// Configurations that ids can belong to. The last number, 7, says that an id names no server.
pub const CONFIGS: usize = 7;

/// The longest server id that is read, in bytes.
pub const MAX_SERVER_ID: usize = 8;

const VERSION_1: u32 = 1;
const VERSION_2: u32 = 0x6b33_43cf;

/// What a packet is to those who follow its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A connection may begin with it: Initial, 0-RTT, and every long header of a version that is not known.
    Initial = 0,
    /// Of a connection that is being opened: Handshake.
    Handshake = 1,
    /// Anything else.
    Other = 2,
}

/// What the first bytes of a datagram say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub kind: Kind,
    /// The first byte of the id.
    pub first: u8,
    /// The eight bytes after it, the first one lowest. What lies behind the end of a short id is not 0.
    pub server: u64,
    /// How many of all these bytes are the id's, as far as can be told.
    pub length: u32,
}

impl Head {
    /// Reads the first [`LOOKED_AT`] bytes of the payload, as two words in the order of their bytes in memory.
    #[inline(always)]
    #[must_use]
    pub const fn read([low, high]: [u64; 2]) -> Self {
        if low & 0x80 == 0 {
            return Self {
                kind: Kind::Other,
                first: (low >> 8) as u8,
                server: low >> 16 | high << 48,
                length: 1 + MAX_SERVER_ID as u32,
            };
        }
        Self {
            kind: kind(low as u8, ((low >> 8) as u32).swap_bytes()),
            first: (low >> 48) as u8,
            server: low >> 56 | high << 8,
            length: (low >> 40) as u8 as u32,
        }
    }

    /// Which configuration the id belongs to; [`CONFIGS`]: none.
    #[inline(always)]
    #[must_use]
    pub const fn config(&self) -> u8 {
        self.first >> 5
    }

    /// Tells connections apart that a client opens from one port: equal for packets with equal ids.
    #[inline(always)]
    #[must_use]
    pub const fn number(&self) -> u32 {
        let id = match self.length {
            0 => return 0,
            1 => 0,
            length if length > MAX_SERVER_ID as u32 => self.server,
            length => self.server & (u64::MAX >> ((9 - length) * 8)),
        };
        (id as u32) ^ ((id >> 32) as u32).rotate_left(5) ^ (self.first as u32) << 12
    }

    /// The server id of so many bytes; `None` where the id is too short for it.
    #[inline(always)]
    #[must_use]
    pub const fn server_id(&self, length: u8) -> Option<u64> {
        if length == 0 || length as usize > MAX_SERVER_ID || self.length < 1 + length as u32 {
            return None;
        }
        Some(self.server & (u64::MAX >> ((MAX_SERVER_ID as u32 - length as u32) * 8)))
    }
}

#[inline(always)]
const fn kind(first: u8, version: u32) -> Kind {
    // Of version 1: Initial, 0-RTT, Handshake, Retry. Version 2 begins with Retry.
    let number = match version {
        VERSION_1 => first >> 4 & 3,
        VERSION_2 => (first >> 4).wrapping_sub(1) & 3,
        // A client sends no Version Negotiation.
        0 => 3,
        _ => 0,
    };
    match number {
        0 | 1 => Kind::Initial,
        2 => Kind::Handshake,
        _ => Kind::Other,
    }
}

/// A server of a service, by what its ids say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct ServerKey {
    /// The server id, its first byte lowest, the rest 0.
    pub server: u64,
    /// Index of the service.
    pub service: u32,
    /// Bits 0..8 length of the server id, 8..16 its configuration.
    pub form: u32,
}

impl ServerKey {
    #[inline(always)]
    #[must_use]
    pub const fn new(service: u32, config: u8, length: u8, server: u64) -> Self {
        Self {
            server,
            service,
            form: length as u32 | (config as u32) << 8,
        }
    }
}

/// How long the server ids of a service are, a byte for each configuration; 0: it is not in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Lengths(pub u64);

impl Lengths {
    #[inline(always)]
    #[must_use]
    pub const fn of(self, config: u8) -> u8 {
        (self.0 >> ((config as u32 & 7) * 8)) as u8
    }

    /// With the length of one more configuration.
    #[must_use]
    pub const fn with(self, config: u8, length: u8) -> Self {
        let shift = (config as u32 & 7) * 8;
        Self(self.0 & !(0xff << shift) | (length as u64) << shift)
    }
}

/// What each CPU counts about connection ids, by service that has server ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct QuicCounters {
    /// Packets that went where their id says.
    pub by_id: u64,
    /// Packets whose id names no backend, or is too short to: the client's own choice, or from elsewhere.
    pub unroutable: u64,
    /// Packets whose id names a backend that takes nothing (DOWN, in maintenance).
    pub gone: u64,
}

const _: () = {
    assert!(size_of::<ServerKey>() == 16 && align_of::<ServerKey>() == 8);
    assert!(size_of::<Lengths>() == 8);
    assert!(size_of::<QuicCounters>() == 24);
};

#[cfg(feature = "user")]
mod pod {
    //! SAFETY (all): `repr(C)` or `repr(transparent)`, of integers only, without padding (the sizes asserted above).
    use super::{Lengths, QuicCounters, ServerKey};

    // SAFETY: see the module.
    unsafe impl aya::Pod for ServerKey {}
    // SAFETY: see the module.
    unsafe impl aya::Pod for Lengths {}
    // SAFETY: see the module.
    unsafe impl aya::Pod for QuicCounters {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    fn head(hex: &str) -> Head {
        let mut payload = bytes(hex);
        payload.resize(payload.len().max(LOOKED_AT), 0xee);
        let word = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().unwrap());
        Head::read([word(0), word(8)])
    }

    fn server(id: &str) -> u64 {
        let mut padded = bytes(id);
        padded.resize(8, 0);
        u64::from_le_bytes(padded.try_into().unwrap())
    }

    /// RFC 9001 appendix A.2: a client's Initial, protected; A.5: a packet with a short header, of an empty id.
    #[test]
    fn packets_of_rfc_9001() {
        let initial = head("c000000001088394c8f03e5157080000449e7b9aec34d1b1c98dd7689fb8ec11");
        assert_eq!(
            (initial.kind, initial.first, initial.length),
            (Kind::Initial, 0x83, 8)
        );
        assert_eq!(initial.server_id(7), Some(server("94c8f03e515708")));
        assert_eq!(initial.server_id(8), None, "the id has eight bytes in all");
        assert_eq!(
            head("4cfe4189655e5cd55c41f69080575d7999c25a5bfb").kind,
            Kind::Other
        );
        // A.3: the server's answer, to a client without an id.
        let answer = head("cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a");
        assert_eq!(
            (answer.kind, answer.length, answer.server_id(1)),
            (Kind::Initial, 0, None)
        );
        // A.4: a Retry.
        assert_eq!(head("ff000000010008f067a5502a4262b5746f6b656e").kind, Kind::Other);
    }

    /// RFC 9369 appendix A.2 and A.3.
    #[test]
    fn packets_of_rfc_9369() {
        let initial = head("d76b3343cf088394c8f03e5157080000449ea0c95e82ffe67b6abcdb4298b485");
        assert_eq!(
            (initial.kind, initial.first, initial.length),
            (Kind::Initial, 0x83, 8)
        );
        assert_eq!(
            head("dc6b3343cf0008f067a5502a4262b5004075d92f").kind,
            Kind::Initial
        );
        assert_eq!(
            head("cf6b3343cf0008f067a5502a4262b5746f6b656e").kind,
            Kind::Other,
            "Retry"
        );
    }

    #[test]
    fn types_of_long_headers() {
        use Kind::{Handshake, Initial, Other};
        for (version, kinds) in [
            ("00000001", [Initial, Initial, Handshake, Other]),
            ("6b3343cf", [Other, Initial, Initial, Handshake]),
            ("ff00001d", [Initial; 4]),
            ("1a2a3a4a", [Initial; 4]),
            ("00000000", [Other; 4]),
        ] {
            for (number, kind) in kinds.into_iter().enumerate() {
                let first = 0xc0 | number << 4;
                assert_eq!(head(&format!("{first:02x}{version}0801020304050607")).kind, kind);
            }
        }
    }

    /// draft-ietf-quic-load-balancers, appendix B.1.
    #[test]
    fn ids_of_the_draft() {
        for (config, id, cid) in [
            (0, "c4605e", "07c4605e4504cc4f"),
            (1, "350d28b420", "2a350d28b4203487d9700b"),
        ] {
            let length = (id.len() / 2) as u8;
            let short = head(&format!("41{cid}"));
            assert_eq!(
                (short.config(), short.server_id(length)),
                (config, Some(server(id)))
            );
            let long = head(&format!("e100000001{:02x}{cid}", cid.len() / 2));
            assert_eq!(
                (long.config(), long.server_id(length)),
                (config, Some(server(id)))
            );
            assert_eq!(long.kind, Kind::Handshake);
        }
    }

    #[test]
    fn an_id_ends_where_its_length_says() {
        let with = |length: usize| head(&format!("c000000001{length:02x}0102030405060708090a"));
        for length in 0..=20 {
            for server in 0..=9_u8 {
                let there = (1..=8).contains(&server) && length > usize::from(server);
                assert_eq!(
                    with(length).server_id(server).is_some(),
                    there,
                    "{length} {server}"
                );
            }
        }
        // What is behind it does not count.
        let other = head("c00000000105010203040599aabbcc");
        assert_eq!(with(5).number(), other.number());
        assert_ne!(with(9).number(), with(5).number());
        assert_eq!(with(0).number(), 0);
    }

    #[test]
    fn lengths_by_configuration() {
        let lengths = Lengths::default().with(0, 3).with(6, 8).with(0, 2);
        let all: Vec<u8> = (0..8).map(|config| lengths.of(config)).collect();
        assert_eq!(all, [2, 0, 0, 0, 0, 0, 8, 0]);
    }
}
