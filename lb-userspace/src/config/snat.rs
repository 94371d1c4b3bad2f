//! The addresses and ports that `full-nat` rewrites sources to.

use std::net::IpAddr;

use lb_common::nat::MAX_SNAT_ADDRESSES;

use super::fault::{Report, Reported};
use super::keys;
use super::machine::Machine;
use super::value;
use super::walk::Walk;

/// What `full-nat` rewrites sources to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snat {
    /// None twice, at most 16 of each family.
    pub addresses: Vec<IpAddr>,
    pub first_port: u16,
    pub last_port: u16,
}

impl Snat {
    /// The addresses of the family of `like`.
    pub fn of_family(&self, like: IpAddr) -> impl Iterator<Item = IpAddr> + '_ {
        let addresses = self.addresses.iter().copied();
        addresses.filter(move |address| address.is_ipv4() == like.is_ipv4())
    }

    /// How many ports there are of each address.
    #[must_use]
    pub fn ports(&self) -> u32 {
        u32::from(self.last_port) - u32::from(self.first_port) + 1
    }
}

/// The part of `[agent]`.
pub(super) fn read(
    walk: &Walk<'_, '_>,
    machine: Option<&Machine>,
    report: &Report<'_>,
) -> Result<Snat, Reported> {
    let items = walk
        .list(&keys::SNAT_ADDRESSES, value::routable_address)?
        .unwrap_or_default();
    let (first_port, last_port) = walk.or_default(&keys::SNAT_PORTS, value::ports)?;
    let mut snat = Snat {
        addresses: Vec::new(),
        first_port,
        last_port,
    };
    for at in items {
        let address = at.value;
        if snat.addresses.contains(&address) {
            report.fault(
                at.offset,
                format!("the address {address} is named twice"),
                "each address once",
            );
            continue;
        }
        if snat.of_family(address).count() == MAX_SNAT_ADDRESSES {
            report.fault_with_rest(
                at.offset,
                format!("{address} is one address too many"),
                format!("at most {MAX_SNAT_ADDRESSES} addresses of each family"),
            );
        }
        let own = machine.filter(|machine| machine.addresses.contains(&address));
        if let Some((first, last)) = own.and_then(|machine| machine.local_ports)
            && first_port <= last
            && first <= last_port
        {
            report.fault_with_rest(
                at.offset,
                format!(
                    "{address} is an address of this machine, whose own connections use the ports {first} to {last} \
                     (ip_local_port_range), and snat_ports is \"{first_port}-{last_port}\""
                ),
                "an address that nothing else uses, or `snat_ports` beside them",
            );
        }
        snat.addresses.push(address);
    }
    Ok(snat)
}
