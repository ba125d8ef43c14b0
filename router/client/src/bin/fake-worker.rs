//! A worker without a model, as a process: what the router is measured and tried out against.

use std::fmt;
use std::time::Duration;

use millrace_client::fake::{FakeOptions, FakeWorker};

const USAGE: &str = "\
usage: millrace-fake-worker (--uds-path PREFIX | --listen HOST:PORT) [options]
  --uds-path PREFIX      listen at the unix socket PREFIX-RANK
  --listen HOST:PORT     listen at a TCP port
  --rank R               which rank this is (0)
  --world-size N         how many there are (1)
  --vocab N              token ids that the model has (1000)
  --tokens FIRST..END    token ids that it draws from (16..N)
  --max-positions N      longest sequence (4096)
  --page-size N          tokens per page (16); 0: no pages, sequences lie in their rows
  --pages N              pages (256)
  --delay-us N           time that a step takes (0)
  --load-ms N            time until it answers Describe (0)
  --at-output I=ID       the I-th token of every output, counted from 0, is ID; repeatable
  --at-position P=ID     the token at position P of every sequence, prompt included, is ID; repeatable
  --cheap                keep no page contents and verify nothing";

/// An error that prints as its message when `main` returns it.
struct Failure(String);

impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

struct Arguments {
    uds_path: Option<String>,
    listen: Option<String>,
    rank: u32,
    world_size: u32,
    /// None: all of the vocabulary but its first 16, where special tokens usually are.
    tokens: Option<std::ops::Range<u32>>,
    options: FakeOptions,
}

fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let endpoint = arguments.endpoint()?;
    let worker = FakeWorker::of_group(arguments.options()?, arguments.rank, arguments.world_size);
    worker.serve_here(&endpoint).map_err(|error| Failure(format!("cannot serve at {endpoint}: {error}")))
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let options = FakeOptions::default();
        let mut parsed = Self { uds_path: None, listen: None, rank: 0, world_size: 1, tokens: None, options };
        while let Some(flag) = arguments.next() {
            match flag.as_str() {
                "--cheap" => parsed.options.verify = false,
                "--help" => return Err(Failure(USAGE.to_owned())),
                _ => {
                    let value = arguments.next();
                    let value = value.ok_or_else(|| Failure(format!("{flag} needs a value\n{USAGE}")))?;
                    parsed.set(&flag, &value)?;
                }
            }
        }
        Ok(parsed)
    }

    fn set(&mut self, flag: &str, value: &str) -> Result<(), Failure> {
        let options = &mut self.options;
        match flag {
            "--uds-path" => self.uds_path = Some(value.to_owned()),
            "--listen" => self.listen = Some(value.to_owned()),
            "--rank" => self.rank = number(flag, value)?,
            "--world-size" => self.world_size = number(flag, value)?,
            "--vocab" => options.vocab_size = number(flag, value)?,
            "--tokens" => {
                let (first, end) = pair(flag, value, "..")?;
                self.tokens = Some(first..end);
            }
            "--max-positions" => options.max_positions = number(flag, value)?,
            "--page-size" => options.page_size = number(flag, value)?,
            "--pages" => options.num_pages = number(flag, value)?,
            "--delay-us" => options.delay = Duration::from_micros(number(flag, value)?.into()),
            "--load-ms" => options.load_time = Duration::from_millis(number(flag, value)?.into()),
            "--at-output" => options.model.at_output.extend([pair(flag, value, "=")?]),
            "--at-position" => options.model.at_position.extend([pair(flag, value, "=")?]),
            _ => return Err(Failure(format!("there is no flag {flag}\n{USAGE}"))),
        }
        Ok(())
    }

    fn endpoint(&self) -> Result<String, Failure> {
        match (&self.uds_path, &self.listen) {
            (Some(prefix), None) => Ok(format!("unix:{prefix}-{}", self.rank)),
            (None, Some(address)) => Ok(format!("http://{address}")),
            _ => Err(Failure(format!("one of --uds-path and --listen is needed\n{USAGE}"))),
        }
    }

    fn options(&self) -> Result<FakeOptions, Failure> {
        let mut options = self.options.clone();
        let vocab_size = options.vocab_size;
        options.model.token_ids = self.tokens.clone().unwrap_or(16.min(vocab_size.saturating_sub(1))..vocab_size);
        let scripted = options.model.at_output.values().chain(options.model.at_position.values());
        let highest = scripted.copied().max().unwrap_or(0).max(options.model.token_ids.end.saturating_sub(1));
        if options.model.token_ids.is_empty() || highest >= vocab_size {
            return Err(Failure(format!(
                "--tokens, --at-output and --at-position need ids below --vocab {vocab_size}"
            )));
        }
        if self.rank >= self.world_size {
            return Err(Failure("--rank must be below --world-size".to_owned()));
        }
        Ok(options)
    }
}

fn number(flag: &str, value: &str) -> Result<u32, Failure> {
    value.parse().map_err(|error| Failure(format!("{flag} {value}: {error}")))
}

fn pair(flag: &str, value: &str, separator: &str) -> Result<(u32, u32), Failure> {
    let wrong = || Failure(format!("{flag} {value}: must be two numbers with {separator} between"));
    let (first, second) = value.split_once(separator).ok_or_else(wrong)?;
    Ok((number(flag, first)?, number(flag, second)?))
}
