//! Real clients and servers through every forward mode: curl and nginx, dig and dnsmasq, iperf3.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use lb_tests::cleanup::Folder;
use lb_tests::lab::{Host, Lab, LabOptions};
use lb_tests::netns::run;
use lb_tests::privileged;
use lb_tests::process::Process;
use lb_tests::wait::wait_for;
use support::{FAST, Xlb, addresses, curl, service, url};

/// Forward mode, service address over IPv4, whether backends are IPv6 (4-in-6), for each way of forwarding.
const WAYS: [(&str, &str, bool); 5] = [
    ("dsr-l2", "192.0.2.10", false),
    ("dsr-l2", "2001:db8::10", true),
    ("dsr-ipip", "192.0.2.20", false),
    ("dsr-ipip", "2001:db8::20", true),
    ("dsr-ipip", "192.0.2.30", true),
];

/// Bytes that no compression and no accident makes.
const PAYLOAD: usize = 20_000_000;

/// A service of each way, on one port.
fn services(lab: &Lab, port: u16, protocol: &str, check: &str) -> String {
    let all = WAYS.iter().enumerate().map(|(n, (forward, address, v6))| {
        service(
            &format!("s{n}"),
            address,
            port,
            protocol,
            forward,
            check,
            &addresses(lab, *v6),
        )
    });
    all.collect()
}

fn nginx(host: &Host, root: &Path, folder: &Arc<Folder>) -> anyhow::Result<Process> {
    let name = &host.name;
    let config = folder.file(&format!("{name}-nginx.conf"));
    let temp = folder.file(&format!("{name}-nginx"));
    fs::create_dir_all(&temp)?;
    let text = format!(
        "daemon off; master_process off; user root; pid {temp}/pid; error_log stderr;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {temp}/b; proxy_temp_path {temp}/p; fastcgi_temp_path {temp}/f;\n\
         uwsgi_temp_path {temp}/u; scgi_temp_path {temp}/s;\n\
         server {{ listen 80; listen [::]:80; root {root};\n\
         client_max_body_size 64m; dav_methods PUT;\n\
         location = /who {{ return 200 '{name}\\n'; }}\n\
         location = /healthz {{ return 204; }} }} }}\n",
        temp = temp.display(),
        root = root.display()
    );
    // One process: workers would outlive a master that is killed with its guard.
    fs::write(&config, text)?;
    let mut command = host.netns.command("nginx");
    command.arg("-c").arg(&config);
    let process = Process::spawn(&format!("{name}-nginx"), &mut command, folder)?;
    wait_for("nginx", || {
        ensure!(process.ended()?.is_none(), "it ended:\n{}", process.log());
        Ok(host.netns.enter(|| std::net::TcpStream::connect((host.v4, 80)))?)
    })?;
    Ok(process)
}

#[test]
fn curl_and_nginx_exchange_whole_files_in_every_way() -> anyhow::Result<()> {
    privileged!("curl_and_nginx_exchange_whole_files_in_every_way");
    let lab = Lab::new(LabOptions {
        backends: 2,
        decap: true,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("nginx")?);
    let root = folder.file("root");
    fs::create_dir_all(&root)?;
    let payload: Vec<u8> = (0..PAYLOAD as u64)
        .map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect();
    fs::write(root.join("big"), &payload)?;
    let _servers = lab
        .backends
        .iter()
        .map(|b| nginx(b, &root, &folder))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let check = format!("type = \"http\"\npath = \"/healthz\"\nexpect_status = [204]\n{FAST}");
    let xlb = Xlb::started(&lab, "", &services(&lab, 80, "tcp", &check))?;
    for (n, (forward, address, _)) in WAYS.iter().enumerate() {
        let what = format!("{forward} {address}");
        let mut names: Vec<String> = (0..30)
            .map(|_| Ok(curl(&lab, address, 80, "/who")?.trim().to_owned()))
            .collect::<anyhow::Result<_>>()?;
        names.sort();
        names.dedup();
        assert_eq!(names, ["b1", "b2"], "{what}");
        let client = || {
            let mut command = lab.client.netns.command("curl");
            command.args(["--silent", "--show-error", "--fail", "--max-time", "60"]);
            command
        };
        let file = folder.file(&format!("got-{n}"));
        run(client().arg("--output").arg(&file).arg(url(address, 80, "/big"))).context(what.clone())?;
        ensure!(fs::read(&file)? == payload, "{what}: the file came damaged");
        // The way that is encapsulated is the one towards the backend.
        let put = format!("/put-{n}");
        run(client()
            .arg("--upload-file")
            .arg(root.join("big"))
            .arg(url(address, 80, &put)))
        .context(what.clone())?;
        ensure!(
            fs::read(root.join(&put[1..]))? == payload,
            "{what}: the file arrived damaged"
        );
        let status = xlb.service(&format!("s{n}"))?;
        assert_eq!(status["backends"][0]["check"]["code"], "L7OK", "{what}");
        assert!(status["new_flows"].as_u64() >= Some(32), "{what}: {status}");
    }
    assert_eq!(lab.checksum_errors()?, 0);
    assert_eq!(lab.tx_errors()?, 0);
    for reason in [
        "no_backend",
        "no_next_hop",
        "malformed",
        "fragment",
        "too_big",
        "cannot_send",
    ] {
        assert_eq!(xlb.reason(reason)?, 0, "{reason}");
    }
    Ok(())
}

#[test]
fn iperf3_sends_bulk_data_to_a_backend_in_every_way() -> anyhow::Result<()> {
    privileged!("iperf3_sends_bulk_data_to_a_backend_in_every_way");
    // iperf3 opens two connections, which must meet one server.
    let lab = Lab::new(LabOptions {
        backends: 1,
        decap: true,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("iperf3")?);
    let mut command = lab.backends[0].netns.command("iperf3");
    let server = Process::spawn("iperf3", command.args(["--server", "--port", "5201"]), &folder)?;
    let xlb = Xlb::started(&lab, "", &services(&lab, 5201, "tcp", "type = \"none\""))?;
    for (forward, address, _) in WAYS {
        let what = format!("{forward} {address}");
        let line = format!("iperf3 --client {address} --port 5201 --bytes 20M --json");
        // The server may still be starting, or be busy with the end of the run before.
        let text = wait_for("iperf3", || lab.client.netns.run(&line)).context(what.clone())?;
        let answer: serde_json::Value = serde_json::from_str(&text)?;
        // The server stops counting when the client says that it is done, with bytes still on the way.
        let (sent, received) = (
            &answer["end"]["sum_sent"]["bytes"],
            &answer["end"]["sum_received"]["bytes"],
        );
        assert!(sent.as_u64() >= Some(20 << 20), "{what}: {sent}");
        assert!(received.as_u64() >= Some(10 << 20), "{what}: {received}");
    }
    assert_eq!(lab.checksum_errors()?, 0);
    assert_eq!(xlb.reason("too_big")?, 0);
    drop(server);
    Ok(())
}

#[test]
fn dig_asks_dnsmasq_over_udp_in_every_way() -> anyhow::Result<()> {
    privileged!("dig_asks_dnsmasq_over_udp_in_every_way");
    let lab = Lab::new(LabOptions {
        backends: 2,
        decap: true,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("dnsmasq")?);
    let servers = lab.backends.iter().map(|host| {
        let mut command = host.netns.command("dnsmasq");
        command.args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
            "--user=root",
        ]);
        command.args(["--pid-file=", "--log-facility=-", "--port=53"]);
        command.arg(format!("--txt-record=who.test,{}", host.name));
        Process::spawn(&format!("{}-dnsmasq", host.name), &mut command, &folder)
    });
    let servers = servers.collect::<anyhow::Result<Vec<_>>>()?;
    let xlb = Xlb::started(&lab, "", &services(&lab, 53, "udp", "type = \"none\""))?;
    for (n, (forward, address, _)) in WAYS.iter().enumerate() {
        let what = format!("{forward} {address}");
        let ask = || {
            lab.client
                .netns
                .run(&format!("dig +short +tries=1 +time=2 @{address} who.test TXT"))
        };
        // dnsmasq may still be starting.
        wait_for("dnsmasq", || {
            let answer = ask()?;
            ensure!(answer.contains("\"b"), "{answer}");
            Ok(())
        })
        .context(what.clone())?;
        let mut names: Vec<String> = (0..20)
            .map(|_| Ok(ask()?.trim().to_owned()))
            .collect::<anyhow::Result<_>>()?;
        names.sort();
        names.dedup();
        assert_eq!(names, ["\"b1\"", "\"b2\""], "{what}");
        let status = xlb.service(&format!("s{n}"))?;
        assert_eq!(status["backends"][0]["check"]["code"], "UNK", "{what}");
        assert_eq!(status["new_flows"], 0, "{what}: UDP has no SYN to count");
    }
    assert_eq!(lab.checksum_errors()?, 0);
    drop(servers);
    Ok(())
}

#[test]
fn tcpdump_sees_what_the_standards_say_of_the_outer_header() -> anyhow::Result<()> {
    privileged!("tcpdump_sees_what_the_standards_say_of_the_outer_header");
    let lab = Lab::new(LabOptions {
        backends: 1,
        decap: true,
        ..LabOptions::default()
    })?;
    let folder = Arc::new(Folder::new("tcpdump")?);
    let root = folder.file("root");
    fs::create_dir_all(&root)?;
    let _server = nginx(&lab.backends[0], &root, &folder)?;
    let _xlb = Xlb::started(&lab, "", &services(&lab, 80, "tcp", FAST))?;
    // On the switch the frames pass the kernel's taps as they are on the wire.
    let mut command = lab.switch.command("tcpdump");
    command.args([
        "-n",
        "-v",
        "-l",
        "-i",
        "br0",
        "ip proto 4 or ip6 proto 4 or ip6 proto 41",
    ]);
    let dump = Process::spawn("tcpdump", &mut command, &folder)?;
    wait_for("tcpdump", || {
        ensure!(dump.log().contains("listening on"), "{}", dump.log());
        Ok(())
    })?;
    let (lb4, lb6) = (lab.lb.v4, lab.lb.v6);
    let (b4, b6) = (lab.backends[0].v4, lab.backends[0].v6);
    for (address, outer, inner) in [
        ("192.0.2.20", format!("{lb4} > {b4}:"), "10.77.0.1."),
        ("2001:db8::20", format!("{lb6} > {b6}:"), "fd77::1."),
        ("192.0.2.30", format!("{lb6} > {b6}:"), "10.77.0.1."),
    ] {
        curl(&lab, address, 80, "/who")?;
        wait_for("the frames", || {
            let log = dump.log();
            let seen =
                log.contains(&outer) && log.contains(inner) && log.contains(&format!("> {address}.80"));
            ensure!(seen, "{address}: {log}");
            Ok(())
        })?;
    }
    let log = dump.log();
    assert!(!log.contains("bad cksum") && !log.contains("incorrect"), "{log}");
    Ok(())
}

#[test]
fn the_programs_that_these_tests_call_are_there() {
    for program in [
        "curl",
        "nginx",
        "dig",
        "dnsmasq",
        "iperf3",
        "tcpdump",
        "bpftool",
        "ethtool",
        "ping",
        "traceroute",
        "ip",
    ] {
        let found = Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output();
        assert!(
            found.is_ok_and(|o| o.status.success()),
            "{program} is missing: cargo xtask setup"
        );
    }
}
