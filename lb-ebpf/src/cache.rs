//! The cache of flows: one line of memory, no lock, no allocation. See [`lb_common::cache`].

use aya_ebpf::Global;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use lb_common::cache::{self, FlowWord, Line, WAYS, Way};
use lb_common::layout::MMAPABLE;

/// Lines of the cache, a power of two.
#[unsafe(no_mangle)]
static CACHE_LINES: Global<u32> = Global::new(1);

#[btf_map]
static CACHE: Array<Line, 65_536, { MMAPABLE as usize }> = Array::new();

/// The line that a flow can be in.
#[inline(always)]
pub fn line(identity: u64) -> Option<*mut Line> {
    CACHE.get_ptr_mut(cache::index(identity, CACHE_LINES.load()))
}

/// Always 0, which the verifier does not know. It follows every value that a number can have along every path; of one
/// that this was added to it only knows the bounds.
#[btf_map]
static ZERO: Array<u64, 1> = Array::new();

/// A number below [`WAYS`] as the verifier does not know it.
#[inline(always)]
fn obscure(index: usize) -> Option<usize> {
    let zero = ZERO.get_ptr(0)?;
    // SAFETY: a valid, aligned map value; volatile so that the compiler does not know it either.
    let zero = unsafe { core::ptr::read_volatile(zero) };
    Some((index + zero as usize) & (WAYS - 1))
}

/// The way of a flow.
#[inline(always)]
pub fn find(line: *mut Line, identity: u64) -> Option<(*mut Way, FlowWord)> {
    let (mut at, mut found) = (0, FlowWord::FREE);
    for index in 0..WAYS {
        let (_, word) = read(line, index);
        if word.is_of(identity) {
            (at, found) = (index, word);
        }
    }
    if found.is_free() {
        return None;
    }
    let (way, _) = read(line, obscure(at)?);
    Some((way, found))
}

/// The way of a flow that lives, and its backend. Without a jump that depends on where in its line the flow is: no
/// processor can foretell it, and it would be known only when the line has come from memory.
#[inline(always)]
pub fn find_live(line: *mut Line, identity: u64) -> Option<(*mut Way, u32)> {
    let (mut at, mut backend, mut found) = (0, 0, 0);
    for index in 0..WAYS {
        let (_, word) = read(line, index);
        let rest = word.backend_of(identity);
        let same = ones_if_zero(rest >> 16);
        at = at & !same | index as u64 & same;
        backend = backend & !same | rest & same;
        found |= same;
    }
    if found == 0 {
        return None;
    }
    let (way, _) = read(line, within(at));
    Some((way, backend as u32 & 0xffff))
}

/// A way of a line. The compiler knows that the number is one, and leaves a mask out; the verifier does not before
/// Linux 6.8, so the mask is said as an instruction.
#[inline(always)]
fn within(at: u64) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut at = at;
        // SAFETY: it computes.
        unsafe {
            core::arch::asm!("{0} &= {1}", inout(reg) at, const WAYS - 1, options(pure, nomem, nostack));
        }
        at as usize
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        at as usize & (WAYS - 1)
    }
}

/// All bits, if a number below 2^63 is 0; else none. Said as instructions, because the compiler would make jumps of it.
#[inline(always)]
pub fn ones_if_zero(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut ones = number;
        // SAFETY: it computes.
        unsafe {
            core::arch::asm!("{0} += -1", "{0} s>>= 63", inout(reg) ones, options(pure, nomem, nostack));
        }
        ones
    }
    #[cfg(not(target_arch = "bpf"))]
    u64::from(number == 0).wrapping_neg()
}

#[inline(always)]
fn read(line: *mut Line, index: usize) -> (*mut Way, FlowWord) {
    // SAFETY: a valid, aligned map value; volatile because other CPUs store to it while we read.
    unsafe {
        let way = (&raw mut (*line).ways).cast::<Way>().add(index);
        (way, core::ptr::read_volatile(&raw const (*way).word))
    }
}

/// Puts a flow into its line, in place of what it had there, else where there is room, else instead of the flow that
/// was longest without a packet. Gives back what stood there; `None` where all were seen less than `spare_ns` ago.
#[inline(always)]
pub fn insert(
    line: *mut Line,
    identity: u64,
    word: FlowWord,
    now_ns: u64,
    spare_ns: u64,
) -> Option<FlowWord> {
    let (mut oldest, mut least) = (0, u64::MAX);
    for index in 0..WAYS {
        let (way, there) = read(line, index);
        // SAFETY: as in `read`.
        let seen_ns = unsafe { core::ptr::read_volatile(&raw const (*way).seen_ns) };
        let age = if there.is_of(identity) {
            0
        } else if there.is_free() {
            1
        } else {
            seen_ns + 2
        };
        if age < least {
            (oldest, least) = (index, age);
        }
    }
    if least > 1 && now_ns < (least - 2).saturating_add(spare_ns) {
        return None;
    }
    let (way, before) = read(line, obscure(oldest)?);
    // SAFETY: as in `read`; each store is one of one word, which others read whole.
    unsafe {
        core::ptr::write_volatile(&raw mut (*way).seen_ns, now_ns);
        core::ptr::write_volatile(&raw mut (*way).word, word);
    }
    Some(before)
}

/// Whether [`insert`] would find room for a flow that the line has not.
#[inline(always)]
pub fn has_room(line: *mut Line, now_ns: u64, spare_ns: u64) -> bool {
    let mut room = false;
    for index in 0..WAYS {
        let (way, word) = read(line, index);
        room |= word.is_free() | (idle_ns(way, now_ns) > spare_ns);
    }
    room
}

/// Stores the word of a flow that is in the cache.
#[inline(always)]
pub fn store(way: *mut Way, word: FlowWord) {
    // SAFETY: as in `read`.
    unsafe { core::ptr::write_volatile(&raw mut (*way).word, word) };
}

/// How long ago a flow was seen.
#[inline(always)]
pub fn idle_ns(way: *mut Way, now_ns: u64) -> u64 {
    // SAFETY: as in `read`. Another CPU may have seen it after `now_ns`.
    now_ns.saturating_sub(unsafe { core::ptr::read_volatile(&raw const (*way).seen_ns) })
}

/// Whether [`touch`] would note that a flow was seen.
#[inline(always)]
pub fn is_due(way: *mut Way, now_ns: u64) -> bool {
    // SAFETY: as in `read`.
    let seen_ns = unsafe { core::ptr::read_volatile(&raw const (*way).seen_ns) };
    now_ns.wrapping_sub(seen_ns) > cache::TOUCH_NS
}

/// Notes that a flow was seen, at most once a second: most packets leave the line as it is, so that CPUs that see
/// flows of one line do not take it from each other. Whether it was noted.
#[inline(always)]
pub fn touch(way: *mut Way, now_ns: u64) -> bool {
    let due = is_due(way, now_ns);
    if due {
        // SAFETY: as in `read`.
        unsafe { core::ptr::write_volatile(&raw mut (*way).seen_ns, now_ns) };
    }
    due
}
