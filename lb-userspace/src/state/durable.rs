//! Files that are there whole or not at all, whenever the power goes.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// What files that are being written are called until they are whole.
const UNFINISHED: &str = ".unfinished-";

/// Puts a file of mode 0600 into a folder, which is made where it is missing, in place of one of that name:
/// written beside, flushed, renamed, and the folder flushed. A power cut leaves the old file or the new.
///
/// # Errors
/// Where the file system refuses; what was there before is then there still.
pub fn replace(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::Builder::new()
        .prefix(&format!("{UNFINISHED}{name}-"))
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(folder.join(name))?;
    sync(folder)
}

/// Flushes a folder: names made, changed and taken away in it so far stay so.
///
/// # Errors
/// Where the file system refuses.
pub fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes what a power cut left half written of the file `name`.
pub fn sweep(folder: &Path, name: &str) {
    let prefix = format!("{UNFINISHED}{name}-");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if begins_with(&entry.file_name(), &prefix) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn begins_with(name: &OsStr, prefix: &str) -> bool {
    name.as_encoded_bytes().starts_with(prefix.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er");
        replace(&path, "file", b"one").unwrap();
        replace(&path, "file", b"two").unwrap();
        let file = path.join("file");
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_put_in_place_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        // A folder cannot be replaced by a file.
        fs::create_dir(folder.path().join("name")).unwrap();
        assert!(replace(folder.path(), "name", b"bytes").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_unfinished_files_of_that_name_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".unfinished-a-1", ".unfinished-b-1", "a"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        sweep(folder.path(), "a");
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [".unfinished-b-1", "a"]);
    }
}
