//! VLAN tags (IEEE 802.1Q sections 9.3 and 9.5).

use lb_common::reason::{Reason, Verdict};
use xlb::datapath::simulate::{Outcome, Simulator};

use super::{Model, be};
use crate::vlan::expected_tags;

const MACS: usize = 12;

/// A frame with tags between its addresses and its type.
pub fn with(bare: &[u8], tags: &[u8]) -> Vec<u8> {
    let at = bare.len().min(MACS);
    [&bare[..at], tags, &bare[at..]].concat()
}

/// A frame without so many bytes of tags.
pub fn without(frame: &[u8], tags: usize) -> Vec<u8> {
    [&frame[..MACS], &frame[MACS + tags..]].concat()
}

/// Bytes of tags of a frame that is looked into.
pub fn tags_of(frame: &[u8]) -> Option<usize> {
    let mut at = MACS;
    loop {
        if frame.len() < at + 2 {
            return (at == MACS).then_some(0);
        }
        match be(frame, at) {
            0x8100 | 0x88a8 if at < MACS + 8 => at += 4,
            0x0800 | 0x86dd | 0x0806 => return Some(at - MACS),
            _ if at == MACS => return Some(0),
            _ => return None,
        }
    }
}

impl Model {
    /// Like [`Model::compare`], for a program that looks into VLANs.
    pub fn compare_tagged(&mut self, world: &mut Simulator, frame: &[u8]) -> Reason {
        let outcome = world
            .packet(frame)
            .unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
        let Some(tags) = tags_of(frame) else {
            assert_eq!(
                (outcome.reason, &*outcome.out),
                (Reason::Vlan, frame),
                "{frame:02x?}"
            );
            return outcome.reason;
        };
        let came_with = if tags == 0 { &[] } else { &frame[MACS..MACS + tags] };
        let left_with = match (outcome.reason, outcome.verdict) {
            (Reason::Transmitted | Reason::Redirected, _) => {
                expected_tags(outcome.backend.expect("a backend").ip())
            }
            (_, Verdict::Drop) => Vec::new(),
            _ => came_with.to_vec(),
        };
        let at = MACS.min(outcome.out.len());
        assert_eq!(outcome.out[at..at + left_with.len()], left_with, "{frame:02x?}");
        let bare = with(
            &frame[..MACS.min(frame.len())],
            &frame[(MACS + tags).min(frame.len())..],
        );
        let outcome = Outcome {
            out: if left_with.is_empty() {
                outcome.out
            } else {
                without(&outcome.out, left_with.len())
            },
            ..outcome
        };
        self.judge_outcome(&bare, &outcome)
    }
}
