mod agent;
mod backends;
mod checks;
mod files;
mod services;

use super::super::{Config, Faults};
use super::{BACKEND, HEAD, WEB};

/// Stands in a text where a fault is expected to begin.
const MARK: char = '▶';

/// What a text shows, the text with its marks, and what each fault has to say.
type Case = (&'static str, String, &'static [&'static str]);

/// Holds every case to account: as many faults as marks, at their places, with these words.
fn check(cases: &[Case], parse: impl Fn(&str) -> Result<Config, Faults>) {
    for (what, marked, messages) in cases {
        let places = places(marked);
        assert_eq!(places.len(), messages.len(), "{what}: a mark for each message");
        let text: String = marked.chars().filter(|&character| character != MARK).collect();
        let faults = match parse(&text) {
            Ok(config) => panic!("{what}: accepted as {config:?}"),
            Err(Faults(faults)) => faults,
        };
        let found: Vec<_> = faults.iter().map(|fault| (fault.line, fault.column)).collect();
        let told = Faults(faults.clone()).to_string();
        assert_eq!(found, places, "{what}: places of\n{told}\nin\n{text}");
        for (fault, message) in faults.iter().zip(*messages) {
            let told = fault.to_string();
            assert!(told.contains(message), "{what}: {told:?} lacks {message:?}");
            assert!(!fault.expected.is_empty(), "{what}: {told:?}");
        }
    }
}

/// Lines and columns of the marks, as if they were not there.
fn places(marked: &str) -> Vec<(usize, usize)> {
    let (mut line, mut column) = (1, 1);
    let mut places = Vec::new();
    for character in marked.chars() {
        match character {
            MARK => places.push((line, column)),
            // Editors do not count a byte order mark.
            '\u{feff}' => {}
            '\n' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
    }
    places
}

/// A file with one service and one backend, with these lines added to the service.
fn service(lines: &str) -> String {
    format!("{HEAD}{WEB}{lines}\n{BACKEND}")
}

/// A file with a service of QUIC, with these lines added to its backend.
fn quic(lines: &str) -> String {
    let udp = WEB.replace("\"tcp\"", "\"udp\"");
    format!("{HEAD}{udp}quic = true\n{BACKEND}{lines}\n")
}

/// A file with one service that has these backends.
fn backends(tables: &str) -> String {
    format!("{HEAD}{WEB}{tables}")
}

fn backend(lines: &str) -> String {
    format!("{HEAD}{WEB}[[service.backend]]\n{lines}\n")
}

fn agent(lines: &str) -> String {
    format!("{HEAD}{lines}\n")
}

fn check_table(lines: &str) -> String {
    service(&format!("[service.check]\n{lines}"))
}

/// A service with this address, port, protocol and forward mode, and a backend.
fn shaped(address: &str, port: &str, forward: &str, backend: &str) -> String {
    format!(
        "{HEAD}[[service]]\nname = \"web\"\naddress = {address}\nport = {port}\nprotocol = \"tcp\"\n\
         forward = {forward}\n[[service.backend]]\naddress = {backend}\n"
    )
}
