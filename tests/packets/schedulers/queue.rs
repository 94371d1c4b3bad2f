//! The schedulers against a model of unequal backends: connections arrive at random, their work is random, and a
//! backend shares its speed among the connections that it has. The real program chooses, from real packets.

use std::collections::BTreeMap;
use std::fmt::Write;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use xlb::model::Protocol;

use super::Stage;

/// Work a second that each backend does. Weights are equal: nobody told the load balancer.
const SPEEDS: [f64; 6] = [1.0, 1.0, 1.0, 1.0, 0.5, 0.25];
/// Of all the speed there is.
const UTILISATION: f64 = 0.7;

#[derive(Default)]
struct Course {
    /// Seconds from SYN to the end, of each connection that ended, sorted.
    seconds: Vec<f64>,
    /// Connections on each backend, by the time.
    active: Vec<(f64, [usize; SPEEDS.len()])>,
    /// What the program believed of active flows, at the end.
    believed: Vec<u64>,
    left: [usize; SPEEDS.len()],
}

impl Course {
    fn quantile(&self, share: f64) -> f64 {
        self.seconds[((self.seconds.len() - 1) as f64 * share) as usize]
    }

    fn mean(&self) -> f64 {
        self.seconds.iter().sum::<f64>() / self.seconds.len() as f64
    }
}

fn exponential(random: &mut StdRng, mean: f64) -> f64 {
    -mean * (1.0 - random.random::<f64>()).ln()
}

/// `connections` arrivals.
fn run(scheduler: &str, connections: u32) -> Option<Course> {
    let stage = Stage::new(scheduler, Protocol::Tcp, &[1; SPEEDS.len()])?;
    let mut random = StdRng::seed_from_u64(11);
    let between = 1.0 / (SPEEDS.iter().sum::<f64>() * UTILISATION);
    // For each backend its connections: client, and work that is left and when it came.
    let mut at: [BTreeMap<u32, (f64, f64)>; SPEEDS.len()] = Default::default();
    let mut course = Course::default();
    let (mut now, mut arrival) = (0.0, 0.0);
    let mut client = 0;
    while client < connections {
        // Whoever is done first, at the speed of now.
        let first = at
            .iter()
            .enumerate()
            .filter_map(|(backend, there)| {
                let (who, least) = there
                    .iter()
                    .map(|(who, (work, _))| (*who, *work))
                    .min_by(|a, b| a.1.total_cmp(&b.1))?;
                Some((backend, who, now + least * there.len() as f64 / SPEEDS[backend]))
            })
            .min_by(|a, b| a.2.total_cmp(&b.2));
        let next = first.map_or(arrival, |(_, _, end)| end.min(arrival));
        for (there, speed) in at.iter_mut().zip(SPEEDS) {
            let share = (next - now) * speed / there.len().max(1) as f64;
            for (work, _) in there.values_mut() {
                *work -= share;
            }
        }
        now = next;
        match first {
            Some((backend, who, end)) if end <= arrival => {
                let (_, since) = at[backend].remove(&who).expect("it was there");
                assert_eq!(stage.fin(who, 200), backend, "a connection stays");
                course.seconds.push(now - since);
            }
            _ => {
                let backend = stage.syn(client, 100);
                assert_eq!(stage.data(client, 101), backend, "a connection stays");
                at[backend].insert(client, (exponential(&mut random, 1.0), now));
                client += 1;
                arrival = now + exponential(&mut random, between);
                course.active.push((now, std::array::from_fn(|n| at[n].len())));
            }
        }
    }
    course.left = std::array::from_fn(|n| at[n].len());
    course.believed = (0..SPEEDS.len()).map(|n| stage.active(n)).collect();
    course.seconds.sort_by(f64::total_cmp);
    Some(course)
}

#[test]
fn least_connections_and_two_choices_spare_slow_backends() {
    let mut means = BTreeMap::new();
    for scheduler in ["rr", "random", "twos", "lc"] {
        let Some(course) = run(scheduler, 4000) else {
            return;
        };
        println!(
            "{scheduler:>7}: mean {:.2} s, 99 % {:.2} s, left {:?}",
            course.mean(),
            course.quantile(0.99),
            course.left
        );
        if scheduler != "rr" && scheduler != "random" {
            let left: Vec<_> = course.left.iter().map(|n| *n as u64).collect();
            assert_eq!(
                course.believed, left,
                "every SYN and FIN was seen: the estimate is exact"
            );
        }
        means.insert(scheduler, course.mean());
    }
    // The slowest backend gets a sixth of the connections of the blind ones, more than it can do.
    assert!(
        means["lc"] < means["twos"] && means["twos"] < means["rr"] / 2.0,
        "{means:?}"
    );
    assert!(means["lc"] < means["random"] / 2.0, "{means:?}");
}

/// Draws `docs/schedulers.svg`.
#[test]
#[ignore = "writes a picture"]
fn draw() {
    const CONNECTIONS: u32 = 20_000;
    let mut lines = String::new();
    let colours = [
        ("rr", "#c0392b"),
        ("random", "#e08e0b"),
        ("twos", "#2471a3"),
        ("lc", "#1e8449"),
    ];
    let (width, height, left, bottom) = (640.0, 320.0, 60.0, 40.0);
    // Seconds from 0.1 to 1000 and shares from 1 to 0.0005, both by their logarithms.
    let x = |seconds: f64| left + (seconds.max(0.1).log10() + 1.0) / 4.0 * (width - left - 20.0);
    let y = |share: f64| 20.0 + (-share.max(0.0005).log10() / 3.3) * (height - bottom - 20.0);
    for (n, (scheduler, colour)) in colours.iter().enumerate() {
        let Some(course) = run(scheduler, CONNECTIONS) else {
            return;
        };
        println!(
            "| `{scheduler}` | {:.2} | {:.2} | {:.2} | {} |",
            course.mean(),
            course.quantile(0.5),
            course.quantile(0.99),
            course.active.iter().map(|(_, a)| a[5]).max().unwrap_or(0),
        );
        let mut path = String::new();
        for step in 0..=200 {
            let share = 10_f64.powf(-3.3 * f64::from(step) / 200.0);
            let seconds = course.quantile(1.0 - share);
            let _ = write!(path, "{:.1},{:.1} ", x(seconds), y(share));
        }
        let _ = writeln!(
            lines,
            "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{scheduler}</text>",
            width - 90.0,
            40.0 + 18.0 * n as f64
        );
    }
    for decade in [0.1, 1.0, 10.0, 100.0, 1000.0] {
        let _ = writeln!(
            lines,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{decade}</text>\
             <line x1=\"{0:.1}\" x2=\"{0:.1}\" y1=\"20\" y2=\"{}\" stroke=\"#ddd\"/>",
            x(decade),
            height - 22.0,
            height - bottom
        );
    }
    for (share, label) in [(1.0, "1"), (0.1, "0.1"), (0.01, "0.01"), (0.001, "0.001")] {
        let _ = writeln!(
            lines,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\
             <line x1=\"{left}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>",
            left - 6.0,
            y(share) + 4.0,
            width - 20.0
        );
    }
    let (middle, across) = (height / 2.0 - 10.0, width / 2.0);
    let under = height - 6.0;
    let svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{lines}\
         <text x=\"{across}\" y=\"{under}\" text-anchor=\"middle\">seconds from SYN to the end</text>\n\
         <text x=\"14\" y=\"{middle}\" transform=\"rotate(-90 14 {middle})\" text-anchor=\"middle\">\
         share that took longer</text>\n</svg>\n"
    );
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/schedulers.svg");
    std::fs::write(path, svg).expect("writing the picture");
}
