//! ICMP errors about translated flows.

use aya_ebpf::programs::XdpContext;
use lb_common::reason::Reason;

use crate::packet::Ip;

#[inline(always)]
pub fn translate(_: &XdpContext, _: &Ip) -> Result<Reason, Reason> {
    Err(Reason::OtherProtocol)
}
