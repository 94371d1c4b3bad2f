//! The load balancer's XDP program: from a packet to a backend.
//!
//! [`handle`] goes the packet's way through the modules, one concern each, and ends in a
//! [`Reason`](lb_common::reason::Reason), which is also the index of its counter and fixes the XDP action.
//! Compiled for the host (for lints and tests of its modules) this is an empty program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "the entry exists for the BPF target only")
)]

mod announce;
mod constants;
mod forward;
mod packet;
mod schedule;
mod service;
mod stats;

use aya_ebpf::programs::XdpContext;
use lb_common::reason::Reason;

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
    match steer(ctx) {
        Ok(reason) | Err(reason) => reason,
    }
}

#[inline(always)]
fn steer(ctx: &XdpContext) -> Result<Reason, Reason> {
    let network = packet::network(ctx)?;
    let network = match network {
        packet::Network::Ip(ip) => ip,
        packet::Network::Arp => return announce::arp(ctx),
    };
    let flow = match network.transport(ctx) {
        Ok(flow) => flow,
        Err(fault) => return Err(service::judge(&network, fault)),
    };
    match flow.protocol {
        packet::TCP | packet::UDP => {}
        packet::ICMPV6 => return announce::neighbor(ctx, &network, &flow),
        _ => return Err(Reason::OtherProtocol),
    }
    let service = service::find(&network, &flow).ok_or(Reason::NotService)?;
    stats::explain_service(service);
    let table = service::table(service).ok_or(Reason::NoBackend)?;
    let hash = network.hash(&flow);
    let index = schedule::backend(table, hash).ok_or(Reason::NoBackend)?;
    stats::explain_backend(index);
    forward::forward(ctx, &network, &flow, hash, index)
}
