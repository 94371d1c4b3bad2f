//! What is measured. A case more is a line in [`CASES`]; a setting of its own for it is a variant of [`Setting`] and what
//! [`super::stage`] does for it.

use xlb::datapath::measure::Floor;

/// What a case sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment with ACK.
    Established,
    Syn,
    Udp,
    /// TCP to a port that no service has.
    Foreign,
}

/// Which addresses a case uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What the program is set up for. Services of TCP and UDP on an address of each family, with 100 backends each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    L2,
    Ipip,
    Gue,
    /// `dsr-ipip` without passive checks.
    Impassive,
    /// `dsr-ipip` with `tracking = "full"`.
    Full,
    /// `dsr-ipip` whose slots have all moved; flows get entries.
    Moved,
    /// The same where no entries may be made.
    MovedWithout,
    /// `dsr-ipip` with a tenth of its slots moving, that of the one client not among them.
    TenthMoving,
}

pub const SETTINGS: [Setting; 8] = [L2, Ipip, Gue, Impassive, Full, Moved, MovedWithout, TenthMoving];

/// One line of the table.
pub struct Case {
    pub group: &'static str,
    pub name: &'static str,
    pub setting: Setting,
    pub family: Family,
    pub kind: Kind,
    pub flows: u32,
    pub floor: Floor,
}

impl Case {
    /// Group and name.
    pub fn title(&self) -> String {
        format!("{}: {}", self.group, self.name)
    }
}

const fn case(
    group: &'static str,
    name: &'static str,
    setting: Setting,
    family: Family,
    kind: Kind,
    flows: u32,
    floor: Floor,
) -> Case {
    Case {
        group,
        name,
        setting,
        family,
        kind,
        flows,
        floor,
    }
}

use Family::{V4, V6};
use Floor::{OuterUdp, OuterV4, OuterV6, Pass, Rewrite};
use Kind::{Established, Foreign, Syn, Udp};
use Setting::{Full, Gue, Impassive, Ipip, L2, Moved, MovedWithout, TenthMoving};

const MILLION: u32 = 1 << 20;
const MANY: u32 = 1 << 16;

// A line a case, to be read as a table.
#[rustfmt::skip]
pub const CASES: [Case; 30] = [
    case("IPv4 in IPv4", "established TCP, 1 flow", Ipip, V4, Established, 1, OuterV4),
    case("IPv4 in IPv4", "established TCP, 65,536 flows", Ipip, V4, Established, MANY, OuterV4),
    case("IPv4 in IPv4", "established TCP, 1,048,576 flows", Ipip, V4, Established, MILLION, OuterV4),
    case("IPv4 in IPv4", "SYN, 1 flow", Ipip, V4, Syn, 1, OuterV4),
    case("IPv4 in IPv4", "SYN, 1,048,576 flows (a flood)", Ipip, V4, Syn, MILLION, OuterV4),
    case("IPv4 in IPv4", "SYN, 1 flow, without passive checks", Impassive, V4, Syn, 1, OuterV4),
    case("IPv4 in IPv4", "SYN, 1,048,576 flows, without passive checks", Impassive, V4, Syn, MILLION, OuterV4),
    case("IPv4 in IPv4", "UDP, 1 flow", Ipip, V4, Udp, 1, OuterV4),
    case("IPv4 in IPv4", "UDP, 1,048,576 flows", Ipip, V4, Udp, MILLION, OuterV4),
    case("IPv6 in IPv6", "established TCP, 1 flow", Ipip, V6, Established, 1, OuterV6),
    case("IPv6 in IPv6", "established TCP, 1,048,576 flows", Ipip, V6, Established, MILLION, OuterV6),
    case("dsr-gue", "IPv4, established TCP, 1 flow", Gue, V4, Established, 1, OuterUdp),
    case("dsr-gue", "IPv4, established TCP, 1,048,576 flows", Gue, V4, Established, MILLION, OuterUdp),
    case("dsr-gue", "IPv6, established TCP, 1 flow", Gue, V6, Established, 1, OuterV6),
    case("dsr-l2", "IPv4, established TCP, 1 flow", L2, V4, Established, 1, Rewrite),
    case("dsr-l2", "IPv4, established TCP, 1,048,576 flows", L2, V4, Established, MILLION, Rewrite),
    case("a tenth of the slots moving", "established TCP, 1 flow of a stable slot", TenthMoving, V4, Established, 1, OuterV4),
    case("a tenth of the slots moving", "established TCP, 65,536 flows", TenthMoving, V4, Established, MANY, OuterV4),
    case("moved slots", "established TCP with entry, 1 flow", Moved, V4, Established, 1, OuterV4),
    case("moved slots", "established TCP with entry, 65,536 flows", Moved, V4, Established, MANY, OuterV4),
    case("moved slots", "established TCP without entry, 1 flow", MovedWithout, V4, Established, 1, OuterV4),
    case("moved slots", "established TCP without entry, 65,536 flows", MovedWithout, V4, Established, MANY, OuterV4),
    case("moved slots", "SYN, 1,048,576 flows that find no entry free", MovedWithout, V4, Syn, MILLION, OuterV4),
    case("tracking = \"full\"", "established TCP, 1 flow, known", Full, V4, Established, 1, OuterV4),
    case("tracking = \"full\"", "established TCP, 65,536 flows, known", Full, V4, Established, MANY, OuterV4),
    case("tracking = \"full\"", "established TCP, 1,048,576 flows in a cache for 262,144", Full, V4, Established, MILLION, OuterV4),
    case("tracking = \"full\"", "SYN, 1,048,576 flows (a flood)", Full, V4, Syn, MILLION, OuterV4),
    case("tracking = \"full\"", "UDP, 65,536 flows, known", Full, V4, Udp, MANY, OuterV4),
    case("no service's", "IPv4 TCP", Ipip, V4, Foreign, 1, Pass),
    case("no service's", "IPv6 TCP", Ipip, V6, Foreign, 1, Pass),
];
