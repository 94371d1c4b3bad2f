//! TLS for the checks that speak it: `https` and `grpc`.
//!
//! What the files of a check hold is kept for all backends that name the same ones, and read again after a minute, so
//! that renewed certificates are taken over without a reload.

mod verify;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::WantsClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use self::verify::AnyCertificate;
use super::probe::{Limit, Outcome, Probe};
use super::socket;
use super::way::{Connection, Way};
use crate::config::TlsCheck;
use crate::model::CheckCode;

/// How long what was read from files is used.
const FRESH: Duration = Duration::from_secs(60);

/// What is spoken over TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Alpn {
    Http1,
    Http2,
}

/// Connects to the address of `probe` and shakes hands. `host` is the Host header, whose name is asked for where the
/// check has no `sni`.
pub(super) async fn connect(
    check: &TlsCheck,
    alpn: Alpn,
    host: Option<&str>,
    way: Way<'_>,
    probe: &Probe,
    limit: Limit,
) -> Result<TlsStream<Box<dyn Connection>>, Outcome> {
    let name = server_name(check, host, way.address(probe).ip());
    let config = config(check, alpn).await?;
    let stream = way.connect(probe, limit).await?;
    let shaken = TlsConnector::from(config).connect(name, stream);
    limit
        .run(shaken, CheckCode::L6tout, "no TLS handshake")
        .await?
        .map_err(|error| {
            failed(&error).unwrap_or_else(|| {
                let detail = match error.kind() {
                    io::ErrorKind::UnexpectedEof => "connection closed within the TLS handshake".to_owned(),
                    _ => socket::describe(&error),
                };
                Outcome::new(CheckCode::L6rsp, detail)
            })
        })
}

/// The outcome of an error of TLS; `None`: it is another one.
pub(super) fn failed(error: &io::Error) -> Option<Outcome> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(Outcome::new(CheckCode::L6rsp, verify::describe(error)))
}

fn server_name(check: &TlsCheck, host: Option<&str>, address: IpAddr) -> ServerName<'static> {
    let host = host.map(without_port);
    let names = [check.sni.as_deref(), host].into_iter().flatten();
    names
        .filter_map(|name| ServerName::try_from(name.to_owned()).ok())
        .next()
        .unwrap_or_else(|| ServerName::from(address))
}

/// The host of `host:port` and `[address]:port`.
fn without_port(host: &str) -> &str {
    if let Some((address, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return address;
    }
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

struct Kept {
    read_at: Instant,
    config: Arc<ClientConfig>,
}

static KEPT: LazyLock<Mutex<HashMap<(TlsCheck, Alpn), Kept>>> = LazyLock::new(Mutex::default);

/// What the files of `check` say. Where they cannot be read there is no verdict about the target.
async fn config(check: &TlsCheck, alpn: Alpn) -> Result<Arc<ClientConfig>, Outcome> {
    let key = (check.clone(), alpn);
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kept().get(&key).filter(|kept| kept.read_at.elapsed() < FRESH) {
        return Ok(Arc::clone(&known.config));
    }
    let check = check.clone();
    let read = tokio::task::spawn_blocking(move || read(&check, alpn)).await;
    let config = match read {
        Ok(Ok(config)) => Arc::new(config),
        Ok(Err(what)) => return Err(Outcome::new(CheckCode::Sockerr, what)),
        Err(_) => return Err(Outcome::new(CheckCode::Sockerr, "the agent is stopping")),
    };
    let mut kept = kept();
    kept.retain(|_, known| known.read_at.elapsed() < 10 * FRESH);
    kept.insert(
        key,
        Kept {
            read_at: Instant::now(),
            config: Arc::clone(&config),
        },
    );
    Ok(config)
}

fn read(check: &TlsCheck, alpn: Alpn) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = if check.verify {
        builder.with_root_certificates(roots(check.ca_file.as_deref())?)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    };
    let mut config = with_client_certificate(builder, check)?;
    config.alpn_protocols = vec![match alpn {
        Alpn::Http1 => b"http/1.1".to_vec(),
        Alpn::Http2 => b"h2".to_vec(),
    }];
    // A probe is to see the whole handshake each time.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca_file else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        return if roots.is_empty() {
            Err("this machine trusts nobody: no certificates of authorities were found".to_owned())
        } else {
            Ok(roots)
        };
    };
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(roots)
}

fn with_client_certificate(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    check: &TlsCheck,
) -> Result<ClientConfig, String> {
    let (Some(certificate), Some(key_path)) = (&check.client_cert, &check.client_key) else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| pem_error(key_path, &error))?;
    builder
        .with_client_auth_cert(certificates(certificate)?, key)
        .map_err(|error| format!("{}: {error}", certificate.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(format!("{}: no certificate in it", path.display()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(pem_error(path, &error)),
    }
}

fn pem_error(path: &Path, error: &rustls::pki_types::pem::Error) -> String {
    match error {
        rustls::pki_types::pem::Error::Io(error) => {
            format!("{}: {}", path.display(), socket::describe(error))
        }
        error => format!("{}: {error}", path.display()),
    }
}

#[cfg(test)]
#[path = "tests/tls.rs"]
pub(super) mod tests;
