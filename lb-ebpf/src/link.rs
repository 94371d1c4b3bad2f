//! The MAC addresses of a frame that is answered.

use aya_ebpf::programs::XdpContext;

use crate::packet;

/// Destination and source of a frame.
#[derive(Clone, Copy)]
pub struct Link {
    destination: [u16; 3],
    source: [u16; 3],
}

#[inline(always)]
pub fn read(ctx: &XdpContext) -> Option<Link> {
    let [d0, d1, d2, s0, s1, s2] = packet::read_anew::<[u16; 6]>(ctx, 0)?;
    Some(Link {
        destination: [d0, d1, d2],
        source: [s0, s1, s2],
    })
}

impl Link {
    /// Whether the frame was meant for one station.
    #[inline(always)]
    pub fn is_unicast(&self) -> bool {
        let [first, _] = self.destination[0].to_ne_bytes();
        first & 1 == 0
    }

    /// Back to whoever sent it.
    #[inline(always)]
    pub fn turned(self) -> Self {
        Self {
            destination: self.source,
            source: self.destination,
        }
    }

    /// Writes it to the start of the frame.
    #[inline(always)]
    pub fn write(&self, ctx: &XdpContext) -> Option<()> {
        let ([d0, d1, d2], [s0, s1, s2]) = (self.destination, self.source);
        put(ctx, 0, [d0, d1, d2, s0, s1, s2])
    }
}

/// Writes 16-bit words into the packet.
#[inline(always)]
pub fn put<T: Copy>(ctx: &XdpContext, offset: usize, value: T) -> Option<()> {
    let place = packet::at_anew::<T>(ctx, offset)?;
    // SAFETY: `at_anew` checked the bounds.
    unsafe { place.write(value) };
    Some(())
}
