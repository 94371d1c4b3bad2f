//! Translated flows in `status`.

use std::fmt::Write as _;

use crate::api::types::{NatStatus, SnatStatus};
use crate::cli::human;

/// How full the table is, the ports, and what was refused.
pub(super) fn lines(nat: &NatStatus) -> String {
    let NatStatus {
        capacity,
        flows,
        fading,
        scanned_ms_ago: _,
        scan_ms: _,
        ports,
        opened,
        replies: _,
        reply_bytes: _,
        refused_full,
        refused_ports,
        errors: _,
    } = nat;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "\ntranslated flows {} of {} ({} fading); {} opened",
        human::count(*flows),
        human::count(*capacity),
        human::count(*fading),
        human::count(*opened),
    );
    for SnatStatus {
        address,
        in_use,
        ports,
    } in ports
    {
        let _ = writeln!(
            text,
            "  {address}: {} ports in use, of {} towards each backend",
            human::count(*in_use),
            human::count(u64::from(*ports)),
        );
    }
    let refused = refused_full + refused_ports;
    if refused > 0 {
        let _ = writeln!(
            text,
            "  {} refused (table full {}, no port free {})",
            human::count(refused),
            human::count(*refused_full),
            human::count(*refused_ports),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_said_where_there_are_some() {
        let mut nat = NatStatus {
            capacity: 131_072,
            flows: 12,
            opened: 40,
            ports: vec![SnatStatus {
                address: "10.0.1.5".parse().unwrap(),
                in_use: 12,
                ports: 64_512,
            }],
            ..NatStatus::default()
        };
        let text = lines(&nat);
        assert!(
            text.contains("translated flows 12 of 131,072 (0 fading); 40 opened"),
            "{text}"
        );
        assert!(
            text.contains("10.0.1.5: 12 ports in use, of 64,512 towards each backend"),
            "{text}"
        );
        assert!(!text.contains("refused"), "{text}");
        nat.refused_ports = 3;
        assert!(lines(&nat).contains("3 refused (table full 0, no port free 3)"));
    }
}
