use proptest::prelude::*;

use super::portion::{LEAST, MOST};
use super::*;

/// Seconds of a step of outputs.
const WITHOUT: f64 = 0.02;
const HOST: TenantId = TenantId(0);
const GUEST: TenantId = TenantId(1);

/// The host decodes and has so many tokens of prompts, the guest so many.
fn parts(host_tokens: usize, guest_tokens: usize) -> Vec<StepPart> {
    let mut parts =
        vec![StepPart { tenant: HOST, prompt_tokens: host_tokens, guest_tokens: 0, of_terms: 0, outputs: 1 }];
    if guest_tokens > 0 {
        parts.push(guest(GUEST, guest_tokens));
    }
    parts
}

fn guest(tenant: TenantId, guest_tokens: usize) -> StepPart {
    StepPart { tenant, prompt_tokens: guest_tokens, guest_tokens, of_terms: guest_tokens, outputs: 0 }
}

fn step(guests: &mut Guests, parts: &[StepPart], seconds: f64) {
    guests.sent(parts);
    guests.answered(parts, Duration::from_secs_f64(seconds), Instant::now());
}

fn guests() -> Guests {
    let mut guests = Guests::default();
    step(&mut guests, &parts(0, 0), WITHOUT);
    guests
}

/// Steps of a server in which guests always take all that they may; their tokens, and how long it all took.
fn flood(guests: &mut Guests, num_steps: usize, cost: impl Fn(f64) -> f64) -> (f64, f64) {
    let (mut all_tokens, mut seconds) = (0.0, 0.0);
    for _ in 0..num_steps {
        let num_tokens = if guests.debts.is_empty() { guests.at_once.tokens() as usize } else { 0 };
        let took = WITHOUT + if num_tokens > 0 { cost(num_tokens as f64) } else { 0.0 };
        step(guests, &parts(0, num_tokens), took);
        all_tokens += num_tokens as f64;
        seconds += took;
    }
    (all_tokens, seconds)
}

#[test]
fn outputs_take_by_a_share_longer_whatever_guests_cost() {
    let costs: [fn(f64) -> f64; 4] = [
        |tokens| tokens / 30_000.0,
        |tokens| tokens / 1_000.0,
        // A step with prompts costs something of its own.
        |tokens| 0.03 + tokens / 20_000.0,
        // The first tokens are free.
        |tokens| (tokens - 200.0).max(0.0) / 5_000.0,
    ];
    for (index, cost) in costs.into_iter().enumerate() {
        let mut guests = guests();
        flood(&mut guests, 200, cost);
        let (num_tokens, seconds) = flood(&mut guests, 2000, cost);
        let stretch = seconds / (2000.0 * WITHOUT);
        assert!((1.05..=1.05 + SHARE).contains(&stretch), "cost {index}: {stretch} with {guests:?}");
        assert!(num_tokens > 0.0, "cost {index}");
    }
}

#[test]
fn a_step_with_guests_takes_about_twice_as_long() {
    let mut guests = guests();
    flood(&mut guests, 1000, |tokens| tokens / 30_000.0);
    let tokens = guests.at_once.tokens();
    assert!((350..=750).contains(&tokens), "600 tokens take as long as a step: {guests:?}");
    flood(&mut guests, 1000, |tokens| tokens / 3_000.0);
    assert!(guests.at_once.tokens() < 2 * LEAST, "{guests:?}");
}

#[test]
fn a_step_takes_50_milliseconds_while_there_are_several_or_twice_one_without_prompts() {
    for (without, expected) in [(0.02, 0.05), (0.2, 0.4)] {
        let mut guests = Guests::default();
        step(&mut guests, &parts(0, 0), without);
        for _ in 0..100 {
            let num_tokens = guests.in_a_step.tokens() as usize;
            step(&mut guests, &parts(num_tokens, 0), without + num_tokens as f64 / 30_000.0);
        }
        let takes = without + f64::from(guests.in_a_step.tokens()) / 30_000.0;
        assert!((takes / expected - 1.0).abs() < 0.3, "{takes} instead of {expected}");
    }
}

#[test]
fn few_tokens_say_nothing_of_many_and_the_hosts_prompts_nothing_of_guests() {
    let mut guests = guests();
    flood(&mut guests, 1000, |tokens| tokens / 30_000.0);
    let before = guests.at_once.tokens();
    for parts in [parts(0, 3), parts(1000, before as usize)] {
        step(&mut guests, &parts, 1.0);
    }
    assert_eq!(guests.at_once.tokens(), before);
}

#[test]
fn a_slow_step_shuts_guests_out_for_a_while_only() {
    let mut guests = guests();
    let slow = parts(0, 64);
    guests.sent(&slow);
    assert_eq!(guests.debts.keys().collect::<Vec<_>>(), [&GUEST], "one step at a time; others find no debt of it");
    guests.answered(&slow, Duration::from_secs(600), Instant::now());
    let pause = (0..100).take_while(|_| {
        step(&mut guests, &parts(0, 0), WITHOUT);
        !guests.debts.is_empty()
    });
    assert!(pause.count() <= MOST_STEPS as usize);
}

#[test]
fn several_debts_are_worked_off_one_beside_the_other() {
    for num_guests in [1, 10] {
        let mut guests = guests();
        for number in 0..num_guests {
            let slow = [parts(0, 0), vec![guest(TenantId(1 + number as u32), 64)]].concat();
            step(&mut guests, &slow, 600.0);
        }
        let pause = (0..1000).take_while(|_| {
            step(&mut guests, &parts(0, 0), WITHOUT);
            !guests.debts.is_empty()
        });
        let (pause, bound) = (pause.count(), num_guests * MOST_STEPS as usize);
        assert!((bound / 2..=bound).contains(&pause), "{pause} steps for {num_guests}");
    }
}

/// A guest with a third of its host's weight has a third of the tokens, and more when these take little.
#[test]
fn workers_that_are_lost_leave_no_debt_behind() {
    let mut guests = guests();
    guests.sent(&parts(0, LEAST as usize));
    assert_eq!(guests.debts.len(), 1, "its answer will never come");
    guests.workers_lost();
    assert!(guests.debts.is_empty());
}

#[test]
fn a_light_guest_is_learned_from_too() {
    let (mut guests, cost) = (guests(), |tokens: usize| WITHOUT + tokens as f64 / 30_000.0);
    for _ in 0..1000 {
        let of_terms = guests.at_once.tokens() as usize;
        let light = StepPart { of_terms, ..guest(GUEST, of_terms / 3) };
        step(&mut guests, &[parts(0, 0), vec![light]].concat(), cost(of_terms / 3));
    }
    let takes = cost(guests.at_once.tokens() as usize / 3);
    assert!((takes / (2.0 * WITHOUT) - 1.0).abs() < 0.3, "{takes} with {guests:?}");
}

#[test]
fn prompts_alone_show_what_a_step_costs_by_itself() {
    let (mut guests, cost) = (Guests::default(), |tokens: u32| 0.2 + f64::from(tokens) / 30_000.0);
    for _ in 0..100 {
        let tokens = guests.in_a_step.tokens();
        step(&mut guests, &[StepPart { outputs: 0, ..parts(tokens as usize, 0)[0] }], cost(tokens));
    }
    let takes = cost(guests.in_a_step.tokens());
    assert!((takes / 0.4 - 1.0).abs() < 0.3, "{takes} with {guests:?}");
}

#[test]
fn long_steps_of_who_is_alone_say_nothing_of_short_ones() {
    let mut guests = guests();
    let before = guests.in_a_step.tokens();
    guests.in_a_step.learn(before as usize, 0.001, SHORT);
    assert_eq!(guests.in_a_step.tokens(), 2 * before);
    (0..10).for_each(|_| step(&mut guests, &parts(4096, 0), 1.0));
    assert_eq!(guests.in_a_step.tokens(), 2 * before);
}

#[test]
fn only_steps_in_which_somebody_else_decodes_work_a_debt_off() {
    let mut guests = guests();
    step(&mut guests, &parts(0, 64), 2.0 * WITHOUT);
    let before = guests.debts[&GUEST].seconds;
    let own = [StepPart { tenant: GUEST, prompt_tokens: 500, guest_tokens: 0, of_terms: 0, outputs: 3 }];
    step(&mut guests, &own, WITHOUT);
    assert!((guests.debts[&GUEST].seconds - before).abs() < 1e-9, "the host is away");
    step(&mut guests, &parts(0, 0), WITHOUT);
    assert!(guests.debts[&GUEST].seconds < before);
}

#[test]
fn use_is_of_who_made_a_step_long() {
    let (mut guests, now) = (guests(), Instant::now());
    guests.visitors.see([HOST, GUEST].into_iter(), now);
    let both = parts(0, 640);
    guests.sent(&both);
    guests.answered(&both, Duration::from_secs_f64(5.0 * WITHOUT), now);
    let used = guests.visitors.used(now);
    assert_eq!(used, [(HOST, 20_000), (GUEST, 80_000)]);
}

#[test]
fn who_is_alone_has_steps_as_long_as_may_be_and_a_minute_after_the_other_left_too() {
    let (mut visitors, now) = (Visitors::default(), Instant::now());
    let after = |seconds| now + Duration::from_secs(seconds);
    visitors.see([HOST].into_iter(), now);
    assert!(!visitors.are_several());
    visitors.see([HOST, GUEST].into_iter(), now);
    visitors.see([HOST].into_iter(), after(59));
    assert!(visitors.are_several());
    visitors.see([HOST].into_iter(), after(61));
    assert!(!visitors.are_several());
}

#[test]
fn use_fades() {
    let (mut visitors, now) = (Visitors::default(), Instant::now());
    visitors.see([HOST].into_iter(), now);
    visitors.add(HOST, 4.0, now);
    visitors.add(HOST, 1.0, now + Duration::from_secs(10));
    assert_eq!(visitors.used(now + Duration::from_secs(20)), [(HOST, 1_500_000)]);
}

proptest! {
    #[test]
    fn there_is_always_a_number(
        steps in prop::collection::vec((0_usize..1 << 40, 0_usize..1 << 40, any::<u64>()), 0..50),
    ) {
        let (mut guests, now) = (Guests::default(), Instant::now());
        guests.visitors.see([HOST, GUEST].into_iter(), now);
        for (others, num_guest_tokens, took) in steps {
            let parts = parts(others, num_guest_tokens);
            guests.sent(&parts);
            guests.answered(&parts, Duration::from_nanos(took), now);
            let are_finite = guests.debts.values().all(|debt| debt.seconds.is_finite());
            let tokens = [guests.at_once.tokens(), guests.in_a_step.tokens()];
            prop_assert!(tokens.iter().all(|tokens| (LEAST..=MOST).contains(tokens)) && are_finite, "{guests:?}");
        }
    }
}
