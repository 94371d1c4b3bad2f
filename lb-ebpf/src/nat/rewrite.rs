//! Other addresses and ports in a packet, with all its checksums (RFC 1624, equation 3: what changed is taken out of the
//! sum and put in anew, so that nothing else of the packet is read, and what was wrong before stays wrong).

use aya_ebpf::programs::XdpContext;
use lb_common::checksum;
use lb_common::nat::NatEntry;
use lb_common::reason::Reason;

use crate::packet::{self, ETHERNET_LEN, Flow, Ip, UDP};

/// What a sum of 16-bit words grows by, not folded: the complements of what goes and what comes.
#[derive(Clone, Copy)]
pub struct Delta(u64);

impl Delta {
    pub const NONE: Self = Self(0);

    /// One word of 32 bits in place of another. Sums of such words fold to those of their halves.
    #[inline(always)]
    pub fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    #[inline(always)]
    pub fn half(self, old: u16, new: u16) -> Self {
        Self(self.0 + u64::from(!old) + u64::from(new))
    }

    #[inline(always)]
    pub fn address(self, old: &[u32; 4], new: &[u32; 4]) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (*old, *new);
        self.word(a, e).word(b, f).word(c, g).word(d, h)
    }

    /// Both changes.
    #[inline(always)]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The checksum of what changed so.
    #[inline(always)]
    pub fn apply(self, check: u16) -> u16 {
        !checksum::fold_wide(u64::from(!check) + self.0)
    }
}

/// Makes the packet, which [`lives`], what its entry says.
#[inline(always)]
pub fn packet(ctx: &XdpContext, ip: &Ip, flow: &Flow, to: &NatEntry) -> Result<(), Reason> {
    let addresses = Delta::NONE
        .address(&ip.source, &to.source)
        .address(&ip.destination, &to.destination);
    let all = addresses.word(flow.ports, to.ports);
    let transport = flow.transport as usize & 0x7fff;
    if flow.protocol == u32::from(UDP) {
        udp(ctx, ip, transport, all, to.ports)?;
    } else {
        tcp(ctx, transport, all, to.ports)?;
    }
    header(ctx, ip.is_v4(), addresses, &to.source, &to.destination)
}

/// Whether the packet may be sent on: a router drops what has one hop left (RFC 1812 section 5.3.1, RFC 8200 section 3).
#[inline(always)]
pub fn lives(ctx: &XdpContext, ip: &Ip) -> bool {
    let place = ETHERNET_LEN + if ip.is_v4() { 8 } else { 6 };
    let Some(word) = packet::read::<[u8; 2]>(ctx, place) else {
        return false;
    };
    let [ttl, hop_limit] = word;
    (if ip.is_v4() { ttl } else { hop_limit }) > 1
}

/// The IP header: addresses and one hop less.
#[inline(always)]
pub fn header(
    ctx: &XdpContext,
    is_v4: bool,
    addresses: Delta,
    source: &[u32; 4],
    destination: &[u32; 4],
) -> Result<(), Reason> {
    if is_v4 {
        header_v4(ctx, addresses, source[3], destination[3])
    } else {
        header_v6(ctx, source, destination)
    }
}

/// Makes a fragment without ports what its first one became.
#[inline(always)]
pub fn fragment(ctx: &XdpContext, ip: &Ip, to: &NatEntry) -> Result<(), Reason> {
    if !lives(ctx, ip) {
        return Err(Reason::TtlExceeded);
    }
    let addresses = Delta::NONE
        .address(&ip.source, &to.source)
        .address(&ip.destination, &to.destination);
    header(ctx, ip.is_v4(), addresses, &to.source, &to.destination)
}

#[inline(always)]
fn header_v4(ctx: &XdpContext, addresses: Delta, source: u32, destination: u32) -> Result<(), Reason> {
    let header = packet::at::<[u16; 10]>(ctx, ETHERNET_LEN).ok_or(Reason::Malformed)?;
    // SAFETY: `at` checked the bounds.
    let header = unsafe { &mut *header };
    // TTL is the first byte of its word.
    let (ttl, less) = (header[4], header[4].wrapping_sub(1));
    header[4] = less;
    header[5] = addresses.half(ttl, less).apply(header[5]);
    [header[6], header[7]] = halves(source);
    [header[8], header[9]] = halves(destination);
    Ok(())
}

#[inline(always)]
fn header_v6(ctx: &XdpContext, source: &[u32; 4], destination: &[u32; 4]) -> Result<(), Reason> {
    let header = packet::at::<[u16; 20]>(ctx, ETHERNET_LEN).ok_or(Reason::Malformed)?;
    // SAFETY: `at` checked the bounds.
    let header = unsafe { &mut *header };
    // The hop limit is the second byte of its word.
    header[3] = header[3].wrapping_sub(0x100);
    let ([a, b, c, d], [e, f, g, h]) = (*source, *destination);
    [header[4], header[5]] = halves(a);
    [header[6], header[7]] = halves(b);
    [header[8], header[9]] = halves(c);
    [header[10], header[11]] = halves(d);
    [header[12], header[13]] = halves(e);
    [header[14], header[15]] = halves(f);
    [header[16], header[17]] = halves(g);
    [header[18], header[19]] = halves(h);
    Ok(())
}

#[inline(always)]
fn tcp(ctx: &XdpContext, transport: usize, all: Delta, ports: u32) -> Result<(), Reason> {
    let segment = packet::at_anew::<[u16; 10]>(ctx, transport).ok_or(Reason::Malformed)?;
    // SAFETY: `at_anew` checked the bounds.
    let segment = unsafe { &mut *segment };
    [segment[0], segment[1]] = halves(ports);
    segment[8] = all.apply(segment[8]);
    Ok(())
}

/// The checksum of a datagram of which this changed; 0 says that there is none (RFC 768).
#[inline(always)]
pub fn of_datagram(check: u16, change: Delta) -> u16 {
    if check == 0 {
        return 0;
    }
    match change.apply(check) {
        0 => 0xffff,
        changed => changed,
    }
}

/// IPv6 forbids datagrams without checksum (RFC 8200 section 8.1).
#[inline(always)]
fn udp(ctx: &XdpContext, ip: &Ip, transport: usize, all: Delta, ports: u32) -> Result<(), Reason> {
    let datagram = packet::at_anew::<[u16; 4]>(ctx, transport).ok_or(Reason::Malformed)?;
    // SAFETY: `at_anew` checked the bounds.
    let datagram = unsafe { &mut *datagram };
    if datagram[3] == 0 && !ip.is_v4() {
        return Err(Reason::Malformed);
    }
    datagram[3] = of_datagram(datagram[3], all);
    [datagram[0], datagram[1]] = halves(ports);
    Ok(())
}

/// Destination and source of the frame, as [`lb_common::nat::way`] has them.
#[inline(always)]
pub fn link(ctx: &XdpContext, way: [u64; 2]) -> Result<(), Reason> {
    let frame = packet::at::<[u16; 6]>(ctx, 0).ok_or(Reason::CannotSend)?;
    let [d, s] = way;
    let macs = [
        d as u16,
        (d >> 16) as u16,
        (d >> 32) as u16,
        s as u16,
        (s >> 16) as u16,
        (s >> 32) as u16,
    ];
    // SAFETY: `at` checked the bounds.
    unsafe { frame.write(macs) };
    Ok(())
}

#[inline(always)]
pub const fn halves(word: u32) -> [u16; 2] {
    [word as u16, (word >> 16) as u16]
}
