//! Persistence: where the client of a new flow was before. See [`lb_common::client`].

use aya_ebpf::Global;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::macros::btf_map;
use lb_common::cache::{self, FlowWord, Line, NURSERY_NS, Opening};
use lb_common::client::{self, ClientCounters, Persistence, SPARE_NS};
use lb_common::layout::{MMAPABLE, Slot};

use crate::constants::{PERSISTENT, hash_key_v6, second_key};
use crate::full::{self, Tracked};
use crate::{cache as ways, forward, schedule};

/// Lines of the cache of clients, a power of two.
#[unsafe(no_mangle)]
static CLIENT_LINES: Global<u32> = Global::new(1);

/// Clients: each line is as those of the cache of flows.
#[btf_map]
static CLIENTS: Array<Line, 16_384, { MMAPABLE as usize }> = Array::new();

/// What each service keeps, by its index.
#[btf_map]
static PERSISTENCE: Array<Persistence, 1024, { MMAPABLE as usize }> = Array::new();

/// What became of clients here, by service.
#[btf_map]
static CLIENT_COUNTERS: PerCpuArray<ClientCounters, 1024> = PerCpuArray::new();

/// Where the client of a packet is put down for the functions here: the stack has no room for it.
#[btf_map]
static CLIENT: PerCpuArray<Client, 1> = PerCpuArray::new();

/// Whose packet it is.
#[repr(C)]
struct Client {
    identity: u64,
    /// As in [`Persistence`].
    timeout_ns: u64,
    hash: u32,
    reserved: u32,
}

const UNKNOWN: u32 = 0;
const NO_ROOM: u32 = u32::MAX;

/// Whether the service of the packet that was put down keeps its clients; then whose the packet is, is put down too.
#[inline(always)]
pub fn has() -> bool {
    PERSISTENT.load() != 0 && client_prepare() != 0
}

/// What [`has`] answers. The functions here are out of line and global, as those of [`crate::full`], and run for new
/// flows only.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_prepare() -> u32 {
    let (Some(tracked), Some(place)) = (full::tracked(), CLIENT.get_ptr_mut(0)) else {
        return 0;
    };
    let Some(settings) = PERSISTENCE.get_ptr(tracked.service) else {
        return 0;
    };
    // SAFETY: a valid, aligned map value; volatile because the agent stores to it while we read.
    let settings = unsafe { core::ptr::read_volatile(settings) };
    if settings.timeout_ns == 0 {
        return 0;
    }
    let client = settings.client(tracked.source);
    let hash = client::hash(&hash_key_v6(), client);
    let second = client::hash(&second_key(), client);
    // SAFETY: a valid, aligned per-CPU value; nothing else runs on this CPU meanwhile.
    unsafe {
        (*place).identity = client::identity(hash, second, tracked.service);
        (*place).timeout_ns = settings.timeout_ns;
        (*place).hash = hash;
    }
    1
}

/// The packet that was put down, and its client.
#[inline(always)]
fn put_down() -> Option<(&'static Tracked, &'static Client)> {
    let tracked = full::tracked()?;
    // SAFETY: a valid, aligned per-CPU value that [`client_prepare`] has written.
    CLIENT.get_ptr(0).map(|client| (tracked, unsafe { &*client }))
}

#[inline(always)]
fn line(client: &Client) -> Option<*mut Line> {
    CLIENTS.get_ptr_mut(cache::index(client.identity, CLIENT_LINES.load()))
}

/// The backend of a new flow: that of its client, else the scheduler's choice; 0: none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn client_choose() -> u32 {
    match client_find() {
        UNKNOWN => {}
        // Not remembered: what can be found again has to do.
        NO_ROOM => return client_owner(),
        known => return known,
    }
    let Some((tracked, client)) = put_down() else {
        return UNKNOWN;
    };
    // The choice waits in the nursery for its confirmation: other connections of the client that open meanwhile find it.
    let Some(place) = full::place(client.identity) else {
        return client_owner();
    };
    let there = full::read_opening(place);
    let fresh = tracked.now_ns.saturating_sub(there.seen_ns) < NURSERY_NS;
    if there.word.is_of(client.identity) && fresh && forward::takes_new(there.word.backend()) {
        return there.word.backend();
    }
    let backend = if tracked.table.chooser().is_free() {
        full::full_choose()
    } else {
        client_owner()
    };
    if backend != 0 && forward::takes_new(backend) {
        client_await(place, backend);
        if there.word.is_live() {
            full::add_load(there.word.backend(), -1);
        }
    }
    backend
}

/// Puts a choice into the nursery. Its word is closing: a client is no flow that counts.
#[inline(always)]
fn client_await(place: *mut Opening, backend: u32) {
    let Some((tracked, client)) = put_down() else {
        return;
    };
    let word = FlowWord::live(client.identity, backend).closing();
    full::write_opening(place, word, 0, tracked.now_ns);
}

/// The owner of the slot of the client.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_owner() -> u32 {
    let Some((tracked, client)) = put_down() else {
        return UNKNOWN;
    };
    schedule::slot(tracked.table, client.hash).map_or(UNKNOWN, Slot::current)
}

/// The backend that the client is remembered with, where that takes new flows; [`NO_ROOM`]: it cannot be remembered.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn client_find() -> u32 {
    let Some((tracked, client)) = put_down() else {
        return UNKNOWN;
    };
    let Some(line) = line(client) else {
        return UNKNOWN;
    };
    let Some((way, word)) = ways::find(line, client.identity) else {
        let room = ways::has_room(line, tracked.now_ns, SPARE_NS);
        return if room { UNKNOWN } else { NO_ROOM };
    };
    if ways::idle_ns(way, tracked.now_ns) > client.timeout_ns {
        return UNKNOWN;
    }
    let takes = forward::takes_new(word.backend());
    count(tracked.service, |counters| {
        if takes {
            counters.kept += 1;
        } else {
            counters.moved += 1;
        }
    });
    if takes { word.backend() } else { UNKNOWN }
}

/// A flow of the client lives on a backend. `begins` is 0 where the flow is an old one, which keeps its client
/// remembered, but does not bring it back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn client_keep(backend: u32, begins: u32) -> u32 {
    let Some((tracked, client)) = put_down() else {
        return 0;
    };
    let Some(line) = line(client) else {
        return 0;
    };
    if let Some((way, word)) = ways::find(line, client.identity) {
        let counts = ways::idle_ns(way, tracked.now_ns) <= client.timeout_ns;
        if counts && word.backend() == backend {
            ways::touch(way, tracked.now_ns);
            return 1;
        }
        if counts && forward::takes_new(word.backend()) {
            return 0;
        }
    }
    if begins == 0 || !forward::takes_new(backend) {
        return 0;
    }
    let word = FlowWord::live(client.identity, backend);
    let before = ways::insert(line, client.identity, word, tracked.now_ns, SPARE_NS);
    count(tracked.service, |counters| {
        if before.is_some() {
            counters.remembered += 1;
        } else {
            counters.refused += 1;
        }
    });
    client_confirmed();
    1
}

/// The choice for the client need not wait in the nursery any longer.
#[inline(always)]
fn client_confirmed() {
    if let Some((_, client)) = put_down()
        && let Some(place) = full::place(client.identity)
        && full::read_opening(place).word.is_of(client.identity)
    {
        full::clear_opening(place);
    }
}

#[inline(always)]
fn count(service: u32, what: impl FnOnce(&mut ClientCounters)) {
    if let Some(counters) = CLIENT_COUNTERS.get_ptr_mut(service) {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        what(unsafe { &mut *counters });
    }
}
