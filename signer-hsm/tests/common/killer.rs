//! Ends a process in the middle of a commit.

use std::sync::{Condvar, Mutex};

use spark_signer::vault::{FailPoint, Step};

/// Where to die, as written in the environment of the process that shall.
#[derive(Debug, Clone, Copy)]
pub struct Death {
    pub at: Step,
    /// The step is passed once for each device: so many of them go on.
    pub after: usize,
    /// Whether the line that is gone at the same time is through by then, or has not begun.
    pub through: bool,
}

impl Death {
    /// Every step, once for each of two devices where it is passed for each, in every company.
    pub fn all(devices: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for at in Step::ALL {
            let each = matches!(at, Step::RootCreated | Step::RootDestroyed);
            for after in 0..if each { devices } else { 1 } {
                all.push(Self { at, after, through: true });
                all.extend((!at.beside().is_empty()).then_some(Self { at, after, through: false }));
            }
        }
        all
    }

    /// For the environment.
    pub fn text(&self) -> String {
        format!("{:?}/{}/{}", self.at, self.after, self.through)
    }

    fn parse(text: &str) -> Self {
        let parts: Vec<&str> = text.split('/').collect();
        let at = Step::ALL.into_iter().find(|step| format!("{step:?}") == parts[0]).unwrap();
        Self { at, after: parts[1].parse().unwrap(), through: parts[2].parse().unwrap() }
    }

    /// Whether the batch is durable.
    pub fn is_late(&self) -> bool {
        self.at >= Step::StoreCommitted
    }
}

/// The fail point that [`Death::text`] asks for.
pub struct Killer {
    death: Death,
    passed: Mutex<(usize, bool)>,
    through: Condvar,
}

impl Killer {
    pub fn new(text: &str) -> Box<Self> {
        Box::new(Self { death: Death::parse(text), passed: Mutex::default(), through: Condvar::new() })
    }
}

impl FailPoint for Killer {
    fn reached(&self, step: Step) -> bool {
        let beside = self.death.at.beside();
        if beside.first() == Some(&step) && !self.death.through {
            loop {
                std::thread::park();
            }
        }
        let mut passed = self.passed.lock().unwrap();
        if beside.last() == Some(&step) {
            passed.1 = true;
            self.through.notify_all();
        }
        if step != self.death.at {
            return true;
        }
        passed.0 += 1;
        if passed.0 <= self.death.after {
            return true;
        }
        while self.death.through && !beside.is_empty() && !passed.1 {
            passed = self.through.wait(passed).unwrap();
        }
        // SIGABRT: no destructor runs, nothing is flushed.
        std::process::abort();
    }
}
