//! `dsr-l2`: only the MAC addresses change; the backend holds the service address itself.

use aya_ebpf::programs::XdpContext;
use lb_common::layout::Backend;
use lb_common::reason::Reason;

use crate::packet::{self, Ip};
use crate::toobig;

#[repr(C, packed)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Macs {
    destination: [u8; 6],
    source: [u8; 6],
}

/// Addresses the frame to the backend. A frame that already bears the backend's address was flooded to us by
/// a switch: sending it again would make it go round for ever.
#[inline(always)]
pub fn rewrite(ctx: &XdpContext, ip: &Ip, backend: &Backend) -> Result<(), Reason> {
    let frame = packet::at::<Macs>(ctx, 0).ok_or(Reason::CannotSend)?;
    let [d0, d1, d2, s0, s1, s2, _] = backend.ethernet;
    let macs = Macs {
        destination: mac(d0, d1, d2),
        source: mac(s0, s1, s2),
    };
    // SAFETY: `at` checked the bounds; the struct is packed.
    unsafe {
        if (*frame).destination == macs.destination {
            return Err(Reason::Flooded);
        }
        if ip.length > u32::from(backend.mtu) {
            return Err(toobig::answer(ctx, ip, u32::from(backend.mtu)));
        }
        frame.write(macs);
    }
    Ok(())
}

#[inline(always)]
fn mac(a: u16, b: u16, c: u16) -> [u8; 6] {
    let ([a0, a1], [b0, b1], [c0, c1]) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes());
    [a0, a1, b0, b1, c0, c1]
}
