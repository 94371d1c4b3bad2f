//! Every key of the configuration, once: its name, what it may hold, its default and what it means.
//!
//! The walker ([`super::walk`]) finds unknown keys with these tables, the readers of values
//! ([`super::value`]) take their bounds from them, and [`super::schema()`] is made from them, so that
//! what is accepted and what is documented cannot differ.

mod check;
mod limit;

use crate::maglev::SIZES;

use super::shape::Shape;

pub use check::*;
pub use limit::*;

/// One key of a table.
#[derive(Debug)]
pub struct Key {
    pub name: &'static str,
    pub shape: Shape,
    pub required: bool,
    /// The default as TOML text, where there is a fixed one.
    pub default: Option<&'static str>,
    pub doc: &'static str,
}

impl Key {
    const fn required(name: &'static str, shape: Shape, doc: &'static str) -> Self {
        Self {
            name,
            shape,
            required: true,
            default: None,
            doc,
        }
    }

    const fn optional(name: &'static str, shape: Shape, doc: &'static str) -> Self {
        Self {
            name,
            shape,
            required: false,
            default: None,
            doc,
        }
    }

    const fn with_default(
        name: &'static str,
        shape: Shape,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        Self {
            name,
            shape,
            required: false,
            default: Some(default),
            doc,
        }
    }
}

/// One kind of table.
#[derive(Debug)]
pub struct Table {
    /// The name it has among the definitions of the schema.
    pub id: &'static str,
    /// How it is written in the file.
    pub header: &'static str,
    pub keys: &'static [&'static Key],
    /// Keys of the design whose feature is not built.
    pub planned: &'static [&'static str],
}

/// Every kind of table, the whole file first.
pub static TABLES: [&Table; 10] = [
    &ROOT,
    &AGENT,
    &DEFAULTS,
    &POOL,
    &SERVICE,
    &BACKEND,
    &CHECK,
    &ALSO,
    &AGENT_CHECK,
    &LIMIT,
];

pub static ROOT: Table = Table {
    id: "root",
    header: "the file",
    keys: &[&SCHEMA, &AGENT_TABLE, &DEFAULTS_TABLE, &POOLS, &SERVICES],
    planned: &[],
};
pub static SCHEMA: Key = Key::required(
    "schema",
    Shape::Integer { min: 1, max: 1 },
    "The version of this format.",
);
pub static AGENT_TABLE: Key = Key::required("agent", Shape::Table(&AGENT), "The agent of this machine.");
pub static DEFAULTS_TABLE: Key = Key::optional(
    "defaults",
    Shape::Table(&DEFAULTS),
    "What services and backends do not say themselves.",
);
pub static POOLS: Key = Key::optional(
    "pool",
    Shape::Tables(&POOL),
    "Backends that several services share: probed once, drained once.",
);
pub static SERVICES: Key = Key::optional("service", Shape::Tables(&SERVICE), "A service.");

pub static AGENT: Table = Table {
    id: "agent",
    header: "[agent]",
    keys: &[
        &INTERFACES,
        &XDP_MODE,
        &ANNOUNCE,
        &ON_STOP,
        &WITNESS,
        &ICMP_ECHO,
        &VLANS,
        &FRAGMENT_BY,
        &API_SOCKET,
        &STATE_DIR,
        &PIN_DIR,
        &HASH_KEY,
        &MAX_SERVICES,
        &MAX_BACKENDS,
        &METRICS,
        &NOTIFY,
        &FLOW_TABLE_SIZE,
        &FLOW_CACHE_SIZE,
        &CLIENT_TABLE_SIZE,
        &ENTRIES_BY_SYN,
        &ENTRIES_BY_DATA,
        &ENTRIES_BY_UDP,
        &SNAT_ADDRESSES,
        &SNAT_PORTS,
        &NAT_TABLE_SIZE,
    ],
    planned: &[],
};
pub static INTERFACES: Key = Key::required(
    "interfaces",
    Shape::List {
        item: &Shape::Interface,
        unique: true,
    },
    "The network interfaces to attach to.",
);
pub static XDP_MODE: Key = Key::with_default(
    "xdp_mode",
    Shape::Choice {
        built: &["auto", "native", "generic"],
        planned: &["offload"],
    },
    "\"auto\"",
    "How XDP is attached. auto: native where the driver can, else generic, with a warning.",
);
pub static ANNOUNCE: Key = Key::with_default(
    "announce",
    Shape::Choice {
        built: &["none", "l2"],
        planned: &["bgp"],
    },
    "\"none\"",
    "none: packets for the services come here by routing, or by an address set elsewhere. l2: the agent \
     answers ARP and neighbour solicitations for the service addresses and sends gratuitous ones.",
);
pub static ON_STOP: Key = Key::with_default(
    "on_stop",
    Shape::Choice {
        built: &["keep", "detach"],
        planned: &[],
    },
    "\"keep\"",
    "What a stop of the agent does. keep: forwarding goes on with the states as they are.",
);
pub static WITNESS: Key = Key::with_default(
    "witness",
    Shape::Witness,
    "\"gateway\"",
    "Who is asked, besides the backends, whether this machine is still connected when something falls silent. \
     gateway: the router of the default route. none: nobody. An address: by ARP, neighbour solicitation or ICMP \
     echo. With a port: by TCP, where a refusal will do.",
);
pub static ICMP_ECHO: Key = Key::with_default(
    "icmp_echo",
    Shape::Boolean,
    "true",
    "Whether echo requests (ping) to service addresses are answered.",
);
pub static VLANS: Key = Key::with_default(
    "vlans",
    Shape::Boolean,
    "false",
    "Frames with one or two VLAN tags (802.1Q, 802.1ad) are looked into, and packets for a backend behind a VLAN \
     interface leave with its tags.",
);
pub static FRAGMENT_BY: Key = Key::optional(
    "fragment_by",
    Shape::Interface,
    "The end of a veth pair by which the kernel routes service addresses, with the MTU that fits all backends; the other \
     end is among `interfaces`. IPv4 without Don't Fragment that is too long takes this way, and comes back in pieces. \
     Left out: its sender is told.",
);
pub static API_SOCKET: Key = Key::with_default(
    "api_socket",
    // `sockaddr_un` holds 108 bytes, the last of them zero (unix(7)).
    Shape::Path { max_bytes: 107 },
    "\"/run/xlb/xlb.sock\"",
    "The Unix socket of the API.",
);
pub static STATE_DIR: Key = Key::with_default(
    "state_dir",
    Shape::Path { max_bytes: 4000 },
    "\"/var/lib/xlb\"",
    "The folder of what has to outlive a reboot.",
);
pub static PIN_DIR: Key = Key::with_default(
    "pin_dir",
    Shape::Path { max_bytes: 4000 },
    "\"/sys/fs/bpf/xlb\"",
    "The folder of pinned programs, links and maps, on a BPF file system.",
);
pub static HASH_KEY: Key = Key::optional(
    "hash_key",
    Shape::HashKey,
    "The secret key of the flow hash, for nodes that share it. Made and kept by the agent when absent.",
);
pub static MAX_SERVICES: Key = Key::with_default(
    "max_services",
    Shape::Integer { min: 1, max: 4096 },
    "1024",
    "How many services the maps have room for.",
);
pub static MAX_BACKENDS: Key = Key::with_default(
    "max_backends",
    Shape::Integer { min: 1, max: 65535 },
    "4096",
    "How many backends, over all services, the maps have room for.",
);
pub static FLOW_TABLE_SIZE: Key = Key::with_default(
    "flow_table_size",
    Shape::Integer {
        min: 1024,
        max: 16_777_216,
    },
    "262144",
    "How many flows of slots on the move are remembered at most, over all services. 16 bytes each from the start, \
     about 100 more for each that is there.",
);
pub static FLOW_CACHE_SIZE: Key = Key::with_default(
    "flow_cache_size",
    Shape::Integer {
        min: 1024,
        max: 16_777_216,
    },
    "262144",
    "How many flows services with tracking = \"full\" remember at most, all together: more than that, and the longest \
     idle of those beside it is forgotten. 16 bytes each from the start, rounded up to a power of two.",
);
pub static CLIENT_TABLE_SIZE: Key = Key::with_default(
    "client_table_size",
    Shape::Integer {
        min: 1024,
        max: 16_777_216,
    },
    "65536",
    "How many clients services with a persistence_timeout remember at most, all together. 16 bytes each from the \
     start, rounded up to a power of two.",
);
pub static ENTRIES_BY_SYN: Key = Key::with_default(
    "entries_by_syn",
    Shape::Integer {
        min: 1,
        max: 10_000_000,
    },
    "50000",
    "How many flows a second SYNs may have remembered, for each service.",
);
pub static ENTRIES_BY_DATA: Key = Key::with_default(
    "entries_by_data",
    Shape::Integer {
        min: 1,
        max: 10_000_000,
    },
    "50000",
    "How many flows a second other TCP segments may have remembered, for each service.",
);
pub static ENTRIES_BY_UDP: Key = Key::with_default(
    "entries_by_udp",
    Shape::Integer {
        min: 1,
        max: 10_000_000,
    },
    "20000",
    "How many flows a second UDP may have remembered, for each service.",
);
pub static SNAT_ADDRESSES: Key = Key::optional(
    "snat_addresses",
    Shape::List {
        item: &Shape::Address,
        unique: true,
    },
    "The addresses of ours that full-nat rewrites sources to, 16 of each family at most. Packets for them must come \
     here. Addresses that nothing else uses; else `snat_ports` must keep off the machine's ip_local_port_range.",
);
pub static SNAT_PORTS: Key = Key::with_default(
    "snat_ports",
    Shape::Ports,
    "\"1024-65535\"",
    "The ports that full-nat rewrites source ports to.",
);
pub static NAT_TABLE_SIZE: Key = Key::with_default(
    "nat_table_size",
    Shape::Integer {
        min: 1024,
        max: 8_388_608,
    },
    "131072",
    "How many flows of nat and full-nat there can be at once. 32 bytes each from the start, about 330 more for each \
     that is there.",
);

pub static METRICS: Key = Key::optional(
    "metrics",
    Shape::Listen,
    "Where metrics are served to Prometheus, at /metrics; nowhere when absent.",
);
pub static NOTIFY: Key = Key::optional(
    "notify",
    Shape::List {
        item: &Shape::Path { max_bytes: 4000 },
        unique: true,
    },
    "Programs that are run at each change of state, with the event as JSON on their standard input.",
);

pub static DEFAULTS: Table = Table {
    id: "defaults",
    header: "[defaults]",
    keys: &[
        &TRACKING,
        &TCP_IDLE_TIMEOUT,
        &UDP_IDLE_TIMEOUT,
        &ON_DOWN,
        &ON_ALL_DOWN,
        &QUORUM,
        &QUORUM_HYSTERESIS,
        &BACKUP_MODE,
        &PANIC_THRESHOLD,
        &MAX_EJECTION_PERCENT,
        &SLOW_START,
        &FLAP_LIMIT,
        &FLAP_WINDOW,
        &FLAP_HOLD,
        &PERSISTENCE_TIMEOUT,
        &PERSISTENCE_PREFIX_V4,
        &PERSISTENCE_PREFIX_V6,
        &CHECK_TABLE,
    ],
    planned: &[],
};

pub static POOL: Table = Table {
    id: "pool",
    header: "[[pool]]",
    keys: &[&POOL_NAME, &CHECK_TABLE, &AGENT_CHECK_TABLE, &POOL_BACKENDS],
    planned: &[],
};
pub static POOL_NAME: Key = Key::required("name", Shape::Name, "The name of the pool.");
pub static POOL_BACKENDS: Key =
    Key::required("backend", Shape::Tables(&BACKEND), "The backends of the pool.");

pub static SERVICE: Table = Table {
    id: "service",
    header: "[[service]]",
    keys: &[
        &NAME,
        &SERVICE_ADDRESS,
        &SERVICE_PORT,
        &PROTOCOL,
        &FORWARD,
        &OUTER_SOURCES,
        &QUIC,
        &SCHEDULER,
        &SERVICE_POOL,
        &ALLOW,
        &DENY,
        &LIMIT_TABLE,
        &TABLE_SIZE,
        &TRACKING,
        &TCP_IDLE_TIMEOUT,
        &UDP_IDLE_TIMEOUT,
        &ON_DOWN,
        &ON_ALL_DOWN,
        &SORRY,
        &QUORUM,
        &QUORUM_HYSTERESIS,
        &BACKUP_MODE,
        &PANIC_THRESHOLD,
        &MAX_EJECTION_PERCENT,
        &SLOW_START,
        &FLAP_LIMIT,
        &FLAP_WINDOW,
        &FLAP_HOLD,
        &PERSISTENCE_TIMEOUT,
        &PERSISTENCE_PREFIX_V4,
        &PERSISTENCE_PREFIX_V6,
        &CHECK_TABLE,
        &AGENT_CHECK_TABLE,
        &BACKENDS,
    ],
    planned: &[],
};
pub static NAME: Key = Key::required("name", Shape::Name, "The name of the service.");
pub static SERVICE_ADDRESS: Key =
    Key::required("address", Shape::Address, "The address that clients connect to.");
pub static SERVICE_PORT: Key = Key::required(
    "port",
    Shape::ServicePort,
    "The port that clients connect to, or a range of them (\"8000-8100\"); 0: every port of the address. The narrowest \
     service takes a packet.",
);
pub static PROTOCOL: Key = Key::required(
    "protocol",
    Shape::Choice {
        built: &["tcp", "udp"],
        planned: &["sctp"],
    },
    "The protocol of the service.",
);
pub static FORWARD: Key = Key::required(
    "forward",
    Shape::Choice {
        built: &["dsr-l2", "dsr-ipip", "dsr-gue", "nat", "full-nat"],
        planned: &[],
    },
    "How packets reach the backends. dsr-l2: the destination MAC is rewritten, the backend is on the same \
     layer 2 and holds the service address. dsr-ipip: encapsulated (IPv4 in IPv4, IPv6 in IPv6, IPv4 in \
     IPv6). dsr-gue: the same behind a UDP header, which spreads over the receive queues of the backends. \
     nat: destination address and port are rewritten; the backends' route to the clients leads through this machine. \
     full-nat: the source too, to one of `snat_addresses`; works in any network.",
);
pub static OUTER_SOURCES: Key = Key::optional(
    "outer_sources",
    Shape::List {
        item: &Shape::Prefix,
        unique: true,
    },
    "dsr-ipip: prefixes that outer headers come from, at most one of each address family; the last bits, 16 at most, \
     follow the flow, so that the backends' adapters spread packets over their receive queues. Nobody may have these \
     addresses. When absent all come from the address of this machine.",
);
pub static QUIC: Key = Key::with_default(
    "quic",
    Shape::Boolean,
    "false",
    "Datagrams are QUIC: an Initial packet begins a flow, and packets whose connection id names a backend (`quic_ids`) go \
     there, whatever address they come from.",
);
pub static SCHEDULER: Key = Key::with_default(
    "scheduler",
    Shape::Choice {
        built: &["maglev", "sh", "rr", "wrr", "random", "lc", "wlc", "twos"],
        planned: &[],
    },
    "\"maglev\"",
    "How the backend of a flow is chosen. maglev: by a hash of addresses and ports. sh: by a hash of the client's \
     address. rr, wrr: one after the other, wrr by weight. random: at random, by weight. lc, wlc: the backend with the \
     fewest flows, wlc for its weight. twos: of two at random the one with fewer flows for its weight. All but maglev \
     and sh remember every flow.",
);
pub static TABLE_SIZE: Key = Key::optional(
    "table_size",
    Shape::OneOf(&SIZES),
    "The slots of the lookup table. When absent the smallest size of at least 100 x the backends, 4093 at \
     least, when the service is first seen.",
);
pub static TRACKING: Key = Key::with_default(
    "tracking",
    Shape::Choice {
        built: &["none", "moved", "full"],
        planned: &[],
    },
    "\"moved\"",
    "Which flows are remembered. moved: those of slots that get another owner, until no flow needs it any longer, so \
     that none breaks. full: every flow, in a cache that forgets the oldest; always so with a scheduler that chooses \
     freely (rr, wrr, random, lc, wlc, twos). none: a change of the table breaks the flows of the slots that move.",
);
pub static TCP_IDLE_TIMEOUT: Key = Key::with_default(
    "tcp_idle_timeout",
    Shape::Duration,
    "\"15m\"",
    "How long a TCP connection may be idle; so long slots that move are looked after.",
);
pub static UDP_IDLE_TIMEOUT: Key = Key::with_default(
    "udp_idle_timeout",
    Shape::Duration,
    "\"1m\"",
    "How long a UDP flow may be idle; so long slots that move are looked after.",
);
pub static ON_DOWN: Key = Key::with_default(
    "on_down",
    Shape::Choice {
        built: &["auto", "rehash", "keep", "reset"],
        planned: &[],
    },
    "\"auto\"",
    "What becomes of the flows of a backend that goes DOWN. auto: they stay while its host answers (it refuses, or \
     its answer is wrong) and move where it is silent; UDP always moves. rehash: they move. keep: they stay. \
     reset: they are reset.",
);
pub static ON_ALL_DOWN: Key = Key::with_default(
    "on_all_down",
    Shape::Choice {
        built: &["last", "drop", "sorry"],
        planned: &[],
    },
    "\"last\"",
    "Who takes new flows when no backend serves. last: those of before the failures. drop: nobody. sorry: the \
     backend named by `sorry`.",
);
pub static SORRY: Key = Key::optional(
    "sorry",
    Shape::Address,
    "A backend that answers when no other serves; it is not checked. With on_all_down = \"last\" only where there \
     is nothing of before.",
);
pub static QUORUM: Key = Key::with_default(
    "quorum",
    Shape::Integer { min: 1, max: 65535 },
    "1",
    "Backups are used while fewer backends than this serve that are no backups.",
);
pub static QUORUM_HYSTERESIS: Key = Key::with_default(
    "quorum_hysteresis",
    Shape::Integer { min: 0, max: 65535 },
    "0",
    "How many more than the quorum must serve until backups in use are left again.",
);
pub static BACKUP_MODE: Key = Key::with_default(
    "backup_mode",
    Shape::Choice {
        built: &["all", "first"],
        planned: &[],
    },
    "\"all\"",
    "Which backups are used: all that serve, or the first of the file that does.",
);
pub static PANIC_THRESHOLD: Key = Key::with_default(
    "panic_threshold",
    Shape::Integer { min: 0, max: 100 },
    "0",
    "When a smaller part than this of the backends serves, in per cent, verdicts are not believed and all that \
     are READY and were UP before take flows; 0: never.",
);
pub static MAX_EJECTION_PERCENT: Key = Key::with_default(
    "max_ejection_percent",
    Shape::Integer { min: 0, max: 100 },
    "100",
    "The greatest part of the backends, in per cent, that verdicts may take out; the latest to go DOWN stay.",
);
pub static SLOW_START: Key = Key::optional(
    "slow_start",
    Shape::Duration,
    "A backend that comes UP takes its weight over this time, in ten steps; at once when absent.",
);
pub static FLAP_LIMIT: Key = Key::with_default(
    "flap_limit",
    Shape::Integer { min: 0, max: 1000 },
    "0",
    "A backend that goes DOWN more often than this within flap_window is held DOWN; 0: never.",
);
pub static FLAP_WINDOW: Key = Key::with_default(
    "flap_window",
    Shape::Duration,
    "\"1m\"",
    "The time within which changes to DOWN are counted.",
);
pub static FLAP_HOLD: Key = Key::with_default(
    "flap_hold",
    Shape::Duration,
    "\"10s\"",
    "For how long a backend that flaps is held DOWN the first time; twice as long each further time, 15 minutes at \
     most.",
);
pub static PERSISTENCE_TIMEOUT: Key = Key::optional(
    "persistence_timeout",
    Shape::Duration,
    "New flows of a client go to the backend that it had, until it was idle for so long; not when absent. Every flow \
     is remembered then.",
);
pub static PERSISTENCE_PREFIX_V4: Key = Key::with_default(
    "persistence_prefix_v4",
    Shape::Integer { min: 1, max: 32 },
    "32",
    "Clients of a service with an IPv4 address count as one where so many bits of their addresses are the same.",
);
pub static PERSISTENCE_PREFIX_V6: Key = Key::with_default(
    "persistence_prefix_v6",
    Shape::Integer { min: 1, max: 128 },
    "128",
    "The same of IPv6.",
);
pub static CHECK_TABLE: Key = Key::optional(
    "check",
    Shape::Table(&CHECK),
    "How backends are checked; what is absent comes from the table above: backend, service, defaults.",
);
pub static SERVICE_POOL: Key = Key::optional(
    "pool",
    Shape::Name,
    "The [[pool]] whose backends and checks the service has, in place of backends and a check of its own.",
);
pub static ALLOW: Key = Key::optional(
    "allow",
    Shape::List {
        item: &Shape::Prefix,
        unique: true,
    },
    "The clients whose packets are taken; all others are then denied. Of `allow` and `deny` together the longest \
     prefix that has the client's address decides.",
);
pub static DENY: Key = Key::optional(
    "deny",
    Shape::List {
        item: &Shape::Prefix,
        unique: true,
    },
    "The clients whose packets are dropped (`denied`).",
);
pub static BACKENDS: Key = Key::optional(
    "backend",
    Shape::Tables(&BACKEND),
    "The backends of the service; required where it names no pool.",
);

pub static BACKEND: Table = Table {
    id: "backend",
    header: "[[service.backend]]",
    keys: &[
        &BACKEND_ADDRESS,
        &BACKEND_PORT,
        &WEIGHT,
        &BACKUP,
        &VLAN,
        &VLAN_OUTER,
        &QUIC_IDS,
        &CHECK_TABLE,
        &AGENT_CHECK_TABLE,
    ],
    planned: &["max_connections"],
};
pub static BACKEND_ADDRESS: Key = Key::required("address", Shape::Address, "The backend's own address.");
pub static BACKEND_PORT: Key = Key::optional(
    "port",
    Shape::Integer { min: 0, max: 65535 },
    "The port of the backend; that of the service when absent. Another one needs `forward` \"nat\" or \"full-nat\".",
);
pub static WEIGHT: Key = Key::with_default(
    "weight",
    Shape::Integer { min: 0, max: 65535 },
    "1",
    "The backend's share of new flows, relative to the other weights; 0: none.",
);
pub static BACKUP: Key = Key::with_default(
    "backup",
    Shape::Boolean,
    "false",
    "A backup: used only while fewer than `quorum` others serve.",
);
pub static VLAN: Key = Key::optional(
    "vlan",
    Shape::Integer { min: 1, max: 4094 },
    "The VLAN that packets for the backend are sent in; when absent that of the interface that its route leads \
     through, where `vlans` is on.",
);
pub static VLAN_OUTER: Key = Key::optional(
    "vlan_outer",
    Shape::Integer { min: 1, max: 4094 },
    "The provider's VLAN (802.1ad) around `vlan`.",
);
pub static QUIC_IDS: Key = Key::optional(
    "quic_ids",
    Shape::List {
        item: &Shape::QuicId,
        unique: true,
    },
    "The server ids that the backend puts into its connection ids of QUIC, not encrypted \
     (draft-ietf-quic-load-balancers), at most 4: \"CONFIG:ID\", the number of the configuration and the bytes. All of one \
     configuration have one length. For services with `quic = true`.",
);
