//! QUIC with a real client and real servers (quinn): connections that the client takes to another address.

mod support;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use lb_tests::lab::{Host, Lab, LabOptions};
use lb_tests::privileged;
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
    TransportConfig,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use support::{Xlb, addresses};
use tokio::runtime::Runtime;

const PORT: u16 = 443;

/// Forward mode, service address and whether the backends are IPv6, for each way of forwarding.
const WAYS: [(&str, &str, bool); 7] = [
    ("dsr-l2", "192.0.2.10", false),
    ("dsr-l2", "2001:db8::10", true),
    ("dsr-ipip", "192.0.2.20", false),
    ("dsr-ipip", "2001:db8::20", true),
    ("dsr-ipip", "192.0.2.30", true),
    ("dsr-gue", "192.0.2.60", false),
    ("dsr-gue", "2001:db8::60", true),
];

/// Connection ids of eight bytes that name a server (draft-ietf-quic-load-balancers, not encrypted).
struct Naming {
    config: u8,
    server: [u8; 2],
}

impl ConnectionIdGenerator for Naming {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id: [u8; 8] = rand::random();
        id[0] = self.config << 5 | id[0] & 0x1f;
        id[1..3].copy_from_slice(&self.server);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The server id of the backend with this number, from 0.
fn server_id(number: usize) -> [u8; 2] {
    [0xa1, 0xb2 + number as u8]
}

/// A server on each backend, each with the same certificate, and clients.
struct World {
    lab: Lab,
    runtime: Runtime,
    clients: ClientConfig,
    _servers: Vec<Endpoint>,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let lab = Lab::new(LabOptions {
            backends: 3,
            decap: true,
            ..LabOptions::default()
        })?;
        let runtime = Runtime::new()?;
        let made = rcgen::generate_simple_self_signed(vec!["service.test".to_owned()])?;
        let certificate = CertificateDer::from(made.cert);
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone())?;
        let mut clients = ClientConfig::with_root_certificates(Arc::new(roots))?;
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(Some(Duration::from_secs(4).try_into()?));
        clients.transport_config(Arc::new(transport));
        let servers = lab.backends.iter().enumerate().map(|(number, host)| {
            let config = ServerConfig::with_single_cert(vec![certificate.clone()], key.clone_key().into())?;
            let endpoint = runtime.block_on(async { serve(host, config, server_id(number)) })?;
            runtime.spawn(answer(endpoint.clone(), host.name.clone()));
            Ok(endpoint)
        });
        let servers = servers.collect::<anyhow::Result<_>>()?;
        Ok(Self {
            lab,
            runtime,
            clients,
            _servers: servers,
        })
    }

    /// A service of each way; `ids`: with the ids of its backends.
    fn services(&self, ids: bool) -> String {
        let services = WAYS.iter().enumerate().map(|(n, (forward, address, v6))| {
            let backends = addresses(&self.lab, *v6);
            let backends = backends.iter().enumerate().map(|(number, backend)| {
                let [a, b] = server_id(number);
                let ids = if ids {
                    format!("quic_ids = [\"0:{a:02x}{b:02x}\"]\n")
                } else {
                    String::new()
                };
                format!("[[service.backend]]\naddress = \"{backend}\"\n{ids}")
            });
            format!(
                "[[service]]\nname = \"s{n}\"\naddress = \"{address}\"\nport = {PORT}\nprotocol = \"udp\"\n\
                 forward = \"{forward}\"\nquic = true\n[service.check]\ntype = \"none\"\n{}",
                backends.collect::<String>()
            )
        });
        services.collect()
    }

    /// A port of the client.
    fn port(&self, of: IpAddr) -> anyhow::Result<UdpSocket> {
        let any: SocketAddr = (self.lab.client.address(of), 0).into();
        let socket = self.lab.client.netns.enter(|| UdpSocket::bind(any))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }

    /// A connection from a port of its own.
    fn open(&self, service: &str) -> anyhow::Result<Client> {
        let address: IpAddr = service.parse()?;
        let socket = self.port(address)?;
        self.runtime.block_on(async {
            let runtime = quinn::default_runtime().context("a runtime")?;
            let mut endpoint = Endpoint::new(EndpointConfig::default(), None, socket, runtime)?;
            endpoint.set_default_client_config(self.clients.clone());
            let connection = endpoint.connect((address, PORT).into(), "service.test")?.await?;
            Ok(Client { endpoint, connection })
        })
    }

    /// Which backend answers on a connection.
    fn ask(&self, client: &Client) -> anyhow::Result<String> {
        self.runtime.block_on(async {
            let (mut send, mut receive) = client.connection.open_bi().await?;
            send.write_all(&[7; 5000]).await?;
            send.finish()?;
            Ok(String::from_utf8(receive.read_to_end(1000).await?)?)
        })
    }

    /// Takes a client to another port.
    fn move_away(&self, client: &Client) -> anyhow::Result<()> {
        let before = client.endpoint.local_addr()?;
        let socket = self.port(before.ip())?;
        let _inside = self.runtime.enter();
        client.endpoint.rebind(socket)?;
        ensure!(client.endpoint.local_addr()? != before, "it is where it was");
        Ok(())
    }
}

/// One connection, and the port that it has for itself.
struct Client {
    endpoint: Endpoint,
    connection: Connection,
}

/// A server on a host whose connection ids name it.
fn serve(host: &Host, config: ServerConfig, server: [u8; 2]) -> anyhow::Result<Endpoint> {
    let socket = host.netns.enter(|| UdpSocket::bind(("::", PORT)))?;
    socket.set_nonblocking(true)?;
    let mut ids = EndpointConfig::default();
    ids.cid_generator(move || Box::new(Naming { config: 0, server }));
    let runtime = quinn::default_runtime().context("a runtime")?;
    Ok(Endpoint::new(ids, Some(config), socket, runtime)?)
}

/// Answers each stream with a name, and what came by it.
async fn answer(endpoint: Endpoint, name: String) {
    while let Some(incoming) = endpoint.accept().await {
        let name = name.clone();
        tokio::spawn(async move {
            let connection = incoming.await?;
            loop {
                let (mut send, mut receive) = connection.accept_bi().await?;
                let length = receive.read_to_end(100_000).await?.len();
                send.write_all(format!("{name} {length}").as_bytes()).await?;
                send.finish()?;
            }
            #[expect(unreachable_code, reason = "says the type of the errors")]
            anyhow::Ok(())
        });
    }
}

#[test]
fn clients_that_change_their_port_keep_their_backend_in_every_way() -> anyhow::Result<()> {
    privileged!("clients_that_change_their_port_keep_their_backend_in_every_way");
    let world = World::new()?;
    let mut xlb = Xlb::started(&world.lab, "", &world.services(true))?;
    for (n, (forward, address, _)) in WAYS.iter().enumerate() {
        let what = format!("{forward} {address}");
        let mut seen = BTreeSet::new();
        let clients: Vec<Client> = (0..8)
            .map(|_| world.open(address))
            .collect::<anyhow::Result<_>>()
            .context(what.clone())?;
        for client in &clients {
            let before = world.ask(client).context(what.clone())?;
            for _ in 0..3 {
                world.move_away(client)?;
                assert_eq!(world.ask(client).context(what.clone())?, before, "{what}");
            }
            seen.insert(before);
        }
        // Eight go to one of three by chance, once in 2,187 times.
        for _ in 0..40 {
            if seen.len() > 1 {
                break;
            }
            let client = world.open(address).context(what.clone())?;
            seen.insert(world.ask(&client).context(what.clone())?);
        }
        assert!(seen.len() > 1, "{what}: all were on {seen:?}");
        let status = xlb.service(&format!("s{n}"))?;
        assert_eq!(
            status["backends"].as_array().map(Vec::len),
            Some(3),
            "{what}: {status}"
        );
    }
    // The next agent adopts what this one wrote.
    let client = world.open(WAYS[2].1)?;
    let before = world.ask(&client)?;
    xlb.process()?.kill()?;
    world.move_away(&client)?;
    assert_eq!(world.ask(&client)?, before, "no agent runs");
    xlb.start()?;
    world.move_away(&client)?;
    assert_eq!(world.ask(&client)?, before, "another agent runs");
    assert_eq!(world.lab.checksum_errors()?, 0);
    assert_eq!(world.lab.tx_errors()?, 0);
    for reason in ["no_backend", "malformed", "too_big", "cannot_send"] {
        assert_eq!(xlb.reason(reason)?, 0, "{reason}");
    }
    Ok(())
}

/// The control of the test above: without ids a new port is a new flow.
#[test]
fn without_ids_a_new_port_breaks_connections() -> anyhow::Result<()> {
    privileged!("without_ids_a_new_port_breaks_connections");
    let world = World::new()?;
    let _xlb = Xlb::started(&world.lab, "", &world.services(false))?;
    let address = WAYS[0].1;
    let clients: Vec<Client> = (0..12)
        .map(|_| world.open(address))
        .collect::<anyhow::Result<_>>()?;
    for client in &clients {
        world.ask(client)?;
        world.move_away(client)?;
    }
    let broken = clients.iter().filter(|client| world.ask(client).is_err()).count();
    // By chance all of them stay one time in 500,000.
    assert!(broken > 0, "none of {} broke", clients.len());
    Ok(())
}

#[test]
fn a_backend_that_drains_keeps_its_connections_and_gets_no_more() -> anyhow::Result<()> {
    privileged!("a_backend_that_drains_keeps_its_connections_and_gets_no_more");
    let world = World::new()?;
    for ids in [true, false] {
        let xlb = Xlb::started(&world.lab, "", &world.services(ids))?;
        let address = WAYS[0].1;
        let clients: Vec<Client> = (0..12)
            .map(|_| world.open(address))
            .collect::<anyhow::Result<_>>()?;
        let before: Vec<String> = clients
            .iter()
            .map(|client| world.ask(client))
            .collect::<anyhow::Result<_>>()?;
        let drained = before[0].clone();
        let (name, _) = drained.split_once(' ').context("a name")?;
        let host = world.lab.backends.iter().find(|host| host.name == name);
        let host = host.context("a backend")?;
        xlb.verb(&format!("backend drain s0 {}", host.v4))?;
        // Old ones stay, with ids from other ports too; new ones go elsewhere at once: slots are open for a minute yet.
        for (client, before) in clients.iter().zip(&before) {
            assert_eq!(world.ask(client)?, *before);
            if ids {
                world.move_away(client)?;
                assert_eq!(world.ask(client)?, *before);
            }
        }
        for _ in 0..12 {
            let client = world.open(address)?;
            assert_ne!(world.ask(&client)?, drained);
        }
    }
    Ok(())
}
