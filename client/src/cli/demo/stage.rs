//! What the audience sees: numbered steps, what each found, and a table at the end.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use crate::cli::output::{Failure, Table, print};

/// The stage.
pub(super) struct Stage {
    steps: usize,
    step: usize,
    started: Instant,
    step_started: Instant,
    rows: Vec<[String; 3]>,
    title: String,
    spinner: Option<ProgressBar>,
}

impl Stage {
    pub(super) fn new(steps: usize) -> Self {
        let now = Instant::now();
        Self {
            steps,
            step: 0,
            started: now,
            step_started: now,
            rows: Vec::new(),
            title: String::new(),
            spinner: None,
        }
    }

    /// Begins a step.
    pub(super) fn step(&mut self, title: &str) -> Result<(), Failure> {
        self.step += 1;
        self.step_started = Instant::now();
        self.title = title.to_owned();
        print(format!("\n[{}/{}] {title}\n", self.step, self.steps).as_bytes())
    }

    /// One line about the step.
    pub(super) fn say(&mut self, line: &str) -> Result<(), Failure> {
        self.quiet();
        print(format!("      {line}\n").as_bytes())
    }

    /// Shows on a terminal what is being waited for.
    pub(super) fn waiting(&mut self, what: &str) {
        self.quiet();
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("      {spinner} {msg} {elapsed}");
            let spinner = ProgressBar::new_spinner()
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
                .with_message(what.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(100));
            self.spinner = Some(spinner);
        }
    }

    /// Takes the spinner away.
    pub(super) fn quiet(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
    }

    /// Ends the step with what it showed.
    pub(super) fn done(&mut self, result: &str) -> Result<(), Failure> {
        let seconds = format!("{:.1} s", self.step_started.elapsed().as_secs_f64());
        self.say(&format!("{result} ({seconds})"))?;
        self.rows.push([std::mem::take(&mut self.title), result.to_owned(), seconds]);
        Ok(())
    }

    /// The table of all steps.
    pub(super) fn summary(&self) -> Result<(), Failure> {
        let mut table = Table::new(&["step", "what was shown", "time"]);
        for row in &self.rows {
            table.row(row.clone());
        }
        let total = self.started.elapsed().as_secs_f64();
        print(
            format!("\n{}\nall {} steps in {total:.1} s\n", table.render(), self.steps).as_bytes(),
        )
    }
}
