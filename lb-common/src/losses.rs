//! What the program that counts losses after the verdict shares with user space.

/// A tracepoint of the kernel that tells of packets lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tracepoint {
    /// The driver could not do what the program said, or did not know it.
    Exception = 0,
    /// The kernel refused a redirect: no such interface, or one that is down or takes no frames of XDP.
    RedirectError = 1,
    /// The driver did not send back (`XDP_TX`).
    BulkTx = 2,
    /// The driver that packets were redirected to did not take them.
    DevmapXmit = 3,
}

impl Tracepoint {
    pub const ALL: [Self; 4] = [
        Self::Exception,
        Self::RedirectError,
        Self::BulkTx,
        Self::DevmapXmit,
    ];

    /// Its name in the kernel; also that of the program on it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exception => "xdp_exception",
            Self::RedirectError => "xdp_redirect_err",
            Self::BulkTx => "xdp_bulk_tx",
            Self::DevmapXmit => "xdp_devmap_xmit",
        }
    }
}

/// How many counters there can be.
pub const MAX_LOSSES: u32 = 1024;

/// Whose counter it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossKey {
    /// Number of the network namespace, as `/proc/self/ns/net` has it.
    pub namespace: u32,
    pub ifindex: u32,
    /// A [`Tracepoint`].
    pub tracepoint: u32,
}

const _: () = assert!(size_of::<LossKey>() == 12);
