use super::super::super::Config;
use super::super::HEAD;
use super::{agent, check};

#[test]
fn of_the_whole_file() {
    check(
        &[
            (
                "an empty file",
                "▶▶".to_owned(),
                &["[agent] is missing from the file", "`schema` is missing"],
            ),
            (
                "another schema",
                HEAD.replace("= 1", "= ▶2"),
                &["`schema` is 2; expected 1"],
            ),
            (
                "schema is text",
                HEAD.replace("= 1", "= ▶\"1\""),
                &["`schema` is a string; expected 1"],
            ),
            (
                "agent is no table",
                "schema = 1\nagent = ▶3".to_owned(),
                &["`agent` is an integer; expected a table"],
            ),
            (
                "services are no tables",
                "schema = 1\nservice = ▶3\n[agent]\ninterfaces=[\"a\"]".to_owned(),
                &["`service` is an integer; expected tables, [[service]]"],
            ),
            (
                "one service is no table",
                "schema = 1\nservice = [▶3]\n[agent]\ninterfaces=[\"a\"]".to_owned(),
                &["an item of `service` is an integer"],
            ),
            (
                "a table that is not an array of tables",
                agent("▶[service]\n"),
                &["`service` is a table; expected tables, [[service]]"],
            ),
            (
                "an unknown table",
                agent("[▶servce]\n"),
                &[
                    "unknown key `servce` in the file, did you mean `service`?; expected one of schema, agent, \
                     defaults, pool, service",
                ],
            ),
            (
                "an unknown key of defaults",
                agent("[defaults]\n▶chek = 1"),
                &["unknown key `chek` in [defaults], did you mean `check`?"],
            ),
            (
                "a default that is out of bounds",
                agent("[defaults]\npersistence_prefix_v4 = ▶33"),
                &["`persistence_prefix_v4` is 33; expected an integer from 1 to 32"],
            ),
        ],
        Config::parse,
    );
}

#[test]
fn of_the_agent() {
    let secret = "0".repeat(128);
    check(
        &[
            (
                "no interfaces key",
                "schema = 1\n▶[agent]".to_owned(),
                &["`interfaces` is missing from [agent]"],
            ),
            (
                "no interface",
                "schema = 1\n[agent]\ninterfaces = ▶[]".to_owned(),
                &["`interfaces` is empty; expected a list of at least one"],
            ),
            (
                "interfaces is text",
                "schema = 1\n[agent]\ninterfaces = ▶\"eth0\"".to_owned(),
                &["`interfaces` is a string"],
            ),
            (
                "impossible interfaces",
                "schema = 1\n[agent]\ninterfaces = [\n▶\"\", ▶\"eth0123456789012\", ▶\"a/b\", ▶7]".to_owned(),
                &[
                    "is \"\"",
                    "is \"eth0123456789012\"",
                    "is \"a/b\"",
                    "`interfaces` is an integer",
                ],
            ),
            (
                "an interface twice",
                "schema = 1\n[agent]\ninterfaces = [\"eth0\", ▶\"eth0\"]".to_owned(),
                &["the interface \"eth0\" is named twice"],
            ),
            (
                "an unknown key",
                agent("▶xdp-mode = \"auto\""),
                &["unknown key `xdp-mode` in [agent], did you mean `xdp_mode`?"],
            ),
            (
                "ports that are no range",
                agent("snat_ports = ▶\"2000-1000\""),
                &["`snat_ports` is \"2000-1000\"; expected a range of ports from 1 to 65535"],
            ),
            (
                "an address of ours twice",
                agent("snat_addresses = [\"10.0.0.5\", ▶\"10.0.0.5\"]"),
                &["the address 10.0.0.5 is named twice"],
            ),
            (
                "metrics without a port",
                agent("metrics = ▶\"127.0.0.1\""),
                &["`metrics` is \"127.0.0.1\"; expected an address with a port"],
            ),
            (
                "metrics at a port that nobody knows",
                agent("metrics = ▶\"[::1]:0\""),
                &["`metrics` is \"[::1]:0\"; expected an address with a port"],
            ),
            (
                "metrics in the wrong place",
                format!("▶metrics = 1\n{HEAD}"),
                &["unknown key `metrics` in the file, it belongs to [agent]"],
            ),
            (
                "an unknown mode",
                agent("xdp_mode = ▶\"nativ\""),
                &["`xdp_mode` is \"nativ\", did you mean \"native\"?; expected \
                     one of \"auto\", \"native\", \"generic\""],
            ),
            (
                "a mode that is not built",
                agent("xdp_mode = ▶\"offload\""),
                &["`xdp_mode = \"offload\"` is not built yet"],
            ),
            (
                "announce",
                agent("announce = ▶true"),
                &["`announce` is a boolean; expected one of \"none\", \"l2\""],
            ),
            (
                "on_stop",
                agent("on_stop = ▶\"drop\""),
                &["`on_stop` is \"drop\"; expected one of \"keep\", \"detach\""],
            ),
            (
                "a relative path",
                agent("state_dir = ▶\"var/lib\""),
                &["`state_dir` is \"var/lib\", a relative path; expected an absolute path"],
            ),
            (
                "the root",
                agent("pin_dir = ▶\"//\""),
                &["the root of the file system"],
            ),
            (
                "a zero byte",
                agent("pin_dir = ▶\"/a\\u0000\""),
                &["which contains a zero byte"],
            ),
            (
                "a socket path that is too long",
                agent(&format!("api_socket = ▶\"/{}\"", "s".repeat(107))),
                &["108 bytes long; expected an absolute path of at most 107 bytes"],
            ),
            (
                "a hash key of zeros",
                agent(&format!("hash_key = ▶\"{secret}\"")),
                &["`hash_key` is all zero"],
            ),
            (
                "a short hash key",
                agent("hash_key = ▶\"00ff\""),
                &["`hash_key` has 4 digits; expected 128 hexadecimal digits"],
            ),
            (
                "a hash key with other digits",
                agent("hash_key = ▶\"00fg\""),
                &["character 4 of `hash_key` is no hexadecimal digit"],
            ),
            (
                "a hash key that is not ASCII",
                agent("hash_key = ▶\"0é\""),
                &["character 2 of `hash_key`"],
            ),
            (
                "limits",
                agent("max_services = ▶0\nmax_backends = ▶65536"),
                &[
                    "`max_services` is 0; expected an integer from 1 to 4096",
                    "`max_backends` is 65536; expected an integer from 1 to 65535",
                ],
            ),
            (
                "a number no machine holds",
                agent("max_services = ▶99999999999999999999"),
                &["does not fit 64 bits"],
            ),
            (
                "a number that is no integer",
                agent("max_services = ▶1.5"),
                &["is a floating-point number"],
            ),
        ],
        Config::parse,
    );
}
