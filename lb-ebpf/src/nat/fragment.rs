//! Fragments of translated flows.

use aya_ebpf::programs::XdpContext;
use lb_common::reason::Reason;

use crate::packet::Ip;
use crate::service;

#[inline(always)]
pub fn translate(_: &XdpContext, ip: &Ip) -> Result<Reason, Reason> {
    Err(if service::has_address(ip.key(0, 0)) {
        Reason::Fragment
    } else {
        Reason::NotService
    })
}
