//! More backends than there is room for.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use xlb::config::Config;
use xlb::datapath::Error;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::simulate::{self, Simulator};

use crate::build::{PAYLOAD, syn, tcp_in, v4};
use crate::world::{options, world_with};

const ROOM: usize = 8;

/// A service with the backends 10.0.1.N.
fn with(backends: impl IntoIterator<Item = u8>) -> Config {
    let mut text = format!(
        "schema = 1\n[agent]\ninterfaces = [\"lo\"]\nmax_services = 2\nmax_backends = {ROOM}\n\
         [[service]]\nname = \"web\"\naddress = \"192.0.2.20\"\nport = 80\nprotocol = \"tcp\"\n\
         forward = \"dsr-ipip\"\ncheck = {{ type = \"none\" }}\n"
    );
    for n in backends {
        writeln!(text, "[[service.backend]]\naddress = \"10.0.1.{n}\"").expect("a string");
    }
    Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

fn served_by(world: &mut Simulator) -> BTreeSet<IpAddr> {
    (0..400)
        .map(|n| {
            let packet = tcp_in(v4("192.0.2.20"), syn(40_000 + n, 80), PAYLOAD);
            let outcome = world.packet(&packet).expect("an outcome");
            outcome.backend.expect("a backend").ip()
        })
        .collect()
}

fn addresses(backends: impl IntoIterator<Item = u8>) -> BTreeSet<IpAddr> {
    backends.into_iter().map(|n| [10, 0, 1, n].into()).collect()
}

#[test]
fn who_has_a_place_goes_on_where_others_find_none() {
    let ours = 1..=ROOM as u8;
    let Some(mut world) = world_with(&with(ours.clone()), &options()) else {
        return;
    };
    assert_eq!(served_by(&mut world), addresses(ours.clone()));
    // The last two of them are gone, and two others come: there is an index for neither.
    let stay = 1..ROOM as u8 - 1;
    let next = with(stay.clone().chain([101, 102]));
    let wanted = simulate::desired(&next, &options(), &world.dataplane);
    let refused = world
        .dataplane
        .apply(&wanted, &monotonic_ns)
        .expect_err("no room");
    assert!(matches!(refused, Error::Full { .. }), "{refused}");
    assert_eq!(served_by(&mut world), addresses(ours));
    world
        .dataplane
        .apply_known(&wanted, &monotonic_ns)
        .expect("writing");
    assert_eq!(served_by(&mut world), addresses(stay));
}
