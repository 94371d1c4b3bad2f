//! The example: a commented file with every key.

/// A configuration with every key that is built, and what each means.
///
/// Comments begin with `# `; a line that begins with `#` and no space is a key that is switched off.
#[must_use]
pub fn example() -> String {
    include_str!("example.toml").to_owned()
}
