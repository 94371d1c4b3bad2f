//! What is measured. A case more is a line in [`CASES`]; a setting of its own for it is a variant of [`Setting`] and what
//! [`super::stage`] does for it.

use lb_common::cache;
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
    /// A TCP segment with ACK of a backend to a client, of `nat` or `full-nat`.
    Reply,
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
    /// `dsr-ipip` with `tracking = "full"` and a cache of the default size, 262,144 flows.
    Full,
    /// The same with room for four times as many flows as there are at most.
    FullLarge,
    /// The same as the first, for more flows than it has room for.
    FullCrowded,
    /// `dsr-ipip` whose slots have all moved; flows get entries.
    Moved,
    /// The same where no entries may be made.
    MovedWithout,
    /// `dsr-ipip` with a tenth of its slots moving, that of the one client not among them.
    TenthMoving,
    /// As [`Setting::Full`], with no flow known when a measurement begins.
    FullAnew,
    /// `nat`, with room for 262,144 flows, and entries for the answers to as many clients as a case has at most.
    Nat,
    /// `nat` with no flow known when a measurement begins.
    NatAnew,
    /// As [`Setting::Nat`], with `full-nat`.
    FullNat,
    FullNatAnew,
    /// `dsr-ipip` with 5,000 prefixes that are denied, that of no case's client among them.
    Listed,
    /// The same with that of the one client.
    Denied,
}

/// All of them.
pub const SETTINGS: [Setting; 17] = [
    L2,
    Ipip,
    Gue,
    Impassive,
    Full,
    FullLarge,
    FullCrowded,
    Moved,
    MovedWithout,
    TenthMoving,
    FullAnew,
    Nat,
    NatAnew,
    FullNat,
    FullNatAnew,
    Listed,
    Denied,
];

impl Setting {
    /// Whether addresses in the frame itself are rewritten.
    pub fn translates(self) -> bool {
        matches!(self, Nat | NatAnew | FullNat | FullNatAnew)
    }

    /// Flows that `tracking = "full"` has room for, where it is on.
    pub fn flow_cache_size(self) -> Option<u32> {
        match self {
            Full | FullCrowded | FullAnew => Some(1 << 18),
            FullLarge => Some(1 << 22),
            _ => None,
        }
    }

    /// Whether each measurement begins with empty tables, and has one packet of each flow.
    pub fn begins_anew(self) -> bool {
        matches!(self, FullAnew | NatAnew | FullNatAnew)
    }
}

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

/// What was promised, as a ratio to the floor where that takes 48 ns and a bare sketch of the way [`SKETCH`] times as much.
#[rustfmt::skip]
const GOALS: [(&str, &str, f64); 18] = [
    ("IPv4 in IPv4", "established TCP, 1 flow", 1.9),
    ("IPv4 in IPv4", "established TCP, 65,536 flows", 2.0),
    ("IPv4 in IPv4", "established TCP, 1,048,576 flows", 2.0),
    ("IPv4 in IPv4", "SYN, 1 flow", 1.9),
    ("IPv4 in IPv4", "SYN, 1,048,576 flows (a flood)", 2.0),
    ("IPv4 in IPv4", "SYN, 1 flow, without passive checks", 1.9),
    ("IPv4 in IPv4", "SYN, 1,048,576 flows, without passive checks", 2.0),
    ("IPv4 in IPv4", "UDP, 1 flow", 1.9),
    ("IPv6 in IPv6", "established TCP, 1 flow", 2.1),
    ("dsr-gue", "IPv4, established TCP, 1 flow", 2.3),
    ("a tenth of the slots moving", "established TCP, 1 flow of a stable slot", 1.9),
    ("a tenth of the slots moving", "established TCP, 65,536 flows", 3.0),
    ("moved slots", "established TCP with entry, 1 flow", 3.0),
    ("moved slots", "established TCP with entry, 65,536 flows", 5.3),
    ("tracking = \"full\"", "established TCP, 1 flow, known", 2.3),
    ("tracking = \"full\"", "established TCP, 1,048,576 flows, known", 5.3),
    ("no service's", "IPv4 TCP", 2.0),
    ("no service's", "IPv6 TCP", 2.0),
];

/// Where the goals were set: the bare sketch with one flow, as a ratio to the floor.
pub const SKETCH: f64 = 1.77;

impl Case {
    /// What was promised of it; see [`GOALS`].
    pub fn goal(&self) -> Option<f64> {
        let found = GOALS
            .iter()
            .find(|(group, name, _)| (*group, *name) == (self.group, self.name));
        found.map(|(_, _, goal)| *goal)
    }

    /// Whether the bare ways to a backend can be measured with its packets.
    pub fn has_yardstick(&self) -> bool {
        self.floor == OuterV4 && !self.setting.begins_anew()
    }

    /// Lines of memory in which the program remembers the flows that it knows, one for each flow or for a few, where that
    /// is what a packet of the case waits for.
    pub fn lines(&self) -> Option<u32> {
        match (self.setting, self.kind) {
            _ if self.flows == 1 => None,
            (Moved, Established) => Some(self.flows),
            (Full | FullLarge, Established | Udp) => self
                .setting
                .flow_cache_size()
                .map(|flows| flows / cache::WAYS as u32),
            _ => None,
        }
    }

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
use Floor::{Drop, OuterUdp, OuterV4, OuterV6, Pass, Rewrite};
use Kind::{Established, Foreign, Reply, Syn, Udp};
use Setting::{
    Denied, Full, FullAnew, FullCrowded, FullLarge, FullNat, FullNatAnew, Gue, Impassive, Ipip, L2, Listed,
    Moved, MovedWithout, Nat, NatAnew, TenthMoving,
};

const MILLION: u32 = 1 << 20;
pub const MANY: u32 = 1 << 16;

// A line a case, to be read as a table.
#[rustfmt::skip]
pub const CASES: [Case; 49] = [
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
    case("tracking = \"full\"", "established TCP, 1,048,576 flows, known", FullLarge, V4, Established, MILLION, OuterV4),
    case("tracking = \"full\"", "UDP, 65,536 flows, known", Full, V4, Udp, MANY, OuterV4),
    case("tracking = \"full\"", "established TCP, 1,048,576 flows in a cache for 262,144", FullCrowded, V4, Established, MILLION, OuterV4),
    case("tracking = \"full\"", "SYN, 1,048,576 flows (a flood)", FullCrowded, V4, Syn, MILLION, OuterV4),
    case("tracking = \"full\"", "established TCP, the first packet of each of 65,536 flows", FullAnew, V4, Established, MANY, OuterV4),
    case("nat", "established TCP, 1 flow", Nat, V4, Established, 1, Rewrite),
    case("nat", "established TCP, 65,536 flows", Nat, V4, Established, MANY, Rewrite),
    case("nat", "answers, 1 flow", Nat, V4, Reply, 1, Rewrite),
    case("nat", "answers, 65,536 flows", Nat, V4, Reply, MANY, Rewrite),
    case("nat", "SYN, the first packet of each of 65,536 flows", NatAnew, V4, Syn, MANY, Rewrite),
    case("nat", "IPv6, established TCP, 1 flow", Nat, V6, Established, 1, Rewrite),
    case("nat", "IPv6, answers, 1 flow", Nat, V6, Reply, 1, Rewrite),
    case("full-nat", "established TCP, 1 flow", FullNat, V4, Established, 1, Rewrite),
    case("full-nat", "established TCP, 65,536 flows", FullNat, V4, Established, MANY, Rewrite),
    case("full-nat", "answers, 1 flow", FullNat, V4, Reply, 1, Rewrite),
    case("full-nat", "answers, 65,536 flows", FullNat, V4, Reply, MANY, Rewrite),
    case("full-nat", "SYN, the first packet of each of 65,536 flows", FullNatAnew, V4, Syn, MANY, Rewrite),
    case("full-nat", "IPv6, established TCP, 1 flow", FullNat, V6, Established, 1, Rewrite),
    case("full-nat", "IPv6, answers, 1 flow", FullNat, V6, Reply, 1, Rewrite),
    case("access list of 5,000 prefixes", "established TCP, 1 flow", Listed, V4, Established, 1, OuterV4),
    case("access list of 5,000 prefixes", "established TCP, 65,536 flows", Listed, V4, Established, MANY, OuterV4),
    case("access list of 5,000 prefixes", "established TCP, 1 flow, denied", Denied, V4, Established, 1, Drop),
    case("no service's", "IPv4 TCP", Ipip, V4, Foreign, 1, Pass),
    case("no service's", "IPv6 TCP", Ipip, V6, Foreign, 1, Pass),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_goal_is_of_a_case() {
        assert_eq!(CASES.iter().filter_map(Case::goal).count(), GOALS.len());
    }
}
