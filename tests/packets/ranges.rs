//! Services of a range of ports.

use lb_common::reason::Reason;
use xlb::config::Config;
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::simulate::{self, Simulator};

use crate::build::{PAYLOAD, syn, tcp_in, udp_in, v4, v6};
use crate::pins::desired;
use crate::world::{config, config_of, options, send, world, world_with};

fn named(world: &mut Simulator, packet: &[u8]) -> Option<String> {
    let outcome = send(world, "a packet", packet);
    let forwarded = outcome.reason == Reason::Transmitted;
    assert!(
        forwarded || outcome.reason == Reason::NotService,
        "{:?}",
        outcome.reason
    );
    outcome.service
}

#[test]
fn the_narrowest_service_takes_a_packet() {
    let Some(mut world) = world(false) else { return };
    for (port, name) in [
        (7999, None),
        (8000, Some("4in4-range")),
        (8049, Some("4in4-range")),
        (8050, Some("gue-in-range")),
        (8051, Some("4in4-range")),
        (8100, Some("4in4-range")),
        (8101, None),
        (443, Some("4in4")),
    ] {
        let packet = tcp_in(v4("192.0.2.20"), syn(40_000, port), PAYLOAD);
        assert_eq!(named(&mut world, &packet).as_deref(), name, "{port}");
    }
    for (port, name) in [
        (8999, "every-port-v6"),
        (9000, "range-of-every-port"),
        (9007, "range-of-every-port"),
        (9008, "every-port-v6"),
    ] {
        let packet = udp_in(v6("2001:db8::40"), 40_000, port, PAYLOAD);
        assert_eq!(named(&mut world, &packet).as_deref(), Some(name), "{port}");
    }
    // Another protocol, another address.
    let packet = udp_in(v4("192.0.2.20"), 40_000, 8033, PAYLOAD);
    assert_eq!(named(&mut world, &packet), None);
    let packet = tcp_in(v4("192.0.2.10"), syn(40_000, 8033), PAYLOAD);
    assert_eq!(named(&mut world, &packet), None);
}

fn with_range(port: &str) -> Config {
    let text = format!(
        "schema = 1\n[agent]\ninterfaces = [\"lo\"]\nmax_services = 64\nmax_backends = 64\n\
         [[service]]\nname = \"range\"\naddress = \"192.0.2.20\"\nport = {port}\nprotocol = \"tcp\"\n\
         forward = \"dsr-l2\"\ncheck = {{ type = \"none\" }}\nbackend = [{{ address = \"10.0.1.11\" }}]\n"
    );
    Config::parse(&text).unwrap_or_else(|faults| panic!("{faults}\n{text}"))
}

#[test]
fn a_range_that_changes_has_its_ports_and_no_others() {
    let Some(mut world) = world_with(&with_range("\"100-200\""), &options()) else {
        return;
    };
    for (port, first, last) in [
        ("\"100-107\"", 100, 107),
        ("\"100-65535\"", 100, 65535),
        ("\"100-103\"", 100, 103),
        ("\"104-111\"", 104, 111),
        ("104", 104, 104),
        ("\"1-65534\"", 1, 65534),
    ] {
        let config = with_range(port);
        let wanted = simulate::desired(&config, &options(), &world.dataplane);
        world.dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        for probe in [
            1, 99, 100, 103, 104, 107, 108, 111, 112, 200, 201, 40_000, 65534, 65535,
        ] {
            let packet = tcp_in(v4("192.0.2.20"), syn(40_000, probe), PAYLOAD);
            let expected = match (first..=last).contains(&probe) {
                true => Reason::Transmitted,
                false => Reason::NotService,
            };
            let outcome = world.packet(&packet).expect("an outcome");
            assert_eq!(outcome.reason, expected, "{probe} of {port}");
        }
    }
    let nothing = simulate::desired(&config_of(&[], false), &options(), &world.dataplane);
    world.dataplane.apply(&nothing, &monotonic_ns).expect("writing");
    assert!(world.dataplane.maps.ranges.is_empty());
    let packet = tcp_in(v4("192.0.2.20"), syn(40_000, 500), PAYLOAD);
    assert_eq!(
        world.packet(&packet).expect("an outcome").reason,
        Reason::NotService
    );
}

/// What pins hold after a restart is what an agent wrote: the tree is read again.
#[test]
fn the_tree_is_known_again_after_a_restart() {
    crate::pins::apart(|| {
        let path = std::path::Path::new(crate::pins::PIN_DIR);
        let pins = xlb::datapath::pins::PinDir::create(path).expect("a folder");
        let maps =
            xlb::datapath::maps::Maps::of(&mut crate::pins::load(&pins), crate::pins::SIZES, Some(&pins));
        let mut dataplane =
            xlb::datapath::apply::Dataplane::adopt(maps.expect("maps"), monotonic_ns()).expect("maps");
        let wanted = desired(&config(false), &dataplane);
        dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        let before = dataplane.maps.ranges.last_ports();
        assert_eq!(before.values().copied().collect::<Vec<_>>(), [8100, 9007]);
        drop(dataplane);

        let maps = xlb::datapath::maps::Maps::open(&pins).expect("maps");
        assert_eq!(maps.ranges.last_ports(), before);
        let mut again = xlb::datapath::apply::Dataplane::adopt(maps, monotonic_ns()).expect("maps");
        let none = desired(&config_of(&[], false), &again);
        again.apply(&none, &monotonic_ns).expect("writing");
        assert!(again.maps.ranges.is_empty());
    });
}
