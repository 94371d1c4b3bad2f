//! The secret of the hash: from the configuration, else its pin, else the state folder, else made.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use lb_common::hash::{HashKey, KEY_WORDS};

use crate::config::Config;
use crate::datapath::maps;
use crate::datapath::pins::PinDir;
use crate::state::durable;

const FILE: &str = "hash_key";
const BYTES: usize = KEY_WORDS * 8;

/// The key to use, which is then also in its pin and in the state folder.
///
/// # Errors
/// A stored key that is damaged is an error, never replaced: another key moves every flow.
pub fn settle(config: &Config, pins: &PinDir) -> anyhow::Result<HashKey> {
    let state_dir = &config.agent.state_dir;
    let pinned = maps::pinned_hash_key(pins)?;
    let path = state_dir.join(FILE);
    let stored = read(&path)?;
    let configured = config
        .agent
        .hash_key
        .as_ref()
        .map(|key| HashKey::from_bytes(&key.0));
    let key = configured
        .or(pinned)
        .or(stored)
        .unwrap_or_else(|| HashKey::from_bytes(&rand::random::<[u8; BYTES]>()));
    if let Some(pinned) = pinned
        && pinned.0 != key.0
    {
        log::warn!(
            "the hash key changed: every slot counts as moved, established flows change their backend"
        );
    }
    if pinned.is_none_or(|pinned| pinned.0 != key.0) {
        maps::pin_hash_key(pins, &key)?;
    }
    if stored.is_none_or(|stored| stored.0 != key.0)
        && let Err(error) = durable::replace(state_dir, FILE, &key.to_bytes())
    {
        // Packets need the key now, and it is pinned; what is lost is that flows keep their backends over a reboot.
        log::error!(
            "keeping the hash key in {}: {error}; unless a later start can write it, a reboot moves every flow",
            path.display()
        );
    }
    Ok(key)
}

fn read(path: &Path) -> anyhow::Result<Option<HashKey>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let Ok(bytes) = <&[u8; BYTES]>::try_from(bytes.as_slice()) else {
        bail!(
            "{}: {} bytes instead of {BYTES}; restore it from another node or a backup, \
             or remove it to make a new key (established flows then change their backend)",
            path.display(),
            bytes.len()
        );
    };
    Ok(Some(HashKey::from_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_stored_key_comes_back_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let key = HashKey::from_bytes(&[7; BYTES]);
        durable::replace(folder.path(), FILE, &key.to_bytes()).unwrap();
        let path = folder.path().join(FILE);
        assert_eq!(read(&path).unwrap().unwrap().0, key.0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_key_is_refused_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        fs::write(&path, [1, 2, 3]).unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("3 bytes instead of 64")
        );
        assert_eq!(fs::read(&path).unwrap(), [1, 2, 3]);
    }
}
