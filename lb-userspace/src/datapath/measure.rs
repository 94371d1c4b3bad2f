//! Nanoseconds a packet, with a harness that undoes between two runs what the program under test did to
//! the frame: a packet that is already rewritten is another one.
//!
//! What the harness restores is the Ethernet header and the length of the frame, for programs that translate addresses also
//! those, ports and checksums; with several flows it writes another client's address each time.

use std::path::Path;
use std::time::Duration;

use aya::maps::{Array, HashMap, ProgramArray};
use aya::programs::{ProgramFd, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lb_common::layout::ServiceKey;

use super::testrun::{self, Action};
use super::{attach, object};

const HARNESS: &str = "harness";
const UNDER_TEST: &str = "UNDER_TEST";

/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Live frames that are sent at once, as a driver's poll takes them.
const BATCH: u32 = 64;

/// What stands before a live frame until the harness cuts it off. The kernel has the data begin 368 bytes behind the start of
/// a page (two `struct xdp_buff` and `XDP_PACKET_HEADROOM`, `xdp_test_run_init_page` in net/bpf/test_run.c), so that the
/// Ethernet header would have another line of the processor's cache than what follows; drivers begin with a line.
const BEFORE_LIVE: usize = 16;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Datapath(#[from] super::Error),
    #[error(transparent)]
    TestRun(#[from] testrun::Error),
    #[error("measuring ended in {found:?} where {expected:?} was expected")]
    Unexpected { found: Action, expected: Action },
    #[error("{flows} flows: a power of two is needed")]
    Flows { flows: u32 },
    #[error("the program under test cannot be called from the harness: {source}")]
    Refused { source: aya::maps::MapError },
}

impl From<aya::maps::MapError> for Error {
    fn from(error: aya::maps::MapError) -> Self {
        Self::Datapath(error.into())
    }
}

/// Programs that do the least that a program of their kind has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Floor {
    /// Passes the packet.
    Pass,
    /// Writes the Ethernet addresses and transmits.
    Rewrite,
    /// Exchanges the Ethernet addresses and transmits.
    Swap,
    /// Makes room for an outer IPv4 header and transmits.
    OuterV4,
    /// Makes room for an outer IPv6 header and transmits.
    OuterV6,
    /// Makes room for an outer IPv4 and UDP header and transmits.
    OuterUdp,
    /// Transmits.
    Transmit,
    /// Drops.
    Drop,
}

impl Floor {
    /// Its name in [`object::HARNESS`].
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Pass => "floor",
            Self::Rewrite => "floor_rewrite",
            Self::Swap => "floor_swap",
            Self::OuterV4 => "floor_outer_v4",
            Self::OuterV6 => "floor_outer_v6",
            Self::OuterUdp => "floor_outer_udp",
            Self::Transmit => "transmit",
            Self::Drop => "sink",
        }
    }

    /// What it ends in.
    #[must_use]
    pub fn action(self) -> Action {
        match self {
            Self::Pass => Action::Pass,
            Self::Drop => Action::Drop,
            _ => Action::Tx,
        }
    }
}

/// Bare ways to a backend behind an outer IPv4 header, of [`object::YARDSTICK`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bare {
    /// Looks up the service, a slot of its table and the backend.
    Sketch,
    /// Looks up each flow in an LRU hash map as well, and puts it in where it is missing or a SYN.
    Remembering,
    /// Looks up the service, a line of memory by the flow's hash alone, and the backend.
    Reading,
}

/// All of [`Bare`], for one service with backends in 65,536 slots.
pub struct Yardstick(Ebpf);

impl Yardstick {
    /// With room for so many flows, from the start, and so many lines of memory, a power of two.
    ///
    /// # Errors
    /// [`Error::Flows`], [`Error::Datapath`].
    pub fn load(service: ServiceKey, flows: u32, lines: u32) -> Result<Self, Error> {
        if !lines.is_power_of_two() {
            return Err(Error::Flows { flows: lines });
        }
        let mask = lines - 1;
        let mut ebpf = EbpfLoader::new()
            .override_global("LINE_MASK", &mask, true)
            .map_max_entries("YARD_FLOWS", flows)
            .map_max_entries("YARD_LINES", lines)
            .load(object::yardstick())
            .map_err(super::Error::from)?;
        let map = |ebpf: &mut Ebpf, name| ebpf.take_map(name).ok_or(super::Error::MissingMap(name));
        let mut services = HashMap::<_, ServiceKey, u32>::try_from(map(&mut ebpf, "YARD_SERVICES")?)?;
        services.insert(service, 1, 0)?;
        let mut slots = Array::<_, u64>::try_from(map(&mut ebpf, "YARD_SLOTS")?)?;
        for slot in 0..slots.len() {
            // As many backends as the services have that are measured, in turns.
            slots.set(slot, u64::from(slot % 100), 0)?;
        }
        let mut lines = Array::<_, [u64; 8]>::try_from(map(&mut ebpf, "YARD_LINES")?)?;
        for line in 0..lines.len() {
            lines.set(line, [u64::from(line % 100), 0, 0, 0, 0, 0, 0, 0], 0)?;
        }
        for bare in [Bare::Sketch, Bare::Remembering, Bare::Reading] {
            attach::verify(&mut ebpf, bare.program())?;
        }
        Ok(Self(ebpf))
    }

    /// # Errors
    /// [`Error::Datapath`].
    pub fn fd(&self, bare: Bare) -> Result<&ProgramFd, Error> {
        Ok(program(&self.0, bare.program())?
            .fd()
            .map_err(super::Error::from)?)
    }

    /// Puts one on a device in the network namespace of this thread, in native mode, until this is dropped.
    ///
    /// # Errors
    /// [`Error::Datapath`].
    pub fn attach(&mut self, bare: Bare, device: &str) -> Result<(), Error> {
        attach::program_mut(&mut self.0, bare.program())?
            .attach(device, XdpMode::Driver)
            .map_err(super::Error::from)?;
        Ok(())
    }
}

impl Bare {
    fn program(self) -> &'static str {
        match self {
            Self::Sketch => "sketch",
            Self::Remembering => "remembering",
            Self::Reading => "reading",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    Program(&'a ProgramFd),
    Floor(Floor),
}

/// From which clients the packets come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    /// How many, a power of two.
    pub count: u32,
    /// Where the last four bytes of the client's address lie in the frame.
    pub offset: u16,
}

impl Flows {
    /// The last four bytes of the client's address in the frames of a flow, by its number, as they stand in memory.
    #[must_use]
    pub fn client(number: u32) -> u32 {
        // The harness' own factor.
        number.wrapping_mul(2_654_435_761)
    }

    /// Always the client that stands in the frame.
    pub const ONE: Self = Self { count: 1, offset: 26 };
}

/// A program on one frame, ready to be measured any number of times.
pub struct Harness {
    ebpf: Ebpf,
    frame: Vec<u8>,
    /// Held: it names the program under test.
    _array: ProgramArray<aya::maps::MapData>,
}

impl Harness {
    /// # Errors
    /// [`Error::Datapath`], [`Error::Flows`]; [`Error::Refused`] for a program that the kernel does not let the
    /// harness call.
    pub fn new(subject: Subject<'_>, frame: &[u8], flows: Flows) -> Result<Self, Error> {
        Self::paced(subject, frame, flows, Duration::ZERO)
    }

    /// The same at a pace: a packet in so much time on average. [`send`](Self::send) has frames reach the device in bursts
    /// of 16 all the same, as the kernel gathers them.
    ///
    /// # Errors
    /// As [`Harness::new`].
    pub fn paced(subject: Subject<'_>, frame: &[u8], flows: Flows, pace: Duration) -> Result<Self, Error> {
        Self::with(subject, frame, flows, false, pace)
    }

    /// The same for a subject that translates addresses. The frame is a TCP segment behind an IP header without options or
    /// extension headers.
    ///
    /// # Errors
    /// As [`Harness::new`].
    pub fn translating(subject: Subject<'_>, frame: &[u8], flows: Flows) -> Result<Self, Error> {
        Self::with(subject, frame, flows, true, Duration::ZERO)
    }

    fn with(
        subject: Subject<'_>,
        frame: &[u8],
        flows: Flows,
        translates: bool,
        pace: Duration,
    ) -> Result<Self, Error> {
        if !flows.count.is_power_of_two() {
            return Err(Error::Flows { flows: flows.count });
        }
        if frame.len() < testrun::MIN_FRAME {
            return Err(testrun::Error::TooShort { len: frame.len() }.into());
        }
        let (low, high) = (word(&frame[..8]), word(&frame[8..ETHERNET]));
        let (len, mask) = (frame.len() as u16, flows.count - 1);
        let pace_ns = u64::try_from(pace.as_nanos()).unwrap_or(u64::MAX);
        let (version, words) = if translates {
            translated(frame)?
        } else {
            (0, [0; 7])
        };
        let mut ebpf = EbpfLoader::new()
            .override_global("TRANSLATED", &version, true)
            .override_global("WORDS", &words, true)
            .override_global("FRAME_LEN", &len, true)
            .override_global("ETHERNET_LOW", &low, true)
            .override_global("ETHERNET_HIGH", &high, true)
            .override_global("FLOW_MASK", &mask, true)
            .override_global("PACE_NS", &pace_ns, true)
            .override_global("FLOW_OFFSET", &flows.offset, true)
            .load(object::harness())
            .map_err(super::Error::from)?;
        attach::verify(&mut ebpf, HARNESS)?;
        if let Subject::Floor(floor) = subject {
            attach::verify(&mut ebpf, floor.program())?;
        }
        let array = ebpf
            .take_map(UNDER_TEST)
            .ok_or(super::Error::MissingMap(UNDER_TEST))?;
        let mut array = ProgramArray::try_from(array)?;
        let fd = match subject {
            Subject::Program(fd) => fd,
            Subject::Floor(floor) => program(&ebpf, floor.program())?
                .fd()
                .map_err(super::Error::from)?,
        };
        array.set(0, fd, 0).map_err(|source| Error::Refused { source })?;
        Ok(Self {
            ebpf,
            frame: frame.to_vec(),
            _array: array,
        })
    }

    /// What the program does with the frame.
    ///
    /// # Errors
    /// [`Error::TestRun`].
    pub fn action(&self) -> Result<Action, Error> {
        Ok(testrun::run(program(&self.ebpf, HARNESS)?, &self.frame)?.action)
    }

    /// Sends so many frames by a device of the calling thread's namespace, which has to have an XDP program: real frames,
    /// in batches, with everything that the harness restores written anew each time. The subject must be one that
    /// transmits. Needs Linux 5.18.
    ///
    /// # Errors
    /// [`Error::Datapath`] where the kernel refuses.
    pub fn send(&self, ifindex: u32, frames: u32) -> Result<(), Error> {
        let data = [&[0; BEFORE_LIVE], &self.frame[..]].concat();
        let context = context(data.len() as u32, ifindex);
        let options = TestRunOptions {
            data_in: Some(&data),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        program(&self.ebpf, HARNESS)?
            .test_run(options)
            .map_err(super::Error::from)?;
        Ok(())
    }

    /// Nanoseconds a run, the mean of `repeat` of them, harness and kernel's loop included. The last has to end in
    /// `expected`.
    ///
    /// # Errors
    /// [`Error::Unexpected`], [`Error::TestRun`].
    pub fn measure(&self, repeat: u32, expected: Action) -> Result<u64, Error> {
        let run = testrun::repeat(program(&self.ebpf, HARNESS)?, &self.frame, repeat.max(1))?;
        if run.action != expected {
            return Err(Error::Unexpected {
                found: run.action,
                expected,
            });
        }
        Ok(u64::try_from(run.duration.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// The context of `BPF_PROG_TEST_RUN` (`struct xdp_md`): the whole frame, as if it came in by a device.
fn context(data_len: u32, ifindex: u32) -> [u8; 24] {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&data_len.to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context
}

/// A program that somebody pinned, to be measured.
///
/// # Errors
/// [`super::Error::Program`] where it is no XDP program.
pub fn pinned(path: &Path) -> Result<Xdp, super::Error> {
    Ok(Xdp::from_pin(path, aya_obj::programs::XdpAttachType::Interface)?)
}

fn program<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a Xdp, super::Error> {
    let program = ebpf.program(name).ok_or(super::Error::MissingMap(name))?;
    Ok(program.try_into()?)
}

/// The version of the IP packet in a frame, and what a translation of it changes, as the harness writes it back.
fn translated(frame: &[u8]) -> Result<(u8, [u64; 7]), Error> {
    let places: &[(usize, usize)] = match frame[ETHERNET - 2..] {
        [0x08, 0x00, ..] if frame.len() >= ETHERNET + 20 + 20 => &[(22, 4), (26, 8), (34, 4), (50, 2)],
        [0x86, 0xdd, ..] if frame.len() >= ETHERNET + 40 + 20 => {
            &[(18, 4), (22, 8), (30, 8), (38, 8), (46, 8), (54, 4), (70, 2)]
        }
        _ => return Err(testrun::Error::TooShort { len: frame.len() }.into()),
    };
    let mut words = [0; 7];
    for (place, (at, len)) in words.iter_mut().zip(places) {
        *place = word(&frame[*at..at + len]);
    }
    Ok((frame[ETHERNET] >> 4, words))
}

/// At most eight bytes, as the harness writes them back.
fn word(part: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes[..part.len()].copy_from_slice(part);
    u64::from_ne_bytes(bytes)
}
