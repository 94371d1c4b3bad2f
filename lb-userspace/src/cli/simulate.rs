//! `xlb simulate`.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;

use super::CONFIG;
use super::grid::{Cell, Column, Grid, Tone};
use super::human;
use super::outcome::{Context, Outcome, Screen};
use crate::config::Config;
use crate::datapath::simulate::{self, Neighbor, Options, PacketReport, Report, Task};

/// Run the packets of a capture through the real program, and say what becomes of each.
///
/// The program is loaded with a configuration into maps of its own and attached to nothing; every backend counts as UP.
/// The hash key is the configuration's, else that of the agent of this machine, so that flows get the backends they
/// would get. Needs root, but no agent.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  tcpdump -i eth0 -c 100 -w in.pcap dst 192.0.2.10
  xlb simulate --in in.pcap                    what becomes of each packet
  xlb simulate --in in.pcap --out out.pcap     and what was sent, as a capture
  xlb simulate --in in.pcap --repeat 1000000   nanoseconds a packet

Capture where the packets come from, or before the program is attached: what it
takes, tcpdump on the load balancer does not see.")]
pub(super) struct Arguments {
    /// Configuration file.
    #[arg(long, short, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
    /// Capture to read, pcap or pcapng, of Ethernet frames.
    #[arg(long = "in", value_name = "IN.pcap")]
    capture: PathBuf,
    /// Capture to write: every packet that was not dropped, as it left the program.
    #[arg(long, value_name = "OUT.pcap")]
    out: Option<PathBuf>,
    /// MAC address of a backend, as 10.0.1.11=02:00:00:00:00:0b; may be given again. Others get a made-up one.
    #[arg(long, value_name = "IP=MAC")]
    neighbor: Vec<Neighbor>,
    /// Source address of outer headers (dsr-ipip), one for each address family.
    #[arg(long, value_name = "IP")]
    source: Vec<IpAddr>,
    /// Longest IP packet on the way to the backends, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = simulate::MTU)]
    mtu: u32,
    /// Run each packet N times more, and say how many nanoseconds a run takes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repeat: Option<u32>,
}

pub(super) fn run(arguments: Arguments, context: &Context) -> anyhow::Result<Outcome> {
    let Arguments {
        config,
        capture,
        out,
        neighbor,
        source,
        mtu,
        repeat,
    } = arguments;
    let mut options = Options {
        neighbors: neighbor
            .into_iter()
            .map(|neighbor| (neighbor.address, neighbor.mac))
            .collect(),
        mtu,
        ..Options::default()
    };
    for address in source {
        options.set_source(address);
    }
    let task = Task {
        input: capture,
        output: out,
        repeat,
        options,
    };
    let report = simulate::run(&Config::load(&config)?, &task)?;
    for warning in &report.warnings {
        log::warn!("{warning}");
    }
    context.show(&report, render)
}

fn render(report: &Report, screen: &Screen) -> String {
    let Report {
        packets,
        repeat,
        floor_ns,
        warnings: _,
    } = report;
    let mut columns = vec![
        Column::right("PACKET"),
        Column::right("BYTES").dispensable(1),
        Column::left("VERDICT"),
        Column::left("REASON"),
        Column::left("SERVICE"),
        Column::left("BACKEND"),
    ];
    if repeat.is_some() {
        columns.push(Column::right("NS"));
    }
    let mut grid = Grid::new(&columns);
    for packet in packets {
        let PacketReport {
            index,
            verdict,
            reason,
            service,
            backend,
            ns,
            length,
            out_index: _,
            note,
        } = packet;
        let tone = if verdict == "drop" {
            Tone::Warning
        } else {
            Tone::Plain
        };
        let or_dash = |text: &Option<String>| text.as_deref().unwrap_or("-").to_owned();
        let mut cells = vec![
            index.into(),
            length.into(),
            Cell::toned(verdict, tone),
            reason.into(),
            or_dash(service).into(),
            or_dash(backend).into(),
        ];
        if repeat.is_some() {
            cells.push(or_dash(&ns.map(|ns| ns.to_string())).into());
        }
        grid.row(cells, note.iter().cloned().collect());
    }
    let mut text = grid.render(screen, "");
    if let (Some(repeat), Some(floor)) = (repeat, floor_ns) {
        let runs = human::count(u64::from(*repeat));
        let _ = writeln!(
            text,
            "NS is the mean of {runs} runs; {floor} of it are the measurement itself"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::tests::screen;

    fn packet(index: usize, verdict: &str, reason: &str, backend: Option<&str>) -> PacketReport {
        PacketReport {
            index,
            verdict: verdict.into(),
            reason: reason.into(),
            service: backend.map(|_| "web".into()),
            backend: backend.map(str::to_owned),
            ns: Some(90),
            length: 64,
            out_index: None,
            note: None,
        }
    }

    #[test]
    fn a_packet_is_a_line() {
        let mut report = Report {
            packets: vec![
                packet(0, "tx", "transmitted", Some("10.0.1.11:80")),
                packet(1, "pass", "not_service", None),
            ],
            repeat: None,
            floor_ns: None,
            warnings: Vec::new(),
        };
        report.packets[1].note = Some("cut short in the capture".into());
        assert_eq!(
            render(&report, &screen(None)),
            "\
PACKET  BYTES  VERDICT  REASON       SERVICE  BACKEND
     0     64  tx       transmitted  web      10.0.1.11:80
     1     64  pass     not_service  -        -
  cut short in the capture
"
        );
        report.repeat = Some(1_000_000);
        report.floor_ns = Some(25);
        let text = render(&report, &screen(None));
        assert!(
            text.starts_with("PACKET  BYTES  VERDICT  REASON       SERVICE  BACKEND       NS\n"),
            "{text}"
        );
        assert!(
            text.ends_with("NS is the mean of 1,000,000 runs; 25 of it are the measurement itself\n"),
            "{text}"
        );
    }
}
