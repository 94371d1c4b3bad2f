//! Knowing that packets under way are through: what they may have read of can be used again then.
//!
//! A packet's way is a section of the kernel's RCU, and `membarrier(MEMBARRIER_CMD_GLOBAL)` returns when all sections
//! that had begun are over (`synchronize_rcu` in kernel/sched/membarrier.c), after some milliseconds. So a thread waits,
//! beside whoever writes tables. Waits are numbered: what was put out of reach before number `n` began is out of use
//! once `n` has ended.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, Once, PoisonError};

/// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h, from Linux 4.3 on.
const GLOBAL: libc::c_int = 1;

/// The thread, which ends with this value. Where the kernel cannot wait so, no wait ever ends.
#[derive(Debug)]
pub struct Grace {
    shared: Arc<Shared>,
    /// The thread is started when it is first asked.
    started: Once,
}

impl Default for Grace {
    fn default() -> Self {
        Self {
            shared: Arc::default(),
            started: Once::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    /// Waits that have begun, and the last that ended.
    begun: AtomicU64,
    ended: AtomicU64,
    wanted: Mutex<bool>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Grace {
    fn start(&self) {
        // On one processor the kernel returns at once, which says nothing where packets can be preempted.
        if processors() < 2 {
            return;
        }
        let theirs = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name("grace".into())
            .spawn(move || theirs.run());
        if let Err(error) = thread {
            log::warn!("no thread to wait for packets with: {error}");
        }
    }

    /// Asks for a wait that begins after this. Gives back its number.
    pub fn ask(&self) -> u64 {
        self.started.call_once(|| self.start());
        // What was stored before is seen by all once that wait has begun.
        fence(Ordering::SeqCst);
        let number = self.shared.begun.load(Ordering::SeqCst) + 1;
        *self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.changed.notify_one();
        number
    }

    /// The number of the last wait that ended; 0: none.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.shared.ended.load(Ordering::SeqCst)
    }
}

impl Drop for Grace {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        *self.shared.wanted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
            let mut wanted = self
                .changed
                .wait_while(wanted, |wanted| !*wanted)
                .unwrap_or_else(PoisonError::into_inner);
            *wanted = false;
            drop(wanted);
            if self.stopped.load(Ordering::SeqCst) {
                return;
            }
            let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            // SAFETY: no pointers are passed.
            if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0) } != 0 {
                // With nohz_full the kernel refuses.
                log::debug!("membarrier: {}", std::io::Error::last_os_error());
                return;
            }
            self.ended.store(number, Ordering::SeqCst);
        }
    }
}

fn processors() -> i64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN)
        .ok()
        .flatten()
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_is_asked_for_begins_later_and_ends() {
        let grace = Grace::default();
        let first = grace.ask();
        assert!(first > grace.ended());
        if processors() < 2 {
            return;
        }
        while grace.ended() < first {
            std::thread::yield_now();
        }
        let next = grace.ask();
        assert!(next > first);
    }
}
