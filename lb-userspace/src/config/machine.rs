//! What a configuration has to know about the machine it is for.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use crate::net::sysctl;

/// The interfaces and addresses of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub interfaces: BTreeSet<String>,
    pub addresses: BTreeSet<IpAddr>,
    /// First and last port that the machine gives its own connections, where that is known.
    pub local_ports: Option<(u16, u16)>,
}

impl Machine {
    /// Those of the network namespace of the caller.
    ///
    /// # Errors
    ///
    /// When the kernel does not tell (`getifaddrs(3)`).
    pub fn read() -> io::Result<Self> {
        let mut machine = Self {
            local_ports: sysctl::local_ports().ok(),
            ..Self::default()
        };
        for entry in nix::ifaddrs::getifaddrs()? {
            if let Some(address) = entry.address {
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
                machine.addresses.extend(v4.or(v6));
            }
            machine.interfaces.insert(entry.interface_name);
        }
        Ok(machine)
    }
}
