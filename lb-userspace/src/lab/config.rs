//! Configurations for the agent, as text.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use crate::model::{Forward, Protocol};

use super::network::{DEVICE, Host, VIPS_V4, VIPS_V6};

/// A configuration whose folders and socket the agent's guard fills in.
#[derive(Clone, Debug)]
pub struct Config {
    pub interfaces: Vec<String>,
    pub xdp_mode: &'static str,
    pub announce: &'static str,
    pub on_stop: &'static str,
    /// Further lines of `[agent]`.
    pub agent: String,
    /// Lines of `[defaults.check]`.
    pub check: String,
    pub services: Vec<Service>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interfaces: vec![DEVICE.into()],
            xdp_mode: "native",
            announce: "none",
            on_stop: "keep",
            agent: String::new(),
            check: String::new(),
            services: Vec::new(),
        }
    }
}

/// Checks several times a second: tests need not wait.
pub const FAST_CHECK: &str = "\
interval = \"200ms\"
timeout = \"100ms\"
fast_interval = \"50ms\"
fast_timeout = \"100ms\"
";

#[derive(Clone, Debug)]
pub struct Service {
    pub name: String,
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    pub forward: Forward,
    /// Further lines of `[[service]]`.
    pub more: String,
    /// Lines of `[service.check]`; empty: what the protocol has by default.
    pub check: String,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug)]
pub struct Backend {
    pub address: IpAddr,
    pub weight: u16,
}

impl Service {
    /// Port 80 of a service address, checked at `/healthz`. The backends are asked for at their addresses of
    /// one family, which for `dsr-ipip` is the outer one.
    #[must_use]
    pub fn http(name: &str, address: IpAddr, forward: Forward, outer: Family, backends: &[Host]) -> Self {
        let backends = backends.iter().map(|host| Backend {
            address: match outer {
                Family::V4 => host.v4.into(),
                Family::V6 => host.v6.into(),
            },
            weight: 1,
        });
        Self {
            name: name.into(),
            address,
            port: 80,
            protocol: Protocol::Tcp,
            forward,
            more: String::new(),
            check: "type = \"http\"\npath = \"/healthz\"\n".into(),
            backends: backends.collect(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// A service of every way to forward: `dsr-l2` over both families, `dsr-ipip` 4-in-4, 6-in-6 and 4-in-6.
#[must_use]
pub fn every_way(backends: &[Host]) -> Vec<Service> {
    let ways = [
        ("l2-v4", VIPS_V4[0].into(), Forward::DsrL2, Family::V4),
        ("l2-v6", VIPS_V6[0].into(), Forward::DsrL2, Family::V6),
        ("ipip-4in4", VIPS_V4[1].into(), Forward::DsrIpip, Family::V4),
        ("ipip-6in6", VIPS_V6[1].into(), Forward::DsrIpip, Family::V6),
        ("ipip-4in6", VIPS_V4[2].into(), Forward::DsrIpip, Family::V6),
    ];
    ways.map(|(name, address, forward, outer)| Service::http(name, address, forward, outer, backends))
        .into()
}

impl Config {
    /// The text, with everything of the agent's own below `folder` and its pins in `pin_dir`.
    #[must_use]
    pub fn text(&self, folder: &Path, pin_dir: &Path) -> String {
        let Self {
            interfaces,
            xdp_mode,
            announce,
            on_stop,
            agent,
            check,
            services,
        } = self;
        let mut text = format!(
            "schema = 1\n\n[agent]\ninterfaces = {interfaces:?}\nxdp_mode = \"{xdp_mode}\"\n\
             announce = \"{announce}\"\non_stop = \"{on_stop}\"\napi_socket = \"{}\"\nstate_dir = \"{}\"\n\
             pin_dir = \"{}\"\n{agent}\n[defaults.check]\n{check}\n",
            folder.join("xlb.sock").display(),
            folder.join("state").display(),
            pin_dir.display()
        );
        for Service {
            name,
            address,
            port,
            protocol,
            forward,
            more,
            check,
            backends,
        } in services
        {
            let _ = write!(
                text,
                "[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nport = {port}\n\
                 protocol = \"{protocol}\"\nforward = \"{forward}\"\n{more}\n"
            );
            if !check.is_empty() {
                let _ = write!(text, "[service.check]\n{check}\n");
            }
            for Backend { address, weight } in backends {
                let _ = write!(
                    text,
                    "[[service.backend]]\naddress = \"{address}\"\nweight = {weight}\n\n"
                );
            }
        }
        text
    }
}
