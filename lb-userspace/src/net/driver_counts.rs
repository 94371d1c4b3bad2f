//! What drivers lose after the program's verdict, by their own statistics (`ethtool -S`): the program counts a packet as
//! sent when it gives it away.

use std::collections::BTreeMap;
use std::io;

use super::ioctl;

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETH_SS_STATS: u32 = 1;
/// `ETH_GSTRING_LEN`.
const NAME_LEN: usize = 32;

/// Counters of what an interface lost after the verdict, as the driver calls them, and packets; those of its queues
/// are added up, with `N` for their numbers. Drivers that have none give none.
///
/// # Errors
/// No such interface, or one without statistics (`EOPNOTSUPP`).
pub fn lost(interface: &str) -> io::Result<BTreeMap<String, u64>> {
    Ok(add_queues(all(interface)?))
}

/// The index of the other end of a veth, in that one's network namespace; `None`: it is none.
///
/// # Errors
/// No such interface, or one without statistics.
pub fn peer_of_veth(interface: &str) -> io::Result<Option<u32>> {
    let counts = all(interface)?;
    let peer = counts.iter().find(|(name, _)| name == "peer_ifindex");
    Ok(peer.and_then(|(_, ifindex)| u32::try_from(*ifindex).ok()))
}

fn add_queues(counts: Vec<(String, u64)>) -> BTreeMap<String, u64> {
    let mut lost = BTreeMap::new();
    for (name, packets) in counts.into_iter().filter(|(name, _)| is_lost(name)) {
        *lost.entry(of_all_queues(&name)).or_default() += packets;
    }
    lost
}

fn of_all_queues(name: &str) -> String {
    let parts = name.split(|c: char| c.is_ascii_digit());
    let mut joined = String::new();
    for (place, part) in parts.enumerate() {
        if place > 0 && !joined.ends_with('N') {
            joined.push('N');
        }
        joined += part;
    }
    joined
}

/// Whether a counter is of packets that the program sent and the driver did not. Not among them: what the program
/// dropped itself (`xdp_drops`).
fn is_lost(name: &str) -> bool {
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let Some((_, behind)) = name.split_once("xdp") else {
        return false;
    };
    let sends = name.starts_with("tx") || has(&["xdp_tx", "xdp_xmit", "xdp_redirect"]);
    sends
        && ["err", "full", "drop", "fail"]
            .iter()
            .any(|word| behind.contains(word))
}

/// Every counter that the driver has, by its name.
fn all(interface: &str) -> io::Result<Vec<(String, u64)>> {
    // `struct ethtool_sset_info`: command, reserved; mask; one number.
    let mut info = [pair(ETHTOOL_GSSET_INFO, 0), 1 << ETH_SS_STATS, 0];
    ask(interface, &mut info)?;
    if info[1] == 0 {
        return Ok(Vec::new());
    }
    let [number, _] = halves(info[2]);
    // A driver whose queues change meanwhile has more than it said.
    let room = number as usize * 2 + 64;
    // `struct ethtool_gstrings`: command, set, number; then the names.
    let mut names = vec![0_u64; 2 + room * NAME_LEN / 8];
    names[0] = pair(ETHTOOL_GSTRINGS, ETH_SS_STATS);
    ask(interface, &mut names)?;
    let [found, _] = halves(names[1]);
    // `struct ethtool_stats`: command, number; then the counts.
    let mut counts = vec![0_u64; 1 + room];
    counts[0] = pair(ETHTOOL_GSTATS, found);
    ask(interface, &mut counts)?;
    let [_, counted] = halves(counts[0]);
    let bytes: Vec<u8> = names
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .skip(12)
        .collect();
    let names = bytes.chunks_exact(NAME_LEN).take(found as usize);
    let counts = counts[1..].iter().take(counted as usize);
    let count = |(name, packets): (&[u8], &u64)| {
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
        (String::from_utf8_lossy(&name[..end]).into_owned(), *packets)
    };
    Ok(names.zip(counts).map(count).collect())
}

/// Two words of 32 bits as they lie in memory.
fn pair(first: u32, second: u32) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    [u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h])]
}

fn ask(interface: &str, data: &mut [u64]) -> io::Result<()> {
    let mut ifreq = ioctl::request_for(interface)?;
    ifreq.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    // SAFETY: `data` outlives the call, is as the command in its first word wants it, and has room for more than the
    // driver said that it has.
    unsafe { ioctl::call(libc::SIOCETHTOOL, &mut ifreq) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::Namespace;

    #[test]
    fn what_is_lost_after_the_verdict_is_told_from_what_the_program_did() {
        for name in [
            "rx_queue_0_xdp_tx_errors",
            "tx_queue_3_xdp_xmit_errors",
            "rx_xdp_tx_full",
            "tx_xdp_full",
            "tx0_xdp_tx_err",
            "rx0_xdp_redirect_fail",
            "tx_queue_0_xdp_tx_drops",
            "tx3_xdp_err",
        ] {
            assert!(is_lost(name), "{name}");
        }
        for name in [
            "rx_queue_0_xdp_drops",
            "rx_queue_0_xdp_packets",
            "rx_xdp_drop",
            "rx_queue_0_xdp_redirect",
            "rx_queue_0_xdp_tx",
            "tx_errors",
            "rx_dropped",
        ] {
            assert!(!is_lost(name), "{name}");
        }
    }

    #[test]
    fn queues_are_added_up() {
        let counts = [
            ("rx_queue_0_xdp_tx_errors", 3),
            ("rx_queue_10_xdp_tx_errors", 4),
            ("tx3_xdp_err", 1),
            ("rx_queue_0_xdp_drops", 9),
        ];
        let counts = counts.map(|(name, packets)| (name.to_owned(), packets));
        let lost = add_queues(counts.into());
        let lost: Vec<_> = lost
            .iter()
            .map(|(name, packets)| (name.as_str(), *packets))
            .collect();
        assert_eq!(lost, [("rx_queue_N_xdp_tx_errors", 7), ("txN_xdp_err", 1)]);
    }

    #[test]
    fn a_veth_counts_what_it_loses() {
        let Some((namespace, _peer)) = Namespace::pair_or_skip("a_veth_counts_what_it_loses") else {
            return;
        };
        namespace.run(|| async {
            let lost_here = lost("eth0").unwrap();
            assert_eq!(
                lost_here.get("rx_queue_N_xdp_tx_errors"),
                Some(&0),
                "{lost_here:?}"
            );
            assert_eq!(
                lost_here.get("tx_queue_N_xdp_xmit_errors"),
                Some(&0),
                "{lost_here:?}"
            );
            assert!(lost("eth9").is_err());
        });
    }
}
