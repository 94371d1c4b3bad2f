//! The addresses of this machine.

use std::net::IpAddr;

use futures::StreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use super::netlink::{self, Netlink, NetlinkError};

/// Every address of this namespace, with its prefix and the interface it is on.
///
/// # Errors
/// Where the kernel cannot be asked.
pub async fn local_addresses(netlink: &Netlink) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
    let answers = netlink.handle().address().get().execute().boxed();
    let messages = netlink::collect("list its addresses", answers).await?;
    Ok(messages.iter().filter_map(parse).collect())
}

/// On a point-to-point link `IFA_ADDRESS` is the address of the other side; `IFA_LOCAL`, which IPv6
/// has only there, is ours.
fn parse(message: &AddressMessage) -> Option<(u32, IpNet)> {
    let mut address: Option<IpAddr> = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => address = Some(*local),
            AddressAttribute::Address(other) if address.is_none() => address = Some(*other),
            _ => {}
        }
    }
    let network = IpNet::new(address?, message.header.prefix_len).ok()?;
    Some((message.header.index, network))
}
