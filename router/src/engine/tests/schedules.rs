//! The engine's task at random: workers that die, hang, fail and talk nonsense, clients that leave, deadlines, and the end
//! of the server, in an order that a seed decides and a clock that stands still while there is something to do.

use super::*;

/// A small generator, so that a seed means the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// How a client goes on.
#[derive(Clone, Copy, Debug)]
enum Client {
    Stays,
    LeavesAfter(usize),
}

fn fault(dice: &mut Dice) -> Fault {
    match dice.roll(8) {
        0 => Fault::Die,
        7 => Fault::Hang,
        1 => Fault::FailStep,
        2 => Fault::FailSequence(dice.roll(4) as usize),
        3 => Fault::Malformed(Malformation::Ragged),
        4 => Fault::Malformed(Malformation::ForeignToken),
        5 => Fault::Malformed(Malformation::Twice),
        _ => Fault::Malformed(Malformation::WrongStep),
    }
}

/// What a launcher does: a group of which a rank hangs is replaced.
async fn replace_hung(workers: FakeGroup, num_ranks: usize, health: Health) {
    loop {
        while health.hung().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (0..num_ranks).for_each(|rank| workers.rank(rank).die());
        while health.hung().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Reads to the end, or leaves. Whoever stays gets exactly one end for each sequence, or one for the request.
async fn read(mut generation: Generation, num_sequences: usize, client: Client) -> Outcome {
    let mut outcome = Outcome::default();
    while outcome.failed.is_none() && outcome.finished.len() < num_sequences {
        if let Client::LeavesAfter(tokens) = client
            && outcome.tokens.values().map(Vec::len).sum::<usize>() >= tokens
        {
            return outcome;
        }
        let events = generation.next().await;
        assert!(!events.is_empty(), "the engine is gone");
        outcome.note_all(events);
    }
    // Nothing comes behind the end, however long one waits.
    let more = tokio::time::timeout(Duration::from_secs(5), generation.next()).await;
    assert!(more.is_err(), "{more:?} behind the end");
    generation.complete();
    outcome
}

async fn run(seed: u64) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let num_ranks = 1 + dice.roll(2) as u32;
    let delay = Duration::from_millis(dice.roll(3));
    let (max_rows, num_pages) = (2 + dice.roll(6) as u32, 24 + dice.roll(60) as u32);
    let options = FakeOptions { delay, page_size: 8, num_pages, max_rows, ..options() };
    let flags = format!("--num-shard {num_ranks} --hung-step-seconds 3");
    let server = start_with(FakeGroup::new(&options, num_ranks), &flags, READER_PATIENCE);
    let launcher = tokio::spawn(replace_hung(server.workers.clone(), num_ranks as usize, server.health.clone()));
    for _ in 0..dice.roll(5) {
        let rank = dice.roll(num_ranks.into()) as usize;
        server.workers.rank(rank).inject(1 + dice.roll(40), fault(&mut dice));
    }
    let mut clients = Vec::new();
    for number in 0..3 + dice.roll(8) {
        let num_sequences = 1 + dice.roll(2);
        let seeds: Vec<u64> = (0..num_sequences).map(|index| number * 10 + index).collect();
        let mut asked = seeded(prompt(number as u32, 1 + dice.roll(40) as u32), 1 + dice.roll(30) as u32, &seeds);
        asked.tenant = tenant(dice.roll(3) as u32);
        if dice.roll(4) == 0 {
            asked.deadline = Some(Instant::now() + Duration::from_millis(dice.roll(60)));
        }
        if dice.roll(3) == 0 {
            asked.stopping.stop = vec![letter(LETTERS.start + dice.roll(26) as u32).to_string()];
        }
        let client = if dice.roll(3) == 0 { Client::LeavesAfter(dice.roll(12) as usize) } else { Client::Stays };
        let expected: Vec<_> = (0..seeds.len()).map(|index| server.expected(&asked, index)).collect();
        clients.push((tokio::spawn(read(server.generate(asked), seeds.len(), client)), expected));
        tokio::time::sleep(Duration::from_millis(dice.roll(9))).await;
    }
    if dice.roll(3) == 0 {
        tokio::time::sleep(Duration::from_millis(dice.roll(30))).await;
        server.handle.end_all();
    }
    for (client, expected) in clients {
        let outcome = client.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for (sequence, expected) in expected.iter().enumerate() {
            let ids = outcome.ids(sequence);
            assert_eq!(ids, expected[..ids.len()], "seed {seed}: every token once, in its place");
        }
    }
    settle(&server, seed).await;
    launcher.abort();
    server.end().await;
}

/// Nothing of any request is left anywhere.
async fn settle(server: &Server, seed: u64) {
    for gauge in ["tgi_queue_size", "tgi_batch_current_size", "millrace_rows_used", "millrace_kv_pages_used"] {
        let gone = async {
            while server.metric(gauge) > 0.0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(600), gone).await.is_ok(), "seed {seed}: {gauge}");
    }
    assert_eq!(server.backlog.num_inside(), 0, "seed {seed}");
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_each_request_ends_once_and_leaves_nothing() {
    let seeds = std::env::var("CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(60);
    for seed in 1..=seeds {
        run(seed).await;
    }
}
