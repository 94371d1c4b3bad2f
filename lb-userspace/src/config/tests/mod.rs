//! `faults`: a table of every kind of fault. `accepted`: what valid files mean. `drift`: the list of
//! keys, the parser, the schema and the example agree. `hostile`: nothing makes the parser panic.

mod accepted;
mod drift;
mod faults;
mod hostile;
mod layers;
mod ways;

use super::Config;

/// The least that has to stand before services.
const HEAD: &str = "schema = 1\n[agent]\ninterfaces = [\"eth0\"]\n";

/// A service to which keys and tables can be added.
const WEB: &str = "[[service]]\nname = \"web\"\naddress = \"192.0.2.10\"\nport = 80\nprotocol = \"tcp\"\n\
                   forward = \"dsr-l2\"\n";

const BACKEND: &str = "[[service.backend]]\naddress = \"10.0.1.11\"\n";

fn parsed(text: &str) -> Config {
    Config::parse(text).unwrap_or_else(|faults| panic!("{faults}\nin\n{text}"))
}
