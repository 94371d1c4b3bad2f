//! `--trace-drops N`: dropped packets in the log, with their reason.

use aya::Ebpf;
use aya::maps::{Array, MapData};
use aya_log::EbpfLogger;
use lb_common::reason::Reason;
use log::{Log, Metadata, Record};
use tokio::io::unix::AsyncFd;

/// The reader of the program's log; ends with the task when dropped.
#[derive(Debug)]
pub struct Trace(tokio::task::JoinHandle<()>);

impl Drop for Trace {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Lets the program log `count` dropped packets, and reads them.
///
/// # Errors
/// Where the program has no log, or its map refuses.
pub fn start(ebpf: &mut Ebpf, count: u64) -> anyhow::Result<Trace> {
    let map = ebpf
        .map_mut("TRACE_LEFT")
        .ok_or(crate::datapath::Error::MissingMap("TRACE_LEFT"))?;
    let mut left: Array<&mut MapData, u64> = map.try_into()?;
    left.set(0, count, 0)?;
    let logger = EbpfLogger::init_with_logger(ebpf, Names)?;
    // SAFETY: the descriptor is the ring buffer's, open and the same until the logger is dropped with this.
    let mut logger =
        unsafe { AsyncFd::register(logger) }.map_err(|error| anyhow::anyhow!("watching the log: {error}"))?;
    Ok(Trace(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    })))
}

/// Puts the name of a reason in the place of its number, and hands the line on.
struct Names;

impl Log for Names {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        log::info!(target: "xlb::drops", "{}", named(&record.args().to_string()));
    }

    fn flush(&self) {}
}

fn named(line: &str) -> String {
    let Some((head, rest)) = line.split_once("reason ") else {
        return line.to_owned();
    };
    let (number, tail) = rest.split_once(' ').unwrap_or((rest, ""));
    match number.parse().ok().and_then(Reason::from_index) {
        Some(reason) => format!("{head}{}: {tail}", reason.name()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_named() {
        let index = Reason::TooBig as u32;
        assert_eq!(
            named(&format!("dropped reason {index} from a to b")),
            "dropped too_big: from a to b"
        );
        assert_eq!(named("dropped reason 999 from a"), "dropped reason 999 from a");
        assert_eq!(named("something else"), "something else");
    }
}
