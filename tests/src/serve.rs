//! What `xlb-lab` serves: a small web server that says who it is.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// Answers every request with the server's name, and the path `/healthz` too.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn http(listen: SocketAddr, name: &str) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| listen.to_string())?;
    let name: Arc<str> = name.into();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let name = Arc::clone(&name);
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let name = Arc::clone(&name);
                async move { Ok::<_, Infallible>(answer(&request, &name)) }
            });
            // A client that hangs up is no concern of the server.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

fn answer(request: &Request<Incoming>, name: &str) -> Response<Full<Bytes>> {
    let body = match request.uri().path() {
        "/healthz" => "healthy\n".to_owned(),
        _ => format!("{name}\n"),
    };
    Response::new(Full::new(Bytes::from(body)))
}
