//! Makes the neighbourhood send us the packets of service addresses (`announce = "l2"`).
//!
//! The XDP program answers ARP requests and neighbour solicitations; two things are left to do. Hosts
//! that know another machine as the owner must learn of the change: [`announce`]. And solicitations,
//! which IPv6 sends to multicast groups, must reach the program: [`join_solicited_node`] for the card's
//! filter, and the reports that [`announce`] sends along for switches that filter multicast.

pub mod frames;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{MacAddress, ioctl};

/// Sends one announcement for each of `addresses` out of `interface`, in whose name `mac` answers.
///
/// A frame can get lost: RFC 5227 announces twice, two seconds apart. Switches that filter multicast
/// forget groups that were not reported for about four minutes, so a call every minute or two keeps
/// IPv6 addresses reachable through them.
///
/// # Errors
/// No permission (`CAP_NET_RAW`), no such interface, or the interface is down. Addresses before the
/// failed one were announced.
pub fn announce(interface: &str, mac: MacAddress, addresses: &[IpAddr]) -> io::Result<()> {
    if addresses.is_empty() {
        return Ok(());
    }
    let socket = PacketSocket::open(interface)?;
    let mut groups = BTreeSet::new();
    for address in addresses {
        match address {
            IpAddr::V4(v4) => socket.send(&frames::arp_announcement(mac, *v4))?,
            IpAddr::V6(v6) => {
                groups.insert(frames::solicited_node_group(*v6));
                socket.send(&frames::neighbor_advertisement(mac, *v6))?;
            }
        }
    }
    let groups: Vec<_> = groups.into_iter().collect();
    if groups.is_empty() {
        return Ok(());
    }
    let source = link_local_address(interface)?.unwrap_or(Ipv6Addr::UNSPECIFIED);
    for groups in groups.chunks(frames::GROUPS_PER_REPORT) {
        socket.send(&frames::listener_report(mac, source, groups))?;
    }
    Ok(())
}

/// Lets the card deliver neighbour solicitations for an address this machine does not hold.
///
/// The kernel keeps such an entry of the interface's multicast filter until it is removed or the
/// interface goes: it outlives the agent, as the program does. Joining twice is the same as once, so
/// the entry is also the one of an operator who made it with `ip maddress add`.
///
/// # Errors
/// No permission (`CAP_NET_ADMIN`), no such interface, or one that cannot filter multicast.
pub fn join_solicited_node(interface: &str, address: Ipv6Addr) -> io::Result<()> {
    multicast_filter(interface, libc::SIOCADDMULTI, address)
}

/// Undoes [`join_solicited_node`]; nothing happens if it was undone before.
///
/// Addresses with the same last 24 bits share one entry: it goes with the first of them. What the
/// kernel itself listens to, for addresses of its own, is counted apart and stays.
///
/// # Errors
/// As for joining.
pub fn leave_solicited_node(interface: &str, address: Ipv6Addr) -> io::Result<()> {
    match multicast_filter(interface, libc::SIOCDELMULTI, address) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn multicast_filter(interface: &str, request: libc::Ioctl, address: Ipv6Addr) -> io::Result<()> {
    let mac = frames::multicast_mac(frames::solicited_node_group(address));
    let mut ifreq = ioctl::request_for(interface)?;
    // SAFETY: all zeroes is a valid `sockaddr`; its family 0 (`AF_UNSPEC`) is what the kernel wants.
    let mut hardware: libc::sockaddr = unsafe { std::mem::zeroed() };
    for (byte, value) in hardware.sa_data.iter_mut().zip(mac) {
        *byte = value as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_hwaddr = hardware;
    // SAFETY: both requests read the name and `ifru_hwaddr`, which are filled in, and write nothing.
    unsafe { ioctl::call(request, &mut ifreq) }
}

/// The first link-local address of an interface, from which multicast reports have to come.
fn link_local_address(interface: &str) -> io::Result<Option<Ipv6Addr>> {
    let addresses = nix::ifaddrs::getifaddrs()?;
    Ok(addresses
        .filter(|entry| entry.interface_name == interface)
        .filter_map(|entry| Some(entry.address?.as_sockaddr_in6()?.ip()))
        .find(Ipv6Addr::is_unicast_link_local))
}

/// A socket that sends whole frames out of one interface, and receives nothing.
struct PacketSocket {
    socket: OwnedFd,
    destination: libc::sockaddr_ll,
}

impl PacketSocket {
    fn open(interface: &str) -> io::Result<Self> {
        let ifindex = nix::net::if_::if_nametoindex(interface)?;
        // SAFETY: no pointers are passed.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all zeroes is a valid `sockaddr_ll`.
        let mut destination: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        destination.sll_family = libc::AF_PACKET as u16;
        destination.sll_ifindex = ifindex as i32;
        Ok(Self {
            // SAFETY: the descriptor was just made, and nobody else has it.
            socket: unsafe { OwnedFd::from_raw_fd(socket) },
            destination,
        })
    }

    /// Sends a frame as it is; `sll_protocol` is taken from it.
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        let mut destination = self.destination;
        destination.sll_halen = 6;
        destination.sll_addr[..6].copy_from_slice(&frame[..6]);
        destination.sll_protocol = u16::from_ne_bytes([frame[12], frame[13]]);
        // SAFETY: frame and address are valid for the lengths passed.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const destination).cast(),
                size_of_val(&destination) as libc::socklen_t,
            )
        };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{Namespace, run_ip};

    #[test]
    fn neighbors_learn_the_new_owner() {
        let Some((balancer, client)) = Namespace::pair_or_skip("neighbors_learn_the_new_owner") else {
            return;
        };
        for (address, flags) in [("192.0.2.10", ""), ("2001:db8::10", "router")] {
            client.ip(&format!(
                "neighbor replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud stale {flags}"
            ));
        }
        balancer.run(|| async {
            let addresses = ["192.0.2.10", "2001:db8::10"].map(|address| address.parse().unwrap());
            announce("eth0", [2, 0, 0, 0, 0, 7], &addresses).unwrap();
            assert!(announce("eth9", [2, 0, 0, 0, 0, 7], &addresses).is_err());
        });
        client.wait_for("neighbor show 192.0.2.10", "02:00:00:00:00:07");
        client.wait_for("neighbor show 2001:db8::10", "02:00:00:00:00:07");
    }

    #[test]
    fn the_multicast_filter_is_joined_and_left() {
        let Some((balancer, _peer)) = Namespace::pair_or_skip("the_multicast_filter_is_joined_and_left")
        else {
            return;
        };
        balancer.run(|| async {
            let filter = || run_ip("maddress show dev eth0");
            let address = "2001:db8::ab:cdef".parse().unwrap();
            let group = "33:33:ff:ab:cd:ef";
            assert!(!filter().contains(group));
            join_solicited_node("eth0", address).unwrap();
            join_solicited_node("eth0", address).unwrap();
            assert!(filter().contains(group), "{}", filter());
            leave_solicited_node("eth0", address).unwrap();
            assert!(!filter().contains(group), "{}", filter());
            leave_solicited_node("eth0", address).unwrap();
            assert!(join_solicited_node("eth9", address).is_err());

            // Where the machine has an address in the same group, the group stays.
            let own = "33:33:ff:00:00:01";
            assert!(filter().contains(own));
            let address = "2001:db8::1".parse().unwrap();
            join_solicited_node("eth0", address).unwrap();
            leave_solicited_node("eth0", address).unwrap();
            assert!(filter().contains(own), "{}", filter());
        });
    }
}
