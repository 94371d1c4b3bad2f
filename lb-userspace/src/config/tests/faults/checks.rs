use super::super::super::Config;
use super::super::{BACKEND, HEAD, WEB};
use super::{check, check_table, service, shaped};

#[test]
fn of_checks() {
    check(
        &[
            (
                "an unknown key",
                check_table("▶timeuot = \"1s\""),
                &["unknown key `timeuot` in [check], did you mean `timeout`?"],
            ),
            (
                "a table as text",
                service("check = ▶\"http\""),
                &["`check` is a string; expected a table, [check]"],
            ),
            (
                "an unknown type",
                check_table("type = ▶\"htp\""),
                &["did you mean \"http\"?; expected one of \"none\", \"tcp\", \"http\""],
            ),
            (
                "keys that are not built",
                check_table("▶witness = \"10.0.0.1\""),
                &["`witness` of [check] is not built yet"],
            ),
            (
                "numbers for durations",
                check_table("interval = ▶2\ntimeout = ▶0.5"),
                &[
                    "`interval` is an integer; expected a duration from \"1ms\"",
                    "`timeout` is a floating-point number",
                ],
            ),
            (
                "no duration",
                check_table("interval = ▶\"2\"\ntimeout = ▶\"\"\nfast_timeout = ▶\"1 parsec\""),
                &[
                    "`interval` is \"2\": time unit needed",
                    "`timeout` is \"\": value was empty",
                    "unknown time unit",
                ],
            ),
            (
                "zero",
                check_table(
                    "interval = ▶\"0s\"\ntimeout = ▶\"0ms\"\nfast_interval = ▶\"0s\"\n\
                     fast_timeout = ▶\"0s\"\ndown_interval = ▶\"0s\"",
                ),
                &[
                    "`interval` is \"0s\"",
                    "`timeout` is \"0ms\"",
                    "`fast_interval` is",
                    "`fast_timeout` is",
                    "`down_interval` is",
                ],
            ),
            (
                "below and above",
                check_table("interval = ▶\"25h\"\ntimeout = ▶\"999us\""),
                &[
                    "`interval` is \"25h\"; expected a duration from \"1ms\" to \"1day\"",
                    "`timeout` is \"999us\"",
                ],
            ),
            (
                "rise, fall, jitter, port",
                check_table("rise = ▶0\nfall = ▶0\njitter_percent = ▶51\nport = ▶0"),
                &[
                    "`rise` is 0; expected an integer from 1",
                    "`fall` is 0; expected an integer from 1",
                    "`jitter_percent` is 51; expected an integer from 0 to 50",
                    "`port` is 0; expected an integer from 1",
                ],
            ),
            (
                "an address",
                check_table("address = ▶\"localhost\""),
                &["`address` is \"localhost\""],
            ),
            (
                "timeout above interval",
                check_table("timeout = ▶\"3s\""),
                &["`timeout` (3s) is longer than `interval` (2s): probes would \
                     overlap; expected `timeout` to be at most `interval`"],
            ),
            (
                "interval below timeout",
                check_table("interval = ▶\"200ms\""),
                &["`timeout` (1s) is longer than `interval` (200ms)"],
            ),
            (
                "interval of the defaults, once",
                format!(
                    "{HEAD}[defaults.check]\ninterval = ▶\"200ms\"\n{WEB}{BACKEND}\
                     [[service.backend]]\naddress = \"10.0.0.9\"\n"
                ),
                &["`timeout` (1s) is longer than `interval` (200ms)"],
            ),
            (
                "of one backend",
                format!("{}[service.backend.check]\ntimeout = ▶\"3s\"", service("")),
                &["`timeout` (3s) is longer than `interval` (2s)"],
            ),
            (
                "of a service without backends",
                format!("{HEAD}▶{WEB}[service.check]\ntimeout = ▶\"3s\""),
                &["no backend", "`timeout` (3s) is longer"],
            ),
            (
                "down_interval",
                check_table("down_interval = ▶\"500ms\""),
                &["`timeout` (1s) is longer than `down_interval` (500ms)"],
            ),
            (
                "http keys of a tcp check",
                check_table("method = ▶\"GET\"\npath = ▶\"/\"\nhost = ▶\"a\"\nexpect_status = ▶[200]"),
                &[
                    "`method` is for checks of type \"http\" or \"https\", and the type of this check is \"tcp\"",
                    "`path` is for",
                    "`host` is for",
                    "`expect_status` is for",
                ],
            ),
            (
                "http keys beside another fault",
                check_table("path = ▶\"/\"\nrise = ▶0"),
                &["`path` is for checks", "`rise` is 0"],
            ),
            (
                "http keys of defaults without a type",
                format!("{HEAD}[defaults.check]\npath = ▶\"/\""),
                &["`path` is for checks of type \"http\" or \"https\", and this table has no `type`"],
            ),
            (
                "http keys of a backend with another type",
                format!(
                    "{}[service.backend.check]\ntype = \"tcp\"\npath = ▶\"/\"",
                    check_table("type = \"http\"")
                ),
                &["the type of this check is \"tcp\""],
            ),
            (
                "http values",
                check_table("type = \"http\"\nmethod = ▶\"get\"\npath = ▶\"healthz\"\nhost = ▶\"a b\""),
                &[
                    "`method` is \"get\", did you mean \"GET\"?",
                    "`path` is \"healthz\"; expected a path that begins with `/`",
                    "`host` is \"a b\"",
                ],
            ),
            (
                "a header smuggled in",
                check_table("type = \"http\"\npath = ▶\"/ HTTP/1.1\\r\\nX: y\"\nhost = ▶\"a\\r\\nX: y\""),
                &["`path` is \"/ HTTP/1.1\\r\\nX: y\"", "`host` is"],
            ),
            (
                "statuses",
                check_table(
                    "type = \"http\"\nexpect_status = [200, ▶99, ▶600, ▶\"300-200\", \
                     ▶\"2xx\", ▶\"+20-300\", ▶true]",
                ),
                &[
                    "an item of `expect_status` is 99; expected a status from 100 to 599",
                    "is 600",
                    "is \"300-200\"",
                    "is \"2xx\"",
                    "is \"+20-300\"",
                    "`expect_status` is a boolean",
                ],
            ),
            (
                "no status",
                check_table("type = \"http\"\nexpect_status = ▶[]"),
                &["`expect_status` is empty"],
            ),
            (
                "every port, implied tcp",
                shaped("\"192.0.2.1\"", "▶0", "\"dsr-l2\"", "\"10.0.0.1\""),
                &["the check needs a port, and the service has more than one"],
            ),
            (
                "every port, http",
                format!(
                    "{}[service.backend.check]\ntype = ▶\"http\"",
                    shaped("\"192.0.2.1\"", "0", "\"dsr-l2\"", "\"10.0.0.1\"")
                ),
                &["the check needs a port, and the service has more than one"],
            ),
            (
                "probes that lack something",
                format!(
                    "{}[[service.backend]]\naddress = \"10.0.1.13\"\n[service.backend.check]\ntype = ▶\"dns\"\n\
                     [[service.backend]]\naddress = \"10.0.1.12\"\n[service.backend.check]\ntype = ▶\"exec\"\n",
                    check_table("type = ▶\"udp\"")
                ),
                &[
                    "the udp check does not say what to send; expected `send` with it",
                    "the dns check does not say what to ask for",
                    "the exec check does not say what to run",
                ],
            ),
            (
                "keys of other types",
                check_table("type = \"udp\"\nsend = \"x\"\nquery = ▶\".\""),
                &["`query` is for checks of type \"dns\", and the type of this check is \"udp\""],
            ),
            (
                "payloads, patterns, headers, names",
                check_table(
                    "[[service.check.also]]\ntype = \"udp\"\nsend = ▶\"hex:0\"\nexpect = ▶\"\"\n\
                     [[service.check.also]]\ntype = \"http\"\nexpect_body_regex = ▶\"(\"\n\
                     headers = [▶\"no colon\", ▶\"Host: a\", ▶\"A: b\\r\\nC: d\", \"X-Fine: yes\"]\n\
                     [[service.check.also]]\ntype = \"dns\"\nquery = ▶\"a..b\"\n\
                     [[service.check.also]]\ntype = \"https\"\nsni = ▶\"a b\"\nverify = ▶\"no\"\n",
                ),
                &[
                    "`send` is \"hex:0\"",
                    "`expect` is \"\"",
                    "unclosed group",
                    "\"no colon\"",
                    "\"Host: a\", which the check sets itself",
                    "an item of `headers` is",
                    "`query` is \"a..b\"",
                    "`sni` is \"a b\"",
                    "`verify` is a string",
                ],
            ),
            (
                "programs",
                check_table("type = \"exec\"\ncommand = [▶\"check\", \"x\"]"),
                &["the program is \"check\"; expected its absolute path"],
            ),
            (
                "certificates",
                check_table(
                    "[[service.check.also]]\ntype = ▶\"https\"\nclient_cert = \"/a\"\n\
                     [[service.check.also]]\ntype = ▶\"https\"\nverify = false\nca_file = \"/a\"\n\
                     [[service.check.also]]\ntype = ▶\"grpc\"\nsni = \"a\"\n",
                ),
                &[
                    "one of `client_cert` and `client_key`",
                    "a `ca_file` and does not verify",
                    "keys for TLS and does not use it",
                ],
            ),
            (
                "beside no check",
                check_table("type = \"none\"\n[[service.check.also]]\ntype = ▶\"tcp\""),
                &["the check beside it has the type \"none\""],
            ),
            (
                "beside a check",
                check_table("[[service.check.also]]\ntype = ▶\"none\""),
                &["`type` is \"none\""],
            ),
            (
                "a source of another family",
                check_table(
                    "source = ▶\"2001:db8::1\"\n[[service.check.also]]\ntype = \"tcp\"\nsource = ▶\"2001:db8::1\"",
                ),
                &[
                    "probes of 10.0.1.11 cannot come from 2001:db8::1",
                    "cannot come from",
                ],
            ),
            (
                "agent checks",
                format!(
                    "{}[service.backend.agent_check]\nport = ▶0\n\
                     [[service.backend]]\naddress = \"10.0.1.12\"\n[service.backend.agent_check]\ntimeout = ▶\"3s\"\n",
                    service("[service.agent_check]\nport = 1\nsource = ▶\"::2\"\n▶rise = 2")
                ),
                &[
                    "an agent at 10.0.1.12 cannot be asked from ::2",
                    "unknown key `rise` in [agent_check]",
                    "`port` is 0",
                    "the `timeout` of the agent check is longer than its `interval`",
                ],
            ),
            (
                "the forward path of what does not take it",
                format!(
                    "{}[service.backend.check]\ntype = \"icmp\"\nvia = ▶\"forward\"\n\
                     [[service.backend]]\naddress = \"10.0.1.12\"\n[service.backend.check]\n\
                     via = ▶\"forward\"\nport = 81\n[[service.backend]]\naddress = \"10.0.1.13\"\n\
                     [service.backend.check]\ntype = \"dns\"\nquery = \"a.example\"\nvia = ▶\"forward\"\n",
                    service("")
                ),
                &[
                    "`via` is for checks of type \"tcp\" or \"http\" or \"https\" or \"udp\" or \"dns\" or \"grpc\", and the type \
                     of this check is \"icmp\"",
                    "has an `address` or a `port` of its own",
                    "`via` of a check of type \"dns\" is \"forward\"",
                ],
            ),
            (
                "an agent nowhere",
                service("▶[service.agent_check]\ninterval = \"5s\""),
                &["`port` is missing from [agent_check]"],
            ),
        ],
        Config::parse,
    );
}
