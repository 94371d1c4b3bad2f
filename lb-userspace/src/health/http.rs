//! The `http` check: a request over HTTP/1.1 is answered with an expected status.
//!
//! The verdict falls when the head of the answer is there. The body is read out in the background, to
//! a bound, because closing with unread data resets the connection, which servers log as an error.
//! The request asks the server to close first, which leaves TIME-WAIT to it and none of our ports in use.

use std::error::Error as _;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::probe::{Limit, Outcome};
use super::tcp;
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
    expect_status: Vec<RangeInclusive<u16>>,
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
            expect_status,
        })
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

pub(super) async fn check(check: &HttpCheck, address: SocketAddr, limit: Limit) -> Outcome {
    let stream = match tcp::connect(address, limit).await {
        Ok(stream) => stream,
        Err(outcome) => return outcome,
    };
    let answer = exchange(stream, check.request(address), limit);
    match limit
        .run(answer, CheckCode::L7tout, "no answer to the request")
        .await
    {
        Ok(Ok(status)) => check.judge(status),
        Ok(Err(error)) => Outcome::new(CheckCode::L7rsp, describe(&error)),
        Err(late) => late,
    }
}

async fn exchange(
    stream: TcpStream,
    request: Request<Empty<Bytes>>,
    limit: Limit,
) -> hyper::Result<StatusCode> {
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD_BYTES)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut connection = Box::pin(connection);
    let answer = sender.send_request(request);
    tokio::pin!(answer);
    let response = tokio::select! {
        biased;
        response = &mut answer => response?,
        // The request is told why its connection ended, or has its answer already.
        _ = &mut connection => return Ok(answer.await?.status()),
    };
    let status = response.status();
    tokio::spawn(timeout_at(limit.deadline, async move {
        tokio::select! {
            () = read_out(response) => {}
            _ = connection => {}
        }
    }));
    Ok(status)
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

/// Why there was no answer, without text that the target chose.
fn describe(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "connection closed before an answer".to_owned();
    }
    if error.is_parse() {
        return format!("not an HTTP answer: {error}");
    }
    match error
        .source()
        .and_then(|source| source.downcast_ref::<std::io::Error>())
    {
        Some(error) => tcp::describe(error),
        None => error.to_string(),
    }
}
