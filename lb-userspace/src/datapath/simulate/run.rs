//! A capture through the program, packet by packet, and what is said about it.

use std::path::PathBuf;

use lb_common::reason::{Reason, Verdict};
use schemars::JsonSchema;
use serde::Serialize;

use super::capture::{Capture, Output, Packet};
use super::{Error, Options, Outcome, Simulator, action_of};
use crate::config::Config;
use crate::datapath::measure::{Floor, Flows, Harness, Subject};
use crate::datapath::pins::PinDir;
use crate::datapath::testrun::{Action, MAX_FRAME, MIN_FRAME};
use crate::datapath::{self, has_frags, maps};

/// What `xlb simulate` is to do.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// The capture, pcap or pcapng, of Ethernet frames.
    pub input: PathBuf,
    /// Where the packets go that were not dropped, as they left the program: a pcap file.
    pub output: Option<PathBuf>,
    /// Measure each packet so many times.
    pub repeat: Option<u32>,
    pub options: Options,
}

/// What `xlb simulate -o json` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Report {
    pub packets: Vec<PacketReport>,
    /// Runs of each packet that `ns` is the mean of.
    pub repeat: Option<u32>,
    /// Nanoseconds that the measurement itself costs: the same harness with a program that does nothing. It
    /// is part of every `ns`.
    pub floor_ns: Option<u64>,
    pub warnings: Vec<String>,
}

/// One packet of the capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct PacketReport {
    /// From 0, in the order of the capture.
    pub index: usize,
    /// `tx`, `redirect`, `pass` or `drop`.
    pub verdict: String,
    pub reason: String,
    /// Name of the service that the packet was for.
    pub service: Option<String>,
    /// `ADDRESS:PORT` of the backend that it was sent to, or would have been.
    pub backend: Option<String>,
    /// Nanoseconds a run, what the measurement itself costs included; `None` unless measured. Answers, to
    /// ARP for example, cannot be.
    pub ns: Option<u64>,
    /// Bytes of the frame in the capture.
    pub length: usize,
    /// From 0: which packet of the output it is.
    pub out_index: Option<usize>,
    /// What is unusual about this packet, for people.
    pub note: Option<String>,
}

/// Runs a capture through the program.
///
/// # Errors
/// All of [`Error`].
pub fn run(config: &Config, task: &Task) -> Result<Report, Error> {
    let capture = Capture::read(&task.input)?;
    let mut warnings = Vec::new();
    let options = with_live_key(config, &task.options, &mut warnings);
    let mut simulator = Simulator::new(config, &options)?;
    let harness = task
        .repeat
        .map(|repeat| {
            let simulator = Simulator::for_speed(config, &options)?;
            Ok::<_, Error>(Ruler { simulator, repeat })
        })
        .transpose()?;
    let floor_ns = harness.as_ref().map(Ruler::floor).transpose()?;
    let mut output = task.output.as_deref().map(Output::create).transpose()?;
    let mut packets = Vec::new();
    for (index, packet) in capture.packets.iter().enumerate() {
        let at = |source| Error::Packet {
            path: task.input.clone(),
            index,
            source: Box::new(source),
        };
        let Judged {
            outcome,
            measurable,
            note,
        } = judge(&mut simulator, packet).map_err(at)?;
        let ns = match &harness {
            Some(harness) if measurable => Some(
                harness
                    .measure(&packet.data, action_of(outcome.verdict))
                    .map_err(at)?,
            ),
            _ => None,
        };
        let out_index = match &mut output {
            Some(output) if outcome.verdict != Verdict::Drop => Some(output.write(packet, &outcome.out)?),
            _ => None,
        };
        packets.push(PacketReport {
            index,
            verdict: outcome.verdict.name().into(),
            reason: outcome.reason.name().into(),
            service: outcome.service,
            backend: outcome.backend.map(|address| address.to_string()),
            ns,
            length: packet.data.len(),
            out_index,
            note,
        });
    }
    if let Some(output) = output {
        output.finish()?;
    }
    Ok(Report {
        packets,
        repeat: task.repeat,
        floor_ns,
        warnings,
    })
}

/// What the floor is measured on; the program does not look at it.
const ANY_FRAME: [u8; 60] = [0; 60];

/// Measures the packets of a capture one by one.
struct Ruler {
    simulator: Simulator,
    repeat: u32,
}

impl Ruler {
    fn measure(&self, frame: &[u8], expected: Action) -> Result<u64, Error> {
        let program = self.simulator.program()?.fd().map_err(datapath::Error::from)?;
        let harness = Harness::new(Subject::Program(program), frame, Flows::ONE)?;
        Ok(harness.measure(self.repeat, expected)?)
    }

    fn floor(&self) -> Result<u64, Error> {
        let harness = Harness::new(Subject::Floor(Floor::Pass), &ANY_FRAME, Flows::ONE)?;
        Ok(harness.measure(self.repeat, Action::Pass)?)
    }
}

/// A packet of the capture, judged.
struct Judged {
    outcome: Outcome,
    /// Whether the harness can restore the frame.
    measurable: bool,
    note: Option<String>,
}

/// Runs the program on a packet of the capture, and says what is unusual about it.
fn judge(simulator: &mut Simulator, packet: &Packet) -> Result<Judged, Error> {
    let len = packet.data.len();
    if len < MIN_FRAME {
        // The kernel runs nothing so short; the program's first question settles it.
        return Ok(Judged {
            outcome: Outcome {
                verdict: Reason::NotIp.verdict(),
                reason: Reason::NotIp,
                service: None,
                backend: None,
                out: packet.data.clone(),
            },
            measurable: false,
            note: Some(format!(
                "not run: {len} bytes are no Ethernet frame ({MIN_FRAME} at least)"
            )),
        });
    }
    let longest = if has_frags() { len } else { MAX_FRAME };
    let (head, rest) = packet.data.split_at(len.min(longest));
    let mut outcome = simulator.packet(head)?;
    outcome.out.extend(rest);
    let answered = outcome.reason.is_answer();
    let note = if !rest.is_empty() {
        Some(format!(
            "judged by its first {MAX_FRAME} bytes: no driver hands over more in one piece"
        ))
    } else if packet.original_len > len {
        Some(format!(
            "the capture has {len} of its {} bytes",
            packet.original_len
        ))
    } else {
        None
    };
    Ok(Judged {
        outcome,
        // An answer is written over the question.
        measurable: !answered && len <= MAX_FRAME,
        note,
    })
}

/// Where the configuration names no key of the hash, that of the agent on this machine decides which backend
/// a flow gets.
fn with_live_key(config: &Config, options: &Options, warnings: &mut Vec<String>) -> Options {
    let mut options = options.clone();
    if config.agent.hash_key.is_some() || options.hash_key.is_some() {
        return options;
    }
    let pinned = PinDir::open(&config.agent.pin_dir).and_then(|pins| maps::pinned_hash_key(&pins));
    match pinned {
        Ok(Some(key)) => options.hash_key = Some(key),
        Ok(None) | Err(datapath::Error::NothingPinned { .. }) => warnings.push(
            "the configuration has no hash_key and no agent left one here: flows get other backends than \
             from an agent"
                .into(),
        ),
        Err(error) => warnings.push(format!("the agent's hash key cannot be read: {error}")),
    }
    options
}
