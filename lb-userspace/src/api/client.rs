//! The client side: one request a connection over the agent's Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::connections::{Connections, ConnectionsQuery};
use super::types::{BackendOrder, Done, Failure, Plan, PlanOrder, Stats, Status};
use crate::observe::bus::Batch;
use crate::observe::history::{Answer, Selection};

/// How long the agent may take to say what it knows.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to change something.
const CHANGE_LIMIT: Duration = Duration::from_secs(30);
/// How long a reload may take: it waits for the checks of new backends.
const RELOAD_LIMIT: Duration = Duration::from_secs(300);

/// Why there is no answer, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the agent does not run, or listens elsewhere: nobody answers at {} ({source}); \
         start it with: xlb agent --config FILE, or name its api_socket with --socket",
        socket.display()
    )]
    NotRunning { socket: PathBuf, source: io::Error },
    #[error("no permission for {}; run as root or as a member of the group that owns it", socket.display())]
    NoPermission { socket: PathBuf },
    #[error("{}: {source}", socket.display())]
    Connect { socket: PathBuf, source: io::Error },
    #[error("the agent at {} gave no answer within {} s; see its log", socket.display(), limit.as_secs())]
    Silent { socket: PathBuf, limit: Duration },
    #[error("the agent at {} broke off before it answered ({source}); see its log", socket.display())]
    BrokeOff { socket: PathBuf, source: hyper::Error },
    /// It answered, and refuses.
    #[error("{}", failure.error)]
    Refused { status: StatusCode, failure: Failure },
    #[error(
        "what answers at {} does not speak as an agent of this version ({status}: {why})",
        socket.display()
    )]
    Foreign {
        socket: PathBuf,
        status: StatusCode,
        why: String,
    },
}

impl Error {
    /// Whether there was nobody to talk to.
    #[must_use]
    pub fn unreachable(&self) -> bool {
        match self {
            Self::NotRunning { .. }
            | Self::NoPermission { .. }
            | Self::Connect { .. }
            | Self::Silent { .. }
            | Self::BrokeOff { .. } => true,
            Self::Refused { .. } | Self::Foreign { .. } => false,
        }
    }
}

/// A client of the agent that listens at one socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Where the agent is looked for.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// # Errors
    /// [`Error`], as all requests.
    pub async fn status(&self) -> Result<Status, Error> {
        self.get("/v1/status").await
    }

    /// # Errors
    /// [`Error`].
    pub async fn stats(&self) -> Result<Stats, Error> {
        self.get("/v1/stats").await
    }

    /// Waits until the configuration is in force.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn reload(&self) -> Result<Done, Error> {
        self.ask(Method::POST, "/v1/reload", Bytes::new(), RELOAD_LIMIT)
            .await
    }

    /// What a reload would do.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn plan(&self, order: &PlanOrder) -> Result<Plan, Error> {
        self.post("/v1/plan", json(order)).await
    }

    /// # Errors
    /// [`Error`].
    pub async fn detach(&self) -> Result<Done, Error> {
        self.post("/v1/detach", Bytes::new()).await
    }

    /// # Errors
    /// [`Error`].
    pub async fn confirm(&self) -> Result<Done, Error> {
        self.post("/v1/confirm", Bytes::new()).await
    }

    /// # Errors
    /// [`Error`].
    pub async fn order(&self, order: &BackendOrder) -> Result<Done, Error> {
        self.post("/v1/backends", json(order)).await
    }

    /// The events after number `since`; where there is none, those of the next `wait`.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn events(&self, since: u64, wait: Duration) -> Result<Batch, Error> {
        let path = format!("/v1/events?since={since}&wait={}", wait.as_secs());
        self.ask(Method::GET, &path, Bytes::new(), READ_LIMIT + wait)
            .await
    }

    /// The flows that are remembered.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn connections(&self, query: &ConnectionsQuery) -> Result<Connections, Error> {
        let ConnectionsQuery {
            service,
            backend,
            state,
            client,
            limit,
        } = query;
        let state = state.and_then(|state| serde_json::to_value(state).ok());
        let parameters = [
            ("service", service.clone()),
            ("backend", backend.clone()),
            ("state", state.and_then(|state| Some(state.as_str()?.to_owned()))),
            ("client", client.clone()),
            ("limit", limit.map(|limit| limit.to_string())),
        ];
        let parameters = parameters.into_iter().filter_map(|(name, value)| {
            // None of them has other characters in it, unless it is wrong.
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-:/".contains(c);
            Some(format!("{name}={}", value?.replace(|c| !plain(c), "_")))
        });
        let parameters: Vec<_> = parameters.collect();
        self.get(&format!("/v1/connections?{}", parameters.join("&")))
            .await
    }

    /// Verdicts, incidents and availability of the backends that are asked for.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn history(&self, selection: &Selection, limit: usize) -> Result<Answer, Error> {
        let Selection {
            service,
            address,
            port,
        } = selection;
        let mut path = format!("/v1/history?limit={limit}");
        // Names of services need no escaping, see `config::Shape::Name`; what is none is not found.
        if let Some(service) = service {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            path += &format!("&service={}", service.replace(|c| !plain(c), "_"));
        }
        if let Some(address) = address {
            path += &format!("&address={address}");
        }
        if let Some(port) = port {
            path += &format!("&port={port}");
        }
        self.get(&path).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.ask(Method::GET, path, Bytes::new(), READ_LIMIT).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, body: Bytes) -> Result<T, Error> {
        self.ask(Method::POST, path, body, CHANGE_LIMIT).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<T, Error> {
        let (status, answer) = tokio::time::timeout(limit, self.exchange(method, path, body))
            .await
            .map_err(|_| Error::Silent {
                socket: self.socket.clone(),
                limit,
            })??;
        if status.is_success() {
            return serde_json::from_slice(&answer).map_err(|error| self.foreign(status, &error));
        }
        match serde_json::from_slice(&answer) {
            Ok(failure) => Err(Error::Refused { status, failure }),
            Err(error) => Err(self.foreign(status, &error)),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes), Error> {
        let broke_off = |source| Error::BrokeOff {
            socket: self.socket.clone(),
            source,
        };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| self.cannot_connect(source))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broke_off)?;
        // It ends with the connection; what goes wrong in it is told to the request as well.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "xlb")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("method, path and headers are constants of this file");
        let answer = sender.send_request(request).await.map_err(broke_off)?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(broke_off)?;
        Ok((status, body.to_bytes()))
    }

    fn cannot_connect(&self, source: io::Error) -> Error {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::NotRunning { socket, source }
            }
            io::ErrorKind::PermissionDenied => Error::NoPermission { socket },
            _ => Error::Connect { socket, source },
        }
    }

    fn foreign(&self, status: StatusCode, error: &serde_json::Error) -> Error {
        Error::Foreign {
            socket: self.socket.clone(),
            status,
            why: error.to_string(),
        }
    }
}

fn json(request: &impl Serialize) -> Bytes {
    serde_json::to_vec(request)
        .expect("requests have only string keys")
        .into()
}

#[cfg(test)]
mod tests;
