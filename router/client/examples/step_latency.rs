//! What a step costs when the workers do nothing: from `send` to `next`, over unix sockets.
//!
//! `cargo run --release -p millrace-client --example step_latency`
#![allow(clippy::print_stdout, reason = "it is a report")]

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_client::fake::{FakeOptions, FakeWorker, ServedFake};
use millrace_client::{PrepareRequest, ShardedClient, StepStream, Workers};
use millrace_scheduler::{Admission, PageId, Row, SequenceId, StepPlan, Work};

const NUM_STEPS: u64 = 2000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    println!(
        "{:>5} {:>5} {:>14} {:>16} {:>16}",
        "ranks", "rows", "1 in flight us", "2 in flight us", "plan to wire us"
    );
    for world_size in [1, 2, 4] {
        for num_rows in [1, 16, 64, 512] {
            let alone = measure(world_size, num_rows, 1).await?;
            let (overlapped, convert) = (measure(world_size, num_rows, 2).await?, conversion(num_rows));
            let [alone, overlapped, convert] = [alone, overlapped, convert].map(|time| time.as_secs_f64() * 1e6);
            println!("{world_size:>5} {num_rows:>5} {alone:>14.1} {overlapped:>16.1} {convert:>16.1}");
        }
    }
    Ok(())
}

/// Time per step, decode rows only.
async fn measure(world_size: u32, num_rows: u32, in_flight: u64) -> Result<Duration, Box<dyn Error>> {
    let prefix = std::env::temp_dir().join(format!("step-latency-{}", std::process::id()));
    let options = FakeOptions { verify: false, num_pages: 1 << 20, max_positions: 1 << 20, ..FakeOptions::default() };
    let serve = |rank| {
        let worker = FakeWorker::of_group(options.clone(), rank, world_size);
        worker.serve(&format!("unix:{}-{rank}", prefix.display()))
    };
    let _served: Vec<ServedFake> = (0..world_size).map(serve).collect::<Result<_, _>>()?;
    let connected = ShardedClient::unix(&prefix, world_size as usize).connect().await?;
    let request = PrepareRequest { max_rows: num_rows, max_step_tokens: num_rows, ..PrepareRequest::default() };
    connected.prepare(request).await?;
    let mut steps = connected.run().await?;
    run(&mut steps, num_rows, in_flight).await
}

async fn run(steps: &mut StepStream, num_rows: u32, in_flight: u64) -> Result<Duration, Box<dyn Error>> {
    steps.send(&plan(1, num_rows));
    steps.next().await?;
    let started = Instant::now();
    for step in 2..2 + NUM_STEPS {
        steps.send(&plan(step, num_rows));
        while steps.num_in_flight() as u64 >= in_flight {
            steps.next().await?;
        }
    }
    while steps.num_in_flight() > 0 {
        steps.next().await?;
    }
    Ok(started.elapsed() / NUM_STEPS as u32)
}

/// What making a plan and turning it into its message costs.
fn conversion(num_rows: u32) -> Duration {
    let started = Instant::now();
    for step in 2..2 + NUM_STEPS {
        std::hint::black_box(millrace_client::convert::plan_to_proto(&plan(step, num_rows)));
    }
    started.elapsed() / NUM_STEPS as u32
}

/// Step 1 admits and computes one prompt token per row, each later one decodes a token.
fn plan(step: u64, num_rows: u32) -> StepPlan {
    let sequence = |row: u32| SequenceId(row.into());
    let admission = |row: u32| Admission {
        sequence: sequence(row),
        row: Row(row),
        token_ids: vec![row],
        num_prompt_tokens: 1,
        pages: (0..=NUM_STEPS as u32 / 16).map(PageId).collect(),
        sampling: Arc::default(),
        prompt_logprobs: false,
    };
    let work = |row| Work { sequence: sequence(row), row: Row(row), start: step as u32 - 1, count: 1, samples: true };
    StepPlan {
        step,
        admitted: if step == 1 { (0..num_rows).map(admission).collect() } else { Vec::new() },
        work: (0..num_rows).map(work).collect(),
        ..StepPlan::default()
    }
}
