//! The server side: routes on a Unix socket that hand each request to the agent's loop.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::command::{Command, Refusal, Reply};
use super::types::{BackendOrder, Failure};

/// The socket's group, if the machine has it.
const GROUP: &str = "xlb";

type Commands = mpsc::Sender<Command>;

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
pub fn serve(path: &Path, commands: Commands) -> io::Result<Socket> {
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
    let task = tokio::spawn(async move {
        let served = axum::serve(listener, router(commands)).with_graceful_shutdown(async {
            // A dropped sender stops it too.
            let _ = stopped.await;
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

fn router(commands: Commands) -> Router {
    Router::new()
        .route(
            "/v1/status",
            get(|State(c): State<Commands>| ask(c, Command::Status)),
        )
        .route(
            "/v1/stats",
            get(|State(c): State<Commands>| ask(c, Command::Stats)),
        )
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
        .route("/v1/backends", post(order))
        .fallback(|| async {
            answer::<()>(Err(Refusal::NotFound(
                "there is no such path; see docs/api.md".into(),
            )))
        })
        .method_not_allowed_fallback(|| async {
            let failure = Failure {
                error: "this path has another method".into(),
                faults: Vec::new(),
            };
            (StatusCode::METHOD_NOT_ALLOWED, Json(failure)).into_response()
        })
        .with_state(commands)
}

async fn order(
    State(commands): State<Commands>,
    body: Result<Json<BackendOrder>, axum::extract::rejection::JsonRejection>,
) -> Response {
    match body {
        Ok(Json(order)) => ask(commands, |reply| Command::Backend(order, reply)).await,
        Err(rejection) => {
            let failure = Failure {
                error: rejection.body_text(),
                faults: Vec::new(),
            };
            (rejection.status(), Json(failure)).into_response()
        }
    }
}

async fn ask<T: serde::Serialize>(commands: Commands, command: impl FnOnce(Reply<T>) -> Command) -> Response {
    let (reply, result) = oneshot::channel();
    let stopping = || Refusal::Failed("the agent is stopping".into());
    let result = match commands.send(command(reply)).await {
        Ok(()) => result.await.unwrap_or_else(|_| Err(stopping())),
        Err(_) => Err(stopping()),
    };
    answer(result)
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
