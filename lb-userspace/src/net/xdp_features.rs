//! What an interface can do with XDP, as the kernel itself says (from Linux 6.3 on).
//!
//! The kernel answers through a generic netlink family, `netdev`
//! (`Documentation/netlink/specs/netdev.yaml`). Older kernels do not have it, and nothing in them tells;
//! what their drivers can do is known from their sources only ([`driver_takes_xdp`]).

use std::io;

use rtnetlink::packet_core::{NLA_HEADER_SIZE, NlaBuffer, NlasIterator};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// What `netdev` reports, as a set of flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u64);

impl XdpFeatures {
    const BASIC: u64 = 1 << 0;
    const REDIRECT: u64 = 1 << 1;
    const NDO_XMIT: u64 = 1 << 2;
    const RX_SG: u64 = 1 << 5;

    /// The set with these bits, as the kernel numbers them (`enum netdev_xdp_act`).
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The driver runs XDP programs, and sends back out what they answer with `XDP_TX`.
    #[must_use]
    pub fn native(self) -> bool {
        self.0 & Self::BASIC != 0
    }

    /// Packets can be redirected from here to another interface.
    #[must_use]
    pub fn redirect(self) -> bool {
        self.0 & Self::REDIRECT != 0
    }

    /// Packets can be redirected to here. Many drivers can only while a program is attached.
    #[must_use]
    pub fn transmit(self) -> bool {
        self.0 & Self::NDO_XMIT != 0
    }

    /// Packets may lie in several buffers, so that they may be larger than a page.
    #[must_use]
    pub fn fragments(self) -> bool {
        self.0 & Self::RX_SG != 0
    }
}

/// Asks the kernel what an interface can do; `None` where it is too old to say.
///
/// # Errors
/// Where the socket breaks, or the interface does not exist.
pub fn xdp_features(ifindex: u32) -> io::Result<Option<XdpFeatures>> {
    const CTRL_FAMILY: u16 = 16;
    const CTRL_GET_FAMILY: u8 = 3;
    const CTRL_ATTRIBUTE_FAMILY_ID: u16 = 1;
    const CTRL_ATTRIBUTE_FAMILY_NAME: u16 = 2;
    const NETDEV_DEVICE_GET: u8 = 1;
    const NETDEV_ATTRIBUTE_IFINDEX: u16 = 1;
    const NETDEV_ATTRIBUTE_XDP_FEATURES: u16 = 3;

    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let question = message(
        CTRL_FAMILY,
        CTRL_GET_FAMILY,
        CTRL_ATTRIBUTE_FAMILY_NAME,
        b"netdev\0",
    );
    let family = match ask(&socket, &question, CTRL_ATTRIBUTE_FAMILY_ID) {
        Ok(Some(id)) => id.first_chunk().map(|id| u16::from_ne_bytes(*id)),
        Ok(None) => None,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
        Err(error) => return Err(error),
    };
    let Some(family) = family else {
        return Ok(None);
    };
    let question = message(
        family,
        NETDEV_DEVICE_GET,
        NETDEV_ATTRIBUTE_IFINDEX,
        &ifindex.to_ne_bytes(),
    );
    let flags = ask(&socket, &question, NETDEV_ATTRIBUTE_XDP_FEATURES)?;
    Ok(flags.and_then(|flags| Some(XdpFeatures::from_bits(u64::from_ne_bytes(*flags.first_chunk()?)))))
}

/// Whether a driver, by the name `ethtool` gives it, runs XDP programs in this version of the kernel.
/// Lists the drivers that are in wide use, each with the first version of which that is true; 5.10 is
/// the oldest we run on.
#[must_use]
pub fn driver_takes_xdp(driver: &str, kernel: (u32, u32)) -> bool {
    let since = match driver {
        "bnxt_en" | "cpsw" | "cpsw-switch" | "ena" | "fsl_dpaa2_eth" | "hv_netvsc" | "i40e" | "ice"
        | "igb" | "ixgbe" | "ixgbevf" | "mlx4_en" | "mlx5_core" | "mvneta" | "mvpp2" | "netsec" | "nfp"
        | "nicvf" | "qede" | "sfc" | "tun" | "veth" | "vif" | "virtio_net" => (5, 10),
        "fsl_dpa" => (5, 11),
        "fsl_enetc" | "igc" | "st_gmac" => (5, 13),
        "bonding" => (5, 15),
        "rvu-nicpf" => (5, 16),
        "mana" => (5, 17),
        "atlantic" => (5, 19),
        "fec" | "lan966x" => (6, 2),
        "gve" => (6, 4),
        "vmxnet3" => (6, 6),
        _ => return false,
    };
    kernel >= since
}

const NETLINK_HEADER_LEN: usize = 16;
const GENERIC_HEADER_LEN: usize = 4;

/// A request with one attribute.
fn message(family: u16, command: u8, attribute: u16, value: &[u8]) -> Vec<u8> {
    const REQUEST: u16 = 1;
    const VERSION: u8 = 1;
    let attribute_len = NLA_HEADER_SIZE + value.len();
    let padded = attribute_len.next_multiple_of(4);
    let length = NETLINK_HEADER_LEN + GENERIC_HEADER_LEN + padded;
    let mut message = Vec::with_capacity(length);
    message.extend((length as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    // Sequence number and port: one question at a time needs neither.
    message.extend([0; 8]);
    message.extend([command, VERSION, 0, 0]);
    message.extend((attribute_len as u16).to_ne_bytes());
    message.extend(attribute.to_ne_bytes());
    message.extend(value);
    message.resize(length, 0);
    message
}

/// Sends a request and returns one attribute of the answer. The kernel answers before `send` returns.
fn ask(socket: &Socket, question: &[u8], attribute: u16) -> io::Result<Option<Vec<u8>>> {
    socket.send(question, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    read(&answer, attribute)
}

fn read(answer: &[u8], attribute: u16) -> io::Result<Option<Vec<u8>>> {
    const ERROR: u16 = 2;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed netlink answer");
    let (header, body) = answer
        .split_first_chunk::<NETLINK_HEADER_LEN>()
        .ok_or_else(malformed)?;
    if u16::from_ne_bytes([header[4], header[5]]) == ERROR {
        let code = i32::from_ne_bytes(*body.first_chunk().ok_or_else(malformed)?);
        return match code {
            0 => Ok(None),
            code => Err(io::Error::from_raw_os_error(-code)),
        };
    }
    let attributes = body.get(GENERIC_HEADER_LEN..).ok_or_else(malformed)?;
    for found in NlasIterator::new(attributes) {
        let found: NlaBuffer<&[u8]> = found.map_err(|_| malformed())?;
        if found.kind() == attribute {
            return Ok(Some(found.value().to_vec()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::link::link_by_name;
    use crate::net::netlink::Netlink;
    use crate::net::testing::Namespace;

    #[test]
    fn a_message_is_padded_and_carries_its_length() {
        let bytes = message(0x10, 3, 2, b"netdev\0");
        assert_eq!(bytes.len(), 16 + 4 + 12);
        assert_eq!(bytes[..4], 32u32.to_ne_bytes());
        assert_eq!(bytes[20..22], 11u16.to_ne_bytes());
        assert_eq!(&bytes[24..], b"netdev\0\0");
    }

    #[test]
    fn answers_are_read() {
        let answer = message(0x20, 1, 3, &7u64.to_ne_bytes());
        assert_eq!(read(&answer, 3).unwrap(), Some(7u64.to_ne_bytes().to_vec()));
        assert_eq!(read(&answer, 4).unwrap(), None);
        let mut refusal = vec![0; 20];
        refusal[4] = 2;
        refusal[16..].copy_from_slice(&(-libc::ENODEV).to_ne_bytes());
        assert_eq!(read(&refusal, 3).unwrap_err().raw_os_error(), Some(libc::ENODEV));
        for length in 0..answer.len() {
            // Whatever is cut off: an error or nothing found, no panic.
            assert_eq!(read(&answer[..length], 3).ok().flatten(), None, "{length}");
        }
    }

    #[test]
    fn drivers_are_known_by_name_and_kernel() {
        assert!(driver_takes_xdp("mlx5_core", (5, 10)));
        assert!(!driver_takes_xdp("vmxnet3", (6, 5)));
        assert!(driver_takes_xdp("vmxnet3", (6, 6)));
        assert!(!driver_takes_xdp("e1000", (6, 18)));
    }

    #[test]
    fn the_kernel_knows_what_a_veth_can_do() {
        let Some((namespace, _peer)) = Namespace::pair_or_skip("the_kernel_knows_what_a_veth_can_do") else {
            return;
        };
        namespace.run(|| async {
            let netlink = Netlink::open().unwrap();
            let eth0 = link_by_name(&netlink, "eth0").await.unwrap().unwrap();
            let Some(veth) = xdp_features(eth0.ifindex).unwrap() else {
                eprintln!("SKIPPED: this kernel is older than 6.3");
                return;
            };
            assert!(veth.native() && veth.redirect(), "{veth:?}");
            assert!(!veth.transmit(), "its peer takes no part: {veth:?}");
            let lo = link_by_name(&netlink, "lo").await.unwrap().unwrap();
            assert!(!xdp_features(lo.ifindex).unwrap().unwrap().native());
            assert!(xdp_features(4_000_000).is_err());
        });
    }
}
