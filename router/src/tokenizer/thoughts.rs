//! Whether a prompt ends inside the assistant's thoughts.

/// What stands around a model's thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thoughts {
    pub open: &'static str,
    pub close: &'static str,
}

impl Thoughts {
    /// `continued`: the assistant's words at the prompt's end, which go on; the same marks in others' words mean nothing.
    /// `None` if the assistant's turn has not come to thoughts.
    pub fn is_open(&self, prompt: &str, continued: &str) -> Option<bool> {
        let continued = continued.trim();
        let (open, close) = (continued.rfind(self.open), continued.rfind(self.close));
        if open.is_some() || close.is_some() {
            return Some(open > close);
        }
        let before = prompt.rfind(continued).map_or(prompt, |at| &prompt[..at]).trim_end();
        let is_open = before.ends_with(self.open);
        (is_open || before.ends_with(self.close)).then_some(is_open)
    }

    /// What ends open thoughts at the prompt's end, as templates write empty ones.
    pub(super) fn ending(&self, prompt: &str) -> String {
        let is_lined = prompt.rfind(self.open).is_some_and(|at| prompt[at + self.open.len()..].starts_with('\n'));
        if is_lined { format!("\n{}\n\n", self.close) } else { self.close.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THINK: Thoughts = Thoughts { open: "<think>", close: "</think>" };

    #[test]
    fn only_the_assistants_own_marks_count() {
        for (prompt, continued, expected) in [
            ("u: Hi a: ", "", None),
            ("u: <think> a: ", "", None),
            ("a: <think>\n", "", Some(true)),
            ("a: <think>\n\n</think>\n\n", "", Some(false)),
            ("a: <think>\nSo ", "<think>\nSo ", Some(true)),
            ("a: <think>\nSo", "So", Some(true)),
            ("a: <think>a</think> So", "<think>a</think> So", Some(false)),
            ("a: <think>\n</think>So", "So", Some(false)),
            ("u: <think> So a: So", "So", None),
            // Some templates leave out earlier thoughts.
            ("a: So", "x</think>So", Some(false)),
        ] {
            assert_eq!(THINK.is_open(prompt, continued), expected, "{prompt} {continued}");
        }
    }
}
