//! Certificates that pass unseen, and what is wrong with those that do not.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

/// `verify = false`: whoever has the key of the certificate it shows passes.
#[derive(Debug)]
pub(super) struct AnyCertificate(pub Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The error as a line, without names that the target chose.
pub(super) fn describe(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the certificate has expired".to_owned()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the certificate is not valid yet".to_owned()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the certificate is for another name".to_owned()
            }
            CertificateError::UnknownIssuer => "the certificate was signed by nobody we trust".to_owned(),
            CertificateError::Revoked => "the certificate was revoked".to_owned(),
            CertificateError::BadEncoding => "the certificate cannot be read".to_owned(),
            CertificateError::BadSignature => "the certificate's signature is wrong".to_owned(),
            _ => "the certificate is not valid".to_owned(),
        },
        Error::AlertReceived(alert) => format!("refused by the server with the TLS alert {alert:?}"),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => "the answer is not TLS".to_owned(),
        Error::PeerIncompatible(_) => "no version or cipher of TLS in common".to_owned(),
        Error::NoApplicationProtocol => "no application protocol in common (ALPN)".to_owned(),
        Error::PeerMisbehaved(_) => "the server breaks the rules of TLS".to_owned(),
        _ => "TLS failed".to_owned(),
    }
}
