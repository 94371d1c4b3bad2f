//! The keys that say what is probed: those of `[check]` and `[[check.also]]` alike.

use std::net::IpAddr;
use std::path::PathBuf;

use super::CheckType;
use crate::config::fault::{At, Report, Reported};
use crate::config::types::{
    CheckKind, DnsCheck, ExecCheck, GrpcCheck, Header, HttpCheck, HttpMethod, Pattern, Probe, QueryType,
    Rcode, StatusRange, StatusSet, TlsCheck, UdpCheck, Via,
};
use crate::config::walk::Walk;
use crate::config::{keys, value};

/// What one table says about what is probed.
#[derive(Debug, Default)]
pub(in crate::config) struct Specific {
    port: Option<u16>,
    address: Option<IpAddr>,
    pub source: Option<At<IpAddr>>,
    pub via: Option<At<Via>>,
    method: Option<HttpMethod>,
    path: Option<String>,
    host: Option<String>,
    headers: Option<Vec<Header>>,
    expect_status: Option<StatusSet>,
    expect_body: Option<String>,
    expect_body_regex: Option<Pattern>,
    over_tls: Option<bool>,
    verify: Option<bool>,
    ca_file: Option<PathBuf>,
    sni: Option<String>,
    client_cert: Option<PathBuf>,
    client_key: Option<PathBuf>,
    send: Option<Vec<u8>>,
    expect: Option<Vec<u8>>,
    query: Option<String>,
    query_type: Option<QueryType>,
    expect_rcode: Option<Vec<Rcode>>,
    expect_address: Option<Vec<IpAddr>>,
    grpc_service: Option<String>,
    command: Option<Vec<String>>,
}

impl Specific {
    pub fn read(walk: &Walk<'_, '_>, report: &Report<'_>) -> Result<Self, Reported> {
        fn plain<T>(at: Option<At<T>>) -> Option<T> {
            at.map(|at| at.value)
        }
        fn items<T>(list: Option<Vec<At<T>>>) -> Option<Vec<T>> {
            list.map(|list| list.into_iter().map(|at| at.value).collect())
        }
        let port = walk.maybe(&keys::CHECK_PORT, value::integer);
        let address = walk.maybe(&keys::CHECK_ADDRESS, value::address);
        let source = walk.maybe(&keys::SOURCE, value::address);
        let via = walk.maybe(&keys::VIA, value::choice);
        let method = walk.maybe(&keys::METHOD, value::choice);
        let path = walk.maybe(&keys::PATH, value::http_path);
        let host = walk.maybe(&keys::HOST, value::host);
        let headers = walk.list(&keys::HEADERS, value::header);
        let expect_status = walk.list(&keys::EXPECT_STATUS, value::status);
        let expect_body = walk.maybe(&keys::EXPECT_BODY, value::text);
        let expect_body_regex = walk.maybe(&keys::EXPECT_BODY_REGEX, value::regex);
        let over_tls = walk.maybe(&keys::TLS, value::boolean);
        let verify = walk.maybe(&keys::VERIFY, value::boolean);
        let ca_file = walk.maybe(&keys::CA_FILE, value::path);
        let sni = walk.maybe(&keys::SNI, value::server_name);
        let client_cert = walk.maybe(&keys::CLIENT_CERT, value::path);
        let client_key = walk.maybe(&keys::CLIENT_KEY, value::path);
        let send = walk.maybe(&keys::SEND, value::payload);
        let expect = walk.maybe(&keys::EXPECT, value::payload);
        let query = walk.maybe(&keys::QUERY, value::domain_name);
        let query_type = walk.maybe(&keys::QUERY_TYPE, value::choice);
        let expect_rcode = walk.list(&keys::EXPECT_RCODE, value::choice);
        let expect_address = walk.list(&keys::EXPECT_ADDRESS, value::address);
        let grpc_service = walk.maybe(&keys::GRPC_SERVICE, value::text);
        let command = walk.list(&keys::COMMAND, value::text).and_then(|command| {
            refuse_relative(command.as_deref(), report)?;
            Ok(command)
        });
        Ok(Self {
            port: plain(port?),
            address: plain(address?),
            source: source?,
            via: via?,
            method: plain(method?),
            path: plain(path?),
            host: plain(host?),
            headers: items(headers?),
            expect_status: items::<StatusRange>(expect_status?).map(StatusSet),
            expect_body: plain(expect_body?),
            expect_body_regex: plain(expect_body_regex?),
            over_tls: plain(over_tls?),
            verify: plain(verify?),
            ca_file: plain(ca_file?),
            sni: plain(sni?),
            client_cert: plain(client_cert?),
            client_key: plain(client_key?),
            send: plain(send?),
            expect: plain(expect?),
            query: plain(query?),
            query_type: plain(query_type?),
            expect_rcode: items(expect_rcode?),
            expect_address: items(expect_address?),
            grpc_service: plain(grpc_service?),
            command: items(command?),
        })
    }

    /// `base` with what this table says, as a probe of the type `check_type`.
    pub fn over(&self, check_type: CheckType, base: &Probe) -> Probe {
        Probe {
            kind: self.kind_over(check_type, &base.kind),
            port: self.port.or(base.port),
            address: self.address.or(base.address),
            source: self.source.map(|at| at.value).or(base.source),
            via: self.via_over(check_type, base),
        }
    }

    /// As the other keys that belong to a type.
    fn via_over(&self, check_type: CheckType, base: &Probe) -> Via {
        let same_type = CheckType::of(&base.kind) == check_type;
        let inherited = if same_type { base.via } else { Via::Auto };
        self.via.map_or(inherited, |at| at.value)
    }

    fn kind_over(&self, check_type: CheckType, base: &CheckKind) -> CheckKind {
        let same = CheckType::of(base) == check_type;
        match (check_type, base.clone()) {
            (CheckType::None, _) => CheckKind::None,
            (CheckType::Tcp, _) => CheckKind::Tcp,
            (CheckType::Icmp, _) => CheckKind::Icmp,
            (CheckType::Http, CheckKind::Http(http)) => CheckKind::Http(self.http_over(http)),
            (CheckType::Https, CheckKind::Https(http, tls)) => {
                CheckKind::Https(self.http_over(http), self.tls_over(tls))
            }
            (CheckType::Udp, CheckKind::Udp(udp)) => CheckKind::Udp(self.udp_over(udp)),
            (CheckType::Dns, CheckKind::Dns(dns)) => CheckKind::Dns(self.dns_over(dns)),
            (CheckType::Grpc, CheckKind::Grpc(grpc)) => CheckKind::Grpc(self.grpc_over(grpc)),
            (CheckType::Exec, CheckKind::Exec(exec)) => CheckKind::Exec(self.exec_over(exec)),
            (other, _) => {
                debug_assert!(!same, "{base:?} is a base of its own type");
                self.kind_over(other, &other.fresh())
            }
        }
    }

    fn http_over(&self, base: HttpCheck) -> HttpCheck {
        HttpCheck {
            method: self.method.unwrap_or(base.method),
            path: self.path.clone().unwrap_or(base.path),
            host: self.host.clone().or(base.host),
            headers: self.headers.clone().unwrap_or(base.headers),
            expect_status: self.expect_status.clone().unwrap_or(base.expect_status),
            expect_body: self.expect_body.clone().or(base.expect_body),
            expect_body_regex: self.expect_body_regex.clone().or(base.expect_body_regex),
        }
    }

    fn tls_over(&self, base: TlsCheck) -> TlsCheck {
        TlsCheck {
            verify: self.verify.unwrap_or(base.verify),
            ca_file: self.ca_file.clone().or(base.ca_file),
            sni: self.sni.clone().or(base.sni),
            client_cert: self.client_cert.clone().or(base.client_cert),
            client_key: self.client_key.clone().or(base.client_key),
        }
    }

    fn udp_over(&self, base: UdpCheck) -> UdpCheck {
        UdpCheck {
            send: self.send.clone().unwrap_or(base.send),
            expect: self.expect.clone().or(base.expect),
        }
    }

    fn dns_over(&self, base: DnsCheck) -> DnsCheck {
        DnsCheck {
            query: self.query.clone().unwrap_or(base.query),
            query_type: self.query_type.unwrap_or(base.query_type),
            expect_rcode: self.expect_rcode.clone().unwrap_or(base.expect_rcode),
            expect_address: self.expect_address.clone().unwrap_or(base.expect_address),
        }
    }

    fn grpc_over(&self, base: GrpcCheck) -> GrpcCheck {
        GrpcCheck {
            service: self.grpc_service.clone().unwrap_or(base.service),
            host: self.host.clone().or(base.host),
            over_tls: self.over_tls.unwrap_or(base.over_tls),
            tls: self.tls_over(base.tls),
        }
    }

    fn exec_over(&self, base: ExecCheck) -> ExecCheck {
        ExecCheck {
            command: self.command.clone().unwrap_or(base.command),
        }
    }
}

/// A program is named by its path: what a search would find depends on who asks.
fn refuse_relative(command: Option<&[At<String>]>, report: &Report<'_>) -> Result<(), Reported> {
    match command.and_then(|command| command.first()) {
        Some(program) if !program.value.starts_with('/') => Err(report.fault(
            program.offset,
            format!("the program is {}", value::quoted(&program.value)),
            "its absolute path",
        )),
        _ => Ok(()),
    }
}

/// What a probe lacks, or has too much of: what is wrong, and what is expected.
pub(super) fn misfit(kind: &CheckKind) -> Option<(&'static str, &'static str)> {
    match kind {
        CheckKind::Udp(udp) if udp.send.is_empty() => {
            Some(("the udp check does not say what to send", "`send` with it"))
        }
        CheckKind::Dns(dns) if dns.query.is_empty() => {
            Some(("the dns check does not say what to ask for", "`query` with it"))
        }
        CheckKind::Dns(dns)
            if !dns.expect_address.is_empty()
                && !matches!(dns.query_type, QueryType::A | QueryType::Aaaa) =>
        {
            Some((
                "the dns check expects an address and does not ask for one",
                "`query_type` A or AAAA with `expect_address`",
            ))
        }
        CheckKind::Exec(exec) if exec.command.is_empty() => {
            Some(("the exec check does not say what to run", "`command` with it"))
        }
        CheckKind::Grpc(grpc) if !grpc.over_tls && grpc.tls != TlsCheck::default() => Some((
            "the grpc check has keys for TLS and does not use it",
            "`tls = true` with them, or none of verify, ca_file, sni, client_cert and client_key",
        )),
        CheckKind::Grpc(GrpcCheck { tls, .. }) | CheckKind::Https(_, tls)
            if tls.client_cert.is_some() != tls.client_key.is_some() =>
        {
            Some((
                "the check has one of `client_cert` and `client_key`",
                "both or none",
            ))
        }
        CheckKind::Grpc(GrpcCheck { tls, .. }) | CheckKind::Https(_, tls)
            if !tls.verify && tls.ca_file.is_some() =>
        {
            Some((
                "the check has a `ca_file` and does not verify the certificate",
                "`verify = true`, or no `ca_file`",
            ))
        }
        _ => None,
    }
}
