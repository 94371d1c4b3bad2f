//! Nanoseconds a packet, with a harness that undoes between two runs what the program under test did to
//! the frame: a packet that is already rewritten is another one.

use aya::EbpfLoader;
use aya::maps::ProgramArray;
use aya::programs::Xdp;

use super::testrun::{self, Action};
use super::{Error, Simulator};
use crate::datapath::{self, attach, object};

const HARNESS: &str = "harness";
const FLOOR: &str = "floor";
const UNDER_TEST: &str = "UNDER_TEST";

/// What the floor is measured on; the program does not look at it.
const ANY_FRAME: [u8; 60] = [0; 60];

/// Half of an Ethernet header: the words that the harness restores it from have so many bytes.
const HALF: usize = 7;

/// Measures one program.
pub struct Harness {
    under_test: Simulator,
    repeat: u32,
}

/// What is measured.
enum Subject<'a> {
    Program(&'a Xdp),
    Floor,
}

impl Harness {
    /// `under_test` should be loaded as the agent loads it, without explanations.
    pub fn new(under_test: Simulator, repeat: u32) -> Self {
        Self { under_test, repeat }
    }

    /// Nanoseconds a run of the program on `frame`, harness and kernel's loop included. The program has to end
    /// in `expected`.
    ///
    /// # Errors
    /// [`Error::Measurement`], [`Error::TestRun`], [`Error::Datapath`].
    pub fn measure(&self, frame: &[u8], expected: Action) -> Result<u64, Error> {
        let program = Subject::Program(self.under_test.program()?);
        nanoseconds(&program, frame, self.repeat, expected)
    }

    /// What harness and kernel's loop cost alone.
    ///
    /// # Errors
    /// As [`Harness::measure`].
    pub fn floor(&self) -> Result<u64, Error> {
        nanoseconds(&Subject::Floor, &ANY_FRAME, self.repeat, Action::Pass)
    }
}

fn nanoseconds(subject: &Subject<'_>, frame: &[u8], repeat: u32, expected: Action) -> Result<u64, Error> {
    let (low, high) = (word(frame, 0), word(frame, HALF));
    let len = frame.len() as u16;
    let mut ebpf = EbpfLoader::new()
        .override_global("FRAME_LEN", &len, true)
        .override_global("ETHERNET_LOW", &low, true)
        .override_global("ETHERNET_HIGH", &high, true)
        .load(object::HARNESS)
        .map_err(datapath::Error::from)?;
    for program in [HARNESS, FLOOR] {
        attach::verify(&mut ebpf, program)?;
    }
    let array = ebpf
        .take_map(UNDER_TEST)
        .ok_or(datapath::Error::MissingMap(UNDER_TEST))?;
    let mut array = ProgramArray::try_from(array).map_err(datapath::Error::from)?;
    let program = |name| -> Result<&Xdp, datapath::Error> {
        let program = ebpf.program(name).ok_or(datapath::Error::MissingMap(name))?;
        Ok(program.try_into()?)
    };
    let fd = match subject {
        Subject::Program(program) => program.fd(),
        Subject::Floor => program(FLOOR)?.fd(),
    };
    array
        .set(0, fd.map_err(datapath::Error::from)?, 0)
        .map_err(datapath::Error::from)?;
    let run = testrun::repeat(program(HARNESS)?, frame, repeat.max(1))?;
    if run.action != expected {
        return Err(Error::Measurement {
            found: run.action,
            expected,
        });
    }
    Ok(u64::try_from(run.duration.as_nanos()).unwrap_or(u64::MAX))
}

/// Seven bytes from `offset`, as the harness writes them back.
fn word(frame: &[u8], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..HALF].copy_from_slice(&frame[offset..offset + HALF]);
    u64::from_ne_bytes(bytes)
}
