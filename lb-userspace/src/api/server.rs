//! The server side: routes on a Unix socket that hand each request to the agent's loop; events come from the bus.

use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, FromRef, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};

use super::command::{Command, Planned, Refusal, Reply};
use super::connections::{self, ConnectionsQuery};
use super::frozen;
use super::types::{BackendOrder, Failure, PlanOrder};
use crate::config::MAX_CONFIG_BYTES;
use crate::observe::Archive;
use crate::observe::history::Selection;

/// The socket's group, if the machine has it.
const GROUP: &str = "xlb";

type Commands = mpsc::Sender<Command>;

/// What the routes need.
#[derive(Clone, Debug)]
struct Api {
    commands: Commands,
    events: Events,
    pins: Pins,
}

/// Where flows are read from.
#[derive(Clone, Debug)]
struct Pins(PathBuf);

impl FromRef<Api> for Pins {
    fn from_ref(api: &Api) -> Self {
        api.pins.clone()
    }
}

impl FromRef<Api> for Commands {
    fn from_ref(api: &Api) -> Self {
        api.commands.clone()
    }
}

impl FromRef<Api> for Events {
    fn from_ref(api: &Api) -> Self {
        api.events.clone()
    }
}

/// Where events come from.
#[derive(Clone, Debug)]
struct Events {
    archive: Archive,
    /// Goes away when the server stops: those who wait for events then get what there is.
    serving: watch::Receiver<()>,
}

/// A served socket; the file goes with this.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Socket {
    /// Takes no more requests and waits until those that came in are answered, for a moment at most.
    pub async fn close(mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(mut task) = self.task.take()
            && tokio::time::timeout(LAST_ANSWERS, &mut task).await.is_err()
        {
            task.abort();
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

/// How long the last answers may take at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Serves the API at `path`, readable and writable for root and the group `xlb`.
///
/// # Errors
/// Where the socket cannot be made, or another process listens on it.
pub fn serve(path: &Path, commands: Commands, archive: Archive, pin_dir: &Path) -> io::Result<Socket> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another agent listens on it",
            ));
        }
        Err(_) => remove_dead(path)?,
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP) {
        nix::unistd::chown(path, None, Some(group.gid))?;
    }
    let (stop, stopped) = oneshot::channel::<()>();
    let (alive, serving) = watch::channel(());
    let api = Api {
        commands,
        events: Events { archive, serving },
        pins: Pins(pin_dir.into()),
    };
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router(api)).with_graceful_shutdown(async {
            // A dropped sender stops it too.
            let _ = stopped.await;
            drop(alive);
        });
        if let Err(error) = served.await {
            log::error!("API: {error}");
        }
    });
    Ok(Socket {
        path: path.into(),
        stop: Some(stop),
        task: Some(task),
    })
}

/// A socket that nobody listens on was left by an agent that was killed. Anything else at its place is not ours.
fn remove_dead(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something is there that is no socket; move it away, or name another api_socket",
        )),
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route(
            "/v1/status",
            get(|State(c): State<Commands>| ask(c, Command::Status)),
        )
        .route("/v1/stats", get(stats))
        .route(
            "/v1/reload",
            post(|State(c): State<Commands>| ask(c, Command::Reload)),
        )
        .route(
            "/v1/confirm",
            post(|State(c): State<Commands>| ask(c, Command::Confirm)),
        )
        .route(
            "/v1/detach",
            post(|State(c): State<Commands>| ask(c, Command::Detach)),
        )
        .route("/v1/plan", post(plan).layer(DefaultBodyLimit::max(PLAN_BYTES)))
        .route("/v1/backends", post(order))
        .route("/v1/events", get(events))
        .route("/v1/history", get(history))
        .route("/v1/connections", get(connections))
        .fallback(|| async {
            answer::<()>(Err(Refusal::NotFound(
                "there is no such path; see docs/api.md".into(),
            )))
        })
        .method_not_allowed_fallback(|| async {
            failure(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path has another method".into(),
            )
        })
        .with_state(api)
}

/// Events in one answer; who is further behind asks again.
const EVENTS_AT_ONCE: usize = 1000;
/// How long a request may wait for an event.
const LONGEST_WAIT_S: u64 = 60;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    /// Number of the last event that is known already.
    #[serde(default)]
    since: u64,
    /// So many seconds to wait where there is none after it.
    #[serde(default)]
    wait: u64,
}

async fn events(
    State(mut events): State<Events>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Response {
    let EventsQuery { since, wait } = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return failure(rejection.status(), rejection.body_text()),
    };
    let limit = Duration::from_secs(wait.min(LONGEST_WAIT_S));
    tokio::select! {
        () = events.archive.bus().beyond(since) => {}
        _ = events.serving.changed() => {}
        () = tokio::time::sleep(limit) => {}
    }
    answer(Ok(events.archive.bus().since(since, EVENTS_AT_ONCE)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct HistoryQuery {
    service: Option<String>,
    address: Option<IpAddr>,
    port: Option<u16>,
    /// Verdicts of each backend at most.
    limit: Option<usize>,
}

async fn history(
    State(events): State<Events>,
    query: Result<Query<HistoryQuery>, QueryRejection>,
) -> Response {
    let HistoryQuery {
        service,
        address,
        port,
        limit,
    } = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return failure(rejection.status(), rejection.body_text()),
    };
    let selection = Selection {
        service,
        address,
        port,
    };
    let found = events.archive.answer(&selection, limit.unwrap_or(usize::MAX));
    if found.backends.is_empty() && selection != Selection::default() {
        return answer::<()>(Err(Refusal::NotFound(
            "nothing is kept of such a backend; see: xlb backend list".into(),
        )));
    }
    answer(Ok(found))
}

async fn connections(
    State(Pins(pins)): State<Pins>,
    query: Result<Query<ConnectionsQuery>, QueryRejection>,
) -> Response {
    let query = match query {
        Ok(Query(query)) => query,
        Err(rejection) => return failure(rejection.status(), rejection.body_text()),
    };
    match query.filter() {
        Ok(filter) => answer(connections::read(pins, filter).await),
        Err(why) => failure(StatusCode::UNPROCESSABLE_ENTITY, why),
    }
}

fn failure(status: StatusCode, error: String) -> Response {
    let faults = Vec::new();
    (status, Json(Failure { error, faults })).into_response()
}

async fn stats(State(commands): State<Commands>, State(Pins(pins)): State<Pins>) -> Response {
    let counted = command(commands, Command::Stats).await;
    let Ok(mut stats) = counted else {
        return answer(counted);
    };
    let interfaces: Vec<String> = stats.drivers.into_iter().map(|driver| driver.interface).collect();
    let drivers = tokio::task::spawn_blocking(move || frozen::driver_stats(&interfaces, &pins)).await;
    stats.drivers = drivers.unwrap_or_default();
    answer(Ok(stats))
}

async fn order(
    State(commands): State<Commands>,
    body: Result<Json<BackendOrder>, axum::extract::rejection::JsonRejection>,
) -> Response {
    match body {
        Ok(Json(order)) => ask(commands, |reply| Command::Backend(order, reply)).await,
        Err(rejection) => failure(rejection.status(), rejection.body_text()),
    }
}

/// A configuration of the largest size that is read, as JSON.
const PLAN_BYTES: usize = 2 * MAX_CONFIG_BYTES;

async fn plan(
    State(commands): State<Commands>,
    State(Pins(pins)): State<Pins>,
    body: Result<Json<PlanOrder>, axum::extract::rejection::JsonRejection>,
) -> Response {
    let order = match body {
        Ok(Json(order)) => order,
        Err(rejection) => return failure(rejection.status(), rejection.body_text()),
    };
    let planned = command(commands, |reply| Command::Plan(order, reply)).await;
    let Planned { mut plan, moving } = match planned {
        Ok(planned) => planned,
        Err(refusal) => return answer::<()>(Err(refusal)),
    };
    match connections::in_slots(pins, moving).await {
        Ok(flows) => {
            for service in &mut plan.services {
                service.flows_in_moved_slots = flows.get(&service.name).copied();
            }
        }
        Err(refusal) => return answer::<()>(Err(refusal)),
    }
    answer(Ok(plan))
}

async fn ask<T: serde::Serialize>(commands: Commands, make: impl FnOnce(Reply<T>) -> Command) -> Response {
    answer(command(commands, make).await)
}

/// What the loop answers.
async fn command<T>(commands: Commands, make: impl FnOnce(Reply<T>) -> Command) -> Result<T, Refusal> {
    let (reply, result) = oneshot::channel();
    let stopping = || Refusal::Failed("the agent is stopping".into());
    match commands.send(make(reply)).await {
        Ok(()) => result.await.unwrap_or_else(|_| Err(stopping())),
        Err(_) => Err(stopping()),
    }
}

fn answer<T: serde::Serialize>(result: Result<T, Refusal>) -> Response {
    let (status, error, faults) = match result {
        Ok(value) => return Json(value).into_response(),
        Err(Refusal::NotFound(error)) => (StatusCode::NOT_FOUND, error, Vec::new()),
        Err(Refusal::Conflict(error)) => (StatusCode::CONFLICT, error, Vec::new()),
        Err(Refusal::BadConfig { summary, faults }) => (StatusCode::UNPROCESSABLE_ENTITY, summary, faults),
        Err(Refusal::Failed(error)) => (StatusCode::INTERNAL_SERVER_ERROR, error, Vec::new()),
    };
    (status, Json(Failure { error, faults })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::client::Client;
    use crate::observe::Kind;

    #[tokio::test]
    async fn events_come_at_once_later_or_when_the_server_stops() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("xlb.sock");
        let (commands, _obeyed) = mpsc::channel(1);
        let archive = Archive::open(folder.path());
        let bus = archive.bus().clone();
        let socket = serve(&path, commands, archive, folder.path()).unwrap();
        let client = Client::new(&path);
        bus.emit(Kind::Isolated);
        let batch = client.events(0, Duration::from_secs(50)).await.unwrap();
        assert_eq!((batch.events.len(), batch.last), (1, 1));
        let none = client.events(1, Duration::ZERO).await.unwrap();
        assert_eq!((none.events.len(), none.last), (0, 1));

        let waiting = async |since| client.events(since, Duration::from_secs(50)).await.unwrap();
        let emit = async { bus.emit(Kind::IsolationOver) };
        let (batch, last) = tokio::join!(waiting(1), emit);
        assert_eq!((batch.events[0].seq, batch.last), (last, last));

        // A request that waits gets its answer; one that was not taken up yet would not.
        let close = async {
            while bus.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            socket.close().await;
        };
        let (batch, ()) = tokio::join!(waiting(last), close);
        assert_eq!((batch.events.len(), batch.last), (0, last));
    }

    #[tokio::test]
    async fn what_is_no_number_is_refused_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("xlb.sock");
        let (commands, _obeyed) = mpsc::channel(1);
        let _socket = serve(&path, commands, Archive::open(folder.path()), folder.path()).unwrap();
        let url = [
            "--unix-socket",
            path.to_str().unwrap(),
            "http://xlb/v1/events?since=x",
        ];
        let said = tokio::process::Command::new("curl")
            .arg("--silent")
            .args(url)
            .output()
            .await;
        let said: Failure = serde_json::from_slice(&said.unwrap().stdout).unwrap();
        assert!(said.error.contains("since"), "{}", said.error);
    }

    #[test]
    fn only_a_socket_makes_room_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("xlb.sock");
        remove_dead(&path).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        remove_dead(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(remove_dead(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
