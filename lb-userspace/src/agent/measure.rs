//! What the agent gives for a scrape of its metrics: everything but the packet counters, which are read beside the
//! loop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};

use super::Agent;
use crate::api::command::Command;
use crate::datapath::counters::CounterMaps;
use crate::model::{AdminState, BackendId, OperState};
use crate::observe::metrics::server::Source;
use crate::observe::metrics::{self, Family, Measured, Sender};

/// The metrics of the agent whose loop takes these commands.
pub(super) struct Scrape {
    pub commands: mpsc::Sender<Command>,
    pub counters: Arc<CounterMaps>,
    /// The folder of the pins.
    pub pin_dir: PathBuf,
}

impl Source for Scrape {
    async fn text(&self) -> Result<String, String> {
        let stopping = || "the agent is stopping".to_owned();
        let (reply, measured) = oneshot::channel();
        let command = Command::Measure(reply);
        self.commands.send(command).await.map_err(|_| stopping())?;
        let Measured {
            mut families,
            senders,
            interfaces,
        } = measured
            .await
            .map_err(|_| stopping())?
            .map_err(|refusal| format!("{refusal:?}"))?;
        let (counters, pin_dir) = (Arc::clone(&self.counters), self.pin_dir.clone());
        let text = tokio::task::spawn_blocking(move || {
            families.extend(metrics::read(&counters, &senders)?);
            families.push(metrics::lost(&interfaces, &pin_dir));
            Ok::<_, crate::datapath::Error>(metrics::text(families))
        });
        text.await
            .map_err(|_| stopping())?
            .map_err(|error| error.to_string())
    }
}

impl Agent {
    pub(super) fn measure(&self) -> Measured {
        let mut families = self.of_the_agent();
        families.extend(self.of_services());
        families.extend(self.of_backends());
        match self.of_what_is_refused() {
            Ok(refused) => families.push(refused),
            Err(error) => log::error!("reading the counters of refused clients: {error}"),
        }
        match self.of_quic() {
            Ok(quic) => families.push(quic),
            Err(error) => log::error!("reading the counters of QUIC: {error}"),
        }
        match self.of_what_is_remembered() {
            Ok(remembered) => families.extend(remembered),
            Err(error) => log::error!("reading the counters of the cache of flows: {error}"),
        }
        families.extend(self.of_flow_table());
        families.push(self.of_migrations());
        families.extend(self.of_nat());
        let services = &self.config.services;
        let names = services
            .iter()
            .map(|service| (service.key, service.name.as_str()));
        let backends = self.members().map(|(id, service)| (id, service, place(&id)));
        families.extend(self.meter.families(names, backends));
        Measured {
            families,
            senders: self.counted_senders(),
            interfaces: self.senders(),
        }
    }

    /// Every backend of the configuration, with the name of its service.
    fn members(&self) -> impl Iterator<Item = (BackendId, &str)> {
        let services = self.config.services.iter();
        services.flat_map(|service| {
            let backends = service.backends.iter();
            backends.map(|backend| (backend.id(service.key), service.name.as_str()))
        })
    }

    fn of_the_agent(&self) -> Vec<Family> {
        let mut build = Family::gauge("build_info", "The version of the agent; the value is 1.");
        build.row([("version", env!("CARGO_PKG_VERSION"))], true);
        let help = "When the agent started, since 1970.";
        let mut started = Family::gauge("agent_start_time", help).seconds();
        let since = self.started.duration_since(SystemTime::UNIX_EPOCH);
        started.row([], since.unwrap_or_default().as_secs_f64());
        let help = "Whether state_dir can be written.";
        let mut writable = Family::gauge("state_dir_writable", help);
        writable.row([], self.keeper.failed().is_none());
        let help = "Whether the program is on an interface, and in which mode.";
        let mut attached = Family::gauge("interface_attached", help);
        for interface in &self.config.agent.interfaces {
            let (mode, on) = match self.attachments.get(interface) {
                Some(attached) if attached.native => ("native", true),
                Some(_) => ("generic", true),
                None => ("detached", false),
            };
            attached.row([("interface", interface), ("mode", mode)], on);
        }
        let help = "Whether everything is silent and the states are not believed.";
        let mut isolated = Family::gauge("agent_isolated", help);
        isolated.row([], self.doubts.isolated_since().is_some());
        vec![build, started, writable, attached, isolated]
    }

    /// The flow table of slots that move; where its counters cannot be read, without them.
    fn of_flow_table(&self) -> Vec<Family> {
        let mut capacity = Family::gauge("flow_table_capacity", "Entries that the flow table has room for.");
        let help = "Entries of the flow table, by state, at its last scan.";
        let mut entries = Family::gauge("flow_table_entries", help);
        let mut hits = Family::counter("flow_table_hits", "Packets that followed an entry.");
        let help = "Entries made, by the kind of packet that made them.";
        let mut inserts = Family::counter("flow_table_inserts", help);
        let mut refusals = Family::counter("flow_table_refusals", "Entries not made, and why.");
        let mut resets = Family::counter("resets_sent", "Resets in the name of backends that are DOWN.");
        match self.flow_table_status() {
            Ok(status) => {
                capacity.row([], status.capacity);
                for (state, count) in [
                    ("unconfirmed", status.unconfirmed),
                    ("established", status.established),
                    ("closing", status.closing),
                    ("contested", status.contested),
                ] {
                    entries.row([("state", state)], count);
                }
                hits.row([], status.hits);
                for (by, count) in [
                    ("syn", status.inserted_syn),
                    ("data", status.inserted_data),
                    ("udp", status.inserted_udp),
                ] {
                    inserts.row([("by", by)], count);
                }
                for (reason, count) in [
                    ("allowance", status.refused_allowance),
                    ("full", status.refused_full),
                    ("occupied", status.refused_occupied),
                ] {
                    refusals.row([("reason", reason)], count);
                }
                resets.row([], status.resets);
            }
            Err(error) => log::warn!("reading the counters of the flow table: {error}"),
        }
        vec![capacity, entries, hits, inserts, refusals, resets]
    }

    fn of_migrations(&self) -> Family {
        let help = "Slots on the move: open, settled, waiting for room.";
        let mut moving = Family::gauge("service_moving_slots", help);
        let migrations = self.migration_status();
        for service in &self.config.services {
            let name = ("service", service.name.as_str());
            let of = migrations
                .iter()
                .find(|migration| migration.service == service.name);
            let (open, settled, waiting) = of.map_or((0, 0, 0), |of| (of.open, of.settled, of.waiting));
            for (state, count) in [("open", open), ("settled", settled), ("waiting", waiting)] {
                moving.row([name, ("state", state)], count as u64);
            }
        }
        moving
    }

    /// Nothing where no service translates.
    fn of_nat(&self) -> Vec<Family> {
        let status = match self.nat_status() {
            Ok(Some(status)) => status,
            Ok(None) => return Vec::new(),
            Err(error) => {
                log::warn!("reading the counters of translated flows: {error}");
                return Vec::new();
            }
        };
        let mut flows = Family::gauge("nat_flows", "Translated flows, by the last scan.");
        flows.row([], status.flows);
        let mut room = Family::gauge("nat_flows_capacity", "Translated flows that there is room for.");
        room.row([], status.capacity);
        let help = "Ports in use, by address that sources are rewritten to.";
        let mut ports = Family::gauge("nat_ports_in_use", help);
        for snat in &status.ports {
            ports.row([("address", &snat.address.to_string())], snat.in_use);
        }
        let mut opened = Family::counter("nat_flows_opened", "Flows that were translated.");
        opened.row([], status.opened);
        let mut replies = Family::counter("nat_replies", "Packets of backends sent on to clients.");
        replies.row([], status.replies);
        let mut refused = Family::counter("nat_flows_refused", "New flows refused, by cause.");
        refused.row([("cause", "table_full")], status.refused_full);
        refused.row([("cause", "no_port")], status.refused_ports);
        vec![flows, room, ports, opened, replies, refused]
    }

    fn of_services(&self) -> Vec<Family> {
        let help = "Address, port, protocol, forward mode and scheduler; the value is 1.";
        let mut info = Family::gauge("service_info", help);
        let help = "Whether no backend may take new flows.";
        let mut all_down = Family::gauge("service_all_down", help);
        let help = "Version of the lookup table in force.";
        let mut generation = Family::gauge("service_table_generation", help);
        for service in &self.config.services {
            let (key, name) = (&service.key, ("service", service.name.as_str()));
            let labels = [
                name,
                ("address", &key.address.to_string()),
                ("port", &ports(service)),
                ("protocol", &key.protocol.to_string()),
                ("forward", &service.forward.to_string()),
                ("scheduler", &service.scheduler.to_string()),
            ];
            info.row(labels, true);
            let chosen = self.chosen.get(key).copied().unwrap_or_default();
            all_down.row([name], chosen.all_down());
            let (version, _) = self.dataplane.service_history(key).unwrap_or_default();
            generation.row([name], version);
        }
        vec![info, all_down, generation]
    }

    fn of_what_is_refused(&self) -> Result<Family, crate::datapath::Error> {
        let help =
            "Packets refused to clients by access list and limits; those of limits in a dry run passed.";
        let mut refused = Family::counter("service_refused_packets", help);
        for service in &self.config.services {
            if service.access.is_none() && service.limits.is_none() {
                continue;
            }
            for (reason, packets) in self.refused(&service.key)?.by_reason() {
                refused.row([("service", &service.name), ("reason", reason.name())], packets);
            }
        }
        Ok(refused)
    }

    fn of_quic(&self) -> Result<Family, crate::datapath::Error> {
        let help = "Packets of QUIC by what their connection id says: it names a backend, nobody, or one that is gone.";
        let mut packets = Family::counter("service_quic_packets", help);
        for service in &self.config.services {
            let Some(quic) = self.quic_counts(&service.key)? else {
                continue;
            };
            for (way, count) in quic.by_way() {
                packets.row([("service", service.name.as_str()), ("id", way)], count);
            }
        }
        Ok(packets)
    }

    fn of_backends(&self) -> Vec<Family> {
        let help = "Operational state: 1 for the one it is in.";
        let mut states = Family::gauge("backend_state", help);
        let help = "Admin state: 1 for the one it is in.";
        let mut admins = Family::gauge("backend_admin_state", help);
        let mut weights = Family::gauge("backend_weight", "Weight in force.");
        let help = "Time that the last check took.";
        let mut latencies = Family::gauge("backend_check_latency", help).seconds();
        for service in &self.config.services {
            for backend in &service.backends {
                let id = backend.id(service.key);
                let place = place(&id);
                let [service, backend_label] =
                    [("service", service.name.as_str()), ("backend", place.as_str())];
                let status = self.statuses.get(&id).copied().unwrap_or_default();
                for state in [OperState::Up, OperState::Down, OperState::Unknown] {
                    let label = ("state", &*state.to_string());
                    states.row([service, backend_label, label], status.state == state);
                }
                for admin in [AdminState::Ready, AdminState::Drain, AdminState::Maint] {
                    let label = ("state", &*admin.to_string());
                    admins.row([service, backend_label, label], status.admin == admin);
                }
                let weight = status.runtime_weight.unwrap_or(backend.weight);
                weights.row([service, backend_label], u64::from(weight));
                if let Some(ms) = self
                    .observed
                    .get(&id)
                    .and_then(|observed| observed.check.latency_ms)
                {
                    latencies.row([service, backend_label], ms / 1000.0);
                }
            }
        }
        vec![states, admins, weights, latencies]
    }

    fn counted_senders(&self) -> Vec<Sender> {
        let services = self.config.services.iter();
        let senders = services.map(|service| {
            let (_, retired) = self.dataplane.service_history(&service.key).unwrap_or_default();
            let backends = service.backends.iter().map(|backend| {
                let id = backend.id(service.key);
                (place(&id), self.dataplane.index_of(&id))
            });
            Sender {
                service: service.name.clone(),
                retired,
                backends: backends.collect(),
            }
        });
        senders.collect()
    }
}

fn ports(service: &crate::config::Service) -> String {
    match service.last_port {
        None => service.key.port.to_string(),
        Some(last) => format!("{}-{last}", service.key.port),
    }
}

fn place(id: &BackendId) -> String {
    SocketAddr::new(id.address, id.port).to_string()
}
