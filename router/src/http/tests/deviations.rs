//! docs/deviations.json: tools that compare this server with recorded answers of the original read it.

use regex::Regex;
use serde::Deserialize;

const DEVIATIONS: &str = include_str!("../../../../docs/deviations.json");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deviation {
    /// Under which heading docs/migrating-from-tgi.md lists it.
    topic: String,
    /// Which recorded cases, by name.
    name: String,
    reason: String,
}

#[test]
fn each_deviation_has_a_pattern_of_whole_names_and_a_reason() {
    let deviations: Vec<Deviation> = serde_json::from_str(DEVIATIONS).unwrap();
    assert!(!deviations.is_empty());
    for Deviation { topic, name, reason } in deviations {
        assert!(!topic.is_empty());
        let pattern = Regex::new(&name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(name.starts_with('^'), "{name} says where a name begins");
        assert!(reason.len() > 40 && reason.ends_with('.'), "{name} has a reason in words: {reason:?}");
        // Cases on which the two have to agree.
        for agreed in ["", "generate/plain", "generate/details", "routes/GET-health", "tokenize/plain", "compat/plain"]
        {
            assert!(!pattern.is_match(agreed), "{name} is too wide: it excuses {agreed:?}");
        }
    }
}
