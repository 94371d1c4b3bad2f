//! The keys of checks.

use super::{Key, Table};
use crate::config::shape::Shape;

pub static CHECK: Table = Table {
    id: "check",
    header: "[check]",
    keys: &[
        &TYPE,
        &INTERVAL,
        &TIMEOUT,
        &FAST_INTERVAL,
        &FAST_TIMEOUT,
        &DOWN_INTERVAL,
        &FALL,
        &RISE,
        &JITTER_PERCENT,
        &PASSIVE,
        &CHECK_PORT,
        &CHECK_ADDRESS,
        &SOURCE,
        &VIA,
        &METHOD,
        &PATH,
        &HOST,
        &HEADERS,
        &EXPECT_STATUS,
        &EXPECT_BODY,
        &EXPECT_BODY_REGEX,
        &TLS,
        &VERIFY,
        &CA_FILE,
        &SNI,
        &CLIENT_CERT,
        &CLIENT_KEY,
        &SEND,
        &EXPECT,
        &QUERY,
        &QUERY_TYPE,
        &EXPECT_RCODE,
        &EXPECT_ADDRESS,
        &GRPC_SERVICE,
        &COMMAND,
        &REQUIRE,
        &ALSO_TABLES,
    ],
    planned: &["witness"],
};

/// The keys that only checks of some types have, and those types.
pub static SPECIFIC: [(&Key, &[&str]); 22] = [
    (&VIA, &["tcp", "http", "https", "udp", "dns", "grpc"]),
    (&METHOD, HTTP_TYPES),
    (&PATH, HTTP_TYPES),
    (&HOST, &["http", "https", "grpc"]),
    (&HEADERS, HTTP_TYPES),
    (&EXPECT_STATUS, HTTP_TYPES),
    (&EXPECT_BODY, HTTP_TYPES),
    (&EXPECT_BODY_REGEX, HTTP_TYPES),
    (&TLS, &["grpc"]),
    (&VERIFY, TLS_TYPES),
    (&CA_FILE, TLS_TYPES),
    (&SNI, TLS_TYPES),
    (&CLIENT_CERT, TLS_TYPES),
    (&CLIENT_KEY, TLS_TYPES),
    (&SEND, &["udp"]),
    (&EXPECT, &["udp"]),
    (&QUERY, &["dns"]),
    (&QUERY_TYPE, &["dns"]),
    (&EXPECT_RCODE, &["dns"]),
    (&EXPECT_ADDRESS, &["dns"]),
    (&GRPC_SERVICE, &["grpc"]),
    (&COMMAND, &["exec"]),
];
const HTTP_TYPES: &[&str] = &["http", "https"];
const TLS_TYPES: &[&str] = &["https", "grpc"];

pub static TYPE: Key = Key::optional(
    "type",
    Shape::Choice {
        built: &[
            "none", "tcp", "http", "https", "udp", "dns", "icmp", "grpc", "exec",
        ],
        planned: &[],
    },
    "What is probed; when absent tcp for TCP services, none for UDP services. Another type than the table \
     above has resets the keys that belong to a type.",
);
pub static INTERVAL: Key = Key::with_default(
    "interval",
    Shape::Duration,
    "\"2s\"",
    "From one probe to the next.",
);
pub static TIMEOUT: Key = Key::with_default(
    "timeout",
    Shape::Duration,
    "\"1s\"",
    "How long a probe waits for its answer; at most interval.",
);
pub static FAST_INTERVAL: Key = Key::with_default(
    "fast_interval",
    Shape::Duration,
    "\"200ms\"",
    "Instead of interval while a verdict is in transition.",
);
pub static FAST_TIMEOUT: Key = Key::with_default(
    "fast_timeout",
    Shape::Duration,
    "\"300ms\"",
    "Instead of timeout while a verdict is in transition.",
);
pub static DOWN_INTERVAL: Key = Key::optional(
    "down_interval",
    Shape::Duration,
    "Instead of interval while a backend is DOWN; interval when absent.",
);
pub static FALL: Key = Key::with_default(
    "fall",
    Shape::Integer { min: 1, max: 1000 },
    "3",
    "How many probes have to fail in a row until a backend is DOWN.",
);
pub static RISE: Key = Key::with_default(
    "rise",
    Shape::Integer { min: 1, max: 1000 },
    "2",
    "How many probes have to succeed in a row until a backend is UP.",
);
pub static JITTER_PERCENT: Key = Key::with_default(
    "jitter_percent",
    Shape::Integer { min: 0, max: 50 },
    "10",
    "By how much an interval is varied, so that probes spread.",
);
pub static PASSIVE: Key = Key::with_default(
    "passive",
    Shape::Boolean,
    "true",
    "Whether a backend is probed at once when its clients seem to get no answer: their SYNs come again, or nothing but \
     SYNs comes. The probes decide.",
);
pub static CHECK_PORT: Key = Key::optional(
    "port",
    Shape::Integer { min: 1, max: 65535 },
    "The port that is probed; the backend's when absent.",
);
pub static CHECK_ADDRESS: Key = Key::optional(
    "address",
    Shape::Address,
    "The address that is probed; the backend's when absent.",
);
pub static SOURCE: Key = Key::optional(
    "source",
    Shape::Address,
    "The address of this machine that probes come from; chosen by the kernel when absent.",
);
pub static VIA: Key = Key::with_default(
    "via",
    Shape::Choice {
        built: &["auto", "direct", "forward"],
        planned: &[],
    },
    "\"auto\"",
    "forward: to the service address, the way clients' packets go, so that a backend without that address or without \
     decapsulation is found DOWN. direct: to the backend's own address. auto: forward wherever that can be.",
);
pub static METHOD: Key = Key::with_default(
    "method",
    Shape::Choice {
        built: &["GET", "HEAD", "OPTIONS"],
        planned: &[],
    },
    "\"GET\"",
    "http, https: the method of the request.",
);
pub static PATH: Key = Key::with_default(
    "path",
    Shape::HttpPath,
    "\"/\"",
    "http, https: the path and query of the request.",
);
pub static HOST: Key = Key::optional(
    "host",
    Shape::Host,
    "http, https, grpc: the Host header; the address and port probed when absent.",
);
pub static HEADERS: Key = Key::optional(
    "headers",
    Shape::List {
        item: &Shape::Header,
        unique: false,
    },
    "http, https: more headers of the request.",
);
pub static EXPECT_STATUS: Key = Key::with_default(
    "expect_status",
    Shape::List {
        item: &Shape::Status,
        unique: false,
    },
    "[\"200-399\"]",
    "http, https: the statuses that pass: numbers and ranges.",
);
pub static EXPECT_BODY: Key = Key::optional(
    "expect_body",
    Shape::Text { max_bytes: 1024 },
    "http, https: what has to be in the first 64 KiB of the body.",
);
pub static EXPECT_BODY_REGEX: Key = Key::optional(
    "expect_body_regex",
    Shape::Regex,
    "http, https: what has to match somewhere in the first 64 KiB of the body.",
);
pub static TLS: Key = Key::with_default("tls", Shape::Boolean, "false", "grpc: over TLS.");
pub static VERIFY: Key = Key::with_default(
    "verify",
    Shape::Boolean,
    "true",
    "TLS: whether the certificate has to be valid and of the right name.",
);
pub static CA_FILE: Key = Key::optional(
    "ca_file",
    Shape::Path { max_bytes: 4000 },
    "TLS: who may have signed the certificate, in PEM; those whom this machine trusts when absent.",
);
pub static SNI: Key = Key::optional(
    "sni",
    Shape::ServerName,
    "TLS: the name that is asked for and that the certificate must have; that of host when absent, else the \
     address.",
);
pub static CLIENT_CERT: Key = Key::optional(
    "client_cert",
    Shape::Path { max_bytes: 4000 },
    "TLS: our own certificate and those between it and its root, in PEM; client_key belongs to it.",
);
pub static CLIENT_KEY: Key = Key::optional(
    "client_key",
    Shape::Path { max_bytes: 4000 },
    "TLS: the private key of client_cert, in PEM.",
);
pub static SEND: Key = Key::optional(
    "send",
    Shape::Payload,
    "udp, required: what is sent; text, or bytes as \"hex:00ff\".",
);
pub static EXPECT: Key = Key::optional(
    "expect",
    Shape::Payload,
    "udp: what has to be in the answer; any answer passes when absent.",
);
pub static QUERY: Key = Key::optional(
    "query",
    Shape::DomainName,
    "dns, required: the name that is asked for.",
);
pub static QUERY_TYPE: Key = Key::with_default(
    "query_type",
    Shape::Choice {
        built: &["A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"],
        planned: &[],
    },
    "\"A\"",
    "dns: the type that is asked for.",
);
pub static EXPECT_RCODE: Key = Key::with_default(
    "expect_rcode",
    Shape::List {
        item: &Shape::Choice {
            built: &["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"],
            planned: &[],
        },
        unique: false,
    },
    "[\"NOERROR\"]",
    "dns: the response codes that pass.",
);
pub static EXPECT_ADDRESS: Key = Key::optional(
    "expect_address",
    Shape::List {
        item: &Shape::Address,
        unique: false,
    },
    "dns: addresses, one of which has to be in the answer; any answer passes when absent.",
);
pub static GRPC_SERVICE: Key = Key::optional(
    "grpc_service",
    Shape::Text { max_bytes: 1024 },
    "grpc: the service whose health is asked for; the server as a whole when absent.",
);
pub static COMMAND: Key = Key::optional(
    "command",
    Shape::List {
        item: &Shape::Text { max_bytes: 4000 },
        unique: false,
    },
    "exec, required: a program, as an absolute path, and its arguments. No shell.",
);
pub static REQUIRE: Key = Key::with_default(
    "require",
    Shape::Choice {
        built: &["all", "any"],
        planned: &[],
    },
    "\"all\"",
    "Where there are also tables: how many of the probes have to pass.",
);
pub static ALSO_TABLES: Key = Key::optional(
    "also",
    Shape::Tables(&ALSO),
    "What is probed beside it, at the same moments; replaces those of the table above.",
);

pub static ALSO: Table = Table {
    id: "also",
    header: "[[check.also]]",
    keys: &[
        &ALSO_TYPE,
        &CHECK_PORT,
        &CHECK_ADDRESS,
        &SOURCE,
        &VIA,
        &METHOD,
        &PATH,
        &HOST,
        &HEADERS,
        &EXPECT_STATUS,
        &EXPECT_BODY,
        &EXPECT_BODY_REGEX,
        &TLS,
        &VERIFY,
        &CA_FILE,
        &SNI,
        &CLIENT_CERT,
        &CLIENT_KEY,
        &SEND,
        &EXPECT,
        &QUERY,
        &QUERY_TYPE,
        &EXPECT_RCODE,
        &EXPECT_ADDRESS,
        &GRPC_SERVICE,
        &COMMAND,
    ],
    planned: &[],
};
pub static ALSO_TYPE: Key = Key::required(
    "type",
    Shape::Choice {
        built: &["tcp", "http", "https", "udp", "dns", "icmp", "grpc", "exec"],
        planned: &[],
    },
    "What is probed.",
);

pub static AGENT_CHECK_TABLE: Key = Key::optional(
    "agent_check",
    Shape::Table(&AGENT_CHECK),
    "Where the backend's agent listens, that steers its weight and state in the words of HAProxy's agent-check.",
);
pub static AGENT_CHECK: Table = Table {
    id: "agent_check",
    header: "[agent_check]",
    keys: &[
        &AGENT_PORT,
        &CHECK_ADDRESS,
        &INTERVAL,
        &TIMEOUT,
        &AGENT_SEND,
        &SOURCE,
    ],
    planned: &[],
};
pub static AGENT_PORT: Key = Key::optional(
    "port",
    Shape::Integer { min: 1, max: 65535 },
    "The port of the agent; required, here or in the service's table.",
);
pub static AGENT_SEND: Key = Key::optional(
    "send",
    Shape::Payload,
    "What the agent is sent before it answers; nothing when absent.",
);
