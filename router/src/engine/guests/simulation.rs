//! A server in virtual time: one tenant floods it, another asks now and then. What does the flood cost the other, and what
//! does the other cost the flood?
//!
//! A step lasts `step`, plus `prompt` for each token of a prompt and `row` for each next token; two steps are in flight, as in
//! the engine. The same requests of the steady tenant come at the same times, alone and beside the flood.

mod crowd;

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_scheduler::{
    Config, GenerationEvent, Request, Sampled, Sampling, Scheduler, SequenceId, Share, StepPart, StepPlan, StepResult,
    TenantId, Work,
};

use super::Guests;

const STEADY: TenantId = TenantId(0);
const FLOOD: TenantId = TenantId(1);

/// Requests of the flood that are there at any time.
const BACKLOG: u64 = 40;
/// Requests of the steady tenant that do not count: those before steps have been seen, and the first beside the flood.
const WARM: usize = 8;

/// Seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    step: f64,
    prompt: f64,
    row: f64,
}

/// A model of a tenth of a billion parameters on two cores, and a larger one on a device.
const CORES: Cost = Cost { step: 0.0105, prompt: 0.0008, row: 0.0005 };
const DEVICE: Cost = Cost { step: 0.01, prompt: 0.00004, row: 0.00002 };

/// What a tenant asks for.
#[derive(Clone, Debug)]
struct Habits {
    prompt: RangeInclusive<u64>,
    new: RangeInclusive<u64>,
}

#[derive(Clone, Debug)]
struct Case {
    name: &'static str,
    cost: Cost,
    rows: u32,
    steady: Habits,
    /// Of the steady tenant, in a second, so many at once.
    rate: f64,
    burst: u64,
    flood: Habits,
}

/// Numbers that look random and are the same each time.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn among(&mut self, range: &RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    /// Seconds until the next of arrivals that wait for nobody.
    fn pause(&mut self, rate: f64) -> f64 {
        -(1.0 - (self.next() >> 11) as f64 / (1_u64 << 53) as f64).ln() / rate
    }
}

struct Asked {
    at: f64,
    first: Option<f64>,
    end: Option<f64>,
}

struct Sent {
    plan: StepPlan,
    parts: Vec<StepPart>,
    /// When the workers begin and end it.
    begins: f64,
    ends: f64,
}

struct World {
    cost: Cost,
    scheduler: Scheduler,
    guests: Guests,
    begin: Instant,
    now: f64,
    in_flight: VecDeque<Sent>,
    num_sequences: u64,
    asked: BTreeMap<SequenceId, Asked>,
    num_flooding: u64,
}

impl World {
    fn new(case: &Case) -> Self {
        let scheduler = Scheduler::new(Config {
            max_rows: case.rows,
            max_step_tokens: 4096,
            page_size: 16,
            num_pages: 4096,
            attention_window: 0,
            position_switch: 0,
            max_sequence_tokens: 16384,
            waiting_served_ratio: 0.3,
            max_waiting_tokens: 20,
            max_batch_total_tokens: None,
            prefix_caching: true,
            max_steps_in_flight: 2,
        });
        Self {
            cost: case.cost,
            scheduler,
            guests: Guests::default(),
            begin: Instant::now(),
            now: 0.0,
            in_flight: VecDeque::new(),
            num_sequences: 0,
            asked: BTreeMap::new(),
            num_flooding: 0,
        }
    }

    fn submit(&mut self, tenant: TenantId, weight: u32, prompt: u64, new: u64) -> SequenceId {
        self.num_sequences += 1;
        let id = SequenceId(self.num_sequences);
        let request = Request {
            sequences: vec![(id, Arc::new(Sampling::default()))],
            tokens: (0..prompt).map(|at| if at == 0 { id.0 as u32 } else { at as u32 }).collect(),
            max_new_tokens: new as u32,
            eos_token_ids: Arc::from([]),
            prompt_logprobs: false,
            namespace: 0,
            share: Share { tenant, weight, priority: 0 },
        };
        self.scheduler.submit(request).unwrap();
        id
    }

    /// The flood is as large as ever.
    fn flood(&mut self, case: &Case, chance: &mut Chance) {
        while self.num_flooding < BACKLOG {
            let (prompt, new) = (chance.among(&case.flood.prompt), chance.among(&case.flood.new));
            self.submit(FLOOD, 1, prompt, new);
            self.num_flooding += 1;
        }
    }

    /// Sends as many steps as may be in flight.
    fn send(&mut self) {
        loop {
            let terms = self.guests.terms(&self.scheduler, self.instant());
            self.scheduler.set_terms(terms);
            let Some(plan) = self.scheduler.schedule() else { return };
            let parts = self.scheduler.last_parts().to_vec();
            self.guests.sent(&parts);
            let begins = self.in_flight.back().map_or(self.now, |last| last.ends.max(self.now));
            let is_output = |work: &&Work| work.count == 1 && work.samples;
            let outputs = plan.work.iter().filter(is_output).count();
            let num_tokens: usize = plan.work.iter().map(|work| work.count as usize).sum();
            let Cost { step, prompt, row } = self.cost;
            let takes = step + prompt * (num_tokens - outputs) as f64 + row * outputs as f64;
            self.in_flight.push_back(Sent { plan, parts, begins, ends: begins + takes });
        }
    }

    fn instant(&self) -> Instant {
        self.begin + Duration::from_secs_f64(self.now)
    }

    /// The oldest step's answer.
    fn answer(&mut self) {
        let Some(Sent { plan, parts, begins, ends: end }) = self.in_flight.pop_front() else { return };
        self.now = end;
        self.guests.answered(&parts, Duration::from_secs_f64(end - begins), self.instant());
        let sampled = plan.work.iter().filter(|work| work.samples);
        let sampled = sampled.map(|_| Sampled { token_id: 7, ..Sampled::default() }).collect();
        let result = StepResult { step: plan.step, sampled, ..StepResult::default() };
        for event in self.scheduler.apply(result).unwrap() {
            let (sequence, ends) = match event {
                GenerationEvent::Token { sequence, .. } => (sequence, false),
                GenerationEvent::Finished { sequence, .. } => (sequence, true),
                GenerationEvent::Prefilled { .. } => continue,
            };
            match self.asked.get_mut(&sequence) {
                Some(asked) => {
                    asked.first.get_or_insert(end);
                    asked.end = asked.end.or(ends.then_some(end));
                }
                None => self.num_flooding = self.num_flooding.saturating_sub(u64::from(ends)),
            }
        }
    }

    fn served(&self, tenant: TenantId) -> f64 {
        self.scheduler.served_tokens().find(|(other, _)| *other == tenant).map_or(0.0, |(_, tokens)| tokens as f64)
    }
}

/// What became of the requests that count.
#[derive(Debug, Default)]
struct Outcome {
    /// Seconds until the first token of each of the steady tenant's requests, and until its end.
    firsts: Vec<f64>,
    ends: Vec<f64>,
    /// The flood's tokens in a second.
    flood: f64,
}

/// The p-th part of values is not greater.
fn quantile(values: &[f64], p: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * p).round() as usize]
}

/// So many requests of the steady tenant, after as many as it takes to know what steps cost.
fn run(case: &Case, num_requests: usize, floods: bool) -> Outcome {
    let (mut world, mut chance, mut crowd) = (World::new(case), Chance(1), Chance(2));
    let num_requests = num_requests + WARM;
    let mut next = 0.0;
    while world.asked.len() < num_requests || world.asked.values().any(|asked| asked.end.is_none()) {
        while world.now >= next && world.asked.len() < num_requests {
            for _ in 0..case.burst {
                let (prompt, new) = (chance.among(&case.steady.prompt), chance.among(&case.steady.new));
                let id = world.submit(STEADY, 1, prompt, new);
                world.asked.insert(id, Asked { at: next, first: None, end: None });
            }
            next += chance.pause(case.rate);
        }
        if floods {
            world.flood(case, &mut crowd);
        }
        world.send();
        match world.in_flight.front() {
            Some(first) if first.ends <= next || world.asked.len() >= num_requests => world.answer(),
            _ => world.now = next,
        }
    }
    let counted = || world.asked.values().skip(WARM);
    let times = |time: fn(&Asked) -> Option<f64>| counted().map(|one| time(one).unwrap_or(f64::NAN) - one.at).collect();
    let flood = world.served(FLOOD) / world.now;
    Outcome { firsts: times(|one| one.first), ends: times(|one| one.end), flood }
}

fn cases() -> Vec<Case> {
    let (short, longer) = (Habits { prompt: 40..=56, new: 16..=48 }, Habits { prompt: 400..=600, new: 16..=48 });
    let outputs = || Habits { prompt: 40..=56, new: 48..=144 };
    let prompts = || Habits { prompt: 1400..=1600, new: 1..=16 };
    let case = |name, cost, flood| {
        let rows = if cost == CORES { 4 } else { 32 };
        Case { name, cost, rows, steady: short.clone(), rate: 0.7, burst: 1, flood }
    };
    let pairs = |case| Case { burst: 2, rate: 0.35, ..case };
    // With more rows of this cost, theirs alone would make the others' outputs by half longer.
    let fours = |case| Case { burst: 4, rate: 0.2, rows: 8, ..case };
    let longer = |case| Case { steady: longer.clone(), rate: 0.35, ..case };
    vec![
        case("cores, outputs", CORES, outputs()),
        case("cores, prompts", CORES, prompts()),
        pairs(case("cores, pairs beside outputs", CORES, outputs())),
        pairs(case("cores, pairs beside prompts", CORES, prompts())),
        fours(case("cores, bursts beside outputs", CORES, outputs())),
        fours(case("cores, bursts beside prompts", CORES, prompts())),
        longer(case("cores, longer prompts beside outputs", CORES, outputs())),
        longer(case("cores, longer prompts beside prompts", CORES, prompts())),
        case("device, outputs", DEVICE, outputs()),
        case("device, prompts", DEVICE, prompts()),
        fours(case("device, bursts beside prompts", DEVICE, Habits { prompt: 8000..=12000, new: 1..=16 })),
    ]
}

#[test]
fn a_flood_makes_who_uses_less_than_its_part_wait_by_half_longer_at_most() {
    for case in cases() {
        let [alone, beside] = [false, true].map(|floods| run(&case, 200, floods));
        let show = |values: &[f64]| format!("{:.3} / {:.3}", quantile(values, 0.5), quantile(values, 0.99));
        let ratio = quantile(&beside.ends, 0.99) / quantile(&alone.ends, 0.99);
        let figures = format!(
            "{}: p50 / p99 {} alone, {} beside: x {ratio:.2}; first token {} alone, {} beside; flood {:.0} tokens/s",
            case.name,
            show(&alone.ends),
            show(&beside.ends),
            show(&alone.firsts),
            show(&beside.firsts),
            beside.flood
        );
        assert!(ratio <= 1.5, "{figures}");
    }
}

/// The flood's tokens in a second, in so many seconds in which nobody else comes but for a short request each 30 seconds.
fn flood_alone(case: &Case, seconds: f64, is_visited: bool) -> f64 {
    let (mut world, mut crowd) = (World::new(case), Chance(2));
    let mut next = 0.0;
    while world.now < seconds {
        if is_visited && world.now >= next {
            world.submit(STEADY, 1, 1, 1);
            next += 30.0;
        }
        world.flood(case, &mut crowd);
        world.send();
        world.answer();
    }
    world.served(FLOOD) / world.now
}

/// What short steps cost the flood.
#[test]
fn a_flood_loses_little_to_one_who_hardly_ever_comes() {
    for case in cases().iter().filter(|case| case.burst == 1 && case.rate > 0.5) {
        let [alone, visited] = [false, true].map(|is_visited| flood_alone(case, 60.0, is_visited));
        assert!(visited >= 0.8 * alone, "{}: {visited} instead of {alone}", case.name);
    }
}

/// Of the time of the workers, whatever each asks for: within what makes nobody a guest.
#[test]
fn two_floods_share_the_time_by_their_weights() {
    for case in cases().iter().filter(|case| case.burst == 1 && case.rate > 0.5) {
        for weight in [1, 3] {
            let (mut world, mut crowd) = (World::new(case), Chance(2));
            let mut alive: Vec<SequenceId> = Vec::new();
            let (mut used, mut next) = ([0.0, 0.0], 20.0);
            while world.now < 60.0 {
                alive.retain(|id| world.asked[id].end.is_none());
                while alive.len() < BACKLOG as usize {
                    let id = world.submit(STEADY, weight, crowd.among(&(200..=300)), crowd.among(&(20..=60)));
                    world.asked.insert(id, Asked { at: world.now, first: None, end: None });
                    alive.push(id);
                }
                world.flood(case, &mut crowd);
                world.send();
                world.answer();
                if world.now >= next {
                    world
                        .guests
                        .visitors
                        .used(world.instant())
                        .iter()
                        .zip(&mut used)
                        .for_each(|(one, sum)| *sum += one.1 as f64);
                    next += 5.0;
                }
            }
            let ratio = used[0] / used[1] / f64::from(weight);
            assert!((0.85..1.15).contains(&ratio), "{}, weight {weight}: {used:?}", case.name);
        }
    }
}
