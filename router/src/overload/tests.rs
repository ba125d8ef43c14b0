//! The books as a whole: decided and noted in one, and given back whichever way a request ends.

use proptest::prelude::*;

use super::*;

fn backlog(flags: &str) -> Backlog {
    let arguments = ["millrace-router", "--model-id", "m"].into_iter().chain(flags.split_whitespace());
    let backlog = Backlog::new(&Config::read(arguments, |_| None).unwrap());
    backlog.workers_ready(Room { rows: 4, step_tokens: 100 });
    backlog
}

/// Steps of a tenth of a second.
fn progress(steps: u64) -> Progress {
    Progress {
        steps,
        cost: StepCost { step: 0.1, token: 0.0 },
        uncomputed_tokens: 0,
        free_tokens: 10_000,
        used_tokens: 0,
        num_preempted: 0,
        prompt_tokens: u32::MAX,
    }
}

fn demand(prompt_tokens: u32, max_new_tokens: u32) -> Demand {
    Demand {
        prompt_tokens,
        num_sequences: 1,
        max_new_tokens,
        tenant: TenantId(0),
        weight: 1,
        max_queued_tokens: None,
        priority: 0,
    }
}

fn started(backlog: &Backlog, demand: Demand) -> Reservation {
    let reservation = backlog.reserve(demand, None).unwrap();
    reservation.started();
    reservation
}

fn close(time: Duration, seconds: f64) {
    assert!((time.as_secs_f64() - seconds).abs() < 1e-9, "{time:?} {seconds}");
}

#[test]
fn an_idle_server_refuses_nobody() {
    let backlog = backlog("--max-queued-tokens 10 --max-queue-seconds 0.001");
    let soon = Instant::now() + Duration::from_millis(100);
    let huge = Demand { num_sequences: 50, ..demand(1_000_000, 1_000_000) };
    let reservation = backlog.reserve(huge, Some(soon));
    assert!(reservation.is_ok(), "{reservation:?}");
    drop(reservation);
    assert_eq!(backlog.outlook(), Outlook { wait: Duration::ZERO, queued_tokens: 0 });
}

#[test]
fn the_wait_is_the_time_until_the_first_seat() {
    let backlog = backlog("");
    backlog.publish(progress(0));
    let mut inside: Vec<Reservation> = [70, 30, 50, 90].map(|length| started(&backlog, demand(1, length))).into();
    // A step for the prompt, 30 for its output.
    close(backlog.outlook().wait, 3.1);
    backlog.publish(progress(21));
    close(backlog.outlook().wait, 1.0);
    inside.push(backlog.reserve(demand(1, 5), None).unwrap());
    close(backlog.outlook().wait, 1.6);
    inside.remove(0);
    close(backlog.outlook().wait, 0.6);
}

#[test]
fn prompts_in_front_make_wait_also_where_rows_are_free() {
    let backlog = backlog("");
    backlog.publish(Progress { uncomputed_tokens: 500, ..progress(1) });
    close(backlog.outlook().wait, 0.5);
    assert_eq!(backlog.outlook().queued_tokens, 500);
    let waiting = backlog.reserve(demand(100, 5), None).unwrap();
    assert_eq!(backlog.outlook().queued_tokens, 600);
    close(backlog.outlook().wait, 0.7); // 600 tokens, 99 in a step
    for _ in 0..500 {
        waiting.started();
        waiting.prefilled(100);
    }
    let _waiting = backlog.reserve(demand(100, 5), None).unwrap();
    backlog.publish(progress(2));
    assert!(backlog.outlook().wait <= Duration::from_millis(100), "such prompts are in the prefix cache");
}

#[test]
fn memory_in_use_makes_wait() {
    let backlog = backlog("");
    let _running = started(&backlog, demand(100, 50));
    backlog.publish(Progress { free_tokens: 10, used_tokens: 125, ..progress(1) });
    let small = backlog.knock(&Tenant::default(), 0, None);
    assert!(small.is_ok());
    let wait = |demand| {
        let mut books = backlog.shared.books();
        books.wait(&backlog.shared.published.read(), demand, Instant::now()).in_front()
    };
    close(wait(demand(5, 5)), 0.0);
    close(wait(demand(80, 50)), 5.0);
}

#[test]
fn tokens_that_wait_are_bounded() {
    let backlog = backlog("--max-queued-tokens 1000");
    let first = backlog.reserve(demand(5000, 5), None).unwrap();
    let refused = backlog.reserve(demand(1, 5), None).unwrap_err();
    assert_eq!(refused.reason, Reason::QueuedTokens { waiting: 5000, allowed: 1000 });
    drop(first);
    let all: Vec<_> = (0..10).map(|_| backlog.reserve(demand(100, 5), None).unwrap()).collect();
    assert!(backlog.reserve(demand(1, 5), None).is_err());
    all[0].started();
    let one_more = backlog.reserve(demand(100, 5), None);
    assert!(one_more.is_ok(), "what runs is told by the engine: {one_more:?}");
}

#[test]
fn the_estimated_wait_is_bounded_and_the_pause_is_what_is_too_much() {
    let backlog = backlog("--max-queue-seconds 2");
    backlog.publish(progress(0));
    let _running: Vec<_> = (0..4).map(|_| started(&backlog, demand(1, 49))).collect();
    let refused = backlog.reserve(demand(1, 5), None).unwrap_err();
    let Reason::Wait { wait, allowed } = refused.reason else { panic!("{refused}") };
    close(wait, 5.0);
    close(refused.pause, 3.0);
    assert_eq!((allowed, refused.pause_seconds()), (Duration::from_secs(2), 3));
    assert!(backlog.knock(&Tenant::default(), 0, None).is_err(), "nobody else has a chance");
    backlog.publish(progress(30));
    assert!(backlog.reserve(demand(1, 5), None).is_ok());
}

#[test]
fn who_would_be_queued_to_die_is_refused_at_once() {
    let backlog = backlog("");
    backlog.publish(progress(0));
    let _running: Vec<_> = (0..4).map(|_| started(&backlog, demand(1, 49))).collect();
    let after = |seconds| Some(Instant::now() + Duration::from_secs(seconds));
    assert!(matches!(backlog.reserve(demand(1, 5), after(4)).unwrap_err().reason, Reason::Deadline { .. }));
    assert!(backlog.knock(&Tenant::default(), 0, after(4)).is_err());
    // Its own prompt needs three seconds more.
    assert!(matches!(backlog.reserve(demand(3000, 5), after(7)).unwrap_err().reason, Reason::Deadline { .. }));
    assert!(backlog.reserve(demand(1, 5), after(6)).is_ok());
    assert!(backlog.reserve(demand(1, 5), None).is_ok());
}

#[test]
fn while_workers_are_replaced_the_time_of_that_is_waited_for() {
    let backlog = backlog("--max-queue-seconds 1");
    let begin = Instant::now();
    let wait = |after: u64| {
        let mut books = backlog.shared.books();
        let at = begin + Duration::from_secs(after);
        books.wait(&backlog.shared.published.read(), Demand::anybodys(), at).in_front()
    };
    backlog.shared.books().workers_lost(begin);
    backlog.shared.books().workers_ready(Room { rows: 4, step_tokens: 100 }, begin + Duration::from_secs(10));
    assert_eq!(wait(10), Duration::ZERO);
    backlog.shared.books().workers_lost(begin + Duration::from_secs(20));
    assert_eq!([wait(20), wait(24), wait(60)].map(|wait| wait.as_secs()), [10, 6, 20]);
    assert!(backlog.knock(&Tenant::default(), 0, None).is_err());
}

#[test]
fn a_thousand_at_once_are_decided_upon_one_after_the_other() {
    let backlog = backlog("--max-queued-tokens 1000");
    let burst: Vec<_> = (0..8)
        .map(|_| {
            let backlog = backlog.clone();
            std::thread::spawn(move || (0..125).filter_map(|_| backlog.reserve(demand(10, 5), None).ok()).collect())
        })
        .collect();
    let inside: Vec<Vec<Reservation>> = burst.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(inside.iter().map(Vec::len).sum::<usize>(), 100);
    assert_eq!(backlog.outlook().queued_tokens, 1000);
    drop(inside);
    assert_eq!(backlog.outlook().queued_tokens, 0);
}

#[test]
fn nobody_waits_behind_the_crowd_of_another_tenant() {
    let backlog = backlog("--max-queue-seconds 2 --max-queued-tokens 200");
    backlog.publish(progress(0));
    let of = |tenant, weight| Demand { tenant: TenantId(tenant), weight, ..demand(10, 18) };
    let _flood: Vec<_> = (0..4).map(|_| started(&backlog, of(1, 1))).collect();
    let mut crowd = Vec::new();
    while let Ok(one) = backlog.reserve(of(1, 1), None) {
        crowd.push(one);
    }
    assert_eq!(crowd.len(), 4, "alone, with four rows, for 19 steps each");
    // Half of the rows is the other's, whatever the first one has taken.
    let quiet: Vec<_> = (0..2).map(|_| backlog.reserve(of(2, 1), None).unwrap()).collect();
    assert!(backlog.reserve(of(1, 1), None).is_err());
    drop(quiet);
    let heavy: Vec<_> = (0..20).map_while(|_| backlog.reserve(of(3, 3), None).ok()).collect();
    assert_eq!(heavy.len(), 6, "three rows, and once more");
    drop(heavy);
    // The bound on tokens is parted alike.
    let long = Demand { prompt_tokens: 90, ..of(2, 1) };
    let _first = backlog.reserve(long, None).unwrap();
    let refused = backlog.reserve(long, None).unwrap_err();
    assert_eq!(refused.reason, Reason::QueuedTokens { waiting: 90, allowed: 100 });
}

#[test]
fn a_heavy_neighbours_one_stream_takes_no_room_in_an_empty_queue() {
    let backlog = backlog("--max-queued-tokens 8192");
    backlog.publish(progress(0));
    let heavy = started(&backlog, Demand { tenant: TenantId(1), weight: 1000, ..demand(3, 500) });
    heavy.prefilled(0);
    let light = Demand { tenant: TenantId(2), ..demand(2000, 5) };
    let inside: Vec<_> = (0..10).map_while(|_| backlog.reserve(light, None).ok()).collect();
    assert_eq!(inside.len(), 4, "as many as if it were alone");
    let refused = backlog.reserve(light, None).unwrap_err();
    assert_eq!(refused.reason, Reason::QueuedTokens { waiting: 8000, allowed: 8 });
    assert!(refused.pause < Duration::from_secs(60), "until the queue of all is shorter: {:?}", refused.pause);
}

#[test]
fn a_flood_of_prompts_waits_as_a_guest_beside_anothers_output() {
    let of = |tenant, weight, prompt_tokens| Demand { tenant: TenantId(tenant), weight, ..demand(prompt_tokens, 5) };
    let num_admitted = |guest_tokens: Option<u32>, weight, decodes: bool, is_heavy: bool| {
        let backlog = backlog("--max-queue-seconds 10");
        backlog.publish(progress(0));
        if let Some(tokens) = guest_tokens {
            // All at once in every fourth step.
            let guest = Some(TenantId(if is_heavy { 2 } else { 1 }));
            (0..400).for_each(|step| backlog.set_guest(guest, if step % 4 == 0 { 4 * tokens } else { 0 }));
        }
        let steady = started(&backlog, Demand { max_new_tokens: 5000, ..of(1, 1, 1) });
        if decodes {
            steady.prefilled(0);
        }
        let admitted: Vec<_> = (0..100).map_while(|_| backlog.reserve(of(2, weight, 1000), None).ok()).collect();
        let other = backlog.reserve(of(1, 1, 1000), None);
        assert!(other.is_ok(), "its own prompts are nobody's guests: {other:?}");
        admitted.len()
    };
    let unbounded = num_admitted(None, 1, true, true);
    assert!(unbounded > 4, "{unbounded}");
    // A hundred steps in 10 s, nearly 20 tokens in each: not quite two prompts, and the one that goes beyond.
    assert_eq!(num_admitted(Some(20), 1, true, true), 2);
    assert_eq!(num_admitted(Some(20), 2, true, true), 4, "per weight");
    assert_eq!(num_admitted(Some(1), 1, true, true), 1, "a thousand steps");
    assert_eq!(num_admitted(Some(20), 1, false, true), unbounded, "nobody decodes");
    assert_eq!(num_admitted(Some(20), 1, true, false), unbounded, "who has used less is nobody's guest");
}

#[test]
fn who_is_sooner_by_priority_does_not_wait_for_its_tenants_later_ones() {
    let of = |tenant, priority| Demand { tenant: TenantId(tenant), priority, ..demand(10, 49) };
    for others in [false, true] {
        let backlog = backlog("--max-queue-seconds 6");
        backlog.publish(progress(0));
        let _running: Vec<_> = (0..4).map(|_| started(&backlog, of(1, 0))).collect();
        let _other = others.then(|| started(&backlog, of(2, 0)));
        let later: Vec<_> = (0..9).map_while(|_| backlog.reserve(of(1, 5), None).ok()).collect();
        assert!((2..=5).contains(&later.len()), "{}", later.len());
        for (priority, is_let_in) in [(6, false), (5, false), (4, true)] {
            let decided = backlog.reserve(of(1, priority), None);
            assert_eq!(decided.is_ok(), is_let_in, "{priority} {decided:?}");
        }
        // Before its body is read nobody knows.
        let tenant = Tenant { id: TenantId(1), ..Tenant::default() };
        assert_eq!([5, 4].map(|priority| backlog.knock(&tenant, priority, None).is_ok()), [false, true]);
        let sooner: Vec<_> = (0..9).map_while(|_| backlog.reserve(of(1, -5), None).ok()).collect();
        assert_eq!(sooner.len(), later.len(), "behind each other");
        drop(sooner);
        // It is nothing to other tenants.
        assert_eq!(backlog.reserve(of(3, 1000), None).is_ok(), backlog.reserve(of(3, -1000), None).is_ok());
    }
}

#[derive(Clone, Debug)]
enum Event {
    Reserve(u32, u32, u32),
    Start(usize),
    Prefilled(usize, u32),
    Ended(usize, u32, bool),
    Leave(usize),
    Step(u64, u64, u64, u64),
    Lost,
    Ready(u32, u32),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1_u32..5000, 1_u32..5, 1_u32..5000).prop_map(|(prompt, n, new)| Event::Reserve(prompt, n, new)),
        2 => any::<usize>().prop_map(Event::Start),
        1 => (any::<usize>(), 0_u32..5000).prop_map(|(who, cached)| Event::Prefilled(who, cached)),
        1 => (any::<usize>(), 0_u32..5000, any::<bool>()).prop_map(|(who, tokens, itself)| Event::Ended(who, tokens, itself)),
        2 => any::<usize>().prop_map(Event::Leave),
        2 => (0_u64..10, 0_u64..10_000, 0_u64..100_000, 0_u64..5).prop_map(|(more, uncomputed, used, preempted)| {
            Event::Step(more, uncomputed, used, preempted)
        }),
        1 => Just(Event::Lost),
        1 => (1_u32..20, 1_u32..1000).prop_map(|(rows, tokens)| Event::Ready(rows, tokens)),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_waits_grow_with_the_queue_and_nothing_stays_behind(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let backlog = backlog("");
        let (mut inside, mut steps): (Vec<Reservation>, u64) = (Vec::new(), 0);
        for event in events {
            let at = |index: usize| index % inside.len().max(1);
            match event {
                Event::Reserve(prompt_tokens, num_sequences, max_new_tokens) => {
                    let before = backlog.outlook();
                    let tenant = TenantId(prompt_tokens % 3);
                    let demand = Demand {
                        num_sequences,
                        tenant,
                        weight: num_sequences,
                        priority: (max_new_tokens % 3).cast_signed(),
                        ..demand(prompt_tokens, max_new_tokens)
                    };
                    inside.push(backlog.reserve(demand, None).unwrap());
                    let after = backlog.outlook();
                    // Of a replacement of workers, time passes between the two.
                    prop_assert!(after.wait + Duration::from_millis(500) >= before.wait, "{before:?} {after:?}");
                    prop_assert!(after.queued_tokens > before.queued_tokens);
                }
                Event::Start(index) => inside.get(at(index)).into_iter().for_each(Reservation::started),
                Event::Prefilled(index, cached) => {
                    if let Some(one) = inside.get(at(index)) {
                        one.prefilled(cached);
                    }
                }
                Event::Ended(index, tokens, itself) => {
                    if let Some(one) = inside.get(at(index)) {
                        one.ended(tokens, itself);
                    }
                }
                Event::Leave(index) => {
                    let leaving = at(index);
                    drop((leaving < inside.len()).then(|| inside.swap_remove(leaving)));
                }
                Event::Step(more, uncomputed_tokens, used_tokens, num_preempted) => {
                    steps += more;
                    let free_tokens = 100_000 - used_tokens;
                    let now = Progress { uncomputed_tokens, free_tokens, used_tokens, num_preempted, ..progress(steps) };
                    backlog.publish(now);
                }
                Event::Lost => backlog.workers_lost(),
                Event::Ready(rows, step_tokens) => backlog.workers_ready(Room { rows, step_tokens }),
            }
        }
        inside.clear();
        backlog.publish(progress(steps));
        backlog.workers_ready(Room { rows: 1, step_tokens: 1 });
        prop_assert_eq!(backlog.outlook(), Outlook { wait: Duration::ZERO, queued_tokens: 0 });
    }
}

#[test]
fn a_tenant_has_a_queue_of_its_own_limit() {
    let backlog = backlog("");
    let own = Demand { tenant: TenantId(4), max_queued_tokens: Some(25), ..demand(10, 5) };
    let both = [(); 2].map(|()| backlog.reserve(own, None).unwrap());
    let refused = backlog.reserve(own, None).unwrap_err();
    assert_eq!(refused.reason, Reason::TenantQueuedTokens { waiting: 20, allowed: 25 });
    assert!(backlog.reserve(demand(10, 5), None).is_ok(), "others have none");
    both[0].started();
    let another = backlog.reserve(own, None);
    assert!(another.is_ok(), "what runs waits no more: {another:?}");
}
