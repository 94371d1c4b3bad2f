//! What drivers say of themselves.

/// The driver of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverInfo {
    pub driver: String,
}

/// Asks the driver.
///
/// # Errors
/// Always, until it is written.
pub fn driver(_: &str) -> std::io::Result<DriverInfo> {
    Err(std::io::ErrorKind::Unsupported.into())
}
