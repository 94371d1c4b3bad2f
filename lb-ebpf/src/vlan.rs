//! VLANs: frames with one or two tags (IEEE 802.1Q, 802.1ad), for services and for backends.
//!
//! The tags come off before anything else is looked at, so that all headers are where they are in a frame without tags,
//! and go back on at the end: the ones it came with where the frame is answered or passed, the backend's where it is
//! forwarded. A frame that is passed is the one that came, bit for bit. What is behind the tags of a frame decides
//! whether it is touched at all: neither IP nor ARP, or a third tag, and it is passed (`vlan`).
//!
//! An adapter that strips tags leaves nothing to see here: such frames look like frames without tags.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::bpf_xdp_adjust_head;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::Tags;
use lb_common::reason::{Reason, Verdict};

use crate::link::put;
use crate::packet::{self, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN};

/// The tags of the VLAN that each backend is in, by its index.
#[btf_map]
static TAGS: Array<Tags, 4096> = Array::new();

/// The tags that were taken off the frame that is at work on this CPU.
#[btf_map]
static TAGS_AT_WORK: PerCpuArray<Tags, 1> = PerCpuArray::new();

type Macs = [u16; 6];
const MACS_LEN: usize = size_of::<Macs>();
const TAG_LEN: usize = 4;

const DONE: u32 = 0;
/// Not ours to look into; the frame is as it came.
const OTHER: u32 = 1;
/// The frame cannot be used any more.
const LOST: u32 = 2;

/// Takes the tags off.
#[inline(always)]
pub fn take(ctx: &XdpContext) -> Result<(), Reason> {
    match vlan_take(ctx.ctx) {
        DONE => Ok(()),
        OTHER => Err(Reason::Vlan),
        _ => Err(Reason::CannotSend),
    }
}

/// Bytes that were taken off.
#[inline(always)]
pub fn taken_len() -> u64 {
    taken().bytes() as u64
}

/// Puts the tags of a backend on.
#[inline(always)]
pub fn put_for(ctx: &XdpContext, backend: u32) -> Result<(), Reason> {
    match vlan_put(ctx.ctx, backend) {
        DONE => Ok(()),
        _ => Err(Reason::CannotSend),
    }
}

/// Puts these tags on.
#[inline(always)]
pub fn put_tags(ctx: &XdpContext, Tags(tags): Tags) -> Result<(), Reason> {
    match vlan_put_tags(ctx.ctx, tags) {
        DONE => Ok(()),
        _ => Err(Reason::CannotSend),
    }
}

/// Puts the tags that the frame came with back on, where it goes back or on to the kernel.
#[inline(always)]
pub fn put_back(ctx: &XdpContext, reason: Reason) -> Reason {
    let settled = matches!(
        reason,
        Reason::Transmitted | Reason::Redirected | Reason::NatReply | Reason::NatReplyRedirected
    ) || matches!(reason.verdict(), Verdict::Drop);
    // 0 is nobody's index.
    if settled || vlan_put(ctx.ctx, 0) == DONE {
        reason
    } else {
        Reason::CannotSend
    }
}

/// Not inlined, like its sister: their offsets vary, and their stack is not the fast path's. Global, so that the kernel
/// verifies them once for all their callers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vlan_take(ctx: *mut xdp_md) -> u32 {
    let ctx = &XdpContext::new(ctx);
    match tags_of(ctx) {
        None => OTHER,
        Some(tags) => remove(ctx, tags),
    }
}

/// The tags of a frame; `None` where it is not to be touched. A frame that is too short to have any has none.
#[inline(always)]
fn tags_of(ctx: &XdpContext) -> Option<Tags> {
    let Some(outer) = packet::read_anew::<u16>(ctx, MACS_LEN) else {
        return Some(Tags::NONE);
    };
    if !is_tag(outer) {
        return Some(Tags::NONE);
    }
    let [control, behind] = packet::read_anew::<[u16; 2]>(ctx, MACS_LEN + 2)?;
    let tags = u64::from(outer) | u64::from(control) << 16;
    if !is_tag(behind) {
        return is_ours(behind).then_some(Tags(tags));
    }
    let [control, last] = packet::read_anew::<[u16; 2]>(ctx, MACS_LEN + 2 + TAG_LEN)?;
    let inner = u64::from(behind) | u64::from(control) << 16;
    is_ours(last).then_some(Tags(tags | inner << 32))
}

#[inline(always)]
fn is_tag(ethertype: u16) -> bool {
    matches!(u16::from_be(ethertype), ETHERTYPE_VLAN | ETHERTYPE_QINQ)
}

#[inline(always)]
fn is_ours(ethertype: u16) -> bool {
    matches!(
        u16::from_be(ethertype),
        ETHERTYPE_IPV4 | ETHERTYPE_IPV6 | ETHERTYPE_ARP
    )
}

#[inline(always)]
fn remove(ctx: &XdpContext, tags: Tags) -> u32 {
    note(tags);
    let by = if tags.is_none() {
        return DONE;
    } else if tags.are_two() {
        2 * TAG_LEN
    } else {
        TAG_LEN
    };
    let Some([d0, d1, d2, s0, s1, s2]) = packet::read_anew::<Macs>(ctx, 0) else {
        return OTHER;
    };
    // SAFETY: a valid context; pointers into the packet are not used again.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, by as i32) } != 0 {
        return OTHER;
    }
    match put(ctx, 0, [d0, d1, d2, s0, s1, s2]) {
        Some(()) => DONE,
        None => LOST,
    }
}

/// Puts the tags of a backend on, or with 0 those that were taken off.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vlan_put(ctx: *mut xdp_md, backend: u32) -> u32 {
    let ctx = &XdpContext::new(ctx);
    let tags = if backend == 0 {
        taken()
    } else {
        TAGS.get(backend).copied().unwrap_or(Tags::NONE)
    };
    match insert(ctx, tags) {
        Some(()) => DONE,
        None => LOST,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn vlan_put_tags(ctx: *mut xdp_md, tags: u64) -> u32 {
    match insert(&XdpContext::new(ctx), Tags(tags)) {
        Some(()) => DONE,
        None => LOST,
    }
}

#[inline(always)]
fn insert(ctx: &XdpContext, tags: Tags) -> Option<()> {
    if tags.is_none() {
        return Some(());
    }
    let [d0, d1, d2, s0, s1, s2] = packet::read_anew::<Macs>(ctx, 0)?;
    let by = if tags.are_two() { 2 * TAG_LEN } else { TAG_LEN };
    // SAFETY: a valid context; pointers into the packet are not used again.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(by as i32)) } != 0 {
        return None;
    }
    put(ctx, 0, [d0, d1, d2, s0, s1, s2])?;
    let Tags(word) = tags;
    put(ctx, MACS_LEN, [word as u16, (word >> 16) as u16])?;
    if tags.are_two() {
        let inner = [(word >> 32) as u16, (word >> 48) as u16];
        put(ctx, MACS_LEN + TAG_LEN, inner)?;
    }
    Some(())
}

/// Notes that the frame came without tags.
#[inline(always)]
pub fn take_none() {
    note(Tags::NONE);
}

#[inline(always)]
fn note(tags: Tags) {
    if let Some(place) = TAGS_AT_WORK.get_ptr_mut(0) {
        // SAFETY: a per-CPU value; nothing else runs on this CPU meanwhile.
        unsafe { *place = tags };
    }
}

/// The tags that were taken off.
#[inline(always)]
pub fn taken() -> Tags {
    // SAFETY: as above.
    TAGS_AT_WORK
        .get_ptr(0)
        .map_or(Tags::NONE, |place| unsafe { *place })
}
