//! `dsr-l2`: only the MAC addresses change; the backend holds the service address itself.

use aya_ebpf::programs::XdpContext;
use lb_common::layout::Backend;
use lb_common::reason::Reason;

use crate::packet;
use crate::word::{set_word, word};

/// The six bytes of an Ethernet address at the start of a word.
const MAC: u64 = 0xffff_ffff_ffff;

/// Addresses the frame to the backend. A frame that already bears the backend's address was flooded to us by
/// a switch: sending it again would make it go round for ever. `length` is that of the IP packet.
#[inline(always)]
pub fn rewrite(ctx: &XdpContext, length: u32, backend: &Backend) -> Result<(), Reason> {
    let frame = packet::at::<[u8; packet::ETHERNET_LEN]>(ctx, 0)
        .ok_or(Reason::CannotSend)?
        .cast();
    let (low, high) = (super::record::<1>(backend), super::record::<2>(backend));
    // SAFETY: `at` checked the bounds.
    if (unsafe { word::<u64, 0>(frame) } ^ low) & MAC == 0 {
        return Err(Reason::Flooded);
    }
    if length > u32::from(backend.mtu) {
        return Err(Reason::TooBig);
    }
    // SAFETY: as above. The type stays.
    unsafe {
        set_word::<u64, 0>(frame, low);
        set_word::<u32, 8>(frame, high as u32);
    }
    Ok(())
}
