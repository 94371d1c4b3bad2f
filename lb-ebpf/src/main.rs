//! The load balancer's XDP program: from a packet to a backend.
//!
//! [`handle`] goes the packet's way through the modules, one concern each, and ends in a
//! [`Reason`](lb_common::reason::Reason), which is also the index of its counter and fixes the XDP action.
//! Compiled for the host (for lints and tests of its modules) this is an empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// For the one instruction that the language has no word for.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entry exists for the BPF target only")
)]

mod announce;
mod bounds;
mod cache;
mod clock;
mod constants;
mod flow;
mod forward;
mod fragment;
mod full;
mod guard;
mod icmp;
mod link;
mod packet;
mod reset;
mod schedule;
mod seen;
mod service;
mod stats;
mod suspect;
mod toobig;
mod vlan;

use aya_ebpf::programs::XdpContext;
use lb_common::reason::Reason;

use crate::constants::VLANS;
use crate::packet::{Ip, NoFlow};
use crate::seen::Seen;

// Ready-made headers are put together in registers, where the order of bytes shows.
#[cfg(all(target_arch = "bpf", not(target_endian = "little")))]
compile_error!("the program is built for bpfel only");

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod entry {
    use aya_ebpf::bindings::xdp_action;
    use aya_ebpf::macros::xdp;
    use aya_ebpf::programs::XdpContext;
    use lb_common::reason::Verdict;

    #[xdp]
    pub fn lb(ctx: XdpContext) -> u32 {
        super::stats::explain_anew();
        let reason = super::handle(&ctx);
        super::stats::count(&ctx, reason);
        match reason.verdict() {
            Verdict::Tx => xdp_action::XDP_TX,
            Verdict::Redirect => xdp_action::XDP_REDIRECT,
            Verdict::Pass => xdp_action::XDP_PASS,
            Verdict::Drop => xdp_action::XDP_DROP,
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// The packet's way: parse, find the service, its table, the slot, the backend; forward.
#[inline(always)]
fn handle(ctx: &XdpContext) -> Reason {
    if VLANS.load() != 0
        && let Err(reason) = vlan::take(ctx)
    {
        return reason;
    }
    let reason = match steer(ctx) {
        Ok(reason) | Err(reason) => reason,
    };
    if VLANS.load() != 0 {
        return vlan::put_back(ctx, reason);
    }
    reason
}

#[inline(always)]
fn steer(ctx: &XdpContext) -> Result<Reason, Reason> {
    // The rest is compiled once for each family: neither path asks again which one it is.
    match packet::network(ctx)? {
        packet::Network::Ipv4 => steer_ip(ctx, &packet::ipv4(ctx)?),
        packet::Network::Ipv6 => steer_ip(ctx, &packet::ipv6(ctx)?),
        packet::Network::Arp => announce::arp(ctx),
    }
}

#[inline(always)]
fn steer_ip(ctx: &XdpContext, ip: &Ip) -> Result<Reason, Reason> {
    let (ip, flow, record) = match ip.flow(ctx) {
        Ok(flow) => (*ip, flow, 0),
        Err(why) => {
            let mut seen = Seen::NOTHING;
            look(ctx, ip, why, &mut seen)?;
            if seen.index != 0 {
                return forward::forward(ctx, &seen.of(ip), &seen.flow, seen.hash, seen.index);
            }
            (seen.of(ip), seen.flow, seen.record)
        }
    };
    let service = service::find(&ip, &flow).ok_or(Reason::NotService)?;
    stats::explain_service(service);
    guard::ask(&ip.source, service)?;
    let table = service::table(service).ok_or(Reason::NoBackend)?;
    let hash = ip.hash(&flow);
    let index = schedule::backend(ctx, &ip, &flow, service, table, hash).ok_or(Reason::NoBackend)?;
    stats::explain_backend(index);
    if record != 0 {
        fragment::record(service, hash, index);
    }
    suspect::look(ctx, &flow, hash, index);
    let reason = forward::forward(ctx, &ip, &flow, hash, index)?;
    if matches!(reason, Reason::ResetSent) {
        flow::count_reset(service);
    }
    Ok(reason)
}

/// Finds the flow of a packet that is neither TCP nor UDP, or cannot be read so far.
#[inline(always)]
fn look(ctx: &XdpContext, ip: &Ip, why: NoFlow, seen: &mut Seen) -> Result<(), Reason> {
    match why {
        NoFlow::Icmpv6 => match announce::neighbor(ctx) {
            Some(answered) => Err(answered),
            None => icmp::look(ctx, ip, seen),
        },
        NoFlow::Icmp => icmp::look(ctx, ip, seen),
        NoFlow::Fragment => fragment::look(ctx, ip, seen),
        why => Err(service::judge(ip, why)),
    }
}
