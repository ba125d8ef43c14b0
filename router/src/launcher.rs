//! What whoever started this program says to it on standard input: a JSON object a line. The end of the input is the end
//! of the launcher.

use std::io::BufRead;
use std::path::PathBuf;

use serde::Deserialize;
use tokio::sync::mpsc::UnboundedSender;

use crate::config::Config;
use crate::health::Progress;

/// A line of the launcher's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum News {
    /// What the start is at.
    Progress(Progress),
    /// The model is on this machine now.
    Model(Place),
    /// There will be no workers any more: whoever still waits for one gets an end now.
    End(Cause),
}

/// Why it is the end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Cause {
    pub reason: String,
}

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Place {
    pub path: PathBuf,
    /// The commit, where there is one.
    #[serde(default)]
    pub revision: Option<String>,
}

impl Place {
    /// The configuration with this model.
    pub(crate) fn into_config(self, config: &Config) -> Config {
        let revision = self.revision.or_else(|| config.revision.clone());
        Config { model_path: Some(self.path), revision, ..config.clone() }
    }
}

/// Passes on what is said until nothing more can come. What is no news is passed over: the launcher may be of another
/// version.
pub fn follow(said: impl BufRead, heard: &UnboundedSender<News>) {
    for line in said.split(b'\n').map_while(Result::ok) {
        match serde_json::from_slice(&line) {
            // It errs when nobody listens any more: the model has been told.
            Ok(news) => drop(heard.send(news)),
            Err(error) => tracing::debug!(%error, "the launcher says what cannot be understood"),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn news_are_lines_and_everything_else_is_passed_over() {
        let (heard, mut news) = mpsc::unbounded_channel();
        let progress = r#"{"progress": {"words": "fetching", "done": 3, "total": 9}}"#;
        let model = r#"{"model": {"path": "/m", "revision": "abc"}}"#;
        follow(format!("{progress}\n\nnonsense\n{{\"later\": 1}}\n{model}\n").as_bytes(), &heard);
        let place = Place { path: "/m".into(), revision: Some("abc".into()) };
        let fetching = Progress { words: "fetching".into(), done: 3, total: 9 };
        assert_eq!(news.try_recv().unwrap(), News::Progress(fetching));
        assert_eq!(news.try_recv().unwrap(), News::Model(place));
        assert!(news.try_recv().is_err());
    }
}
