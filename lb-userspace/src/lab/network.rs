//! The network: a client, the load balancer's machine and the backends, each a namespace with one veth pair to
//! a switch, on IPv4 and IPv6.
//!
//! | who | addresses |
//! |---|---|
//! | client | 10.77.0.1, fd77::1 |
//! | lb | 10.77.0.2, fd77::2 |
//! | backend `n` | 10.77.0.(10+n), fd77::(10+n); the service addresses on `lo`, not answered for |
//!
//! The client's MTU is 1500 and that of all others 1600, so that a full packet of the client fits once it is
//! encapsulated. The client reaches the service addresses through the load balancer's address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;

use super::agent::PinFolder;
use super::flood::mac_of;
use super::netns::{Netns, ip, run};
use super::pass::Pass;
use super::process::binary;

/// Service addresses over IPv4, all of them on every backend.
pub const VIPS_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(192, 0, 2, 10),
    Ipv4Addr::new(192, 0, 2, 20),
    Ipv4Addr::new(192, 0, 2, 30),
];

/// Service addresses over IPv6.
pub const VIPS_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x20),
];

/// The networks that the service addresses are of.
/// Further addresses, of services with `dsr-gue`.
pub const GUE_VIPS_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 60), Ipv4Addr::new(192, 0, 2, 61)];
pub const GUE_VIP_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x60);
pub const VIPS_V4_NET: &str = "192.0.2.0/24";
pub const VIPS_V6_NET: &str = "2001:db8::/64";

/// The device of every machine.
pub const DEVICE: &str = "eth0";

/// What a lab is like.
#[derive(Clone, Copy, Debug)]
pub struct LabOptions {
    pub backends: u8,
    /// The service addresses are on the client's own link: it resolves them itself (`announce = "l2"`).
    pub on_link: bool,
    /// The load balancer reaches the backends through a second device, `eth1`, at addresses of their own
    /// (10.78.0.x, fd78::x).
    pub second_device: bool,
    /// Packets of 9000 bytes, 9100 once encapsulated, instead of 1500 and 1600.
    pub jumbo: bool,
    /// The backends unwrap what is encapsulated (`xlb decap`).
    pub decap: bool,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            backends: 3,
            on_link: false,
            second_device: false,
            jumbo: false,
            decap: false,
        }
    }
}

/// A machine of the lab.
#[derive(Debug)]
pub struct Host {
    /// Also the name of its port of the switch.
    pub name: String,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pass: Option<Pass>,
    decap: Option<PinFolder>,
}

impl Host {
    /// Its address of the family of `like`.
    #[must_use]
    pub fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() {
            self.v4.into()
        } else {
            self.v6.into()
        }
    }

    /// Unwraps what the load balancer encapsulates, with `xlb decap`.
    fn unwrap(&mut self) -> anyhow::Result<()> {
        // One program at a time: this one passes everything else too.
        self.pass = None;
        self.decap = Some(PinFolder::new("decap"));
        let lb = [SUBNET, SECOND_SUBNET].map(|subnet| addresses(subnet, LB));
        self.unwrap_from(&lb.map(|(v4, v6)| [v4.to_string(), v6.to_string()]).concat())
    }

    /// Changes whose packets are unwrapped, on a host that does it.
    ///
    /// # Errors
    /// Where it does not, or `xlb decap` fails.
    pub fn unwrap_from(&self, prefixes: &[String]) -> anyhow::Result<()> {
        self.unwrap_with(prefixes, &[])
    }

    /// As [`Host::unwrap_from`], with further options of `xlb decap attach`.
    ///
    /// # Errors
    /// As there.
    pub fn unwrap_with(&self, prefixes: &[String], options: &[&str]) -> anyhow::Result<()> {
        let pins = self.decap.as_ref().context("no xlb decap on this host")?;
        let mut command = self.netns.command(binary("xlb")?);
        command.args([
            "decap",
            "attach",
            "--interface",
            DEVICE,
            "--mode",
            "native",
            "--pin-dir",
        ]);
        command
            .arg(pins.path())
            .arg("--from")
            .args(prefixes)
            .args(options);
        run(&mut command).map(drop)
    }

    /// What `xlb decap` of this host counts.
    ///
    /// # Errors
    /// Where it is not attached.
    pub fn decap_status(&self) -> anyhow::Result<serde_json::Value> {
        let pins = self.decap.as_ref().context("no xlb decap on this host")?;
        let mut command = self.netns.command(binary("xlb")?);
        command
            .args(["decap", "status", "-o", "json", "--pin-dir"])
            .arg(pins.path());
        Ok(serde_json::from_str(&run(&mut command)?)?)
    }
}

/// The whole network; gone when dropped.
#[derive(Debug)]
pub struct Lab {
    pub switch: Netns,
    pub client: Host,
    pub lb: Host,
    pub backends: Vec<Host>,
    pass: Option<Pass>,
    _alone: MutexGuard<'static, ()>,
}

/// One lab at a time in a process: each of them can keep the machine busy.
static ALONE: Mutex<()> = Mutex::new(());

const LB: u8 = 2;
const SUBNET: u8 = 77;
const SECOND_SUBNET: u8 = 78;
/// The client's MTU, and that of all others.
const MTUS: (u32, u32) = (1500, 1600);
const JUMBO_MTUS: (u32, u32) = (9000, 9100);

impl Lab {
    /// The network of the first drawing, for services of every forward mode.
    ///
    /// # Errors
    /// Where something cannot be made (no root, a program is missing).
    pub fn new(options: LabOptions) -> anyhow::Result<Self> {
        let LabOptions {
            backends,
            on_link,
            second_device,
            jumbo,
            decap,
        } = options;
        let (client_mtu, mtu) = if jumbo { JUMBO_MTUS } else { MTUS };
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let switch = Netns::new("switch")?;
        switch.ip(&format!(
            "link add br0 mtu {mtu} type bridge mcast_snooping 0\nlink set br0 up\n"
        ))?;
        let mut ports = vec!["client".to_owned(), "lb".to_owned()];

        let client = plug(&switch, "client", 1, client_mtu)?;
        let (v4, v6) = addresses(SUBNET, LB);
        let (via4, via6) = if on_link {
            (format!("dev {DEVICE}"), format!("dev {DEVICE}"))
        } else {
            (format!("via {v4}"), format!("via {v6}"))
        };
        client.netns.ip(&format!(
            "route add {VIPS_V4_NET} {via4}\nroute add {VIPS_V6_NET} {via6}\n"
        ))?;
        // One client stands for many: it must not run out of ports.
        client
            .netns
            .sysctl("net/ipv4/ip_local_port_range", "1024 65000")?;
        client.netns.sysctl("net/ipv4/tcp_tw_reuse", "1")?;

        let lb = plug(&switch, "lb", LB, mtu)?;
        lb.netns.sysctl("net/ipv4/ip_forward", "0")?;
        if second_device {
            ports.push("lb1".into());
            cable(&switch, "lb1", &lb.netns, "eth1", mtu)?;
            let (v4, v6) = addresses(SECOND_SUBNET, LB);
            lb.netns.ip(&format!(
                "addr add {v4}/24 dev eth1\naddr add {v6}/64 dev eth1 nodad\n"
            ))?;
            // Both devices are on one link: each answers for its own addresses only.
            lb.netns.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
            lb.netns.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
        }

        let mut hosts = Vec::new();
        for n in 1..=backends {
            let name = format!("b{n}");
            let mut host = plug(&switch, &name, 10 + n, mtu)?;
            serve_addresses(&host.netns)?;
            if second_device {
                let (v4, v6) = addresses(SECOND_SUBNET, 10 + n);
                host.netns.ip(&format!(
                    "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n"
                ))?;
                (host.v4, host.v6) = (v4, v6);
            }
            host.pass = Some(Pass::attach(&host.netns, &[DEVICE])?);
            if decap {
                host.unwrap()?;
            }
            ports.push(name);
            hosts.push(host);
        }
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        let pass = Pass::attach(&switch, &ports)?;
        Ok(Self {
            switch,
            client,
            lb,
            backends: hosts,
            pass: Some(pass),
            _alone: alone,
        })
    }

    /// Pulls the cable of a machine.
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn cut(&self, host: &str) -> anyhow::Result<()> {
        self.switch.ip(&format!("link set {host} down\n"))
    }

    /// Plugs it in again.
    ///
    /// # Errors
    /// Where `ip` fails.
    pub fn mend(&self, host: &str) -> anyhow::Result<()> {
        self.switch.ip(&format!("link set {host} up\n"))
    }

    /// Has the switch send frames from port to port by XDP, without the kernel's bridge but for what goes to many. What it
    /// costs is the machines' processor time here; of a switch of its own it costs them none.
    ///
    /// # Errors
    /// Where the program cannot be loaded or attached.
    pub fn switch_by_xdp(&mut self) -> anyhow::Result<()> {
        let mut ports = Vec::new();
        for host in self.backends.iter_mut().chain([&mut self.client, &mut self.lb]) {
            // Takes the place of a program where frames come without the kernel's own buffer.
            host.netns.run(&format!("ethtool -K {DEVICE} gro on"))?;
            host.pass = None;
            ports.push((host.name.as_str(), host.netns.enter(|| mac_of(DEVICE))?));
        }
        self.pass = None;
        self.pass = Some(Pass::switching(&self.switch, &ports)?);
        Ok(())
    }

    /// Has no device on the switch take what XDP on its peer sends back, as a card does whose transmit queue is full.
    pub fn refuse_transmissions(&mut self) {
        self.pass = None;
    }

    /// Packets with a broken checksum that arrived anywhere. Frames that XDP forwards before their checksum was
    /// filled in count here.
    ///
    /// # Errors
    /// Where a counter cannot be read.
    pub fn checksum_errors(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for host in self.backends.iter().chain([&self.client]) {
            sum += host.netns.counter("Tcp", "InCsumErrors")? + host.netns.counter("Udp", "InCsumErrors")?;
        }
        Ok(sum)
    }

    /// Packets that XDP of the load balancer's device wanted to send back and veth did not take.
    ///
    /// # Errors
    /// Where `ethtool` fails or does not know the counter.
    pub fn tx_errors(&self) -> anyhow::Result<u64> {
        let text = self.lb.netns.run("ethtool -S eth0")?;
        let counts = text.lines().filter_map(|line| {
            let (name, value) = line.trim().split_once(": ")?;
            name.contains("xdp_tx_errors")
                .then(|| value.parse::<u64>().ok())?
        });
        let counts: Vec<u64> = counts.collect();
        anyhow::ensure!(!counts.is_empty(), "no counter xdp_tx_errors in:\n{text}");
        Ok(counts.iter().sum())
    }
}

/// A machine on the switch.
fn plug(switch: &Netns, name: &str, host: u8, mtu: u32) -> anyhow::Result<Host> {
    let netns = Netns::new(name)?;
    cable(switch, name, &netns, DEVICE, mtu)?;
    let (v4, v6) = addresses(SUBNET, host);
    netns.ip(&format!(
        "addr add {v4}/24 dev {DEVICE}\naddr add {v6}/64 dev {DEVICE} nodad\n"
    ))?;
    Ok(Host {
        name: name.into(),
        netns,
        v4,
        v6,
        pass: None,
        decap: None,
    })
}

/// A veth pair from a port of the switch to a device of a machine. Checksums are filled in before they leave:
/// XDP forwards frames as they are.
fn cable(switch: &Netns, port: &str, netns: &Netns, device: &str, mtu: u32) -> anyhow::Result<()> {
    ip(
        None,
        &format!(
            "link add {device} mtu {mtu} netns {} type veth peer name {port} mtu {mtu} netns {}\n",
            netns.name(),
            switch.name()
        ),
    )?;
    switch.ip(&format!("link set {port} master br0\nlink set {port} up\n"))?;
    netns.ip(&format!("link set {device} up\n"))?;
    switch.run(&format!("ethtool -K {port} tx off"))?;
    netns.run(&format!("ethtool -K {device} tx off"))?;
    Ok(())
}

/// The service addresses on `lo`, owned by the load balancer for the rest of the link.
fn serve_addresses(netns: &Netns) -> anyhow::Result<()> {
    for scope in ["all", "default", DEVICE] {
        netns.sysctl(&format!("net/ipv4/conf/{scope}/arp_ignore"), "1")?;
        netns.sysctl(&format!("net/ipv4/conf/{scope}/arp_announce"), "2")?;
    }
    // Decapsulated packets of one client come by another way than the answers go.
    netns.sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
    let v4 = VIPS_V4
        .iter()
        .chain(&GUE_VIPS_V4)
        .map(|vip| format!("addr add {vip}/32 dev lo\n"));
    let v6 = VIPS_V6
        .iter()
        .chain([&GUE_VIP_V6])
        .map(|vip| format!("addr add {vip}/128 dev lo nodad\n"));
    netns
        .ip(&v4.chain(v6).collect::<String>())
        .context("the service addresses")
}

fn addresses(subnet: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    // Written alike in both families: 10.77.0.11 and fd77::11.
    let digits = |decimal: u8| u16::from(decimal / 10) << 4 | u16::from(decimal % 10);
    let prefix = 0xfd00 | digits(subnet);
    (
        Ipv4Addr::new(10, subnet, 0, host),
        Ipv6Addr::new(prefix, 0, 0, 0, 0, 0, 0, digits(host)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_alike_in_both_families() {
        let (v4, v6) = addresses(77, 11);
        assert_eq!(
            (v4.to_string().as_str(), v6.to_string().as_str()),
            ("10.77.0.11", "fd77::11")
        );
    }
}
