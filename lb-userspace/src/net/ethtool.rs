//! What the driver of an interface says about itself, as `ethtool` shows it.
//!
//! All of it is read with the ioctl `SIOCETHTOOL`, which needs no permission and works on every kernel;
//! the layouts are those of `linux/ethtool.h`.

use std::io;

use super::ioctl;

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// Who drives an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverInfo {
    pub driver: String,
    pub version: String,
    /// Where the device is, such as a PCI address; empty for virtual ones.
    pub bus: String,
}

/// Offloads that matter to an XDP program. `None`: the driver does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// The card merges received segments.
    pub lro: Option<bool>,
    /// The kernel merges received segments.
    pub gro: Option<bool>,
    /// The card takes VLAN tags off received frames.
    pub rx_vlan_strip: Option<bool>,
    /// The card fills in checksums of sent packets; a virtual interface leaves them empty.
    pub tx_checksum: Option<bool>,
}

/// How many queues an interface uses, and could use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channels {
    pub rx: u32,
    pub tx: u32,
    /// Queues that do both; most drivers have only these.
    pub combined: u32,
    pub max_rx: u32,
    pub max_tx: u32,
    pub max_combined: u32,
}

/// The driver of an interface.
///
/// # Errors
/// No such interface, or one whose driver says nothing (`EOPNOTSUPP`).
pub fn driver(interface: &str) -> io::Result<DriverInfo> {
    let mut info = RawDriverInfo {
        command: ETHTOOL_GDRVINFO,
        ..RawDriverInfo::default()
    };
    // SAFETY: the layout is that of `struct ethtool_drvinfo`.
    unsafe { ask(interface, &mut info)? };
    Ok(DriverInfo {
        driver: text(&info.driver),
        version: text(&info.version),
        bus: text(&info.bus_info),
    })
}

/// The offloads of an interface; those that cannot be had are `None`.
#[must_use]
pub fn features(interface: &str) -> Features {
    let flags = value(interface, ETHTOOL_GFLAGS).ok();
    let flag = |bit| flags.map(|flags| flags & bit != 0);
    let switch = |command| value(interface, command).ok().map(|value| value != 0);
    Features {
        lro: flag(ETH_FLAG_LRO),
        gro: switch(ETHTOOL_GGRO),
        rx_vlan_strip: flag(ETH_FLAG_RXVLAN),
        tx_checksum: switch(ETHTOOL_GTXCSUM),
    }
}

/// The queues of an interface.
///
/// # Errors
/// No such interface, or one whose queues are fixed (`EOPNOTSUPP`).
pub fn channels(interface: &str) -> io::Result<Channels> {
    let mut raw = RawChannels {
        command: ETHTOOL_GCHANNELS,
        ..RawChannels::default()
    };
    // SAFETY: the layout is that of `struct ethtool_channels`.
    unsafe { ask(interface, &mut raw)? };
    Ok(Channels {
        rx: raw.rx,
        tx: raw.tx,
        combined: raw.combined,
        max_rx: raw.max_rx,
        max_tx: raw.max_tx,
        max_combined: raw.max_combined,
    })
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
#[derive(Default)]
struct RawDriverInfo {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware_version: [u8; 32],
    bus_info: [u8; 32],
    rom_version: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

/// `struct ethtool_value`.
#[repr(C)]
struct RawValue {
    command: u32,
    value: u32,
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct RawChannels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

const _: () = assert!(size_of::<RawDriverInfo>() == 196);
const _: () = assert!(size_of::<RawValue>() == 8);
const _: () = assert!(size_of::<RawChannels>() == 36);

fn value(interface: &str, command: u32) -> io::Result<u32> {
    let mut raw = RawValue { command, value: 0 };
    // SAFETY: all commands passed here take a `struct ethtool_value`.
    unsafe { ask(interface, &mut raw)? };
    Ok(raw.value)
}

/// # Safety
/// `data` must have the layout that belongs to the command in its first field.
unsafe fn ask<T>(interface: &str, data: &mut T) -> io::Result<()> {
    let mut ifreq = ioctl::request_for(interface)?;
    ifreq.ifr_ifru.ifru_data = (&raw mut *data).cast();
    // SAFETY: the kernel reads and writes as much at the pointer as the layout has, says the caller;
    // `data` outlives the call.
    unsafe { ioctl::call(libc::SIOCETHTOOL, &mut ifreq) }
}

/// The text before the first zero byte.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Namespace;

    #[test]
    fn text_ends_at_the_first_zero() {
        assert_eq!(text(b"veth\0garbage"), "veth");
        assert_eq!(text(b"full"), "full");
    }

    #[test]
    fn a_veth_describes_itself() {
        let Some((namespace, _peer)) = Namespace::pair_or_skip("a_veth_describes_itself") else {
            return;
        };
        namespace.run(|| async {
            assert_eq!(driver("eth0").unwrap().driver, "veth");
            let features = features("eth0");
            assert_eq!(features.lro, Some(false));
            assert_eq!(features.tx_checksum, Some(true));
            assert!(features.gro.is_some() && features.rx_vlan_strip.is_some());
            let channels = channels("eth0").unwrap();
            assert_eq!((channels.rx, channels.tx, channels.combined), (1, 1, 0));
            assert!(channels.max_rx >= 1);

            let error = driver("eth9").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
            assert!(driver("a-name-longer-than-any-interface-can-have").is_err());
        });
    }
}
