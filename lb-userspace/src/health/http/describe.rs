//! Why there was no answer, without text that the target chose.

use std::error::Error as _;
use std::io;

use crate::health::probe::Outcome;
use crate::health::socket;
use crate::health::tls;
use crate::model::CheckCode;

/// The outcome of an exchange that broke off before `missing` was there.
pub(super) fn failed(error: &hyper::Error, missing: &str) -> Outcome {
    let io_error = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>());
    if let Some(outcome) = io_error.and_then(tls::failed) {
        return outcome;
    }
    let detail = match io_error {
        _ if error.is_incomplete_message() => format!("connection closed before {missing}"),
        _ if error.is_parse() => format!("not an HTTP answer: {error}"),
        Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            format!("connection closed before {missing}")
        }
        Some(error) => socket::describe(error),
        None => error.to_string(),
    };
    Outcome::new(CheckCode::L7rsp, detail)
}
