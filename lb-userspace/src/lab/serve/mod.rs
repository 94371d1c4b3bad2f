//! The servers of the lab, each a process of its own (`xlb lab-server`), so that it can be killed.

mod echo;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

/// What to serve, as whom, where.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// What to serve.
    what: What,
    /// Who it says it is.
    name: String,
    /// Where it listens.
    #[arg(value_name = "ADDRESS:PORT")]
    listen: SocketAddr,
    /// Where the echo server takes datagrams.
    #[arg(value_name = "ADDRESS:PORT")]
    udp: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// A small web server that says who it is.
    Http,
    /// Answers each request of a connection with its name and a count.
    Echo,
}

/// Serves for ever.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let Options {
        what,
        name,
        listen,
        udp,
    } = options;
    match what {
        What::Http => http(*listen, name).await,
        What::Echo => echo::run(name, *listen, udp).await,
    }
}

/// Answers every request with the server's name, and the path `/healthz` too.
///
/// # Errors
/// Where the address cannot be listened on.
async fn http(listen: SocketAddr, name: &str) -> anyhow::Result<()> {
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
