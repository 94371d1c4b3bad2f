//! How much a service takes.

use std::fmt;

/// Rates a second; `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of a TCP service, by SYNs.
    pub new_flows: Option<u32>,
    /// From one client prefix.
    pub new_flows_per_client: Option<u32>,
    /// Of a UDP service, from one client prefix.
    pub udp_packets_per_client: Option<u32>,
    /// How many bits of its address make a client.
    pub client_prefix_v4: u8,
    pub client_prefix_v6: u8,
    /// What is beyond is counted and passes.
    pub dry_run: bool,
}

impl fmt::Display for Limits {
    /// As in the file, without what is not said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rates = [
            ("new_flows", self.new_flows),
            ("new_flows_per_client", self.new_flows_per_client),
            ("udp_packets_per_client", self.udp_packets_per_client),
        ];
        for (name, rate) in rates {
            if let Some(rate) = rate {
                write!(f, "{name} {rate}, ")?;
            }
        }
        write!(
            f,
            "clients /{} and /{}",
            self.client_prefix_v4, self.client_prefix_v6
        )?;
        match self.dry_run {
            true => f.write_str(", dry run"),
            false => Ok(()),
        }
    }
}
