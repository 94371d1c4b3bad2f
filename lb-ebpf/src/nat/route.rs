//! The way of replies: the kernel's routing table says it, asked for each flow once a second at most. Where it does
//! not (no forwarding on the interface, a neighbour that is not resolved, no route), a reply goes back to the MAC
//! address that the flow's first packet came from, by the interface that it came in by. So it is always where frames
//! may have VLAN tags, which the routing table does not tell.

use aya_ebpf::bindings::{bpf_fib_lookup as Params, xdp_md};
use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::programs::XdpContext;
use lb_common::layout::FAMILY_V4;
use lb_common::nat;

use super::table::{self, Work};
use crate::constants::{NAT_ROUTES, VLANS};
use crate::packet;

/// How long an answer counts.
const AGE_NS: u64 = 1_000_000_000;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Where the frame came from.
#[inline(always)]
pub fn back(ctx: &XdpContext) -> [u64; 2] {
    let Some([d0, d1, d2, s0, s1, s2]) = packet::read_anew::<[u16; 6]>(ctx, 0) else {
        return [0; 2];
    };
    nat::way([s0, s1, s2], [d0, d1, d2], ctx.ingress_ifindex() as u32)
}

/// Whether the routing table is to be asked for the entry at hand.
#[inline(always)]
pub fn is_old(work: &Work) -> bool {
    NAT_ROUTES.load() != 0
        && VLANS.load() == 0
        && (work.to.way_ns == 0 || work.now_ns.wrapping_sub(work.to.way_ns) > AGE_NS)
}

/// Asks it, and keeps what it says.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nat_route(ctx: *mut xdp_md) -> u32 {
    let Some(work) = table::work() else {
        return 0;
    };
    // SAFETY: integers only, for which all zeros is a value. No length: the kernel gives the MTU back instead of
    // holding the packet against it.
    let mut params: Params = unsafe { core::mem::zeroed() };
    let v4 = (work.key.kind >> 8) as u8 == FAMILY_V4;
    params.family = if v4 { AF_INET } else { AF_INET6 };
    params.l4_protocol = work.key.protocol();
    params.sport = work.to.ports as u16;
    params.dport = (work.to.ports >> 16) as u16;
    params.ifindex = XdpContext::new(ctx).ingress_ifindex() as u32;
    if v4 {
        params.__bindgen_anon_3.ipv4_src = work.to.source[3];
        params.__bindgen_anon_4.ipv4_dst = work.to.destination[3];
    } else {
        params.__bindgen_anon_3.ipv6_src = work.to.source;
        params.__bindgen_anon_4.ipv6_dst = work.to.destination;
    }
    // SAFETY: a valid context, and a block of the size given.
    let answer = unsafe { bpf_fib_lookup(ctx.cast(), &raw mut params, size_of::<Params>() as i32, 0) };
    work.to.way_ns = work.now_ns;
    if answer == 0 {
        work.to.way = nat::way(words(params.dmac), words(params.smac), params.ifindex);
        // SAFETY: two integers of one size; kernels before 5.12 leave the 0 that was there.
        work.to.mtu = u32::from(unsafe { params.__bindgen_anon_1.mtu_result });
    }
    table::keep_way(work);
    u32::from(answer == 0)
}

#[inline(always)]
fn words([a, b, c, d, e, f]: [u8; 6]) -> [u16; 3] {
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}
