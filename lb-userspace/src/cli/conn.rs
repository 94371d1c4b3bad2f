//! `xlb conn`.

use clap::{Args, Subcommand};

use super::grid::{Column, Grid};
use super::outcome::{Context, Outcome, Screen};
use super::{block_on, human};
use crate::api::connections::{Connection, ConnectionState, Connections, ConnectionsQuery, USUAL};

/// Show flows.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    List(List),
}

/// List the flows that are remembered.
///
/// These are the flows of slots on the move, and all flows of services with tracking = "full". Of the latter the client is
/// not known: they are kept by a hash of it. Other flows go by the table alone and are not remembered.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  xlb conn list --service web --backend 10.0.1.11
  xlb conn list --count                             how many there are, by state
  xlb conn list --client 203.0.113.0/24 -o json")]
struct List {
    /// Only those of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Only those of this backend: its address, with its port or without.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    backend: Option<String>,
    /// Only those that have come so far.
    #[arg(long, value_enum)]
    state: Option<ConnectionState>,
    /// Only those of this client, or of this prefix of clients.
    #[arg(long, value_name = "ADDRESS|PREFIX")]
    client: Option<String>,
    /// Show so many at most.
    #[arg(short = 'n', long, value_name = "N", default_value_t = USUAL)]
    limit: usize,
    /// Count them only.
    #[arg(long, conflicts_with = "limit")]
    count: bool,
}

pub(super) fn run(arguments: &Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let What::List(list) = &arguments.what;
    let List {
        service,
        backend,
        state,
        client,
        limit,
        count,
    } = list;
    let query = ConnectionsQuery {
        service: service.clone(),
        backend: backend.clone(),
        state: *state,
        client: client.clone(),
        limit: Some(if *count { 0 } else { *limit }),
    };
    // Said before anything is asked.
    query.filter().map_err(anyhow::Error::msg)?;
    let answer = block_on(async { Ok(context.client.connections(&query).await?) })?;
    context.show(&answer, |answer, screen| render(answer, *count, screen))
}

fn render(answer: &Connections, count: bool, screen: &Screen) -> String {
    let Connections {
        connections,
        matching,
        unconfirmed,
        established,
        closing,
        contested,
        clients_unknown,
        looked_at: _,
    } = answer;
    let mut text = String::new();
    if !connections.is_empty() {
        let mut grid = Grid::new(&[
            Column::left("SERVICE"),
            Column::left("CLIENT"),
            Column::left("BACKEND"),
            Column::left("STATE"),
            Column::right("IDLE"),
            Column::left("TRACKING").dispensable(1),
        ]);
        for connection in connections {
            grid.row(row(connection), vec![]);
        }
        text += &grid.render(screen, "");
    }
    let shown = connections.len() as u64;
    if !count && shown < *matching {
        text += &format!(
            "{} of {} flows shown; ",
            human::count(shown),
            human::count(*matching)
        );
    } else {
        text += &format!("{} flows; ", human::count(*matching));
    }
    text += &format!(
        "unconfirmed {}, established {}, closing {}\n",
        human::count(unconfirmed + contested),
        human::count(*established),
        human::count(*closing),
    );
    if *clients_unknown > 0 {
        text += &format!(
            "{} more may be such clients': flows of services with tracking = \"full\" are kept by a hash\n",
            human::count(*clients_unknown)
        );
    }
    text
}

fn row(connection: &Connection) -> [super::grid::Cell; 6] {
    let Connection {
        service,
        address: _,
        port: _,
        protocol: _,
        client,
        client_port,
        backend,
        backend_port,
        state,
        idle_ms,
        tracking,
    } = connection;
    let place = |address, port| match (address, port) {
        (Some(address), Some(port)) => human::place(address, port),
        _ => "-".to_owned(),
    };
    let state = match state {
        ConnectionState::Unconfirmed => "unconfirmed",
        ConnectionState::Established => "established",
        ConnectionState::Closing => "closing",
        ConnectionState::Contested => "contested",
    };
    [
        service.into(),
        place(*client, *client_port).into(),
        place(*backend, *backend_port).into(),
        state.into(),
        human::span(std::time::Duration::from_millis(*idle_ms)).into(),
        tracking.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::screen;
    use crate::model::Protocol;

    fn connection(client: Option<&str>) -> Connection {
        Connection {
            service: "web".into(),
            address: "192.0.2.10".parse().unwrap(),
            port: 80,
            protocol: Protocol::Tcp,
            client: client.map(|client| client.parse().unwrap()),
            client_port: client.map(|_| 4000),
            backend: "10.0.1.11".parse().ok(),
            backend_port: Some(80),
            state: ConnectionState::Established,
            idle_ms: 65_000,
            tracking: if client.is_some() { "moved" } else { "full" }.into(),
        }
    }

    #[test]
    fn flows_are_listed_and_what_is_not_known_is_said() {
        let answer = Connections {
            connections: vec![connection(Some("203.0.113.7")), connection(None)],
            matching: 1002,
            established: 1000,
            closing: 2,
            clients_unknown: 5,
            looked_at: 2000,
            ..Connections::default()
        };
        let text = render(&answer, false, &screen(None));
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[1].contains("203.0.113.7:4000") && lines[1].contains("10.0.1.11:80"),
            "{text}"
        );
        assert!(lines[1].contains("1m5s") && lines[1].contains("moved"), "{text}");
        assert!(lines[2].contains(" - ") && lines[2].contains("full"), "{text}");
        assert!(lines[3].starts_with("2 of 1,002 flows shown; unconfirmed 0, established 1,000, closing 2"));
        assert!(lines[4].starts_with("5 more may be such clients'"), "{text}");
        let counted = Connections {
            connections: Vec::new(),
            ..answer
        };
        assert!(render(&counted, true, &screen(None)).starts_with("1,002 flows; "));
    }
}
