//! The `https` check against servers whose certificates are made for each test.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::health::probe::probe;
use crate::health::probe::tests::{PLENTY, SHORT, listen, mute, refusing, seen, subject};
use crate::health::{CheckKind, HttpCheck, ProbeResult, Subject};

/// An authority of our own.
pub(in crate::health) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: NamedTempFile,
    der: CertificateDer<'static>,
}

/// A certificate and its key, as files too.
pub(in crate::health) struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
    certificate_pem: NamedTempFile,
    key_pem: NamedTempFile,
}

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

impl Authority {
    pub(in crate::health) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Each has a name of its own, as a certificate names its issuer.
        let name = format!("authority {}", rand::random::<u64>());
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self {
            pem: file(&certificate.pem()),
            der: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(in crate::health) fn path(&self) -> PathBuf {
        self.pem.path().to_owned()
    }

    pub(in crate::health) fn identity(&self, name: &str) -> Identity {
        self.signed(name, |_| {})
    }

    fn signed(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity {
            certificate_pem: file(&certificate.pem()),
            key_pem: file(&key.serialize_pem()),
            certificate: certificate.der().clone(),
            key: PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        }
    }
}

/// What a server is made of; `client_authority`: whose clients it lets in.
pub(in crate::health) fn acceptor(
    identity: &Identity,
    client_authority: Option<&Authority>,
    alpn: &[u8],
) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client_authority {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

/// Answers every request with `answer`; connections that fail are let go.
async fn server(acceptor: TlsAcceptor, answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await?;
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await? == 0 {
                        return Ok(());
                    }
                }
                stream.write_all(answer).await?;
                stream.shutdown().await
            });
        }
    });
    address
}

const FINE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

fn https(tls: TlsCheck, address: SocketAddr) -> Subject {
    let http = HttpCheck::new("GET", "/", None, vec![200..=299]).unwrap();
    subject(CheckKind::Https(Arc::new(http), Arc::new(tls)), address)
}

fn trusting(authority: &Authority) -> TlsCheck {
    TlsCheck {
        ca_file: Some(authority.path()),
        sni: Some("backend.example".to_owned()),
        ..TlsCheck::default()
    }
}

async fn probed(tls: TlsCheck, address: SocketAddr) -> ProbeResult {
    probe(&https(tls, address), PLENTY).await
}

#[tokio::test]
async fn a_valid_certificate_passes() {
    let authority = Authority::new();
    let identity = authority.identity("backend.example");
    let address = server(acceptor(&identity, None, b"http/1.1"), FINE).await;
    let result = probed(trusting(&authority), address).await;
    assert_eq!(seen(&result), (CheckCode::L7ok, "200 OK"));
}

#[tokio::test]
async fn the_name_is_that_of_the_host_header_or_the_address() {
    let authority = Authority::new();
    let by_name = acceptor(&authority.identity("www.example.com"), None, b"http/1.1");
    let address = server(by_name, FINE).await;
    let tls = TlsCheck {
        sni: None,
        ..trusting(&authority)
    };
    let http = HttpCheck::new("GET", "/", Some("www.example.com:8443"), vec![200..=299]).unwrap();
    let named = subject(CheckKind::Https(Arc::new(http), Arc::new(tls.clone())), address);
    assert_eq!(probe(&named, PLENTY).await.code, CheckCode::L7ok);
    assert_eq!(
        seen(&probed(tls.clone(), address).await),
        (CheckCode::L6rsp, "the certificate is for another name")
    );

    let by_address = acceptor(&authority.identity("127.0.0.1"), None, b"http/1.1");
    let address = server(by_address, FINE).await;
    assert_eq!(probed(tls, address).await.code, CheckCode::L7ok);
}

#[tokio::test]
async fn certificates_that_do_not_pass() {
    let authority = Authority::new();
    let stranger = Authority::new();
    let expired = authority.signed("backend.example", |params| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    let early = authority.signed("backend.example", |params| {
        params.not_before = date_time_ymd(4000, 1, 1);
        params.not_after = date_time_ymd(4001, 1, 1);
    });
    for (identity, detail) in [
        (
            authority.identity("other.example"),
            "the certificate is for another name",
        ),
        (
            stranger.identity("backend.example"),
            "the certificate was signed by nobody we trust",
        ),
        (expired, "the certificate has expired"),
        (early, "the certificate is not valid yet"),
    ] {
        let address = server(acceptor(&identity, None, b"http/1.1"), FINE).await;
        let result = probed(trusting(&authority), address).await;
        assert_eq!(seen(&result), (CheckCode::L6rsp, detail));
        let careless = TlsCheck {
            verify: false,
            ca_file: None,
            ..trusting(&authority)
        };
        assert_eq!(probed(careless, address).await.code, CheckCode::L7ok, "{detail}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_there_is_one() {
    let authority = Authority::new();
    let clients = Authority::new();
    let identity = authority.identity("backend.example");
    let address = server(acceptor(&identity, Some(&clients), b"http/1.1"), FINE).await;
    let nameless = probed(trusting(&authority), address).await;
    assert_eq!(
        seen(&nameless),
        (
            CheckCode::L6rsp,
            "refused by the server with the TLS alert CertificateRequired"
        )
    );
    let ours = clients.identity("probe.example");
    let named = TlsCheck {
        client_cert: Some(ours.certificate_pem.path().to_owned()),
        client_key: Some(ours.key_pem.path().to_owned()),
        ..trusting(&authority)
    };
    assert_eq!(probed(named, address).await.code, CheckCode::L7ok);
}

#[tokio::test]
async fn files_that_cannot_be_read_are_no_verdict() {
    let (_listener, address) = listen().await;
    let empty = file("no certificate");
    let nowhere = PathBuf::from("/nonexistent/ca.pem");
    for (path, detail) in [
        (
            nowhere,
            "/nonexistent/ca.pem: no such file or directory".to_owned(),
        ),
        (
            empty.path().to_owned(),
            format!("{}: no certificate in it", empty.path().display()),
        ),
    ] {
        let tls = TlsCheck {
            ca_file: Some(path),
            ..TlsCheck::default()
        };
        let result = probed(tls, address).await;
        assert_eq!(seen(&result), (CheckCode::Sockerr, detail.as_str()));
    }
}

#[tokio::test]
async fn a_server_without_tls() {
    let careless = TlsCheck {
        verify: false,
        ..TlsCheck::default()
    };
    for (says, detail) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "the answer is not TLS"),
        (b"", "connection closed within the TLS handshake"),
    ] {
        let (listener, address) = listen().await;
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
            stream.write_all(says).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
        });
        let result = probed(careless.clone(), address).await;
        assert_eq!(seen(&result), (CheckCode::L6rsp, detail));
        server.await.unwrap();
    }
}

#[tokio::test]
async fn silence_in_the_handshake_and_after_it() {
    let careless = TlsCheck {
        verify: false,
        ..TlsCheck::default()
    };
    let (listener, address) = listen().await;
    let result = probe(&https(careless.clone(), address), SHORT).await;
    assert_eq!(
        seen(&result),
        (CheckCode::L6tout, "no TLS handshake within 100ms")
    );
    drop(listener);

    let (_full, address) = mute().await;
    let result = probe(&https(careless.clone(), address), SHORT).await;
    assert_eq!(result.code, CheckCode::L4tout);

    let (_socket, address) = refusing();
    assert_eq!(probed(careless, address).await.code, CheckCode::L4con);
}

#[tokio::test]
async fn another_status_and_half_an_answer() {
    let authority = Authority::new();
    let identity = authority.identity("backend.example");
    let acceptor = acceptor(&identity, None, b"http/1.1");
    for (answer, code, detail) in [
        (
            &b"HTTP/1.1 503 x\r\nContent-Length: 0\r\n\r\n"[..],
            CheckCode::L7sts,
            "503 Service Unavailable",
        ),
        (
            b"HTTP/1.1 200",
            CheckCode::L7rsp,
            "connection closed before an answer",
        ),
    ] {
        let address = server(acceptor.clone(), answer).await;
        let result = probed(trusting(&authority), address).await;
        assert_eq!(seen(&result), (code, detail));
    }
}

#[test]
fn names_without_their_ports() {
    for (host, name) in [
        ("a.example", "a.example"),
        ("a.example:80", "a.example"),
        ("192.0.2.1:80", "192.0.2.1"),
        ("[2001:db8::1]:80", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
    ] {
        assert_eq!(without_port(host), name);
    }
}
