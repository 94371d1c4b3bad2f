//! Waiting for what must come: the limits are there to end a hopeless wait, they are no measurements.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Long enough for a busy machine, and for an emulated one.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Asks again and again until there is an answer.
///
/// # Errors
/// After [`PATIENCE`], with the last complaint.
pub fn wait_for<T>(what: &str, mut ask: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= deadline => {
                bail!("waited {} s for {what}: {error:#}", PATIENCE.as_secs())
            }
            Err(_) => sleep(Duration::from_millis(10)),
        }
    }
}

/// Waits until something holds.
///
/// # Errors
/// After [`PATIENCE`].
pub fn wait_until(what: &str, mut holds: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    wait_for(what, || if holds()? { Ok(()) } else { bail!("not yet") })
}
