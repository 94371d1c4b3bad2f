use super::super::super::Config;
use super::super::{HEAD, WEB};
use super::{backend, backends, check, shaped};

#[test]
fn of_addresses() {
    let v4 = |address: &str| shaped(address, "80", "\"dsr-ipip\"", "\"10.0.0.1\"");
    let of_backend = |address: &str| shaped("\"192.0.2.1\"", "80", "\"dsr-ipip\"", address);
    check(
        &[
            (
                "no address",
                v4("▶\"192.0.2.300\""),
                &["`address` is \"192.0.2.300\"; expected an IPv4 or IPv6 address"],
            ),
            (
                "with a port",
                v4("▶\"192.0.2.3:80\""),
                &["`address` is \"192.0.2.3:80\""],
            ),
            ("octal", v4("▶\"192.0.2.010\""), &["`address` is \"192.0.2.010\""]),
            ("a number", v4("▶7"), &["`address` is an integer"]),
            (
                "unspecified",
                v4("▶\"0.0.0.0\""),
                &["`address` is 0.0.0.0, the unspecified address"],
            ),
            (
                "unspecified, IPv6",
                v4("▶\"::\""),
                &["`address` is ::, the unspecified address"],
            ),
            ("multicast", v4("▶\"224.0.0.1\""), &["a multicast address"]),
            ("multicast, IPv6", v4("▶\"ff02::1\""), &["a multicast address"]),
            (
                "broadcast",
                v4("▶\"255.255.255.255\""),
                &["the broadcast address"],
            ),
            ("loopback", v4("▶\"127.1.2.3\""), &["a loopback address"]),
            ("loopback, IPv6", v4("▶\"::1\""), &["a loopback address"]),
            ("mapped", v4("▶\"::ffff:192.0.2.1\""), &["an IPv4-mapped address"]),
            ("link-local", v4("▶\"fe80::1\""), &["a link-local address"]),
            (
                "backend: unspecified",
                of_backend("▶\"0.0.0.0\""),
                &["the unspecified address"],
            ),
            (
                "backend: multicast",
                of_backend("▶\"ff02::1\""),
                &["a multicast address"],
            ),
            (
                "backend: loopback",
                of_backend("▶\"127.0.0.1\""),
                &["a loopback address"],
            ),
            (
                "backend: mapped",
                of_backend("▶\"::ffff:10.0.0.1\""),
                &["an IPv4-mapped address"],
            ),
            (
                "backend: the service's",
                of_backend("▶\"192.0.2.1\""),
                &["192.0.2.1 is the address of the service; expected the backend's own address"],
            ),
            (
                "IPv6 by MAC for IPv4",
                shaped("\"192.0.2.1\"", "80", "\"dsr-l2\"", "▶\"2001:db8::1\""),
                &["the backend's address 2001:db8::1 is IPv6, the service's \
                     is IPv4 and `forward` is \"dsr-l2\"; expected an IPv4 address, \
                     or `forward = \"dsr-ipip\"`"],
            ),
            (
                "IPv4 by MAC for IPv6",
                shaped("\"2001:db8::1\"", "80", "\"dsr-l2\"", "▶\"10.0.0.1\""),
                &["is IPv4, the service's is IPv6 and `forward` is \"dsr-l2\"; expected an IPv6 address"],
            ),
            (
                "IPv4 tunnel for IPv6",
                shaped("\"2001:db8::1\"", "80", "\"dsr-ipip\"", "▶\"10.0.0.1\""),
                &["and `forward` is \"dsr-ipip\"; expected an IPv6 address"],
            ),
        ],
        Config::parse,
    );
}

#[test]
fn of_backends() {
    check(
        &[
            (
                "nothing in it",
                backends("▶[[service.backend]]"),
                &["`address` is missing from [[service.backend]]"],
            ),
            (
                "weights",
                backends(
                    "[[service.backend]]\naddress = \"10.0.0.1\"\nweight = ▶-1\n\
                     [[service.backend]]\naddress = \"10.0.0.2\"\nweight = ▶65536",
                ),
                &[
                    "`weight` is -1; expected an integer from 0 to 65535",
                    "`weight` is 65536",
                ],
            ),
            (
                "a weight as text",
                backend("address = \"10.0.0.1\"\nweight = ▶\"1\""),
                &["`weight` is a string"],
            ),
            (
                "another port",
                backend("address = \"10.0.0.1\"\nport = ▶8080"),
                &[
                    "the backend's port is 8080, the service's 80: \"dsr-l2\" does not translate ports; \
                     expected 80 or no `port`, or forward \"nat\" or \"full-nat\"",
                ],
            ),
            (
                "a port out of range",
                backend("address = \"10.0.0.1\"\nport = ▶80000"),
                &["`port` is 80000; expected an integer from 0 to 65535"],
            ),
            (
                "an unknown key",
                backend("address = \"10.0.0.1\"\n▶wieght = 1"),
                &["unknown key `wieght` in [[service.backend]], did you mean `weight`?"],
            ),
            (
                "inline",
                format!(
                    "{HEAD}{WEB}backend = [{{ address = \"10.0.0.1\" }}, ▶{{ ▶addres \
                     = \"10.0.0.2\" }}, ▶7]"
                ),
                &[
                    "`address` is missing",
                    "did you mean `address`?",
                    "an item of `backend` is an integer",
                ],
            ),
            (
                "one twice",
                backends(
                    "[[service.backend]]\naddress = \"2001:db8::1\"\n[[service.backend]]\n\
                     address = ▶\"2001:DB8:0::1\"",
                )
                .replace("dsr-l2", "dsr-ipip"),
                &["the backend of line 11 is 2001:db8::1 too; expected each \
                     backend of a service once"],
            ),
        ],
        Config::parse,
    );
}
