//! The `http` and `https` checks: a request over HTTP/1.1 is answered as expected.
//!
//! Where only the status is expected the verdict falls when the head of the answer is there. The body is then read out
//! in the background, to a bound, because closing with unread data resets the connection, which servers log as an
//! error. Where something is expected in the body the verdict falls when it is found, at the latest at the same bound.
//! The request asks the server to close first, which leaves TIME-WAIT to it and none of our ports in use.

mod describe;

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout_at;

use self::describe::failed;
use super::probe::{Limit, Outcome, Probe};
use super::tls;
use super::udp::contains;
use super::way::Way;
use crate::config::{self, Pattern, TlsCheck};
use crate::model::CheckCode;

/// What the head of an answer may measure.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What is read of a body before the connection is closed on it.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The request, and the answers that pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    method: Method,
    path: PathAndQuery,
    host: Option<HeaderValue>,
    headers: HeaderMap,
    expect_status: Vec<RangeInclusive<u16>>,
    expect_body: Option<Vec<u8>>,
    expect_body_regex: Option<Pattern>,
}

/// A part of the request that HTTP does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHttpCheck {
    #[error("`{0}` is no HTTP method")]
    Method(String),
    #[error("`{0}` is no HTTP path: it must begin with `/` and be printable ASCII without spaces")]
    Path(String),
    #[error("`{0}` cannot be sent as a Host header")]
    Host(String),
}

impl HttpCheck {
    /// `path` is printable ASCII without spaces and may have a query; characters that may not stand in one as they
    /// are (RFC 3986, section 3.3) are sent percent-encoded, as browsers do. `host` is the Host header; without one it is the address and port probed.
    /// A status in any of the ranges `expect_status` passes.
    ///
    /// # Errors
    ///
    /// When method, path or host cannot be sent.
    pub fn new(
        method: &str,
        path: &str,
        host: Option<&str>,
        expect_status: Vec<RangeInclusive<u16>>,
    ) -> Result<Self, InvalidHttpCheck> {
        let parsed_host = host
            .map(|host| HeaderValue::from_str(host).map_err(|_| InvalidHttpCheck::Host(host.to_owned())))
            .transpose()?;
        Ok(Self {
            method: method
                .parse()
                .map_err(|_| InvalidHttpCheck::Method(method.to_owned()))?,
            path: parse_path(path).ok_or_else(|| InvalidHttpCheck::Path(path.to_owned()))?,
            host: parsed_host,
            headers: HeaderMap::new(),
            expect_status,
            expect_body: None,
            expect_body_regex: None,
        })
    }

    /// The check of a valid configuration, which accepts only requests that can be sent.
    ///
    /// # Panics
    ///
    /// When the configuration was not validated.
    #[must_use]
    pub fn of(check: &config::HttpCheck) -> Self {
        let config::HttpCheck {
            method,
            path,
            host,
            headers,
            expect_status,
            expect_body,
            expect_body_regex,
        } = check;
        let statuses = expect_status.0.iter().map(|range| range.first..=range.last);
        let request = Self::new(&method.to_string(), path, host.as_deref(), statuses.collect());
        let mut check = request.expect("validated with the configuration");
        for config::Header { name, value } in headers {
            check.headers.append(
                HeaderName::try_from(name).expect("validated with the configuration"),
                HeaderValue::try_from(value).expect("validated with the configuration"),
            );
        }
        check.expect_body = expect_body.as_ref().map(|text| text.clone().into_bytes());
        check.expect_body_regex.clone_from(expect_body_regex);
        check
    }

    fn request(&self, address: SocketAddr) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.path.clone());
        let host = self.host.clone().unwrap_or_else(|| {
            HeaderValue::try_from(address.to_string()).expect("a printed address is a header value")
        });
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("xlb/", env!("CARGO_PKG_VERSION"))),
        );
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        // In place of ours where the configuration has them.
        for name in self.headers.keys() {
            headers.remove(name);
        }
        headers.extend(self.headers.clone());
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        request
    }

    fn judge(&self, status: StatusCode) -> Outcome {
        let expected = self
            .expect_status
            .iter()
            .any(|range| range.contains(&status.as_u16()));
        let code = if expected {
            CheckCode::L7ok
        } else {
            CheckCode::L7sts
        };
        let detail = match status.canonical_reason() {
            Some(reason) => format!("{} {reason}", status.as_u16()),
            None => status.as_u16().to_string(),
        };
        Outcome::new(code, detail)
    }

    fn looks_at_body(&self) -> bool {
        self.expect_body.is_some() || self.expect_body_regex.is_some()
    }

    fn body_matches(&self, body: &[u8]) -> bool {
        self.expect_body.as_ref().is_none_or(|part| contains(body, part))
            && self
                .expect_body_regex
                .as_ref()
                .is_none_or(|Pattern(regex)| regex.is_match(body))
    }
}

fn parse_path(path: &str) -> Option<PathAndQuery> {
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return None;
    }
    let mut encoded = String::with_capacity(path.len());
    for character in path.chars() {
        match character {
            '"' | '#' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}' => {
                encoded.push_str(&format!("%{:02X}", u32::from(character)));
            }
            allowed => encoded.push(allowed),
        }
    }
    encoded.parse().ok()
}

pub(super) async fn check(check: &HttpCheck, way: Way<'_>, probe: &Probe, limit: Limit) -> Outcome {
    match way.connect(probe, limit).await {
        Ok(stream) => ask(check, stream, way.address(probe), limit).await,
        Err(outcome) => outcome,
    }
}

pub(super) async fn check_over_tls(
    check: &HttpCheck,
    tls: &TlsCheck,
    way: Way<'_>,
    probe: &Probe,
    limit: Limit,
) -> Outcome {
    let host = check.host.as_ref().and_then(|host| host.to_str().ok());
    match tls::connect(tls, tls::Alpn::Http1, host, way, probe, limit).await {
        Ok(stream) => ask(check, stream, way.address(probe), limit).await,
        Err(outcome) => outcome,
    }
}

async fn ask<S>(check: &HttpCheck, stream: S, address: SocketAddr, limit: Limit) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let answer = exchange(check, stream, check.request(address), limit);
    match limit
        .run(answer, CheckCode::L7tout, "no answer to the request")
        .await
    {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => failed(&error, "an answer"),
        Err(late) => late,
    }
}

async fn exchange<S>(
    check: &HttpCheck,
    stream: S,
    request: Request<Empty<Bytes>>,
    limit: Limit,
) -> hyper::Result<Outcome>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut connection = Box::pin(connection);
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let (response, open) = tokio::select! {
        biased;
        response = &mut answer => (response?, true),
        // The request is told why its connection ended, or has its answer already.
        _ = &mut connection => (answer.await?, false),
    };
    let outcome = check.judge(response.status());
    if !check.looks_at_body() || outcome.code != CheckCode::L7ok {
        if open {
            tokio::spawn(timeout_at(limit.deadline, async move {
                tokio::select! {
                    () = read_out(response) => {}
                    _ = connection => {}
                }
            }));
        }
        return Ok(outcome);
    }
    let judged = judge_body(check, response, outcome);
    tokio::pin!(judged);
    let outcome = tokio::select! {
        biased;
        outcome = &mut judged => outcome,
        // What was received before stays readable.
        _ = &mut connection, if open => return Ok(judged.await),
    };
    tokio::spawn(timeout_at(limit.deadline, connection));
    Ok(outcome)
}

/// `passed`, the outcome so far, if the body is as expected.
async fn judge_body(check: &HttpCheck, response: Response<Incoming>, passed: Outcome) -> Outcome {
    let status = passed.detail.clone();
    let mut body = response.into_body();
    let mut read = Vec::new();
    let mut looked_at = 0;
    loop {
        let ended = match body.frame().await {
            None => true,
            Some(Ok(frame)) => {
                read.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                read.truncate(MAX_BODY_BYTES);
                read.len() == MAX_BODY_BYTES
            }
            Some(Err(error)) => return failed(&error, "the end of the body"),
        };
        // Not after every piece: a server that sends bytes one by one must not cost the square of them.
        if ended || read.len() >= 2 * looked_at {
            looked_at = read.len();
            if check.body_matches(&read) {
                return passed;
            }
        }
        if ended {
            let length = read.len();
            return Outcome::new(
                CheckCode::L7rsp,
                format!("{status}, a body without the expected content ({length} bytes read)"),
            );
        }
    }
}

/// Reads a body to its end or to the bound.
async fn read_out(response: Response<Incoming>) {
    let mut body = response.into_body();
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MAX_BODY_BYTES {
            return;
        }
    }
}
