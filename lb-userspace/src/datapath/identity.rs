//! Between the addresses of user space and the keys of the maps.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::layout::{self, FAMILY_V4, FAMILY_V6};

use crate::model::{Protocol, ServiceKey};

/// The words and family of an address, in network order, as maps hold them.
#[must_use]
pub fn words(address: IpAddr) -> ([u32; 4], u8) {
    match address {
        IpAddr::V4(v4) => ([0, 0, 0, u32::from_ne_bytes(v4.octets())], FAMILY_V4),
        IpAddr::V6(v6) => {
            let octets = v6.octets();
            let word =
                |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
            ([word(0), word(4), word(8), word(12)], FAMILY_V6)
        }
    }
}

/// The address of [`words`]; `None` for an unknown family.
#[must_use]
pub fn address(words: [u32; 4], family: u8) -> Option<IpAddr> {
    match family {
        FAMILY_V4 => Some(Ipv4Addr::from(words[3].to_ne_bytes()).into()),
        FAMILY_V6 => {
            let mut octets = [0; 16];
            for (chunk, word) in octets.chunks_exact_mut(4).zip(words) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

/// The key of a service in the map.
#[must_use]
pub fn service_key(key: &ServiceKey) -> layout::ServiceKey {
    let (address, family) = words(key.address);
    layout::ServiceKey {
        address,
        port: key.port.to_be(),
        protocol: key.protocol.number(),
        family,
    }
}

/// The key that marks an address as some service's.
#[must_use]
pub fn address_key(address: IpAddr) -> layout::ServiceKey {
    let (address, family) = words(address);
    layout::ServiceKey {
        address,
        port: 0,
        protocol: 0,
        family,
    }
}

/// The service of a map key; `None` for the mark of an address.
#[must_use]
pub fn service_of(key: &layout::ServiceKey) -> Option<ServiceKey> {
    Some(ServiceKey {
        address: address(key.address, key.family)?,
        port: u16::from_be(key.port),
        protocol: Protocol::from_number(key.protocol)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_service_comes_back_from_its_key(v6: bool, bits: u128, port: u16, tcp: bool) {
            let address = if v6 { Ipv6Addr::from_bits(bits).into() } else { Ipv4Addr::from_bits(bits as u32).into() };
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let key = ServiceKey { address, port, protocol };
            prop_assert_eq!(service_of(&service_key(&key)), Some(key));
            prop_assert_eq!(service_of(&address_key(address)), None);
        }
    }

    #[test]
    fn keys_hold_the_bytes_of_the_packet() {
        let key = service_key(&ServiceKey {
            address: "192.0.2.10".parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
        });
        assert_eq!(key.address[3].to_ne_bytes(), [192, 0, 2, 10]);
        assert_eq!(key.port.to_ne_bytes(), [0, 80]);
    }
}
