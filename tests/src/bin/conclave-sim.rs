//! `conclave-sim`: attacks a simulated cluster, one seed at a time or many.

use clap::{Parser, Subcommand};
use conclave_tests::sim::adversary::{self, catalogue};
use conclave_tests::sim::check::Violation;
use conclave_tests::sim::hunt::{self, Found, Hunt, Until};
use conclave_tests::sim::mistakes::{self, Mistake};
use conclave_tests::sim::mutants::{self, Searched};
use conclave_tests::sim::plan::{Asked, Attackers, Options, Plan};
use conclave_tests::sim::run;
use conclave_tests::sim::scenario;
use conclave_tests::sim::twins::choice::{Scenario, Space};
use conclave_tests::sim::twins::{self, hunt::Which};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A quarter of a simulation's time would else go into memory that is given back at once.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Lie to a cluster, cut its power, split its network: every run is a function of its seed.
#[derive(Parser)]
#[command(name = "conclave-sim", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one seed
    Run {
        /// Which
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        setting: Setting,
        /// Write what happens, a line each
        #[arg(long, value_name = "FILE")]
        trace: Option<PathBuf>,
    },
    /// Run seed after seed, on every core
    Hunt {
        /// For so long, as in 90s, 10m or 2h
        #[arg(long = "for", value_name = "TIME", value_parser = duration, conflicts_with = "seeds")]
        time: Option<Duration>,
        /// So many seeds
        #[arg(long, default_value_t = 1000)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// Threads; all cores by default
        #[arg(long)]
        jobs: Option<usize>,
        #[command(flatten)]
        setting: Setting,
    },
    /// Let correct replicas share keys, and enumerate who is cut off from whom and who leads
    Twins(Twins),
    /// List the attacks
    Attacks,
    /// Make mistakes in the product, one at a time, and count the seeds until each is caught
    Mutants {
        /// This mistake only
        #[arg(long, value_name = "NAME", value_parser = mistake)]
        only: Option<&'static Mistake>,
        /// So many seeds for each at most
        #[arg(long, value_name = "MAX", default_value_t = 2000)]
        seeds: u64,
        /// Mistakes that are searched for at one time; as many as cores by default
        #[arg(long)]
        jobs: Option<usize>,
    },
    /// Play a worked problem and draw what went over the wires
    Scenario {
        /// Which
        #[arg(required_unless_present = "list")]
        name: Option<String>,
        /// List them
        #[arg(long)]
        list: bool,
    },
}

#[derive(clap::Args)]
struct Twins {
    /// How many replicas
    #[arg(long, default_value_t = 4)]
    replicas: u16,
    /// How many rounds
    #[arg(long, default_value_t = 4)]
    rounds: usize,
    /// How many of the replicas have a twin
    #[arg(long, default_value_t = 1)]
    twins: u16,
    /// So many scenarios by chance in place of all
    #[arg(long, value_name = "COUNT")]
    sample: Option<u64>,
    /// What the sample is drawn from
    #[arg(long, default_value_t = 0, requires = "sample")]
    seed: u64,
    /// Threads; all cores by default
    #[arg(long)]
    jobs: Option<usize>,
    /// Play this scenario only, as in 4+1:2:6,17s,0
    #[arg(long, value_name = "ID", conflicts_with_all = ["sample", "replicas", "rounds", "twins"])]
    scenario: Option<Scenario>,
    /// Write what happens in the scenario, a line each
    #[arg(long, value_name = "FILE", requires = "scenario")]
    trace: Option<PathBuf>,
}

#[derive(clap::Args)]
struct Setting {
    /// How many replicas, at least 4; the seed decides by default
    #[arg(long, value_parser = clap::value_parser!(u16).range(4..=31))]
    replicas: Option<u16>,
    /// Which engine
    #[arg(long, default_value = "pbft", value_parser = ["pbft"])]
    protocol: String,
    /// Who attacks: the name of an attack, `random` or `none`
    #[arg(long, default_value = "random", value_parser = attackers)]
    attack: Attackers,
    /// No faults of disks, clocks and links
    #[arg(long)]
    calm: bool,
    /// Timeouts are shorter than what a disk takes, to the end
    #[arg(long)]
    hasty: bool,
    /// Every seed has faults that show something only when they come together; behind an equals sign the name of a story
    /// whose faults wait for each other
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        value_name = "NAME",
        default_missing_value = "",
        value_parser = Asked::named
    )]
    story: Option<Asked>,
    /// A mistake to make in the product; `conclave-sim mutants` tries all
    #[arg(long, value_name = "NAME", value_parser = mistake)]
    mistake: Option<&'static Mistake>,
}

impl Setting {
    fn options(&self) -> Options {
        let (replicas, attackers) = (self.replicas, self.attack.clone());
        let mistake = self.mistake.map(|mistake| mistake.name);
        let Self { calm, hasty, .. } = *self;
        let story = self.story.unwrap_or_default();
        Options { replicas, attackers, mistake, calm, hasty, story }
    }

    /// The arguments that repeat this.
    fn shown(&self) -> String {
        let replicas = self.replicas.map_or(String::new(), |n| format!(" --replicas {n}"));
        let calm = if self.calm { " --calm" } else { "" };
        let attack = match &self.attack {
            Attackers::Random => String::new(),
            Attackers::None => " --attack none".to_owned(),
            Attackers::Named(name) => format!(" --attack {name}"),
        };
        let hasty = if self.hasty { " --hasty" } else { "" };
        let story = self.story.unwrap_or_default().arguments();
        let mistake = self.mistake.map_or(String::new(), |it| format!(" --mistake {}", it.name));
        format!("{replicas}{attack}{calm}{hasty}{story}{mistake}")
    }
}

fn attackers(text: &str) -> Result<Attackers, String> {
    match text {
        "random" => Ok(Attackers::Random),
        "none" => Ok(Attackers::None),
        name if adversary::named(name).is_some() => Ok(Attackers::Named(name.to_owned())),
        _ => Err("not an attack; `conclave-sim attacks` lists them".to_owned()),
    }
}

fn mistake(text: &str) -> Result<&'static Mistake, String> {
    let names = || mistakes::ALL.iter().map(|it| it.name).collect::<Vec<_>>().join(", ");
    mistakes::named(text).ok_or_else(|| format!("not a mistake; there are {}", names()))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "a number and s, m or h, as in 10m".to_owned();
    let unit = text.chars().last().ok_or_else(expected)?;
    let number = &text[..text.len() - unit.len_utf8()];
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(expected()),
    };
    let number: u64 = number.parse().map_err(|_| expected())?;
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}

fn main() -> ExitCode {
    match Arguments::parse().command {
        Command::Run { seed, setting, trace } => run_one(seed, &setting, trace),
        Command::Hunt { time, seeds, from, jobs, setting } => {
            let until = time.map_or(Until::Seeds(seeds), Until::Elapsed);
            let jobs = jobs.unwrap_or_else(cores);
            let options = setting.options();
            let order = Hunt { from, until, jobs, options, stop_at_first: false };
            hunt_many(&order, &setting)
        }
        Command::Twins(asked) => run_twins(&asked),
        Command::Attacks => {
            list_attacks();
            ExitCode::SUCCESS
        }
        Command::Mutants { only, seeds, jobs } => {
            let all: Vec<&'static Mistake> = match only {
                Some(mistake) => vec![mistake],
                None => mistakes::ALL.iter().collect(),
            };
            let found = mutants::search_all(&all, seeds, jobs.unwrap_or_else(cores), &show);
            judge(&found)
        }
        Command::Scenario { name, .. } => play(name.as_deref()),
    }
}

/// One mistake: what is wrong, the seeds it took, what caught it, and how to see it again.
fn show(searched: &Searched) {
    let Searched { mistake, seeds, unclean, unexpected, caught } = searched;
    println!("{}: {}", mistake.name, mistake.wrong);
    match (caught, searched.command()) {
        (Some(caught), Some(command)) => {
            println!("  caught by seed {seeds} that was tried: {}", caught.violation);
            println!("  {command}");
        }
        _ => println!("  SURVIVED {seeds} seeds; to be seen by {}", mistake.seen_by.join(", ")),
    }
    if !unclean.is_empty() {
        println!("  not counted, for they fail without it too: seeds {unclean:?}");
    }
    for (seed, violation) in unexpected {
        println!("  not counted, for it is not what is wrong: seed {seed}: {violation}");
    }
}

fn judge(found: &[Searched]) -> ExitCode {
    let survivors: Vec<&str> =
        found.iter().filter(|it| it.caught.is_none()).map(|it| it.mistake.name).collect();
    for name in &survivors {
        println!("survived: {name}");
    }
    let caught = found.len() - survivors.len();
    let median = mutants::median(found).map_or("none".to_owned(), |seeds| seeds.to_string());
    println!("{caught} of {} mistakes caught, median {median} seeds", found.len());
    if survivors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn list_attacks() {
    for entry in catalogue::CATALOGUE {
        let of_entry = |attack: &adversary::Attack| entry.attacks.contains(&attack.name);
        for attack in adversary::all().into_iter().filter(of_entry) {
            println!("{:>2} {:<24} {}", entry.number, attack.name, attack.tries);
        }
        if let Some(place) = entry.elsewhere {
            println!("{:>2} {:<24} in {place}", entry.number, entry.what);
        }
    }
}

fn play(name: Option<&str>) -> ExitCode {
    let Some(name) = name else {
        for scenario in scenario::ALL {
            println!("{:<24} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    };
    let Some(scenario) = scenario::named(name) else {
        eprintln!("conclave-sim: no scenario {name}; `conclave-sim scenario --list` names them");
        return ExitCode::from(2);
    };
    print!("{}", scenario::play(scenario).diagram);
    ExitCode::SUCCESS
}

fn run_one(seed: u64, setting: &Setting, trace: Option<PathBuf>) -> ExitCode {
    let options = setting.options();
    let plan = Plan::new(seed, &options);
    println!(
        "seed {seed}: {} replicas, {} clients, traitors {:?}, hostile clients {:?}, {} faults, {}",
        plan.n,
        plan.clients.len(),
        plan.traitors,
        plan.hostile,
        plan.faults.len(),
        if plan.keyed { "keyed hashes" } else { "real signatures" },
    );
    let writer = match writer(trace.as_ref()) {
        Ok(writer) => writer,
        Err(code) => return code,
    };
    let outcome = run::traced(seed, &options, writer);
    println!(
        "trace {:032x}: {} ms, {} frames, {} boundaries, {} answers",
        outcome.hash,
        outcome.time / 1000,
        outcome.frames,
        outcome.boundaries,
        outcome.answered
    );
    println!("{}", outcome.state);
    verdict(outcome.violation.as_ref())
}

fn writer(trace: Option<&PathBuf>) -> Result<Option<Box<dyn std::io::Write>>, ExitCode> {
    match trace.map(std::fs::File::create).transpose() {
        Ok(file) => Ok(file.map(|file| Box::new(file) as Box<dyn std::io::Write>)),
        Err(error) => {
            eprintln!("conclave-sim: the trace cannot be written: {error}");
            Err(ExitCode::from(6))
        }
    }
}

fn run_twins(asked: &Twins) -> ExitCode {
    if let Some(scenario) = &asked.scenario {
        let writer = match writer(asked.trace.as_ref()) {
            Ok(writer) => writer,
            Err(code) => return code,
        };
        let outcome = twins::play(scenario, writer);
        println!("trace {:032x}: {} blocks, view {}", outcome.hash, outcome.height, outcome.view);
        return verdict(outcome.violation.as_ref());
    }
    let space = match Space::new(asked.replicas, asked.twins, asked.rounds) {
        Ok(space) => space,
        Err(expected) => {
            eprintln!("conclave-sim: {expected}");
            return ExitCode::from(2);
        }
    };
    let which = asked.sample.map_or(Which::All, |count| Which::Sample { count, seed: asked.seed });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (begun, bar) = (std::time::Instant::now(), ProgressBar::new(0));
    let found = twins::hunt::hunt(&space, which, asked.jobs.unwrap_or(cores), &|done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let elapsed = begun.elapsed().as_secs_f64();
    println!(
        "{} scenarios in {elapsed:.1} s, {:.0}/s; {} run twice; {} blocks, views up to {}",
        found.run,
        found.run as f64 / elapsed,
        found.repeated,
        found.blocks,
        found.view
    );
    if asked.sample.is_none() {
        println!(
            "of {} there are: {} left out without a quorum on any side or as led by the next replica, \
             {} the same with twins renamed",
            space.all(),
            space.all() - u128::from(space.listed()),
            found.renamed
        );
    }
    for (scenario, violation) in &found.findings {
        println!("{violation}\n  conclave-sim twins --scenario {scenario}");
    }
    verdict(found.findings.first().map(|(_, violation)| violation))
}

fn verdict(violation: Option<&Violation>) -> ExitCode {
    match violation {
        None => {
            println!("every property held");
            ExitCode::SUCCESS
        }
        Some(violation) => {
            println!("VIOLATION: {violation}");
            ExitCode::FAILURE
        }
    }
}

fn hunt_many(order: &Hunt, setting: &Setting) -> ExitCode {
    let bar = match order.until {
        Until::Seeds(seeds) => ProgressBar::new(seeds),
        Until::Elapsed(time) => ProgressBar::new(time.as_secs()),
    };
    let template = "{bar:30} {elapsed} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let found = hunt::hunt(order, &|found| {
        bar.set_position(match order.until {
            Until::Seeds(_) => found.seeds,
            Until::Elapsed(_) => found.elapsed.as_secs(),
        });
        bar.set_message(format!(
            "{} seeds, {:.0}/s, {} violations",
            found.seeds,
            found.seeds_per_second(),
            found.findings.len()
        ));
    });
    bar.finish_and_clear();
    report(&found, order, setting)
}

fn report(found: &Found, order: &Hunt, setting: &Setting) -> ExitCode {
    println!(
        "{} seeds from {} in {:.1} s: {:.0} seeds/s on {} threads, {:.0} virtual seconds, {} answers, {} seeds run twice",
        found.seeds,
        order.from,
        found.elapsed.as_secs_f64(),
        found.seeds_per_second(),
        order.jobs,
        found.virtual_seconds,
        found.answered,
        found.repeated
    );
    let missing = found.coverage.missing();
    println!("{} marks reached, {} never", found.coverage.reached().len(), missing.len());
    for mark in missing {
        println!(
            "  never reached: {}{}",
            mark.name,
            if mark.required { " (required)" } else { "" }
        );
    }
    for finding in &found.findings {
        println!("seed {}: {}", finding.seed, finding.violation);
        println!("  conclave-sim run --seed {}{}", finding.seed, setting.shown());
    }
    if found.findings.is_empty() {
        println!("no violations");
        ExitCode::SUCCESS
    } else {
        println!("{} violations", found.findings.len());
        ExitCode::FAILURE
    }
}
