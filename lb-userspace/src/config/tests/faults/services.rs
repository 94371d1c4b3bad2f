use super::super::super::Config;
use super::super::{BACKEND, HEAD, WEB};
use super::{agent, check, quic, service, shaped};

const BACKEND_OF_POOL: &str = "[[pool.backend]]\naddress = \"10.0.1.11\"\n";

/// A service beside [`WEB`], to which keys can be added.
const SECOND: &str = "[[service]]\nname = \"tls\"\naddress = \"192.0.2.11\"\nport = 80\nprotocol = \"tcp\"\n\
                      forward = \"dsr-l2\"\n";

#[test]
fn of_services() {
    check(
        &[
            (
                "nothing in it",
                agent("▶▶▶▶▶▶[[service]]"),
                &[
                    "`address` is missing from [[service]]; expected an IPv4 or IPv6 address",
                    "`forward` is missing",
                    "`name` is missing",
                    "`port` is missing",
                    "`protocol` is missing",
                    "the service has no backend; expected at least one [[service.backend]]",
                ],
            ),
            (
                "unknown keys, in the order of the file",
                service("▶adress = 1\n▶scheduller = 2\n▶x = 3\n▶weight = 3\n▶\"a b\" = 3"),
                &[
                    "`adress` in [[service]], did you mean `address`?",
                    "did you mean `scheduler`?",
                    "unknown key `x` in [[service]]; expected one of name, address",
                    "`weight` in [[service]], it belongs to [[service.backend]]",
                    "unknown key `a b`",
                ],
            ),
            (
                "keys that are not built",
                service("tracking = ▶1\nscheduler = ▶\"fo\""),
                &["`tracking` is an integer; expected one of", "`scheduler` is \"fo\""],
            ),
            (
                "access lists with bits beyond the length, of another family, twice, of nobody",
                service("allow = [▶\"10.0.0.1/8\", ▶\"10.0.0.0/33\"]\ndeny = ▶[]"),
                &[
                    "an item of `allow` is \"10.0.0.1/8\", which has bits beyond its length: 10.0.0.0/8?; expected a prefix",
                    "an item of `allow` is \"10.0.0.0/33\"; expected a prefix",
                    "`deny` is empty; expected a list of at least one",
                ],
            ),
            (
                "prefixes that are named twice, or are of another family",
                service("allow = [\"10.0.0.0/8\", ▶\"2001:db8::/32\"]\ndeny = [\"10.0.0.1\", ▶\"10.0.0.1/32\", ▶\"10.0.0.0/8\"]"),
                &[
                    "2001:db8::/32 is of another address family than the service, 192.0.2.10",
                    "10.0.0.1/32 is named twice; expected each prefix once",
                    "10.0.0.0/8 is named twice",
                ],
            ),
            (
                "a sorry backend that is wanted and missing",
                service("on_all_down = ▶\"sorry\""),
                &["the service has no sorry backend; expected `sorry = \"ADDRESS\"`"],
            ),
            (
                "a range that ends before it begins",
                format!("{HEAD}{WEB}{BACKEND}").replace("port = 80\n", "port = ▶\"8100-8000\"\n"),
                &["`port` is \"8100-8000\"; expected an integer from 0 to 65535, or a range such as \"8000-8100\""],
            ),
            (
                "ranges that overlap",
                {
                    let one = format!("{WEB}{BACKEND}[service.check]\ntype = \"none\"\n");
                    let first = one.replace("port = 80\n", "port = \"8000-8100\"\n");
                    let second = one.replace("port = 80\n", "port = ▶\"8100-8200\"\n");
                    format!("{HEAD}{first}{}", second.replace("\"web\"", "\"other\""))
                },
                &["ports 8100-8200 overlap 8000-8100 of the service of line 7; expected ranges that have no port in common"],
            ),
            (
                "a check without a port for a range",
                format!("{HEAD}{WEB}{BACKEND}[service.check]\ntype = ▶\"tcp\"\n")
                    .replace("port = 80\n", "port = \"8000-8100\"\n"),
                &["the check needs a port, and the service has more than one; expected `port` in the check"],
            ),
            (
                "outer sources of another mode",
                format!("{HEAD}{WEB}outer_sources = [▶\"10.255.0.0/16\"]\n{BACKEND}"),
                &["`outer_sources` is for `forward = \"dsr-ipip\"`, and `forward` is \"dsr-l2\""],
            ),
            (
                "two prefixes of one family",
                format!("{HEAD}{WEB}outer_sources = [\"10.255.0.0/16\", ▶\"10.254.0.0/16\"]\n{BACKEND}")
                    .replace("dsr-l2", "dsr-ipip"),
                &["10.254.0.0/16 is the second prefix of its address family; expected one of each"],
            ),
            (
                "QUIC over TCP",
                service("quic = ▶true"),
                &["`quic` is for `protocol = \"udp\"`, and `protocol` is \"tcp\"; expected no `quic`"],
            ),
            (
                "ids without QUIC",
                format!("{HEAD}{WEB}{BACKEND}quic_ids = ▶[\"0:a1\"]\n"),
                &["no service with these backends has `quic = true`; expected `quic = true` in the service"],
            ),
            (
                "ids that are none",
                quic("quic_ids = [▶\"7:a1\", ▶\"0:a\", ▶\"a1\", ▶\"0:\", ▶\"0:010203040506070809\", ▶\"0:+1\"]"),
                &[
                    "is \"7:a1\": there are the configurations 0 to 6",
                    "is \"0:a\"; expected a configuration from 0 to 6 and an id of 1 to 8 bytes in hexadecimal",
                    "is \"a1\"",
                    "is \"0:\"",
                    "is \"0:010203040506070809\", which has 9 bytes",
                    "is \"0:+1\"",
                ],
            ),
            (
                "an id of two backends",
                quic(
                    "quic_ids = [\"0:a1b2\", \"1:a1b2\"]\n[[service.backend]]\naddress = \"10.0.1.12\"\n\
                     quic_ids = [\"0:a1b3\", ▶\"1:A1B2\"]",
                ),
                &["the QUIC id of line 13 is 1:a1b2 too; expected each id once in a service"],
            ),
            (
                "ids of two lengths",
                quic("quic_ids = [\"0:a1b2\", \"1:a1\", ▶\"0:a1\"]"),
                &["the QUIC id 0:a1 has 1 bytes, that of line 13 of the same configuration 2"],
            ),
            (
                "more ids than there is room for",
                quic("quic_ids = ▶[\"0:01\", \"0:02\", \"0:03\", \"0:04\", \"0:05\"]"),
                &["the backend has 5 QUIC ids; expected at most 4"],
            ),
            (
                "a provider's VLAN around none",
                format!("{HEAD}{WEB}{BACKEND}vlan_outer = ▶200\n"),
                &["`vlan_outer` is the tag around that of `vlan`, which is missing; expected `vlan` too"],
            ),
            (
                "VLANs that there are not",
                format!("{HEAD}{WEB}{BACKEND}vlan = ▶4095\nvlan_outer = ▶0\n"),
                &["`vlan` is 4095; expected an integer from 1 to 4094", "`vlan_outer` is 0"],
            ),
            (
                "a probe that would go without tags",
                format!(
                    "{HEAD}{WEB}{BACKEND}vlan = ▶100\n[service.backend.check]\ntype = \"tcp\"\nvia = \"forward\"\n"
                ),
                &["whose probes have no tags; expected no `vlan` with it"],
            ),
            (
                "a sorry backend that is never used",
                service("on_all_down = \"drop\"\nsorry = ▶\"10.0.1.99\""),
                &["the sorry backend is never used"],
            ),
            (
                "a sorry backend that is a backend",
                format!("{HEAD}{WEB}sorry = ▶\"10.0.1.11\"\n{BACKEND}"),
                &["is 10.0.1.11 too; expected each backend of a service once"],
            ),
            (
                "nothing but backups",
                format!("{HEAD}▶{WEB}{BACKEND}backup = true\n"),
                &["every backend of the service is a backup"],
            ),
            (
                "a pool that is not there",
                format!("{HEAD}[[pool]]\nname = \"front\"\n{BACKEND_OF_POOL}{WEB}pool = \"front\"\n{SECOND}pool = ▶\"fron\"\n"),
                &["there is no pool \"fron\", did you mean \"front\"?"],
            ),
            (
                "a pool and a backend and a check",
                format!(
                    "{HEAD}[[pool]]\nname = \"front\"\n{BACKEND_OF_POOL}{WEB}pool = \"front\"\n▶[service.check]\nrise = 1\n\
                     ▶[[service.backend]]\naddress = \"10.0.1.11\"\n"
                ),
                &["names a pool and has a `check` too", "names a pool and has a `backend` too"],
            ),
            (
                "a pool that nobody uses, with a fault in it",
                format!("{HEAD}{WEB}{BACKEND}▶[[pool]]\nname = \"front\"\n[[pool.backend]]\naddress = ▶\"nowhere\"\n"),
                &["no service uses the pool", "`address` is \"nowhere\""],
            ),
            (
                "a pool of services with different ports and a check without one",
                format!(
                    "{HEAD}[[pool]]\nname = \"front\"\n{BACKEND_OF_POOL}{WEB}pool = \"front\"\n{}pool = \"front\"\n",
                    SECOND.replace("port = 80", "port = ▶443")
                ).replacen("port = 80", "port = ▶80", 1),
                &["the services of the pool have different ones", "the services of the pool have different ones"],
            ),
            (
                "two pools of one name",
                format!(
                    "{HEAD}[[pool]]\nname = \"front\"\n{BACKEND_OF_POOL}[[pool]]\nname = ▶\"front\"\n{BACKEND_OF_POOL}\
                     {WEB}pool = \"front\"\n"
                ),
                &["is named \"front\" too"],
            ),
            (
                "ports",
                shaped("\"192.0.2.1\"", "▶65536", "\"dsr-l2\"", "\"10.0.0.1\""),
                &["`port` is 65536; expected an integer from 0 to 65535, or a range such as \"8000-8100\""],
            ),
            (
                "a negative port",
                shaped("\"192.0.2.1\"", "▶-1", "\"dsr-l2\"", "\"10.0.0.1\""),
                &["`port` is -1"],
            ),
            (
                "a port as text",
                shaped("\"192.0.2.1\"", "▶\"80\"", "\"dsr-l2\"", "\"10.0.0.1\""),
                &["`port` is \"80\"; expected an integer from 0 to 65535, or a range"],
            ),
            (
                "forward",
                shaped("\"192.0.2.1\"", "80", "▶\"dsr_l2\"", "\"10.0.0.1\""),
                &["`forward` is \"dsr_l2\", did you mean \"dsr-l2\"?"],
            ),
            (
                "full-nat without an address of ours",
                shaped("\"192.0.2.1\"", "80", "▶\"full-nat\"", "\"10.0.0.1\""),
                &["[agent] has no IPv4 address to rewrite sources to; expected an IPv4 address in `snat_addresses`"],
            ),
            (
                "full-nat with an address of the other family",
                shaped("\"192.0.2.1\"", "80", "▶\"full-nat\"", "\"10.0.0.1\"")
                    .replace("[agent]\n", "[agent]\nsnat_addresses = [\"2001:db8::5\"]\n"),
                &["[agent] has no IPv4 address to rewrite sources to"],
            ),
            (
                "an address of ours that is a service's",
                shaped("▶\"192.0.2.1\"", "80", "\"full-nat\"", "\"10.0.0.1\"")
                    .replace("[agent]\n", "[agent]\nsnat_addresses = [\"192.0.2.1\"]\n"),
                &["192.0.2.1 is one of `snat_addresses` too"],
            ),
            (
                "nat from one family to the other",
                shaped("\"192.0.2.1\"", "80", "\"nat\"", "▶\"2001:db8::1\""),
                &["`forward` is \"nat\"; expected an IPv4 address"],
            ),
            (
                "nat with a scheduler that has to be told of every flow, and without remembering",
                shaped("\"192.0.2.1\"", "80", "\"nat\"\nscheduler = ▶\"lc\"", "\"10.0.0.1\""),
                &["`scheduler` is \"lc\", which is not built yet for forward \"nat\"; expected \"maglev\" or \"sh\""],
            ),
            (
                "nat without remembering",
                shaped("\"192.0.2.1\"", "80", "\"nat\"\ntracking = ▶\"none\"", "\"10.0.0.1\""),
                &["`tracking` is \"none\", but \"nat\" has an entry for every flow; expected \"full\", or no `tracking`"],
            ),
            (
                "nat with a probe through the forward path",
                shaped("\"192.0.2.1\"", "80", "\"nat\"", "\"10.0.0.1\"")
                    + "[service.check]\ntype = \"tcp\"\nvia = ▶\"forward\"\n",
                &["`via` is \"forward\", and the service's `forward` is \"nat\""],
            ),
            (
                "a scheduler that has to remember, told not to",
                service("scheduler = \"rr\"\ntracking = ▶\"moved\""),
                &["`tracking` is \"moved\", but scheduler rr has to remember every flow"],
            ),
            (
                "a service that keeps its clients, and is told to forget",
                service("persistence_timeout = \"10m\"\ntracking = ▶\"none\""),
                &["`tracking` is \"none\", but a service with a persistence_timeout has to remember every flow"],
            ),
            (
                "an unknown scheduler",
                service("scheduler = ▶\"maglef\""),
                &["did you mean \"maglev\"?"],
            ),
            (
                "protocol",
                service("").replace("\"tcp\"", "▶\"TCP\""),
                &["`protocol` is \"TCP\", did you mean \"tcp\"?; expected one of \"tcp\", \"udp\""],
            ),
            (
                "no prime",
                service("table_size = ▶65536"),
                &["`table_size` is 65536; expected one of 251, 509, 1021, 2039, \
                     4093, 8191, 16381, 32749, 65521, 131071"],
            ),
            (
                "a name with a space",
                service("").replace("\"web\"", "▶\"we b\""),
                &["`name` is \"we b\"; expected 1 to 63 letters"],
            ),
            (
                "no name",
                service("").replace("\"web\"", "▶\"\""),
                &["`name` is \"\""],
            ),
            (
                "a name that looks like an option",
                service("").replace("\"web\"", "▶\"-x\""),
                &["`name` is \"-x\""],
            ),
            (
                "a name that is too long",
                service("").replace("\"web\"", &format!("▶\"{}\"", "w".repeat(64))),
                &["`name` is \"www"],
            ),
            (
                "no backend",
                format!("{HEAD}▶{WEB}"),
                &["the service has no backend"],
            ),
            (
                "an empty list of backends",
                format!("{HEAD}▶{WEB}backend = []"),
                &["the service has no backend"],
            ),
        ],
        Config::parse,
    );
}

#[test]
fn between_services() {
    let two = |first: &str, second: &str| format!("{HEAD}{first}{BACKEND}{second}{BACKEND}");
    check(
        &[
            (
                "the same twice",
                two(WEB, &WEB.replace("\"web", "▶\"web").replace("\"192", "▶\"192")),
                &[
                    "the service of line 5 is named \"web\" too; expected a name of its own",
                    "the service of line 6 is 192.0.2.10:80/tcp too; expected \
                     each address, port and protocol once",
                ],
            ),
            (
                "the same key, written otherwise",
                two(
                    &WEB.replace("192.0.2.10", "2001:db8::1"),
                    &WEB.replace("web", "b")
                        .replace("\"192.0.2.10", "▶\"2001:0DB8:0:0::1"),
                )
                .replace("10.0.1.11", "2001:db8::2"),
                &["is [2001:db8::1]:80/tcp too"],
            ),
            (
                "too many services",
                two(WEB, &format!("▶{}", WEB.replace("web", "b").replace("80", "81")))
                    .replace("[agent]", "[agent]\nmax_services = 1"),
                &["there are 2 services; expected at most 1 (`max_services` of [agent])"],
            ),
            (
                "too many backends",
                two(WEB, &format!("{}▶", WEB.replace("web", "b").replace("80", "81")))
                    .replace("[agent]", "[agent]\nmax_backends = 1"),
                &["there are 2 backends; expected at most 1 (`max_backends` of [agent])"],
            ),
        ],
        Config::parse,
    );
}
