//! The `grpc` check: the health service says that it serves (`grpc.health.v1.Health/Check`, the health checking protocol
//! of gRPC), over HTTP/2, with TLS or in the clear with prior knowledge (RFC 9113, section 3.3).
//!
//! Two messages of one field each need no protobuf library: the request is `string service = 1`, the answer
//! `ServingStatus status = 1`. Frames and headers are the business of `h2`.

use std::net::SocketAddr;

use h2::client::{Builder, SendRequest};
use h2::{Reason, RecvStream};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri, Version};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout_at;

use super::probe::{Limit, Outcome, Probe};
use super::way::Way;
use super::{socket, tls};
use crate::config::GrpcCheck;
use crate::model::CheckCode;

/// What headers, and the answer, may measure. The answer of the protocol has 7 bytes.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
const MAX_ANSWER_BYTES: usize = 1024;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

pub(super) async fn check(check: &GrpcCheck, way: Way<'_>, probe: &Probe, limit: Limit) -> Outcome {
    let address = way.address(probe);
    if check.over_tls {
        let host = check.host.as_deref();
        match tls::connect(&check.tls, tls::Alpn::Http2, host, way, probe, limit).await {
            Ok(stream) => ask(check, stream, address, limit).await,
            Err(outcome) => outcome,
        }
    } else {
        match way.connect(probe, limit).await {
            Ok(stream) => ask(check, stream, address, limit).await,
            Err(outcome) => outcome,
        }
    }
}

async fn ask<S>(check: &GrpcCheck, stream: S, address: SocketAddr, limit: Limit) -> Outcome
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(request) = request(check, address) else {
        return Outcome::new(CheckCode::Sockerr, "the request cannot be written down");
    };
    let exchange = exchange(check, stream, request, limit);
    match limit
        .run(exchange, CheckCode::L7tout, "no answer to the request")
        .await
    {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) => failed(&error),
        Err(late) => late,
    }
}

fn request(check: &GrpcCheck, address: SocketAddr) -> Option<Request<()>> {
    let authority = check.host.clone().unwrap_or_else(|| address.to_string());
    let scheme = if check.over_tls { "https" } else { "http" };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .ok()?;
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(
        USER_AGENT,
        HeaderValue::from_static(concat!("xlb/", env!("CARGO_PKG_VERSION"))),
    );
    Some(request)
}

async fn exchange<S>(
    check: &GrpcCheck,
    stream: S,
    request: Request<()>,
    limit: Limit,
) -> Result<Outcome, h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new();
    builder.max_header_list_size(MAX_HEADER_BYTES).enable_push(false);
    let (sender, connection) = builder.handshake::<S, Bytes>(stream).await?;
    let mut connection = Box::pin(connection);
    let answer = answer(sender, request, question(&check.service));
    tokio::pin!(answer);
    let outcome = tokio::select! {
        biased;
        outcome = &mut answer => outcome?,
        // What was received before stays readable.
        ended = &mut connection => {
            ended?;
            return answer.await;
        }
    };
    // Says goodbye.
    tokio::spawn(timeout_at(limit.deadline, connection));
    Ok(outcome)
}

async fn answer(
    sender: SendRequest<Bytes>,
    request: Request<()>,
    question: Bytes,
) -> Result<Outcome, h2::Error> {
    let mut sender = sender.ready().await?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(question, true)?;
    let (head, mut body) = response.await?.into_parts();
    if head.status != StatusCode::OK {
        return Ok(Outcome::new(
            CheckCode::L7sts,
            format!("HTTP status {}", head.status.as_u16()),
        ));
    }
    // An error without an answer comes in the only headers.
    if let Some(refused) = refused(&head.headers) {
        return Ok(refused);
    }
    let message = read(&mut body).await?;
    let trailers = match message.len() {
        ..=MAX_ANSWER_BYTES => body.trailers().await?,
        _ => None,
    };
    Ok(match trailers.as_ref().and_then(refused) {
        Some(refused) => refused,
        None => judge(&message),
    })
}

/// The body, to a little beyond what it may measure.
async fn read(body: &mut RecvStream) -> Result<Vec<u8>, h2::Error> {
    let mut read = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        read.extend_from_slice(&data);
        if read.len() > MAX_ANSWER_BYTES {
            break;
        }
        body.flow_control().release_capacity(data.len())?;
    }
    Ok(read)
}

/// The outcome where `grpc-status` is not 0.
fn refused(headers: &HeaderMap) -> Option<Outcome> {
    let status = headers.get(GRPC_STATUS)?;
    let number: Option<u16> = status.to_str().ok().and_then(|status| status.parse().ok());
    let outcome = match number {
        Some(0) => return None,
        Some(number) => Outcome::new(CheckCode::L7sts, format!("gRPC status {number}{}", name(number))),
        None => Outcome::new(CheckCode::L7rsp, "a gRPC status that is no number"),
    };
    Some(outcome)
}

/// What a server answers that lacks the health service, or does not know the service asked for.
fn name(status: u16) -> &'static str {
    match status {
        5 => " (NOT_FOUND)",
        12 => " (UNIMPLEMENTED)",
        14 => " (UNAVAILABLE)",
        16 => " (UNAUTHENTICATED)",
        _ => "",
    }
}

/// A message (not compressed, its length) that holds `string service = 1`.
fn question(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        message.extend(varint(service.len() as u64));
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend(message);
    framed.into()
}

fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn judge(framed: &[u8]) -> Outcome {
    let Some(status) = serving_status(framed) else {
        return Outcome::new(CheckCode::L7rsp, "not an answer of the gRPC health service");
    };
    let (code, detail) = match status {
        1 => (CheckCode::L7ok, "SERVING".to_owned()),
        0 => (CheckCode::L7sts, "UNKNOWN".to_owned()),
        2 => (CheckCode::L7sts, "NOT_SERVING".to_owned()),
        3 => (CheckCode::L7sts, "SERVICE_UNKNOWN".to_owned()),
        other => (CheckCode::L7sts, format!("serving status {other}")),
    };
    Outcome::new(code, detail)
}

/// The field `ServingStatus status = 1` of one message; absent is 0 (the encoding of protobuf).
fn serving_status(framed: &[u8]) -> Option<u64> {
    let (head, mut message) = framed.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..].try_into().ok()?);
    if head[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        let skip = match tag & 7 {
            0 => {
                let value = take_varint(&mut message)?;
                if tag >> 3 == 1 {
                    status = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(take_varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(skip..)?;
    }
    Some(status)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Why there was no answer, without text that the target chose.
fn failed(error: &h2::Error) -> Outcome {
    if let Some(io_error) = error.get_io() {
        if let Some(outcome) = tls::failed(io_error) {
            return outcome;
        }
        let detail = match io_error.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::BrokenPipe => {
                "connection closed before an answer".to_owned()
            }
            _ => socket::describe(io_error),
        };
        return Outcome::new(CheckCode::L7rsp, detail);
    }
    let who = if error.is_remote() {
        "the server says"
    } else {
        "we say"
    };
    let detail = match error.reason() {
        Some(reason) if reason != Reason::NO_ERROR => {
            format!("not HTTP/2 as it should be ({who}: {})", reason.description())
        }
        _ => "connection closed before an answer".to_owned(),
    };
    Outcome::new(CheckCode::L7rsp, detail)
}

#[cfg(test)]
#[path = "tests/grpc.rs"]
mod tests;
