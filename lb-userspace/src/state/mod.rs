//! What outlives a reboot: files in `state_dir`.
//!
//! ```text
//!  orders, verdicts ─▶ keeper (at most once a second; at once for orders) ─▶ durable ─▶ checkpoint
//!  cold start       ◀── checkpoint, else the one before it                       events.jsonl, hash_key
//! ```
//!
//! While pins exist they are the truth, and the checkpoint only fills in what they do not hold; after a reboot it
//! is all there is. A file that cannot be read is moved aside, never overwritten, and the agent starts without
//! it; a folder that cannot be written is said, in the log, in `status` and as an event, and tried again.

pub mod checkpoint;
pub mod durable;
pub mod keeper;

pub use checkpoint::{Checkpoint, KeptBackend};
pub use keeper::Keeper;
