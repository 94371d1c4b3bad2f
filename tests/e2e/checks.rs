//! Every kind of check against real servers of a backend, each made to fail in each way that has a code: through the
//! forward path, and straight.
//!
//! ```text
//!   lb ── switch ── b1    nginx, dnsmasq, an echo server that turns deaf, and servers that misbehave; a port a case
//! ```

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, ensure};
use lb_tests::cleanup::Folder;
use lb_tests::lab::{Host, Lab, LabOptions};
use lb_tests::privileged;
use lb_tests::process::Process;
use lb_tests::server::Server;
use lb_tests::wait::{wait_for, wait_until};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use support::{Xlb, service};

/// A check, and what comes of it.
struct Case {
    name: &'static str,
    port: u16,
    protocol: &'static str,
    check: String,
    code: &'static str,
    /// Part of the line beside the code.
    detail: &'static str,
}

fn case(
    name: &'static str,
    port: u16,
    protocol: &'static str,
    check: impl Into<String>,
    code: &'static str,
    detail: &'static str,
) -> Case {
    Case {
        name,
        port,
        protocol,
        check: check.into(),
        code,
        detail,
    }
}

const HTTP: &str = "type = \"http\"\npath = \"/ok\"";
const BODY: &str = "type = \"http\"\npath = \"/ok\"\nexpect_body = \"healthy\"";
const PING: &str = "type = \"udp\"\nsend = \"ping\"\nexpect = \"pong\"";

/// Refused; silent to the SYN.
const NOBODY: u16 = 7;
const DEAF: u16 = 70;

fn cases(keys: &Keys) -> Vec<Case> {
    let tls = |kind: &str, more: &str| {
        let authority = keys.path("authority.pem");
        format!("type = \"{kind}\"\nca_file = \"{authority}\"\nsni = \"backend.test\"\n{more}")
    };
    let https = |more: &str| tls("https", &format!("path = \"/ok\"\n{more}"));
    let shown = https(&format!(
        "client_cert = \"{}\"\nclient_key = \"{}\"",
        keys.path("good.pem"),
        keys.path("good.key")
    ));
    let ask = |name: &str, more: &str| format!("type = \"dns\"\nquery = \"{name}\"\n{more}");
    let exec = |command: &str| format!("type = \"exec\"\ncommand = {command}");
    let (tcp, udp, grpc) = ("tcp", "udp", "type = \"grpc\"");
    vec![
        case("tcp", 8001, tcp, "type = \"tcp\"", "L4OK", "connected"),
        case("tcp-refused", NOBODY, tcp, "type = \"tcp\"", "L4CON", "refused"),
        case("tcp-silent", DEAF, tcp, "type = \"tcp\"", "L4TOUT", "within"),
        case("http", 8002, tcp, BODY, "L7OK", "200"),
        case("http-refused", NOBODY + 1, tcp, HTTP, "L4CON", "refused"),
        case("http-syn-silent", DEAF + 1, tcp, HTTP, "L4TOUT", "within"),
        case("http-silent", 9001, tcp, HTTP, "L7TOUT", "within"),
        case("http-slow", 9002, tcp, HTTP, "L7TOUT", "within"),
        case(
            "http-status",
            8003,
            tcp,
            "type = \"http\"\npath = \"/down\"",
            "L7STS",
            "503",
        ),
        case(
            "http-body",
            8004,
            tcp,
            BODY.replace("healthy", "fine"),
            "L7RSP",
            "without the expected",
        ),
        case(
            "http-regex",
            8005,
            tcp,
            BODY.replace("_body = \"", "_body_regex = \"^(un)?"),
            "L7OK",
            "200",
        ),
        case("http-half-head", 9003, tcp, HTTP, "L7RSP", ""),
        case("http-half-body", 9004, tcp, BODY, "L7RSP", ""),
        case("http-endless-head", 9005, tcp, HTTP, "L7RSP", ""),
        case(
            "http-endless-body",
            9006,
            tcp,
            BODY,
            "L7RSP",
            "without the expected",
        ),
        case("http-other-language", 9007, tcp, HTTP, "L7RSP", ""),
        case(
            "https",
            8101,
            tcp,
            https("expect_body = \"healthy\""),
            "L7OK",
            "200",
        ),
        case("https-refused", NOBODY + 2, tcp, https(""), "L4CON", "refused"),
        case("https-syn-silent", DEAF + 2, tcp, https(""), "L4TOUT", "within"),
        case("https-silent", 9008, tcp, https(""), "L6TOUT", "within"),
        case("https-no-tls", 8006, tcp, https(""), "L6RSP", ""),
        case("https-expired", 8102, tcp, https(""), "L6RSP", "expired"),
        case("https-name", 8103, tcp, https(""), "L6RSP", "another name"),
        case("https-stranger", 8104, tcp, https(""), "L6RSP", ""),
        case(
            "https-unverified",
            8105,
            tcp,
            "type = \"https\"\npath = \"/ok\"\nverify = false",
            "L7OK",
            "200",
        ),
        case(
            "https-status",
            8106,
            tcp,
            https("").replace("/ok", "/down"),
            "L7STS",
            "503",
        ),
        case(
            "https-body",
            8107,
            tcp,
            https("expect_body = \"fine\""),
            "L7RSP",
            "without the expected",
        ),
        case("https-client", 8111, tcp, shown, "L7OK", "200"),
        case("https-no-client", 8112, tcp, https(""), "L7STS", "400"),
        case("udp", 9101, udp, PING, "L7OK", ""),
        case("udp-refused", NOBODY, udp, PING, "L4CON", ""),
        case("udp-silent", 9102, udp, PING, "L7TOUT", "within"),
        case("udp-answer", 9103, udp, PING, "L7RSP", ""),
        case("udp-flood", 9104, udp, PING, "L7RSP", ""),
        case(
            "dns",
            5301,
            udp,
            ask("ok.test", "expect_address = [\"10.9.9.9\"]"),
            "L7OK",
            "NOERROR",
        ),
        case("dns-refused", NOBODY + 1, udp, ask("ok.test", ""), "L4CON", ""),
        case("dns-silent", 9105, udp, ask("ok.test", ""), "L7TOUT", "within"),
        case(
            "dns-no-name",
            5302,
            udp,
            ask("nobody.test", ""),
            "L7STS",
            "NXDOMAIN",
        ),
        case(
            "dns-address",
            5303,
            udp,
            ask("ok.test", "expect_address = [\"10.9.9.8\"]"),
            "L7RSP",
            "",
        ),
        case(
            "dns-other-language",
            9106,
            udp,
            ask("ok.test", ""),
            "L7TOUT",
            "within",
        ),
        case("icmp", 6001, tcp, "type = \"icmp\"", "L4OK", ""),
        case(
            "icmp-silent",
            6002,
            tcp,
            "type = \"icmp\"\naddress = \"10.77.0.251\"",
            "L4TOUT",
            "within",
        ),
        case("grpc", 8201, tcp, grpc, "L7OK", "SERVING"),
        case("grpc-not-serving", 8202, tcp, grpc, "L7STS", "NOT_SERVING"),
        case("grpc-refused", NOBODY + 3, tcp, grpc, "L4CON", "refused"),
        case("grpc-silent", 9009, tcp, grpc, "L7TOUT", "within"),
        case("grpc-no-http-2", 8007, tcp, grpc, "L7RSP", ""),
        case(
            "grpc-tls",
            8203,
            tcp,
            tls("grpc", "tls = true"),
            "L7OK",
            "SERVING",
        ),
        case(
            "exec",
            6003,
            tcp,
            exec("[\"/bin/echo\", \"well\"]"),
            "L7OK",
            "well",
        ),
        case("exec-fails", 6004, tcp, exec("[\"/bin/false\"]"), "L7STS", "1"),
        case(
            "exec-hangs",
            6005,
            tcp,
            exec("[\"/bin/sleep\", \"60\"]"),
            "L7TOUT",
            "within",
        ),
        case(
            "exec-floods",
            6006,
            tcp,
            exec("[\"/usr/bin/yes\"]"),
            "L7TOUT",
            "within",
        ),
        case(
            "exec-missing",
            6007,
            tcp,
            exec("[\"/nonexistent\"]"),
            "SOCKERR",
            "no such file",
        ),
        case("none", 6008, tcp, "type = \"none\"", "UNK", "no check"),
    ]
}

#[test]
fn each_check_says_what_failed() -> anyhow::Result<()> {
    privileged!("each_check_says_what_failed");
    let lab = Lab::new(LabOptions {
        backends: 1,
        ..LabOptions::default()
    })?;
    let host = &lab.backends[0];
    let folder = Arc::new(Folder::new("checks")?);
    let keys = Keys::new(&folder)?;
    // A kernel says once a second that a port is closed, and we ask more often.
    host.netns.sysctl("net/ipv4/icmp_ratelimit", "0")?;
    let _nginx = nginx(host, &keys, &folder)?;
    let _names = [5301, 5302, 5303].map(|port| dnsmasq(host, port, &folder));
    let _misbehaving = Misbehaving::start(host)?;
    let deaf = [DEAF, DEAF + 1, DEAF + 2].map(|port| Server::echo(host, port, &[], &folder));
    let deaf = deaf.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let mut waiting = Vec::new();
    for (server, port) in deaf.iter().zip(DEAF..) {
        server.deafen(true)?;
        waiting.extend(crowd(host, port));
    }

    let cases = cases(&keys);
    let ways = [("192.0.2.10", "auto"), ("192.0.2.20", "direct")];
    let mut services =
        "[defaults.check]\ninterval = \"1s\"\ntimeout = \"500ms\"\nfast_timeout = \"500ms\"\n".to_owned();
    for (address, via) in ways {
        for case in &cases {
            let takes_a_way = !["icmp", "exec", "none"]
                .iter()
                .any(|kind| case.name.starts_with(kind));
            let mut check = case.check.clone();
            if takes_a_way {
                let _ = write!(check, "\nvia = \"{via}\"");
            }
            let name = format!("{}-{via}", case.name);
            services += &service(
                &name,
                address,
                case.port,
                case.protocol,
                "dsr-l2",
                &check,
                &[host.v4.to_string()],
            );
        }
    }
    let xlb = Xlb::started(&lab, "", &services)?;
    let mut wrong = Vec::new();
    wait_until("all results", || {
        let status = xlb.status()?;
        let expected = ways.iter().flat_map(|_| &cases);
        let services = status["services"].as_array().context("no services")?;
        let results = services.iter().zip(expected).map(|(service, case)| {
            let check = &service["backends"][0]["check"];
            let (code, detail) = (check["code"].as_str(), check["detail"].as_str());
            let right = code == Some(case.code) && detail.is_some_and(|line| line.contains(case.detail));
            (!right).then(|| {
                format!(
                    "{}: {check}, expected {} {}",
                    service["name"], case.code, case.detail
                )
            })
        });
        wrong = results.flatten().collect();
        Ok(wrong.is_empty() && services.len() == ways.len() * cases.len())
    })
    .with_context(|| wrong.join("\n"))
}

/// Connections that nobody accepts, until the kernel takes no more of them: nor when a SYN is sent again after a second.
fn crowd(host: &Host, port: u16) -> Vec<TcpStream> {
    let connect = || TcpStream::connect_timeout(&(host.v4, port).into(), Duration::from_millis(1500)).ok();
    host.netns.enter(|| std::iter::from_fn(connect).collect())
}

/// Certificates that nginx shows, in PEM.
struct Keys {
    folder: PathBuf,
}

impl Keys {
    fn new(folder: &Arc<Folder>) -> anyhow::Result<Self> {
        let keys = Self {
            folder: folder.file("keys"),
        };
        fs::create_dir_all(&keys.folder)?;
        let (authority, stranger) = (authority("authority")?, authority("stranger")?);
        fs::write(keys.folder.join("authority.pem"), &authority.1)?;
        keys.signed("good", "backend.test", 2090, &authority.0)?;
        keys.signed("expired", "backend.test", 2001, &authority.0)?;
        keys.signed("other", "other.test", 2090, &authority.0)?;
        keys.signed("stranger", "backend.test", 2090, &stranger.0)?;
        Ok(keys)
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn signed(
        &self,
        file: &str,
        name: &str,
        until: i32,
        issuer: &Issuer<'static, KeyPair>,
    ) -> anyhow::Result<()> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, issuer)?;
        fs::write(self.folder.join(format!("{file}.pem")), certificate.pem())?;
        fs::write(self.folder.join(format!("{file}.key")), key.serialize_pem())?;
        Ok(())
    }
}

fn authority(name: &str) -> anyhow::Result<(Issuer<'static, KeyPair>, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    Ok((Issuer::new(params, key), pem))
}

/// `/ok` is healthy, `/down` is not; one server shows each certificate, some speak gRPC.
fn nginx(host: &Host, keys: &Keys, folder: &Arc<Folder>) -> anyhow::Result<Process> {
    let temp = folder.file("nginx");
    fs::create_dir_all(&temp)?;
    // HealthCheckResponse { status: 1 } and { status: 2 }, each a message of two bytes.
    fs::write(temp.join("serving"), [0, 0, 0, 0, 2, 8, 1])?;
    fs::write(temp.join("not-serving"), [0, 0, 0, 0, 2, 8, 2])?;
    let pages = "location = /ok { return 200 'healthy\\n'; } location = /down { return 503; }";
    let plain: String = (8001..=8007).map(|port| format!("listen {port}; ")).collect();
    let mut servers = format!("server {{ {plain} {pages} }}\n");
    let shows = |ports: &[u16], name: &str, more: &str| {
        let listen: String = ports.iter().map(|port| format!("listen {port} ssl; ")).collect();
        let certificate = keys.path(&format!("{name}.pem"));
        let key = keys.path(&format!("{name}.key"));
        format!(
            "server {{ {listen} ssl_certificate {certificate}; ssl_certificate_key {key}; {more} {pages} }}\n"
        )
    };
    servers += &shows(&[8101, 8106, 8107], "good", "");
    servers += &shows(&[8102], "expired", "");
    servers += &shows(&[8103], "other", "");
    servers += &shows(&[8104, 8105], "stranger", "");
    let who = format!(
        "ssl_verify_client on; ssl_client_certificate {};",
        keys.path("authority.pem")
    );
    servers += &shows(&[8111, 8112], "good", &who);
    // A page that is not there is no answer to POST: its error page is, with another status.
    let certificate = format!(
        "ssl_certificate {}; ssl_certificate_key {};",
        keys.path("good.pem"),
        keys.path("good.key")
    );
    for (listen, file) in [
        ("8201 http2", "serving"),
        ("8202 http2", "not-serving"),
        ("8203 ssl http2", "serving"),
    ] {
        let _ = writeln!(
            servers,
            "server {{ listen {listen}; {certificate} root {}; error_page 404 =200 /{file};\n\
             default_type application/grpc; add_trailer grpc-status 0 always; }}",
            temp.display()
        );
    }
    let text = format!(
        "daemon off; master_process off; user root; pid {temp}/pid; error_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_body_temp_path {temp}/b; proxy_temp_path {temp}/p; fastcgi_temp_path {temp}/f;\n\
         uwsgi_temp_path {temp}/u; scgi_temp_path {temp}/s; types {{ }} default_type text/plain;\n{servers} }}\n",
        temp = temp.display(),
    );
    let config = folder.file("nginx.conf");
    fs::write(&config, text)?;
    let mut command = host.netns.command("nginx");
    command.arg("-c").arg(&config);
    let process = Process::spawn("nginx", &mut command, folder)?;
    wait_for("nginx", || {
        ensure!(process.ended()?.is_none(), "it ended:\n{}", process.log());
        Ok(host.netns.enter(|| TcpStream::connect((host.v4, 8001)))?)
    })?;
    Ok(process)
}

/// Knows one name.
fn dnsmasq(host: &Host, port: u16, folder: &Arc<Folder>) -> anyhow::Result<Process> {
    let mut command = host.netns.command("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--no-resolv",
        "--no-hosts",
        "--conf-file=/dev/null",
        "--user=root",
        "--pid-file=",
        "--log-facility=-",
        "--local=/test/",
        "--host-record=ok.test,10.9.9.9",
    ]);
    command.arg(format!("--port={port}"));
    Process::spawn(&format!("dnsmasq-{port}"), &mut command, folder)
}

/// How a server answers what it reads.
#[derive(Clone, Copy)]
enum Manner {
    Silent,
    /// These bytes, and the end.
    Says(&'static [u8]),
    /// The first once, the second again and again.
    Endless(&'static [u8], &'static [u8]),
    /// One of these bytes after the other, far apart.
    Slow(&'static [u8]),
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\n\r\n";

const TCP_SERVERS: [(u16, Manner); 9] = [
    (9001, Manner::Silent),
    (9002, Manner::Slow(HEAD)),
    (9003, Manner::Says(b"HTTP/1.1 20")),
    (
        9004,
        Manner::Says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhal"),
    ),
    (
        9005,
        Manner::Endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n"),
    ),
    (9006, Manner::Endless(HEAD, b"more and more and more and more\n")),
    (9007, Manner::Says(b"SSH-2.0-OpenSSH_9.2\r\n")),
    (9008, Manner::Silent),
    (9009, Manner::Silent),
];

/// Datagrams that answer one.
const UDP_SERVERS: [(u16, &[u8], u32); 6] = [
    (9101, b"pong", 1),
    (9102, b"", 0),
    (9103, b"what?", 1),
    (9104, b"what?", 1000),
    (9105, b"", 0),
    (9106, b"pong", 1),
];

/// Servers in the namespace of a host, a thread each. Dropping it ends them.
struct Misbehaving {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

const TURN: Duration = Duration::from_millis(20);

impl Misbehaving {
    fn start(host: &Host) -> anyhow::Result<Self> {
        let mut all = Self {
            over: Arc::default(),
            threads: Vec::new(),
        };
        for (port, manner) in TCP_SERVERS {
            let listener = host
                .netns
                .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))?;
            listener.set_nonblocking(true)?;
            let over = Arc::clone(&all.over);
            all.threads.push(thread::spawn(move || {
                thread::scope(|scope| {
                    while !over.load(Ordering::Relaxed) {
                        match listener.accept() {
                            Ok((stream, _)) => drop(scope.spawn(|| behave(stream, manner, &over))),
                            Err(_) => thread::sleep(TURN),
                        }
                    }
                });
            }));
        }
        for (port, answer, times) in UDP_SERVERS {
            // Answers have to come from the address that was asked: a socket for each of them.
            for address in [host.v4, Ipv4Addr::new(192, 0, 2, 10)] {
                let socket = host.netns.enter(|| UdpSocket::bind((address, port)))?;
                socket.set_read_timeout(Some(TURN))?;
                let over = Arc::clone(&all.over);
                all.threads.push(thread::spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        if let Ok((_, from)) = socket.recv_from(&mut [0; 512]) {
                            for _ in 0..times {
                                // Whom it answers may be gone.
                                let _ = socket.send_to(answer, from);
                            }
                        }
                    }
                }));
            }
        }
        Ok(all)
    }
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Until the other side has gone.
fn behave(mut stream: TcpStream, manner: Manner, over: &AtomicBool) {
    let going_on = || !over.load(Ordering::Relaxed);
    if stream.set_read_timeout(Some(TURN)).is_err() || stream.set_write_timeout(Some(TURN)).is_err() {
        return;
    }
    let gone = |stream: &mut TcpStream| matches!(stream.read(&mut [0; 4096]), Ok(0));
    match manner {
        Manner::Silent => while going_on() && !gone(&mut stream) {},
        Manner::Says(bytes) => {
            // What it was asked is read, else closing would reset.
            gone(&mut stream);
            let _ = stream.write_all(bytes);
        }
        Manner::Endless(first, more) => {
            gone(&mut stream);
            if stream.write_all(first).is_ok() {
                let more = more.repeat(1000);
                while going_on() && stream.write_all(&more).is_ok() {}
            }
        }
        Manner::Slow(bytes) => {
            for byte in bytes.chunks(1) {
                if !going_on() || gone(&mut stream) || stream.write_all(byte).is_err() {
                    return;
                }
                thread::sleep(3 * TURN);
            }
        }
    }
}

#[test]
fn the_programs_that_these_checks_ask_are_there() {
    for program in [
        "/usr/sbin/nginx",
        "/usr/sbin/dnsmasq",
        "/usr/bin/yes",
        "/bin/sleep",
    ] {
        assert!(
            Path::new(program).exists(),
            "{program} is missing: cargo xtask setup"
        );
    }
}
