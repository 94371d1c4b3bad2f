use std::os::unix::fs::PermissionsExt;

use axum::extract::Json;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Router, http};
use nix::unistd::{Uid, setfsuid};
use tokio::net::UnixListener;

use super::*;
use crate::api::types::{Order, WeightOrder};

/// An HTTP server on a socket of its own, until the test's runtime ends.
fn served(router: Router) -> (tempfile::TempDir, Client) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("xlb.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    (folder, Client::new(socket))
}

fn order() -> BackendOrder {
    BackendOrder {
        service: Some("web".into()),
        address: "2001:db8::1".parse().unwrap(),
        port: Some(80),
        order: Order::Weight(WeightOrder::Percent(50)),
        force: true,
    }
}

#[tokio::test]
async fn answers_and_orders_go_through_the_socket() {
    async fn echo(Json(order): Json<BackendOrder>) -> Json<Done> {
        Json(Done {
            changed: order.force,
            changes: vec![format!("{order:?}")],
            ..Done::default()
        })
    }
    let stats = Stats {
        at_ms: 7,
        services: Vec::new(),
        reasons: Vec::new(),
        drivers: Vec::new(),
    };
    let answer = stats.clone();
    let (_folder, client) = served(
        Router::new()
            .route("/v1/stats", get(|| async move { Json(answer) }))
            .route("/v1/reload", post(|| async { Json(Done::default()) }))
            .route("/v1/backends", post(echo)),
    );
    assert_eq!(client.stats().await.unwrap(), stats);
    assert_eq!(client.reload().await.unwrap(), Done::default());
    let done = client.order(&order()).await.unwrap();
    assert_eq!(
        (done.changed, &done.changes[0]),
        (true, &format!("{:?}", order()))
    );
}

#[tokio::test]
async fn a_refusal_keeps_its_words_and_faults() {
    async fn refuse() -> (StatusCode, Json<Failure>) {
        let failure = Failure {
            error: "no such service".into(),
            faults: vec!["xlb.toml:1:1: unknown key".into()],
        };
        (StatusCode::UNPROCESSABLE_ENTITY, Json(failure))
    }
    let (_folder, client) = served(Router::new().route("/v1/reload", post(refuse)));
    let error = client.reload().await.unwrap_err();
    assert!(!error.unreachable());
    let Error::Refused { status, failure } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(failure.faults, ["xlb.toml:1:1: unknown key"]);
    assert_eq!(error.to_string(), "no such service");
}

#[tokio::test]
async fn another_server_is_told_from_an_agent() {
    let (_folder, client) = served(Router::new().route("/v1/status", get(|| async { "hello" })));
    let error = client.status().await.unwrap_err();
    assert!(
        !error.unreachable() && matches!(error, Error::Foreign { .. }),
        "{error}"
    );
    let error = client.stats().await.unwrap_err();
    assert!(
        matches!(
            error,
            Error::Foreign {
                status: http::StatusCode::NOT_FOUND,
                ..
            }
        ),
        "{error}"
    );
}

#[tokio::test]
async fn nobody_there_names_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.sock");
    let left_behind = folder.path().join("old.sock");
    drop(UnixListener::bind(&left_behind).unwrap());
    for socket in [missing, left_behind] {
        let error = Client::new(&socket).status().await.unwrap_err();
        assert!(
            error.unreachable() && matches!(error, Error::NotRunning { .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_socket_of_others_is_a_matter_of_permission() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("xlb.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).unwrap();
    // Root passes every check of permissions, unless its file system identity is another (of this thread only).
    let nobody = Uid::from_raw(65534);
    let before = setfsuid(nobody);
    let result = Client::new(&socket).status().await;
    setfsuid(before);
    let error = result.unwrap_err();
    assert!(
        error.unreachable() && matches!(error, Error::NoPermission { .. }),
        "{error:?}"
    );
    assert!(error.to_string().contains(socket.to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn an_agent_that_dies_meanwhile_is_unreachable() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("xlb.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move { drop(listener.accept().await) });
    let error = Client::new(&socket).status().await.unwrap_err();
    assert!(
        error.unreachable() && matches!(error, Error::BrokeOff { .. }),
        "{error:?}"
    );
}
