//! Many equal tenants, tenants whose weights differ, and steps that take long by themselves.

use super::*;

/// Requests in a second of clients that ask one after the other, as so many tenants.
fn throughput(case: &Case, num_tenants: u32) -> f64 {
    const CLIENTS: u32 = 40;
    let (mut world, mut chance) = (World::new(case), Chance(3));
    let mut clients: Vec<Option<SequenceId>> = vec![None; CLIENTS as usize];
    while world.now < 20.0 {
        for (client, number) in clients.iter_mut().zip(0..) {
            if client.is_none_or(|id| world.asked[&id].end.is_some()) {
                let (prompt, new) = (chance.among(&case.steady.prompt), chance.among(&case.steady.new));
                let id = world.submit(TenantId(number % num_tenants), 1, prompt, new);
                world.asked.insert(id, Asked { at: world.now, first: None, end: None });
                *client = Some(id);
            }
        }
        world.send();
        world.answer();
    }
    world.asked.values().filter(|asked| asked.end.is_some()).count() as f64 / world.now
}

fn case(name: &'static str, step: f64, steady: Habits, flood: Habits) -> Case {
    Case { name, cost: Cost { step, ..DEVICE }, rows: 64, steady, rate: 0.0, burst: 1, flood }
}

#[test]
fn forty_equal_tenants_get_as_much_as_one() {
    let none = Habits { prompt: 1..=1, new: 1..=1 };
    // Where no output keeps requests together, they fall into two halves, one for each step in flight.
    for (name, prompt, new, least) in [("short outputs", 25..=35, 6..=10, 0.9), ("single tokens", 8..=12, 1..=1, 0.6)] {
        let case = case(name, 0.02, Habits { prompt, new }, none.clone());
        let [one, forty] = [1, 40].map(|num_tenants| throughput(&case, num_tenants));
        assert!(forty >= least * one, "{name}: {forty:.0} requests/s instead of {one:.0}");
    }
}

/// The flood's part of the time beside one output after the other of a tenant of this weight.
fn part_beside_a_stream(case: &Case, weight: u32) -> f64 {
    let (mut world, mut crowd) = (World::new(case), Chance(2));
    let mut stream: Option<SequenceId> = None;
    let (mut used, mut next) = ([0.0, 0.0], 20.0);
    while world.now < 60.0 {
        if stream.is_none_or(|id| world.asked[&id].end.is_some()) {
            let id = world.submit(STEADY, weight, crowd.among(&case.steady.prompt), crowd.among(&case.steady.new));
            world.asked.insert(id, Asked { at: world.now, first: None, end: None });
            stream = Some(id);
        }
        world.flood(case, &mut crowd);
        world.send();
        world.answer();
        if world.now >= next {
            let both = world.guests.visitors.used(world.instant());
            both.iter().zip(&mut used).for_each(|(one, sum)| *sum += one.1 as f64);
            next += 5.0;
        }
    }
    used[1] / (used[0] + used[1])
}

#[test]
fn a_light_flood_beside_a_heavy_stream_gets_its_part_of_the_time() {
    let stream = || Habits { prompt: 40..=56, new: 100..=200 };
    for (name, new) in [("single tokens", 1..=1), ("short outputs", 1..=16)] {
        let case = case(name, 0.01, stream(), Habits { prompt: 1400..=1600, new });
        for (weight, least) in [(3, 0.2), (1000, 0.12)] {
            let part = part_beside_a_stream(&case, weight);
            assert!(part >= least, "{name} beside weight {weight}: {part:.3}");
        }
    }
}

#[test]
fn a_flood_of_prompts_alone_loses_little_where_each_step_takes_long() {
    // Steps that take twice as long as they have to are half as good as long ones at worst.
    for (step, least) in [(0.045, 0.5), (0.2, 0.8)] {
        let prompts = Habits { prompt: 1400..=1600, new: 1..=1 };
        let case = case("prompts alone", step, prompts.clone(), prompts);
        let [alone, visited] = [false, true].map(|is_visited| flood_alone(&case, 60.0, is_visited));
        assert!(visited >= least * alone, "steps of {step} s: {visited:.0} tokens/s instead of {alone:.0}");
    }
}
