//! The listener that Prometheus scrapes: `GET /metrics`, and nothing else.
//!
//! It stands in the network, so its clients may be slow, many, or not know when to stop: a connection is for one
//! request and has [`LIMIT`] in all, at most [`CONNECTIONS`] are served at a time (another one takes the place of
//! the oldest), and an answer serves all who ask within [`FRESH`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

const CONNECTIONS: usize = 16;
/// For a whole connection: request, answer, and a reader that takes its time.
const LIMIT: Duration = Duration::from_secs(15);
/// For the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
const FRESH: Duration = Duration::from_millis(500);
/// When listening is tried again.
const AGAIN: Duration = Duration::from_secs(10);

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the text of a scrape comes from.
pub trait Source: Send + Sync + 'static {
    /// The text; an error is for the one who asked.
    fn text(&self) -> impl Future<Output = Result<String, String>> + Send;
}

/// Listens at `address` until the task is dropped. Where that is not possible, it is logged and tried again:
/// forwarding does not depend on it.
pub async fn serve(address: SocketAddr, source: impl Source) {
    let mut said = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) if !said => {
                log::error!("metrics: listening at {address}: {error}; tried again every {AGAIN:?}");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    log::info!("metrics: http://{address}/metrics");
    accept(listener, source).await;
}

async fn accept(listener: TcpListener, source: impl Source) {
    let answers = Arc::new(Answers {
        source,
        last: Mutex::new(None),
    });
    let mut served: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                log::debug!("metrics: {error}");
                // Out of descriptors, as a rule: those of others will come free.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        served.retain(|connection| !connection.is_finished());
        if served.len() >= CONNECTIONS
            && let Some(oldest) = served.pop_front()
        {
            oldest.abort();
        }
        let connection = connection(stream, Arc::clone(&answers));
        served.push_back(tokio::spawn(connection).abort_handle());
    }
}

async fn connection<S: Source>(stream: TcpStream, answers: Arc<Answers<S>>) {
    let service = service_fn(move |request| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answers.answer(&request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .keep_alive(false)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    // A client that hangs up or says nothing is no concern of ours.
    let _ = tokio::time::timeout(LIMIT, served).await;
}

struct Answers<S> {
    source: S,
    last: Mutex<Option<(Instant, Bytes)>>,
}

impl<S: Source> Answers<S> {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let plain =
            |status, text: &str| with_type(status, "text/plain; charset=utf-8", text.to_owned().into());
        match (request.method(), request.uri().path()) {
            (&Method::GET | &Method::HEAD, "/metrics") => match self.text().await {
                Ok(text) => with_type(StatusCode::OK, CONTENT_TYPE, text),
                Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
            },
            (_, "/metrics") => plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n"),
            _ => plain(StatusCode::NOT_FOUND, "see /metrics\n"),
        }
    }

    async fn text(&self) -> Result<Bytes, String> {
        // Held while the text is made: who comes meanwhile gets the same.
        let mut last = self.last.lock().await;
        if let Some((made, text)) = &*last
            && made.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        let text = Bytes::from(self.source.text().await?);
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}

fn with_type(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let value = header::HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

#[cfg(test)]
#[path = "tests/server.rs"]
mod tests;
