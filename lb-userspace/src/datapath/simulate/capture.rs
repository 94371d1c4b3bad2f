//! Captures: pcap and pcapng in, pcap out. Only Ethernet.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapReader, PcapWriter, RawPcapPacket};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};

use super::Error;

/// First bytes of a pcapng file: the type of a section header block.
const PCAPNG: [u8; 4] = [0x0A, 0x0D, 0x0D, 0x0A];

/// The longest packet that our output announces.
const SNAPLEN: u32 = 262_144;

/// A packet of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Since 1970.
    pub time: Duration,
    /// Bytes of the frame on the wire; more than `data` has where the capture cut it short.
    pub original_len: usize,
    pub data: Vec<u8>,
}

/// A capture, read whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture {
    pub packets: Vec<Packet>,
}

impl Capture {
    /// Reads a pcap or pcapng file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::LinkType`], [`Error::Capture`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io {
            path: path.into(),
            source,
        };
        let mut file = BufReader::new(File::open(path).map_err(io)?);
        let mut magic = [0; 4];
        let read = file.read(&mut magic).map_err(io)?;
        let whole = magic[..read].chain(file);
        let packets = if magic == PCAPNG {
            read_pcapng(path, whole)?
        } else {
            read_pcap(path, whole)?
        };
        Ok(Self { packets })
    }
}

fn read_pcap(path: &Path, file: impl Read) -> Result<Vec<Packet>, Error> {
    let mut reader = PcapReader::new(file).map_err(|error| damaged(path, "its header", &error))?;
    let header = reader.header();
    require_ethernet(path, header.datalink)?;
    let mut packets = Vec::new();
    // The checked form refuses every capture that was made with a small snap length.
    while let Some(packet) = reader.next_raw_packet() {
        let RawPcapPacket {
            ts_sec,
            ts_frac,
            orig_len,
            data,
            ..
        } = packet.map_err(|error| damaged(path, format_args!("packet {}", packets.len()), &error))?;
        let fraction = match header.ts_resolution {
            TsResolution::MicroSecond => Duration::from_micros(ts_frac.into()),
            TsResolution::NanoSecond => Duration::from_nanos(ts_frac.into()),
        };
        packets.push(Packet {
            time: Duration::from_secs(ts_sec.into()) + fraction,
            original_len: orig_len as usize,
            data: data.into_owned(),
        });
    }
    Ok(packets)
}

fn read_pcapng(path: &Path, file: impl Read) -> Result<Vec<Packet>, Error> {
    let mut reader = PcapNgReader::new(file).map_err(|error| damaged(path, "its header", &error))?;
    let mut packets = Vec::new();
    let mut interfaces = Vec::new();
    while let Some(block) = reader.next_block() {
        let block = block.map_err(|error| damaged(path, format_args!("packet {}", packets.len()), &error))?;
        let (interface, packet) = match block {
            Block::SectionHeader(_) => {
                interfaces.clear();
                continue;
            }
            Block::InterfaceDescription(interface) => {
                interfaces.push(Interface::new(&interface));
                continue;
            }
            Block::EnhancedPacket(packet) => {
                let interface = interfaces.get(packet.interface_id as usize);
                let packet = Packet {
                    // The reader takes ticks of whatever length for nanoseconds.
                    time: interface.map_or(Duration::ZERO, |i| i.time(packet.timestamp.as_nanos())),
                    original_len: packet.original_len as usize,
                    data: packet.data.into_owned(),
                };
                (interface, packet)
            }
            Block::SimplePacket(packet) => {
                let interface = interfaces.first();
                let original_len = packet.original_len as usize;
                let mut data = packet.data.into_owned();
                // The block says only how long the packet was, and pads it to 32 bits.
                data.truncate(original_len.min(interface.map_or(usize::MAX, |i| i.snaplen)));
                let packet = Packet {
                    time: Duration::ZERO,
                    original_len,
                    data,
                };
                (interface, packet)
            }
            _ => continue,
        };
        let Some(interface) = interface else {
            return Err(Error::Capture {
                path: path.into(),
                what: format!("packet {} names an interface that is not there", packets.len()),
            });
        };
        require_ethernet(path, interface.link_type)?;
        packets.push(packet);
    }
    Ok(packets)
}

/// What a pcapng file says of an interface.
struct Interface {
    link_type: DataLink,
    snaplen: usize,
    ticks_a_second: u128,
}

impl Interface {
    fn new(block: &InterfaceDescriptionBlock<'_>) -> Self {
        // The highest bit chooses between powers of 2 and of 10; the default is microseconds.
        let resolution = block.options.iter().find_map(|option| match option {
            InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
            _ => None,
        });
        let (base, exponent) = match resolution.unwrap_or(6) {
            r if r & 0x80 != 0 => (2_u128, r & 0x7f),
            r => (10, r),
        };
        Self {
            link_type: block.linktype,
            snaplen: match block.snaplen {
                0 => usize::MAX,
                limit => limit as usize,
            },
            ticks_a_second: base.checked_pow(exponent.into()).unwrap_or(u128::MAX),
        }
    }

    fn time(&self, ticks: u128) -> Duration {
        let seconds = ticks / self.ticks_a_second;
        // The rest is below 2^64, as all ticks are.
        let nanos = ticks % self.ticks_a_second * 1_000_000_000 / self.ticks_a_second;
        Duration::new(seconds as u64, nanos as u32)
    }
}

fn require_ethernet(path: &Path, found: DataLink) -> Result<(), Error> {
    if found == DataLink::ETHERNET {
        return Ok(());
    }
    Err(Error::LinkType {
        path: path.into(),
        found: match found {
            DataLink::Unknown(number) => format!("number {number}"),
            known => format!("{known:?}"),
        },
    })
}

fn damaged(path: &Path, place: impl std::fmt::Display, error: &PcapError) -> Error {
    let why = match error {
        PcapError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the file ends in the middle of it".into()
        }
        PcapError::IoError(error) => error.to_string(),
        other => other.to_string(),
    };
    Error::Capture {
        path: path.into(),
        what: format!("no pcap or pcapng file, or a damaged one: {place}: {why}"),
    }
}

/// A pcap file that is being written.
pub struct Output {
    path: PathBuf,
    writer: PcapWriter<BufWriter<File>>,
    written: usize,
}

impl Output {
    /// Begins a file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Capture`].
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = File::create(path).map_err(|source| Error::Io {
            path: path.into(),
            source,
        })?;
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(BufWriter::new(file), header)
            .map_err(|error| cannot_write(path, &error))?;
        Ok(Self {
            path: path.into(),
            writer,
            written: 0,
        })
    }

    /// Writes what became of `packet`; gives back its place in the file, from 0.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Capture`].
    pub fn write(&mut self, packet: &Packet, data: &[u8]) -> Result<usize, Error> {
        let grown = data.len() as i64 - packet.data.len() as i64;
        let raw = RawPcapPacket {
            ts_sec: packet.time.as_secs() as u32,
            ts_frac: packet.time.subsec_nanos(),
            incl_len: data.len() as u32,
            orig_len: (packet.original_len as i64 + grown).max(0) as u32,
            data: Cow::Borrowed(data),
        };
        self.writer
            .write_raw_packet(&raw)
            .map_err(|error| cannot_write(&self.path, &error))?;
        self.written += 1;
        Ok(self.written - 1)
    }

    /// Flushes the file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(self) -> Result<(), Error> {
        self.writer.into_writer().flush().map_err(|source| Error::Io {
            path: self.path,
            source,
        })
    }
}

fn cannot_write(path: &Path, error: &PcapError) -> Error {
    Error::Capture {
        path: path.into(),
        what: format!("cannot be written: {error}"),
    }
}
