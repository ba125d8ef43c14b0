//! Grammars on their way from a request to its sampling parameters: allowed here at all, and compiled in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Names, Parameters, TokenizerPool, ValidationError};
use crate::grammar::{Compiler, GrammarError};
use crate::health::Health;
use crate::tokenizer::TextModel;

/// Threads that compile. One that is busy with a hard grammar leaves the other.
const THREADS: usize = 2;
/// How long a request waits for its grammar. What takes longer here would hold up the workers as well.
const PATIENCE: Duration = Duration::from_millis(800);

/// What workers without the feature are asked about.
const CAPABILITY: &str = "grammar";

#[derive(Debug)]
pub(super) struct Grammars {
    compiler: Arc<Compiler>,
    pool: TokenizerPool,
    patience: Duration,
    is_disabled: bool,
    /// The model has a token that ends a text.
    can_end: bool,
}

impl Grammars {
    pub(super) fn new(text: &TextModel, is_disabled: bool) -> Self {
        Self {
            compiler: Arc::new(Compiler::new(&text.grammar_vocabulary())),
            pool: TokenizerPool::new("grammar", THREADS, Some(Compiler::STACK)),
            patience: PATIENCE,
            is_disabled,
            can_end: !text.eos_token_ids().is_empty(),
        }
    }

    /// Takes the grammar out of the parameters, and gives it back as workers take it.
    pub(super) async fn check(
        &self,
        parameters: &mut Parameters,
        names: &Names,
        health: &Health,
    ) -> Result<Option<Arc<str>>, ValidationError> {
        let Some(grammar) = parameters.grammar.take() else { return Ok(None) };
        self.check_use(parameters, names, health)?;
        let (compiler, has_begun) = (Arc::clone(&self.compiler), Arc::new(AtomicBool::new(false)));
        let begun = Arc::clone(&has_begun);
        let work = move || {
            begun.store(true, Ordering::Relaxed);
            compiler.compile(&grammar)
        };
        let refused = |error| ValidationError::Grammar { field: names.grammar, error };
        match tokio::time::timeout(self.patience, self.pool.run(work)).await {
            Ok(Ok(outcome)) => outcome.map(Some).map_err(refused),
            Ok(Err(_)) => Err(refused(GrammarError::beyond("is more than the grammar compiler can take; simplify it"))),
            Err(_) if has_begun.load(Ordering::Relaxed) => {
                Err(refused(GrammarError::beyond("takes too long to compile; make it smaller or simpler")))
            }
            Err(_) => Err(ValidationError::Busy),
        }
    }

    /// Whether any grammar may be used, beside these parameters.
    fn check_use(&self, parameters: &Parameters, names: &Names, health: &Health) -> Result<(), ValidationError> {
        let refuse = |field, problem: &str| Err(ValidationError::field(field, problem));
        if self.is_disabled {
            let problem = "is not supported: grammars are disabled on this server (--disable-grammar-support)";
            return refuse(names.grammar, problem);
        }
        let model = health.model();
        if let Some(model) = model.filter(|model| !model.capabilities.iter().any(|has| has == CAPABILITY)) {
            let reason = model.missing.get(CAPABILITY).map_or("its workers do not say why", String::as_str);
            return refuse(names.grammar, &format!("is not supported by this model: {reason}"));
        }
        if !self.can_end {
            let problem = "is not supported by this model: it has no token that ends a text";
            return refuse(names.grammar, problem);
        }
        if parameters.ignore_eos {
            return refuse(
                "ignore_eos",
                "must be left out beside a grammar: nothing can follow a text that is complete",
            );
        }
        if parameters.min_new_tokens.is_some_and(|least| least > 0) {
            return refuse(
                "min_tokens",
                "must be left out beside a grammar, which says itself when a text is complete",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::Grammar;
    use crate::tokenizer::fixture;

    async fn check(grammars: &Grammars, grammar: Grammar) -> Result<Option<Arc<str>>, ValidationError> {
        let mut parameters = Parameters { grammar: Some(grammar), ..Parameters::default() };
        grammars.check(&mut parameters, &Names::GENERATE, &Health::default()).await
    }

    /// Takes tens of milliseconds.
    fn slow() -> Grammar {
        let words: Vec<String> = (0..2_000).map(|number| format!("/a*{number}b+/")).collect();
        Grammar::Lark(format!("start: {}", words.join(" | ")))
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_allowed_and_the_threads_go_on() {
        let mut grammars = Grammars::new(&fixture::text_model(), false);
        grammars.patience = Duration::from_millis(5);
        // On a busy machine the thread may not even have begun.
        let is_late = |error: &ValidationError| match error {
            ValidationError::Grammar { error, .. } => error.problem.contains("too long"),
            other => *other == ValidationError::Busy,
        };
        let refused = check(&grammars, slow()).await.unwrap_err();
        assert!(is_late(&refused), "{refused}");
        grammars.patience = Duration::from_secs(60);
        assert!(check(&grammars, slow()).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn who_waits_for_others_is_told_that_it_is_not_the_grammar() {
        let mut grammars = Grammars::new(&fixture::text_model(), false);
        let (release, gate) = std::sync::mpsc::channel::<()>();
        let gate = Arc::new(std::sync::Mutex::new(gate));
        let blocked: Vec<_> = (0..THREADS)
            .map(|_| {
                let gate = Arc::clone(&gate);
                Box::pin(grammars.pool.run(move || gate.lock().unwrap().recv()))
            })
            .collect();
        let mut blocked = futures::future::join_all(blocked);
        assert!(futures::poll!(&mut blocked).is_pending());
        grammars.patience = Duration::from_millis(50);
        let refused = check(&grammars, Grammar::Regex("a".to_owned())).await.unwrap_err();
        assert_eq!(refused, ValidationError::Busy);
        drop(release);
        blocked.await;
        grammars.patience = Duration::from_secs(60);
        assert!(check(&grammars, Grammar::Regex("a".to_owned())).await.unwrap().is_some());
    }
}
