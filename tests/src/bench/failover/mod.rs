//! `failover`: from a death to packets elsewhere, for one backend and for many at once, beside HAProxy and keepalived.
//!
//! All products check the same servers in the same namespaces. With fast settings they take turns, so that none pays
//! for the probes of another; with their defaults, where a round would take minutes, they run side by side.

pub(super) mod arena;
mod haproxy;
mod keepalived;
mod ours;
mod product;

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use xlb::lab::load::{Attempts, Load, LoadOptions};

use self::arena::{Arena, Death, Pool};
use self::product::{Product, Seen, Setting};
use super::result::{Better, Fact, PartResult, Row};

/// How much of it.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// How often each death happens.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// How many backends die at once where many do.
    #[arg(long, value_name = "N")]
    backends: Option<u16>,
    /// Only with these settings of the checks.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "SETTING")]
    settings: Vec<Which>,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PRODUCT")]
    products: Vec<Name>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Which {
    Defaults,
    Fast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    Xlb,
    Haproxy,
    Keepalived,
}

/// Connections a second to each target.
const CONNECTIONS_PER_S: u32 = 200;

/// What is added to a bound: switching the tables, and seeing the first packet.
const SLACK: Duration = Duration::from_millis(50);

/// Samples in milliseconds, by row.
type Samples = BTreeMap<(String, String), Vec<f64>>;

/// Measures.
///
/// # Errors
/// Where the network cannot be made, or a product does not find out what died.
pub fn run(quick: bool, options: &Options) -> anyhow::Result<PartResult> {
    let rounds = options.rounds.unwrap_or(if quick { 1 } else { 10 });
    let many = options.backends.unwrap_or(if quick { 100 } else { 1000 });
    let mut settings = vec![];
    for (which, setting) in [(Which::Fast, Setting::Fast), (Which::Defaults, Setting::Defaults)] {
        if options.settings.contains(&which)
            || options.settings.is_empty() && !(quick && which == Which::Defaults)
        {
            settings.push(setting);
        }
    }
    let (products, skipped) = products(options);
    for line in &skipped {
        println!("  skipped: {line}");
    }
    let mut arena = Arena::set_up(many)?;
    let mut samples = Samples::new();
    let mut faults = Vec::new();
    for round in 0..rounds {
        for setting in &settings {
            match setting {
                Setting::Fast => {
                    for offset in 0..products.len() {
                        let name = products[(round + offset) % products.len()];
                        let mut running = vec![start(name, &arena, *setting)?];
                        for pool in Pool::ALL {
                            for death in Death::ALL {
                                happen(
                                    &mut arena,
                                    *setting,
                                    death,
                                    &[pool],
                                    &mut running,
                                    &mut samples,
                                    &mut faults,
                                )?;
                            }
                        }
                    }
                }
                Setting::Defaults => {
                    let mut running = Vec::new();
                    for name in &products {
                        running.push(start(*name, &arena, *setting)?);
                    }
                    for death in Death::ALL {
                        happen(
                            &mut arena,
                            *setting,
                            death,
                            &Pool::ALL,
                            &mut running,
                            &mut samples,
                            &mut faults,
                        )?;
                    }
                }
            }
        }
        println!("  round {} of {rounds}", round + 1);
    }
    let wrong = arena.lab.checksum_errors()? + arena.lab.tx_errors()?;
    if wrong > 0 {
        faults.push(format!(
            "{wrong} packets were damaged or lost by the network itself"
        ));
    }
    Ok(result(rounds, many, samples, faults, skipped))
}

fn products(options: &Options) -> (Vec<Name>, Vec<String>) {
    let mut products = Vec::new();
    let mut skipped = Vec::new();
    for name in [Name::Xlb, Name::Haproxy, Name::Keepalived] {
        if !options.products.is_empty() && !options.products.contains(&name) {
            continue;
        }
        let (label, program, why_not) = match name {
            Name::Xlb => ("xlb", None, None),
            Name::Haproxy => ("HAProxy", Some("haproxy"), None),
            Name::Keepalived => ("keepalived", Some("keepalived"), keepalived::missing()),
        };
        let why_not = why_not.or_else(|| {
            let program = program?;
            (!super::installed(program)).then(|| format!("not measured: {program} is not installed"))
        });
        match why_not {
            Some(why) => skipped.push(format!("{label}: {why}")),
            None => products.push(name),
        }
    }
    (products, skipped)
}

fn start(name: Name, arena: &Arena, setting: Setting) -> anyhow::Result<Box<dyn Product>> {
    Ok(match name {
        Name::Xlb => Box::new(ours::Ours::start(arena, setting)?),
        Name::Haproxy => Box::new(haproxy::Haproxy::start(arena, setting)?),
        Name::Keepalived => Box::new(keepalived::Keepalived::start(arena, setting)?),
    })
}

/// Lets backends die under load, notes what everybody saw, and revives them.
fn happen(
    arena: &mut Arena,
    setting: Setting,
    death: Death,
    pools: &[Pool],
    products: &mut [Box<dyn Product>],
    samples: &mut Samples,
    faults: &mut Vec<String>,
) -> anyhow::Result<()> {
    for product in &mut *products {
        wait(product.name(), "to find all backends UP", || {
            product.all_up(arena).map(|up| up.then_some(()))
        })?;
        product.begin()?;
    }
    let mut targets = Vec::new();
    for product in &*products {
        targets.extend(pools.iter().map(|pool| product.target(*pool)));
    }
    let load = Load::start(
        &arena.lab.client.netns,
        LoadOptions {
            connections_per_s: CONNECTIONS_PER_S * targets.len() as u32,
            longest: PATIENCE + Duration::from_secs(10),
            ..LoadOptions::new(targets)
        },
    )?;
    // Not always at the same moment between two probes.
    thread::sleep(Duration::from_millis(300) + jitter());
    let (death_at, clock) = (Instant::now(), SystemTime::now());
    for pool in pools {
        arena.die(*pool, death)?;
    }
    // To be asked costs a product processor time, which it needs now.
    thread::sleep(setting.interval() + bound(setting, death) + SLACK);
    let mut seen: Vec<(usize, Pool, Seen)> = Vec::new();
    for (n, product) in products.iter_mut().enumerate() {
        for pool in pools {
            let found = wait(product.name(), "to find the dead", || product.seen(arena, *pool))?;
            seen.push((n, *pool, found));
        }
    }
    thread::sleep(Duration::from_millis(200));
    let attempts = load.finish()?;
    for (n, pool, seen) in seen {
        let product = &products[n];
        let size = match pool {
            Pool::One => "1 backend".to_owned(),
            Pool::Many => format!("{} backends", arena.many),
        };
        let group = format!("{}, {size}, {setting}", death.text());
        let mut note = |what: &str, value: Duration| {
            let key = (group.clone(), format!("{}, {what}", product.name()));
            samples.entry(key).or_default().push(value.as_secs_f64() * 1000.0);
        };
        let target = product.target(pool);
        let mut ours = attempts.clone();
        ours.0.retain(|attempt| attempt.target == target);
        note(
            "death to the last failed connection",
            ours.last_failure_after(death_at).unwrap_or_default(),
        );
        let out = seen.last_out.duration_since(clock).unwrap_or_default();
        note("death to the last one out", out);
        if let Some(stray) = stray(&ours, death_at + out + SLACK) {
            println!("  {group}, {}: {stray}", product.name());
        }
        if let Some(out) = seen.first_bad_to_out {
            note("first failing probe to out", out);
        }
        if let (Pool::One, Some(packet)) = (pool, seen.first_bad_to_packet) {
            note("first failing probe to packets elsewhere", packet);
        }
        // While many die, the packets that are looked for go to others that are dead as well.
        let promised = match pool {
            Pool::One => seen.first_bad_to_packet,
            Pool::Many => seen.first_bad_to_packet.and(seen.first_bad_to_out),
        };
        let bound = bound(setting, death) + SLACK;
        if let Some(took) = promised.filter(|took| *took > bound) {
            faults.push(format!(
                "{group}: packets went elsewhere {} ms after the first failing probe began, at most {} ms were promised",
                took.as_millis(),
                bound.as_millis()
            ));
        }
    }
    for pool in pools {
        arena.revive(*pool, death)?;
    }
    Ok(())
}

/// What there is to say of connections that failed although nobody was to be sent to the dead any longer.
fn stray(attempts: &Attempts, after: Instant) -> Option<String> {
    let later = attempts.since(after);
    let last = later.last_failure()?;
    Some(format!(
        "{} of {} connections failed that began {} ms and more after the last one was out, the last one {} ms after: {}",
        later.failed(),
        later.attempted(),
        SLACK.as_millis(),
        (last.started - after + SLACK).as_millis(),
        last.outcome.as_ref().err()?,
    ))
}

/// From the start of the first failing probe to the verdict, by our settings.
fn bound(setting: Setting, death: Death) -> Duration {
    let (timeout, fast_interval, fast_timeout) = match setting {
        Setting::Defaults => (1000, 200, 300),
        Setting::Fast => (100, 50, 100),
    };
    let ms = match death {
        Death::Refused => 2 * fast_interval,
        Death::Silent => timeout + 2 * std::cmp::max(fast_interval, fast_timeout),
    };
    Duration::from_millis(ms)
}

/// keepalived takes more than a minute with its defaults.
const PATIENCE: Duration = Duration::from_secs(150);

fn wait<T>(who: &str, what: &str, mut ask: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(answer) = ask().with_context(|| who.to_owned())? {
            return Ok(answer);
        }
        thread::sleep(Duration::from_millis(20));
    }
    bail!("waited {} s for {who} {what}", PATIENCE.as_secs())
}

/// Up to the longest interval of fast checks.
fn jitter() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Duration::from_millis(u64::from(now.unwrap_or_default().subsec_micros()) % 200)
}

fn result(
    rounds: usize,
    many: u16,
    samples: Samples,
    faults: Vec<String>,
    skipped: Vec<String>,
) -> PartResult {
    let rows = samples.into_iter().map(|((group, name), samples)| Row {
        group,
        name,
        unit: "ms".into(),
        better: Better::Lower,
        samples,
    });
    let fact = |name: &str, value: String| Fact {
        name: name.into(),
        value,
    };
    let mut setting = vec![
        fact("rounds", rounds.to_string()),
        fact("load", format!("{CONNECTIONS_PER_S} connections a second to each product and pool")),
        fact("pools", format!("one backend of 2 dies, or {many} of {}", many + 1)),
        fact(
            "fast",
            "a probe each 200 ms, each 50 ms after a failure, 100 ms for an answer, three failures".into(),
        ),
        fact(
            "out",
            "xlb: the table without it is in force (events); HAProxy: its log says DOWN; keepalived: gone from IPVS. \
             Of many the last, or the slowest"
                .into(),
        ),
    ];
    setting.extend(skipped.into_iter().map(|line| fact("skipped", line)));
    PartResult {
        part: "failover".into(),
        setting,
        rows: rows.collect(),
        faults,
        ..PartResult::default()
    }
}
