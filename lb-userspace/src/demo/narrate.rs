//! Telling what goes on: a line a step, and indented what came of it.

use std::io::{self, Write};

#[derive(Debug)]
pub(super) struct Narrator {
    step: usize,
    steps: usize,
}

impl Narrator {
    pub fn new(steps: usize) -> Self {
        Self { step: 0, steps }
    }

    pub fn step(&mut self, what: &str) {
        self.step += 1;
        println!("[{:>2}/{}] {what}", self.step, self.steps);
        let _ = io::stdout().flush();
    }

    pub fn done(&mut self, what: &str) {
        for line in what.lines() {
            println!("        {line}");
        }
        let _ = io::stdout().flush();
    }
}
