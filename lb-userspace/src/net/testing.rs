//! Network namespaces for tests. Each lives as long as a thread and the links in it do: nothing is
//! left behind, whatever a test does.

use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, unshare};

type Job = Box<dyn FnOnce(&tokio::runtime::Runtime) + Send>;

/// A network namespace of its own, with a thread and a runtime inside.
pub struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    thread_id: i32,
}

impl Namespace {
    /// `None`, with the reason printed, where this process may not make one.
    pub fn or_skip(test: &str) -> Option<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (report, made) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let result = unshare(CloneFlags::CLONE_NEWNET);
            let failed = result.is_err();
            report
                .send(result.map(|()| nix::unistd::gettid().as_raw()))
                .unwrap();
            if failed {
                return;
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            for job in queue {
                job(&runtime);
            }
        });
        match made.recv().unwrap() {
            Ok(thread_id) => {
                let namespace = Self {
                    jobs: Some(jobs),
                    thread: Some(thread),
                    thread_id,
                };
                namespace.ip("link set lo up");
                Some(namespace)
            }
            Err(errno) => {
                eprintln!("SKIPPED {test}: needs root to make a network namespace ({errno})");
                None
            }
        }
    }

    /// Two namespaces joined by a cable; the interface is `eth0` in both.
    pub fn pair_or_skip(test: &str) -> Option<(Self, Self)> {
        let (one, other) = (Self::or_skip(test)?, Self::or_skip(test)?);
        one.ip(&format!(
            "link add eth0 type veth peer name eth0 netns {}",
            other.thread_id
        ));
        for namespace in [&one, &other] {
            namespace.ip("link set eth0 addrgenmode none");
            namespace.ip("link set eth0 up");
        }
        // Neighbour solicitations need a link-local address; one that the kernel makes by itself
        // is tentative for a second or two, and IPv6 stands still that long.
        one.ip("address add fe80::1/64 dev eth0 nodad");
        other.ip("address add fe80::2/64 dev eth0 nodad");
        for (namespace, group) in [(&one, "ff02::1:ff00:1"), (&other, "ff02::1:ff00:2")] {
            // The kernel takes its time to act on a new carrier and to listen for solicitations.
            namespace.wait_for("link show dev eth0", "state UP");
            namespace.wait_for("maddress show dev eth0", group);
        }
        Some((one, other))
    }

    /// Runs a future inside and returns what it returns. A panic inside fails the test.
    pub fn run<T, F>(&self, work: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move |runtime| {
            let value = runtime.block_on(work());
            let _ = answer.send(value);
        });
        self.jobs.as_ref().unwrap().send(job).unwrap();
        result.recv().expect("the work in the namespace panicked")
    }

    /// Waits until the output of an `ip` command contains a text.
    pub fn wait_for(&self, arguments: &str, text: &'static str) {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        self.run(move || async move {
            while !ip(&arguments).contains(text) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        });
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        self.run(move || async move {
            ip(&arguments);
        });
    }
}

/// Runs `ip` in the namespace of the calling thread and returns what it prints.
pub fn ip(arguments: &[impl AsRef<std::ffi::OsStr> + std::fmt::Debug]) -> String {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .expect("`ip` of iproute2 is needed");
    assert!(output.status.success(), "ip {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same, with the arguments in one line.
pub fn run_ip(arguments: &str) -> String {
    ip(&arguments.split_whitespace().collect::<Vec<_>>())
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
