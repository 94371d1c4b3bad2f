//! `GET /v1/connections`: flows that are remembered, read on a thread of its own from the pins, beside the agent's loop.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::command::Refusal;
use crate::datapath::Error;
use crate::datapath::clock::monotonic_ns;
use crate::datapath::connections::{self, Filter, Flow, Listing, Stage};
use crate::datapath::pins::PinDir;
use crate::model::Protocol;

/// Flows in one answer at most: some 25 MB of it.
pub const MOST: usize = 100_000;
/// Flows in one answer unless the request says otherwise.
pub const USUAL: usize = 1000;

/// One reading at a time: together they would take memory without bound.
static TURN: Semaphore = Semaphore::const_new(1);

/// What is asked for; everything may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionsQuery {
    /// Name of the service.
    pub service: Option<String>,
    /// Address of the backend, with its port or without.
    pub backend: Option<String>,
    pub state: Option<ConnectionState>,
    /// Address or prefix.
    pub client: Option<String>,
    /// So many at most, 0 to 100,000; 1,000 when absent.
    pub limit: Option<usize>,
}

/// What a flow has come to.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionState {
    /// A SYN that nothing followed yet.
    Unconfirmed,
    Established,
    /// The client has sent FIN or RST.
    Closing,
    /// Unconfirmed, and another connection has the same addresses and ports.
    Contested,
}

/// `GET /v1/connections`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Connections {
    /// The first of those that match, in no order.
    pub connections: Vec<Connection>,
    /// How many match, listed or not.
    pub matching: u64,
    pub unconfirmed: u64,
    pub established: u64,
    pub closing: u64,
    pub contested: u64,
    /// With a client asked for: flows that would match but for their client, which is not known.
    pub clients_unknown: u64,
    /// How many flows were looked at. Flows of slots that do not move are remembered nowhere.
    pub looked_at: u64,
}

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Connection {
    pub service: String,
    #[schemars(with = "String")]
    pub address: IpAddr,
    pub port: u16,
    pub protocol: Protocol,
    /// `null`: not known, flows of services with `tracking = "full"` are kept by a hash of it.
    #[schemars(with = "Option<String>")]
    pub client: Option<IpAddr>,
    pub client_port: Option<u16>,
    /// `null`: it is gone.
    #[schemars(with = "Option<String>")]
    pub backend: Option<IpAddr>,
    pub backend_port: Option<u16>,
    pub state: ConnectionState,
    /// Since its last packet, in milliseconds; of services with `tracking = "full"` give or take a second.
    pub idle_ms: u64,
    /// Where it is remembered: `moved` (the flow table) or `full` (the cache).
    pub tracking: String,
}

impl From<ConnectionState> for Stage {
    fn from(state: ConnectionState) -> Self {
        match state {
            ConnectionState::Unconfirmed => Self::Unconfirmed,
            ConnectionState::Established => Self::Established,
            ConnectionState::Closing => Self::Closing,
            ConnectionState::Contested => Self::Contested,
        }
    }
}

impl From<Stage> for ConnectionState {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Unconfirmed => Self::Unconfirmed,
            Stage::Established => Self::Established,
            Stage::Closing => Self::Closing,
            Stage::Contested => Self::Contested,
        }
    }
}

impl ConnectionsQuery {
    /// What it means, or what is wrong with it.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn filter(&self) -> Result<Filter, String> {
        let backend = self.backend.as_deref().map(backend).transpose()?;
        let client = self.client.as_deref().map(prefix).transpose()?;
        let limit = self.limit.unwrap_or(USUAL);
        if limit > MOST {
            return Err(format!(
                "the limit is {limit}; at most {MOST} are listed in one answer"
            ));
        }
        Ok(Filter {
            service: self.service.clone(),
            backend,
            state: self.state.map(Stage::from),
            client,
            limit,
        })
    }
}

fn backend(text: &str) -> Result<(IpAddr, Option<u16>), String> {
    if let Ok(place) = SocketAddr::from_str(text) {
        return Ok((place.ip(), Some(place.port())));
    }
    let address = IpAddr::from_str(text);
    let address = address.map_err(|_| format!("{text:?} is no address, nor one with a port"))?;
    Ok((address, None))
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let address = IpAddr::from_str(text).map(IpNet::from);
    address
        .or_else(|_| IpNet::from_str(text))
        .map_err(|_| format!("{text:?} is no address and no prefix"))
}

/// Reads what is asked for, when it is its turn.
pub(super) async fn read(pin_dir: PathBuf, filter: Filter) -> Result<Connections, Refusal> {
    let _turn = TURN.acquire().await;
    let read = tokio::task::spawn_blocking(move || {
        let pins = PinDir::open(&pin_dir)?;
        connections::list(&pins, &filter, monotonic_ns())
    });
    match read.await {
        Ok(Ok(listing)) => Ok(Connections::from(listing)),
        Ok(Err(error)) => Err(Refusal::Failed(error.to_string())),
        Err(error) => Err(Refusal::Failed(format!("reading the flows: {error}"))),
    }
}

/// How many flows the flow table knows in the slots that are named, of services by name.
pub(super) async fn in_slots(
    pin_dir: PathBuf,
    slots: BTreeMap<String, (u32, Vec<bool>)>,
) -> Result<BTreeMap<String, u64>, Refusal> {
    if slots.is_empty() {
        return Ok(BTreeMap::new());
    }
    let _turn = TURN.acquire().await;
    let read = tokio::task::spawn_blocking(move || {
        let by_index = slots.values().map(|(index, slots)| (*index, slots.as_slice()));
        let found = connections::in_slots(&PinDir::open(&pin_dir)?, &by_index.collect())?;
        let of = |index: &u32| found.get(index).copied().unwrap_or(0);
        Ok::<_, Error>(
            slots
                .iter()
                .map(|(name, (index, _))| (name.clone(), of(index)))
                .collect(),
        )
    });
    match read.await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(error)) => Err(Refusal::Failed(error.to_string())),
        Err(error) => Err(Refusal::Failed(format!("reading the flows: {error}"))),
    }
}

impl From<Listing> for Connections {
    fn from(listing: Listing) -> Self {
        let Listing {
            flows,
            matching,
            unknown,
            looked_at,
        } = listing;
        let of = |stage| matching.get(&stage).copied().unwrap_or(0);
        Self {
            connections: flows.into_iter().map(Connection::from).collect(),
            matching: matching.values().sum(),
            unconfirmed: of(Stage::Unconfirmed),
            established: of(Stage::Established),
            closing: of(Stage::Closing),
            contested: of(Stage::Contested),
            clients_unknown: unknown,
            looked_at,
        }
    }
}

impl From<Flow> for Connection {
    fn from(flow: Flow) -> Self {
        let Flow {
            service,
            key,
            client,
            backend,
            stage,
            idle,
            cached,
        } = flow;
        Self {
            service,
            address: key.address,
            port: key.port,
            protocol: key.protocol,
            client: client.map(|client| client.ip()),
            client_port: client.map(|client| client.port()),
            backend: backend.map(|backend| backend.ip()),
            backend_port: backend.map(|backend| backend.port()),
            state: stage.into(),
            idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            tracking: if cached { "full" } else { "moved" }.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_understood_or_refused() {
        let of = |change: fn(&mut ConnectionsQuery)| {
            let mut query = ConnectionsQuery::default();
            change(&mut query);
            query.filter()
        };
        assert_eq!(of(|_| ()).unwrap().limit, USUAL);
        let filter = of(|q| {
            q.backend = Some("10.0.1.11:80".into());
            q.client = Some("2001:db8::/32".into());
            q.limit = Some(0);
        });
        let filter = filter.unwrap();
        assert_eq!(filter.backend, Some(("10.0.1.11".parse().unwrap(), Some(80))));
        assert_eq!(filter.client, Some("2001:db8::/32".parse().unwrap()));
        assert_eq!(
            of(|q| q.client = Some("203.0.113.7".into())).unwrap().client,
            "203.0.113.7/32".parse().ok()
        );
        assert!(of(|q| q.backend = Some("b1".into())).is_err());
        assert!(of(|q| q.client = Some("203.0.113.0/33".into())).is_err());
        assert!(
            of(|q| q.limit = Some(MOST + 1))
                .unwrap_err()
                .contains("at most 100000")
        );
    }
}
