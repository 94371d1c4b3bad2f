//! Programs on interfaces and objects in pins, on a veth pair in a namespace of the test's own, with a BPF file
//! system that nobody else sees.
//!
//! ```text
//!   near ---- far     XDP goes on `near`
//! ```

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::Path;
use std::str::FromStr;
use std::time::Instant;

use aya::Ebpf;
use aya::programs::{Xdp, XdpMode as Mode};
use lb_common::decap::Outcome;
use lb_common::hash::HashKey;
use lb_tests::netns::Netns;
use lb_tests::wait::wait_until;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use xlb::config::{Config, XdpMode};
use xlb::control::{self, BackendStatus, Inputs};
use xlb::datapath::apply::{ChangeKind, Dataplane};
use xlb::datapath::attach::{self, Target};
use xlb::datapath::clock::monotonic_ns;
use xlb::datapath::load::{self, Features, Sizes};
use xlb::datapath::maps::{self, Maps};
use xlb::datapath::pins::PinDir;
use xlb::datapath::simulate::{Options, hops};
use xlb::datapath::{Error, decap, object};
use xlb::model::OperState;

use crate::world::{config, root};

pub const PIN_DIR: &str = "/sys/fs/bpf/xlb";
pub const SIZES: Sizes = Sizes {
    services: 64,
    backends: 256,
    flows: 262_144,
    cached_flows: 4096,
    clients: 4096,
    nat_flows: 1024,
};
pub const KEY: HashKey = HashKey([5; 8]);

/// Runs a test beside a veth pair, with an empty BPF file system. Everything is gone with its thread.
pub fn apart(test: impl FnOnce() + Send) {
    if !root() {
        return;
    }
    let netns = Netns::new("pins").expect("a namespace");
    netns
        .ip("link add near type veth peer name far\nlink set near up\nlink set far up")
        .expect("a veth pair");
    netns.enter(|| {
        unshare(CloneFlags::CLONE_NEWNS).expect("mounts of our own");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
        let none = MsFlags::empty();
        mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), none, None::<&str>).expect("a BPF file system");
        test();
    });
}

fn ifindex(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("the device")
}

fn target(present: Option<(u32, bool)>) -> Target<'static> {
    Target {
        interface: "near",
        ifindex: ifindex("near"),
        present,
    }
}

/// The id of the XDP program on a device, as the kernel lists it.
fn program_on(device: &str) -> Option<u32> {
    let mut ip = std::process::Command::new("ip");
    let output = ip
        .args(["-j", "link", "show", device])
        .output()
        .expect("running ip");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let id = links[0]["xdp"]["prog"]["id"].as_u64();
    id.map(|id| id.try_into().expect("32 bits"))
}

/// The kernel lets go of a link some time after its last holder did.
fn wait_until_free(device: &str) {
    wait_until("the program to go", || Ok(program_on(device).is_none())).expect("no program");
}

pub fn load(pins: &PinDir) -> Ebpf {
    let mut ebpf = load::load(Features::default(), &KEY, SIZES, Some(pins)).expect("an object that loads");
    attach::verify(&mut ebpf, "lb").expect("a program that loads");
    ebpf
}

/// Everything attached and pinned as the agent does it.
fn install(present: Option<(u32, bool)>) -> Result<attach::Attachment, Error> {
    let pins = PinDir::create(Path::new(PIN_DIR))?;
    let mut ebpf = load(&pins);
    Maps::of(&mut ebpf, SIZES, Some(&pins))?;
    let attachment = attach::attach(&mut ebpf, "lb", &pins, target(present), XdpMode::Auto)?;
    attach::pin_program(&mut ebpf, "lb", &pins)?;
    Ok(attachment)
}

/// A program that is not ours.
fn foreign() -> (Ebpf, u32) {
    let mut ebpf = Ebpf::load(object::harness()).expect("an object that loads");
    let program: &mut Xdp = ebpf
        .program_mut("floor")
        .expect("the program")
        .try_into()
        .expect("XDP");
    program.load().expect("a program that loads");
    program.attach("near", Mode::Driver).expect("attaching");
    let id = program.info().expect("its information").id();
    (ebpf, id)
}

#[test]
fn the_program_stays_without_us_and_goes_with_the_pins() {
    apart(|| {
        let attachment = install(None).expect("attaching");
        assert!(attachment.native);
        // Nothing of ours is open any longer.
        assert_eq!(program_on("near"), Some(attachment.program_id));
        fs::remove_dir_all(PIN_DIR).expect("rm -r");
        wait_until_free("near");
    });
}

#[test]
fn a_later_version_replaces_the_program_through_its_link() {
    apart(|| {
        let first = install(None).expect("attaching");
        let second = install(Some((first.program_id, first.native))).expect("attaching again");
        assert_ne!(first.program_id, second.program_id);
        assert_eq!(program_on("near"), Some(second.program_id));
        let pins = PinDir::open(Path::new(PIN_DIR)).expect("pins");
        assert_eq!(pins.links().expect("a list"), ["near"]);
        attach::detach(&pins, "near").expect("detaching");
        assert_eq!(program_on("near"), None);
        pins.remove().expect("removing the rest");
        assert!(!Path::new(PIN_DIR).exists());
    });
}

#[test]
fn a_foreign_program_is_refused_with_its_id() {
    apart(|| {
        let (theirs, id) = foreign();
        let error = install(Some((id, true))).expect_err("a foreign program");
        assert!(
            matches!(error, Error::ForeignProgram { program_id, .. } if program_id == id),
            "{error}"
        );
        assert!(error.to_string().contains(&id.to_string()), "{error}");
        // Somebody came between our look and our attaching.
        install(None).expect_err("a foreign program");
        assert_eq!(program_on("near"), Some(id));
        drop(theirs);
        wait_until_free("near");
        install(None).expect("the interface is free");
    });
}

#[test]
fn an_interface_that_was_made_again_gets_the_program_again() {
    apart(|| {
        install(None).expect("attaching");
        let ip = |line| lb_tests::netns::ip(None, line).expect("ip");
        ip("link delete near\nlink add near type veth peer name far\nlink set near up\nlink set far up");
        assert_eq!(program_on("near"), None);
        let again = install(None).expect("attaching again");
        assert_eq!(program_on("near"), Some(again.program_id));
    });
}

#[test]
fn a_pinned_map_of_another_layout_is_refused() {
    apart(|| {
        let pins = PinDir::create(Path::new(PIN_DIR)).expect("a folder");
        drop(Maps::of(&mut load(&pins), SIZES, Some(&pins)).expect("maps"));
        pins.verify().expect("our own layout");
        let path = pins.path("backends");
        fs::remove_file(&path).expect("removing the pin");
        let other = load::load(Features::default(), &KEY, SIZES, None).expect("an object that loads");
        other
            .map("RECORDS")
            .expect("the map")
            .pin(&path)
            .expect("pinning");
        for error in [
            pins.verify().expect_err("another layout"),
            Maps::open(&pins).err().expect("another layout"),
        ] {
            assert!(
                matches!(&error, Error::LayoutMismatch { path: found, .. } if *found == path),
                "{error}"
            );
            assert!(error.to_string().contains("value 16 B"), "{error}");
        }
    });
}

#[test]
fn a_second_agent_finds_the_folder_locked() {
    apart(|| {
        let pins = PinDir::create(Path::new(PIN_DIR)).expect("a folder");
        let first = pins.lock().expect("the lock");
        assert!(matches!(pins.lock(), Err(Error::Locked { .. })));
        drop(first);
        pins.lock().expect("free again");
    });
}

#[test]
fn folders_elsewhere_are_refused() {
    apart(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let error = PinDir::create(&folder.path().join("xlb")).expect_err("no BPF file system");
        assert!(matches!(error, Error::NotBpffs { .. }), "{error}");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
        assert!(matches!(
            PinDir::open(folder.path()),
            Err(Error::NothingPinned { .. })
        ));
    });
}

/// What the agent wants with every backend UP.
pub fn desired(config: &Config, dataplane: &Dataplane) -> control::Desired {
    let up = BackendStatus {
        state: OperState::Up,
        runtime_weight: Some(7),
        ever_up: true,
        ..BackendStatus::UNSEEN
    };
    let all = || {
        config
            .services
            .iter()
            .flat_map(|s| s.backends.iter().map(move |b| (s, b)))
    };
    let egress = all()
        .map(|(_, backend)| (backend.address, ifindex("near")))
        .collect();
    let options = Options {
        egress,
        ..Options::default()
    };
    control::desired(&Inputs {
        services: &config.services,
        statuses: &all()
            .map(|(service, backend)| (backend.id(service.key), up))
            .collect(),
        hops: &hops(config, &options),
        earlier: &dataplane.earlier(),
        backups: &BTreeSet::new(),
        vlans: config.has_vlans(),
        interfaces: None,
        now: Instant::now(),
    })
}

#[test]
fn the_next_agent_adopts_tables_indices_and_states() {
    apart(|| {
        let pins = PinDir::create(Path::new(PIN_DIR)).expect("a folder");
        let config = config(false);
        let maps = Maps::of(&mut load(&pins), SIZES, Some(&pins)).expect("maps");
        let mut dataplane = Dataplane::adopt(maps, monotonic_ns()).expect("empty maps");
        let wanted = desired(&config, &dataplane);
        let changes = dataplane.apply(&wanted, &monotonic_ns).expect("writing");
        assert_eq!(changes.len(), config.services.len());
        assert!(
            changes
                .iter()
                .all(|change| matches!(change.kind, ChangeKind::Added { .. }))
        );
        let look = |dataplane: &Dataplane| {
            let of_service = |service: &xlb::config::Service| {
                let backends = service.backends.iter();
                let indices: Vec<_> = backends.map(|b| dataplane.index_of(&b.id(service.key))).collect();
                (
                    dataplane.owners(&service.key),
                    indices,
                    dataplane.earlier()[&service.key],
                )
            };
            config.services.iter().map(of_service).collect::<Vec<_>>()
        };
        let before = look(&dataplane);
        drop(dataplane);

        let mut adopted =
            Dataplane::adopt(Maps::open(&pins).expect("pinned maps"), monotonic_ns()).expect("adopting");
        assert_eq!(look(&adopted), before);
        for (id, remembered) in adopted.remembered() {
            assert_eq!(remembered.state, OperState::Up, "{id}");
            assert_eq!(remembered.runtime_weight, Some(7), "{id}");
            assert!(remembered.ever_up, "{id}");
        }
        let wanted = desired(&config, &adopted);
        let changes = adopted.apply(&wanted, &monotonic_ns).expect("writing");
        assert_eq!(changes, [], "the same wishes change nothing");
        assert_eq!(look(&adopted), before);
    });
}

#[test]
fn the_hash_key_survives_in_its_pin() {
    apart(|| {
        let pins = PinDir::create(Path::new(PIN_DIR)).expect("a folder");
        assert!(maps::pinned_hash_key(&pins).expect("no pin").is_none());
        maps::pin_hash_key(&pins, &KEY).expect("pinning");
        let found = maps::pinned_hash_key(&pins).expect("the pin").expect("a key");
        assert_eq!(found.0, KEY.0);
    });
}

fn root_of_decap() -> &'static Path {
    Path::new(decap::ROOT)
}

fn nets<N: FromStr<Err: Debug>>(prefixes: &[&str]) -> Vec<N> {
    prefixes
        .iter()
        .map(|net| net.parse().expect("a prefix"))
        .collect()
}

#[test]
fn decap_stays_is_updated_and_goes() {
    apart(|| {
        assert!(matches!(
            decap::status(root_of_decap(), "near"),
            Err(Error::NothingPinned { .. })
        ));
        let first = decap::attach(
            root_of_decap(),
            target(None),
            &nets(&["198.51.100.7/24", "2001:db8::/32"]),
            &[],
            XdpMode::Auto,
        )
        .expect("attaching");
        assert!(first.native);
        assert_eq!(program_on("near"), Some(first.program_id));
        assert_eq!(decap::interfaces(root_of_decap()).expect("a list"), ["near"]);
        let status = decap::status(root_of_decap(), "near").expect("a status");
        assert_eq!(status.prefixes, nets(&["198.51.100.0/24", "2001:db8::/32"]));
        let attached = status.attached.expect("a link");
        assert_eq!(
            (attached.ifindex, attached.program_id),
            (ifindex("near"), first.program_id)
        );
        assert_eq!(status.counts.len(), Outcome::ALL.len());

        let present = Some((first.program_id, true));
        let again = nets(&["2001:db8::/32", "203.0.113.0/24", "2001:db8:5::1/128"]);
        let second = decap::attach(root_of_decap(), target(present), &again, &[], XdpMode::Auto)
            .expect("attaching again");
        assert_eq!(program_on("near"), Some(second.program_id));
        let status = decap::status(root_of_decap(), "near").expect("a status");
        let expected = ["203.0.113.0/24", "2001:db8::/32", "2001:db8:5::1/128"];
        assert_eq!(status.prefixes, nets(&expected));

        decap::detach(root_of_decap(), "near").expect("detaching");
        assert_eq!(program_on("near"), None);
        assert!(!Path::new(decap::ROOT).exists());
        assert!(matches!(
            decap::detach(root_of_decap(), "near"),
            Err(Error::NothingPinned { .. })
        ));
    });
}

#[test]
fn decap_goes_with_its_folder() {
    apart(|| {
        decap::attach(
            root_of_decap(),
            target(None),
            &nets(&["198.51.100.0/24"]),
            &[],
            XdpMode::Generic,
        )
        .expect("attaching");
        assert!(program_on("near").is_some());
        fs::remove_dir_all(decap::ROOT).expect("rm -r");
        wait_until_free("near");
    });
}

#[test]
fn decap_refuses_a_foreign_program_and_leaves_nothing() {
    apart(|| {
        let (_theirs, id) = foreign();
        let error = decap::attach(
            root_of_decap(),
            target(Some((id, true))),
            &nets(&["198.51.100.0/24"]),
            &[],
            XdpMode::Auto,
        )
        .expect_err("a foreign program");
        assert!(
            matches!(error, Error::ForeignProgram { program_id, .. } if program_id == id),
            "{error}"
        );
        assert_eq!(program_on("near"), Some(id));
        assert!(!Path::new(decap::ROOT).exists());
    });
}

#[test]
fn decap_counts_go_on_over_an_update() {
    apart(|| {
        decap::attach(
            root_of_decap(),
            target(None),
            &nets(&["198.51.100.0/24"]),
            &[],
            XdpMode::Auto,
        )
        .expect("attaching");
        let count = || {
            let status = decap::status(root_of_decap(), "near").expect("a status");
            let (_, count) = status.counts[Outcome::NotTunneled as usize];
            count
        };
        // To all nodes on the link: `far` sends, `near` receives.
        let all_nodes = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 9, 0, ifindex("far"));
        let socket = UdpSocket::bind("[::]:0").expect("a socket");
        wait_until("a datagram to be counted", || {
            socket.send_to(b"hello", all_nodes)?;
            Ok(count() > 0)
        })
        .expect("a datagram");
        let before = count();
        decap::attach(
            root_of_decap(),
            target(program_on("near").map(|id| (id, true))),
            &nets(&["203.0.113.0/24"]),
            &[],
            XdpMode::Auto,
        )
        .expect("attaching again");
        assert!(count() >= before);
    });
}
