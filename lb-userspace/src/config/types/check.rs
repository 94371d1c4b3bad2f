//! How a backend is checked, as a valid configuration says it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::Protocol;

/// How a backend is checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub kind: CheckKind,
    pub interval: Duration,
    /// At most `interval`.
    pub timeout: Duration,
    /// Instead of `interval` while a verdict is in transition.
    pub fast_interval: Duration,
    /// Instead of `timeout` while a verdict is in transition; may be longer than `fast_interval`, the
    /// next probe then follows the timeout.
    pub fast_timeout: Duration,
    /// Instead of `interval` while the backend is DOWN; at least `timeout`.
    pub down_interval: Option<Duration>,
    /// From 1.
    pub rise: u32,
    /// From 1.
    pub fall: u32,
    /// At most 50.
    pub jitter_percent: u8,
    /// A backend that does not seem to answer its clients is probed at once.
    pub passive: bool,
    /// `None`: the backend's port, which is then not 0 (unless the check needs no port).
    pub port: Option<u16>,
    /// `None`: the backend's address.
    pub address: Option<IpAddr>,
    /// `None`: whatever address the kernel chooses. Of the family of the address that is probed.
    pub source: Option<IpAddr>,
    pub via: Via,
    /// What is probed beside it, at the same moments. None of them is [`CheckKind::None`]; empty where `kind` is.
    pub also: Vec<Probe>,
    /// How many of them have to pass.
    pub require: Require,
}

/// One of several things that are probed.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    pub kind: CheckKind,
    /// As in [`Check`].
    pub port: Option<u16>,
    pub address: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub via: Via,
}

/// The way that a probe takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// `Forward` where that can be, else `Direct`. No probe of a whole configuration has it.
    #[default]
    Auto,
    /// To the backend's own address.
    Direct,
    /// To the service address, as clients' packets go. Of checks without an address and a port of their own.
    Forward,
}

/// When a check of several probes passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Require {
    #[default]
    All,
    Any,
}

impl Check {
    /// Whether some probe of it goes the way of clients' packets.
    #[must_use]
    pub fn goes_forward(&self) -> bool {
        self.via == Via::Forward || self.also.iter().any(|probe| probe.via == Via::Forward)
    }

    /// The check of a backend about which the file says nothing.
    #[must_use]
    pub fn built_in(protocol: Protocol) -> Self {
        Self {
            kind: match protocol {
                Protocol::Tcp => CheckKind::Tcp,
                Protocol::Udp => CheckKind::None,
            },
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            fast_interval: Duration::from_millis(200),
            fast_timeout: Duration::from_millis(300),
            down_interval: None,
            rise: 2,
            fall: 3,
            jitter_percent: 10,
            passive: true,
            port: None,
            address: None,
            source: None,
            via: Via::Auto,
            also: Vec::new(),
            require: Require::All,
        }
    }
}

/// Where a backend's agent is asked, which steers the backend's weight and state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCheck {
    pub port: u16,
    /// `None`: the backend's address.
    pub address: Option<IpAddr>,
    pub interval: Duration,
    /// At most `interval`.
    pub timeout: Duration,
    /// Sent before the answer is read.
    pub send: Vec<u8>,
    /// `None`: whatever address the kernel chooses.
    pub source: Option<IpAddr>,
}

impl AgentCheck {
    pub const INTERVAL: Duration = Duration::from_secs(2);
    pub const TIMEOUT: Duration = Duration::from_secs(1);
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// Nothing: the backend counts as UP.
    None,
    /// Connects.
    Tcp,
    /// Sends a request and looks at the answer.
    Http(HttpCheck),
    /// The same over TLS.
    Https(HttpCheck, TlsCheck),
    /// Sends a datagram and looks at the answer.
    Udp(UdpCheck),
    /// Asks a name server.
    Dns(DnsCheck),
    /// Asks for an echo.
    Icmp,
    /// Asks the health service of gRPC.
    Grpc(GrpcCheck),
    /// Runs a program.
    Exec(ExecCheck),
}

impl CheckKind {
    /// Whether the probe goes to a port.
    #[must_use]
    pub fn needs_port(&self) -> bool {
        !matches!(self, Self::None | Self::Icmp | Self::Exec(_))
    }
}

/// The request of an http check, and what passes as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    pub method: HttpMethod,
    /// Path and query; begins with `/`, printable ASCII without spaces.
    pub path: String,
    /// The Host header; `None`: the address and port probed.
    pub host: Option<String>,
    /// Sent besides, in this order.
    pub headers: Vec<Header>,
    pub expect_status: StatusSet,
    /// Has to be in the body.
    pub expect_body: Option<String>,
    /// Has to match somewhere in the body.
    pub expect_body_regex: Option<Pattern>,
}

impl Default for HttpCheck {
    fn default() -> Self {
        Self {
            method: HttpMethod::Get,
            path: "/".to_owned(),
            host: None,
            headers: Vec::new(),
            expect_status: StatusSet(vec![StatusRange {
                first: 200,
                last: 399,
            }]),
            expect_body: None,
            expect_body_regex: None,
        }
    }
}

/// A header of a request: what HTTP can send, and none that the check sends by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// In lower case.
    pub name: String,
    pub value: String,
}

/// A regular expression over bytes.
#[derive(Clone, Debug)]
pub struct Pattern(pub regex::bytes::Regex);

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for Pattern {}

/// How a TLS connection is made, and what certificate passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsCheck {
    /// `false`: any certificate passes.
    pub verify: bool,
    /// Who may have signed it, in PEM; `None`: those whom the machine trusts.
    pub ca_file: Option<PathBuf>,
    /// The name that is asked for and that the certificate must have; `None`: that of `host`, else the address.
    pub sni: Option<String>,
    /// Our own certificate and its key, in PEM: both or none.
    pub client_cert: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

impl Default for TlsCheck {
    fn default() -> Self {
        Self {
            verify: true,
            ca_file: None,
            sni: None,
            client_cert: None,
            client_key: None,
        }
    }
}

/// A datagram, and what passes as an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpCheck {
    /// Not empty in a valid configuration.
    pub send: Vec<u8>,
    /// Has to be in the answer; `None`: any answer passes.
    pub expect: Option<Vec<u8>>,
}

/// A question to a name server, and what passes as an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsCheck {
    /// A domain name in ASCII; not empty in a valid configuration.
    pub query: String,
    pub query_type: QueryType,
    /// Not empty.
    pub expect_rcode: Vec<Rcode>,
    /// One of them has to be in the answer; empty: whatever answer.
    pub expect_address: Vec<IpAddr>,
}

impl Default for DnsCheck {
    fn default() -> Self {
        Self {
            query: String::new(),
            query_type: QueryType::A,
            expect_rcode: vec![Rcode::NoError],
            expect_address: Vec::new(),
        }
    }
}

/// The type of a question to a name server (RFC 1035, section 3.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum QueryType {
    A,
    Aaaa,
    Cname,
    Mx,
    Ns,
    Ptr,
    Soa,
    Srv,
    Txt,
}

/// What a name server says of a question (RFC 1035, section 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Rcode {
    NoError,
    FormErr,
    ServFail,
    NxDomain,
    NotImp,
    Refused,
}

/// A question to the health service of gRPC (`grpc.health.v1.Health`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcCheck {
    /// Empty: the server as a whole.
    pub service: String,
    /// The `:authority` of the request; `None`: the address and port probed.
    pub host: Option<String>,
    pub over_tls: bool,
    /// Looked at where `over_tls` is set.
    pub tls: TlsCheck,
}

/// A program whose exit status says whether the backend is alive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecCheck {
    /// The program, an absolute path, and its arguments; not empty in a valid configuration.
    pub command: Vec<String>,
}

/// The method of an http check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum HttpMethod {
    Get,
    Head,
    Options,
}

impl fmt::Display for HttpMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
        })
    }
}

/// A range of HTTP statuses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRange {
    pub first: u16,
    pub last: u16,
}

/// The HTTP statuses that pass a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSet(pub Vec<StatusRange>);

impl StatusSet {
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0
            .iter()
            .any(|range| (range.first..=range.last).contains(&status))
    }
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, StatusRange { first, last }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
        }
        Ok(())
    }
}
