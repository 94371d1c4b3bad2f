//! Looking after the table of translated flows: the thread that sweeps it, and what is said of it.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use lb_common::nat::NatCounters;

use super::Agent;
use crate::api::types::{NatStatus, SnatStatus};
use crate::datapath::Error;
use crate::datapath::clock::monotonic_ns;
use crate::datapath::nat::NatFlows;
use crate::datapath::nat::sweep::{self, NatReport, NatView};
use crate::model::BackendId;

/// Between two sweeps; while the table is filling up.
const SOON: Duration = Duration::from_secs(1);
const USUAL: Duration = Duration::from_secs(5);
/// At most such a part of the time is spent on sweeps.
const SHARE: u32 = 20;
/// Between two batches, so that others get at the processor and at the table.
const BREATH: Duration = Duration::from_micros(100);

/// The thread, which ends with this value.
pub(super) struct NatSweeper {
    shared: Arc<Shared>,
    /// Closed to stop it.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    view: Mutex<Arc<NatView>>,
    report: Mutex<Option<Arc<NatReport>>>,
    capacity: u32,
}

impl NatSweeper {
    fn spawn(flows: NatFlows, capacity: u32, view: NatView) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            view: Mutex::new(Arc::new(view)),
            report: Mutex::new(None),
            capacity,
        });
        let (stop, stopped) = mpsc::channel();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("nat-sweeper".into())
            .spawn(move || theirs.run(flows, &stopped))?;
        Ok(Self {
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What sweeps must know from here on.
    fn show(&self, view: NatView) {
        *locked(&self.shared.view) = Arc::new(view);
    }

    /// The last report.
    fn report(&self) -> Option<Arc<NatReport>> {
        locked(&self.shared.report).clone()
    }
}

impl Drop for NatSweeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the sweeper of translated flows panicked");
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in there is whole whoever panicked.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn run(&self, mut flows: NatFlows, stopped: &mpsc::Receiver<()>) {
        let mut pause = SOON;
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let go_on = || stopped.recv_timeout(BREATH) == Err(RecvTimeoutError::Timeout);
            let view = || Arc::clone(&locked(&self.view));
            match sweep::sweep(&mut flows, &view, &monotonic_ns, &go_on) {
                Ok(Some(report)) => {
                    let least = if report.presses(self.capacity) {
                        SOON
                    } else {
                        USUAL
                    };
                    pause = least.max(Duration::from_nanos(report.took_ns) * SHARE);
                    *locked(&self.report) = Some(Arc::new(report));
                }
                Ok(None) => {}
                Err(error) => {
                    log::error!("sweeping the translated flows: {error}");
                    pause = USUAL;
                }
            }
        }
    }
}

impl Agent {
    /// Every second.
    pub(super) fn look_after_nat(&mut self) {
        if self.starting() || self.nat.is_none() && !self.config.translates() {
            return;
        }
        let view = self.nat_view();
        if let Some(sweeper) = &self.nat {
            sweeper.show(view);
            return;
        }
        let nat = &self.dataplane.maps.nat;
        let capacity = nat.capacity();
        let spawned = nat
            .flows
            .try_clone()
            .and_then(|flows| NatSweeper::spawn(flows, capacity, view).map_err(Error::io("nat-sweeper")));
        match spawned {
            Ok(sweeper) => self.nat = Some(sweeper),
            Err(error) => log::error!("the sweeper of translated flows cannot start: {error}"),
        }
    }

    fn nat_view(&self) -> NatView {
        let services = self.config.services.iter();
        let services = services.filter(|service| service.forward.translates());
        let last = self.nat.as_ref().and_then(NatSweeper::report);
        NatView {
            idle_ns: services
                .filter_map(|service| {
                    let idle = service.rules.idle_timeout(service.key.protocol);
                    let idle_ns = u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX);
                    Some((self.dataplane.service_index(&service.key)?, idle_ns))
                })
                .collect(),
            pressed: last.is_some_and(|report| report.presses(self.dataplane.maps.nat.capacity())),
        }
    }

    /// Translated flows of a backend, by the last scan.
    pub(super) fn nat_flows_on(&self, id: &BackendId) -> u64 {
        let report = self.nat.as_ref().and_then(NatSweeper::report);
        let index = self.dataplane.index_of(id);
        let count = report
            .zip(index)
            .and_then(|(report, index)| report.backends.get(&index).copied());
        count.unwrap_or(0)
    }

    /// What `status` says of translated flows.
    pub(super) fn nat_status(&self) -> Result<Option<NatStatus>, Error> {
        if !self.config.translates() {
            return Ok(None);
        }
        let maps = &self.dataplane.maps.nat;
        let report = self.nat.as_ref().and_then(NatSweeper::report);
        let found = report.as_deref().cloned().unwrap_or_default();
        let ago_ns = monotonic_ns().saturating_sub(found.ended_ns);
        let snat = &self.config.agent.snat;
        let mut status = NatStatus {
            capacity: maps.capacity().into(),
            flows: found.flows,
            fading: found.fading,
            scanned_ms_ago: report.is_some().then_some(ago_ns / 1_000_000),
            scan_ms: found.took_ns / 1_000_000,
            ports: snat
                .addresses
                .iter()
                .map(|address| SnatStatus {
                    address: *address,
                    in_use: found.ports.get(address).copied().unwrap_or(0),
                    ports: snat.ports(),
                })
                .collect(),
            ..NatStatus::default()
        };
        for service in &self.config.services {
            if !service.forward.translates() {
                continue;
            }
            let Some(index) = self.dataplane.service_index(&service.key) else {
                continue;
            };
            let NatCounters {
                opened,
                replies,
                reply_bytes,
                refused_full,
                refused_ports,
                errors,
            } = maps.counters(index)?;
            status.opened += opened;
            status.replies += replies;
            status.reply_bytes += reply_bytes;
            status.refused_full += refused_full;
            status.refused_ports += refused_ports;
            status.errors += errors;
        }
        Ok(Some(status))
    }
}
