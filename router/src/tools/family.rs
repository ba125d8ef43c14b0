//! Which parsers there are, and which one a chat template calls for.

use std::fmt;
use std::str::FromStr;

use super::marked::Marks;
use super::named;
use crate::tokenizer::Thoughts;

/// How a model family writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFamily {
    Hermes,
    Qwen3Coder,
    Glm,
    Llama3Json,
    Pythonic,
    Mistral,
    DeepSeek,
    Kimi,
    Harmony,
    CommandR,
    Granite,
    Nemotron,
    /// No family's: an object or a list of objects, and nothing else.
    Json,
}

/// How a model family writes its thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFamily {
    /// `<think>` … `</think>`, opened by the model or by its prompt.
    Think,
    /// As `Think`, but whatever comes first is thought, also when nobody opened it.
    DeepSeekR1,
    Mistral,
    CommandA,
    Granite,
    Seed,
    Harmony,
}

/// What an operator asked for by `--tool-call-parser` or `--reasoning-parser`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish<F> {
    /// What the model's chat template calls for.
    Auto,
    None,
    This(F),
}

const TOOL_FAMILIES: [(&str, ToolFamily); 13] = [
    ("hermes", ToolFamily::Hermes),
    ("qwen3_coder", ToolFamily::Qwen3Coder),
    ("glm", ToolFamily::Glm),
    ("llama3_json", ToolFamily::Llama3Json),
    ("pythonic", ToolFamily::Pythonic),
    ("mistral", ToolFamily::Mistral),
    ("deepseek", ToolFamily::DeepSeek),
    ("kimi", ToolFamily::Kimi),
    ("harmony", ToolFamily::Harmony),
    ("command_r", ToolFamily::CommandR),
    ("granite", ToolFamily::Granite),
    ("nemotron", ToolFamily::Nemotron),
    ("json", ToolFamily::Json),
];

const REASONING_FAMILIES: [(&str, ReasoningFamily); 7] = [
    ("think", ReasoningFamily::Think),
    ("deepseek_r1", ReasoningFamily::DeepSeekR1),
    ("mistral", ReasoningFamily::Mistral),
    ("command_a", ReasoningFamily::CommandA),
    ("granite", ReasoningFamily::Granite),
    ("seed", ReasoningFamily::Seed),
    ("harmony", ReasoningFamily::Harmony),
];

impl ToolFamily {
    /// By what the template says. The order matters: some templates contain the marks of an older family too.
    pub fn of_template(template: &str) -> Option<Self> {
        let says = |text: &str| template.contains(text);
        let family = match () {
            () if says("<|channel|>") && says("<|message|>") => Self::Harmony,
            () if says("<｜tool▁call▁begin｜>") || says("<｜tool▁calls▁begin｜>") => Self::DeepSeek,
            () if says("<|tool_call_begin|>") => Self::Kimi,
            () if says("<arg_key>") => Self::Glm,
            () if says("<function=") && says("<parameter=") => Self::Qwen3Coder,
            () if says("<tool_call>") => Self::Hermes,
            () if says("[TOOL_CALLS]") => Self::Mistral,
            () if says("<|START_ACTION|>") || says("Action:") && says("tool_name") => Self::CommandR,
            () if says("<|tool_call|>") => Self::Granite,
            () if says("<TOOLCALL>") => Self::Nemotron,
            () if says("<|python_start|>") || says("func_name1(") => Self::Pythonic,
            () if says("<|python_tag|>") || says("ipython") => Self::Llama3Json,
            () => return None,
        };
        Some(family)
    }

    pub fn name(self) -> &'static str {
        name_of(&TOOL_FAMILIES, self)
    }

    /// `None` where calls are no marked JSON.
    pub(super) fn marks(self) -> Option<Marks> {
        let json = Marks { is_json: true, ..Marks::default() };
        Some(match self {
            Self::Hermes => Marks { opens: &["<tool_call>"], closes: &["</tool_call>"], ..json },
            Self::Llama3Json => Marks { opens: &["<|python_tag|>"], is_bare: true, ..json },
            Self::Mistral => Marks { opens: &["[TOOL_CALLS]"], named: Some(named::mistral), ..json },
            Self::CommandR => {
                Marks { opens: &["<|START_ACTION|>", "Action:"], closes: &["<|END_ACTION|>", "```"], ..json }
            }
            Self::Granite => {
                Marks { opens: &["<|tool_call|>", "<tool_call>"], closes: &["<|/tool_call|>", "</tool_call>"], ..json }
            }
            Self::Nemotron => Marks { opens: &["<TOOLCALL>"], closes: &["</TOOLCALL>"], ..json },
            Self::Json => Marks { closes: &["```"], is_bare: true, ..json },
            Self::DeepSeek => Marks {
                opens: &["<｜tool▁call▁begin｜>"],
                closes: &["<｜tool▁call▁end｜>", "```<｜tool▁call▁end｜>", "```\n<｜tool▁call▁end｜>"],
                around: &["<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"],
                named: Some(named::deepseek),
                ..Marks::default()
            },
            Self::Kimi => Marks {
                opens: &["<|tool_call_begin|>"],
                closes: &["<|tool_call_end|>"],
                around: &["<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"],
                named: Some(named::kimi),
                ..Marks::default()
            },
            Self::Qwen3Coder | Self::Glm | Self::Pythonic | Self::Harmony => return None,
        })
    }

    /// Texts of tokens that its parser has to see, should they be control tokens.
    pub(super) fn markers(self) -> Vec<&'static str> {
        match self.marks() {
            Some(marks) => {
                let inner: &[&str] = match self {
                    Self::Mistral => &["[ARGS]", "[CALL_ID]"],
                    Self::DeepSeek => &["<｜tool▁sep｜>"],
                    Self::Kimi => &["<|tool_call_argument_begin|>"],
                    _ => &[],
                };
                [marks.opens, marks.closes, marks.around, inner].concat()
            }
            None => match self {
                Self::Qwen3Coder | Self::Glm => {
                    vec!["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"]
                }
                Self::Pythonic => vec!["<|python_start|>", "<|python_end|>"],
                _ => HARMONY.to_vec(),
            },
        }
    }
}

const HARMONY: [&str; 7] =
    ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"];

impl ReasoningFamily {
    pub fn of_template(template: &str) -> Option<Self> {
        let says = |text: &str| template.contains(text);
        let family = match () {
            () if says("<|channel|>") && says("<|message|>") => Self::Harmony,
            () if says("<|START_THINKING|>") => Self::CommandA,
            () if says("[THINK]") => Self::Mistral,
            () if says("<seed:think>") => Self::Seed,
            () if says("Here is my thought process:") => Self::Granite,
            () if says("<think>") || says("</think>") => Self::Think,
            () => return None,
        };
        Some(family)
    }

    pub fn name(self) -> &'static str {
        name_of(&REASONING_FAMILIES, self)
    }

    /// `None` where thoughts are messages.
    pub fn thoughts(self) -> Option<Thoughts> {
        let (open, close) = match self {
            Self::Think | Self::DeepSeekR1 => ("<think>", "</think>"),
            Self::Mistral => ("[THINK]", "[/THINK]"),
            Self::CommandA => ("<|START_THINKING|>", "<|END_THINKING|>"),
            Self::Granite => ("Here is my thought process:", "Here is my response:"),
            Self::Seed => ("<seed:think>", "</seed:think>"),
            Self::Harmony => return None,
        };
        Some(Thoughts { open, close })
    }

    pub(super) fn markers(self) -> Vec<&'static str> {
        self.thoughts().map_or_else(|| HARMONY.to_vec(), |thoughts| vec![thoughts.open, thoughts.close])
    }
}

fn name_of<F: PartialEq + Copy>(table: &[(&'static str, F)], family: F) -> &'static str {
    table.iter().find(|(_, one)| *one == family).map_or("", |(name, _)| name)
}

/// A family that has a name on the command line.
pub trait Named: Sized + Copy + 'static {
    fn table() -> &'static [(&'static str, Self)];
}

impl Named for ToolFamily {
    fn table() -> &'static [(&'static str, Self)] {
        &TOOL_FAMILIES
    }
}

impl Named for ReasoningFamily {
    fn table() -> &'static [(&'static str, Self)] {
        &REASONING_FAMILIES
    }
}

impl<F: Named> FromStr for Wish<F> {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let known = F::table().iter().find(|(known, _)| *known == name);
        known.map(|(_, family)| Self::This(*family)).ok_or_else(|| {
            let names: Vec<&str> = F::table().iter().map(|(name, _)| *name).collect();
            format!("must be auto, none, or one of {}", names.join(", "))
        })
    }
}

impl<F> Wish<F> {
    /// The family in force, given the one that the template calls for.
    pub fn or(self, of_template: impl FnOnce() -> Option<F>) -> Option<F> {
        match self {
            Self::Auto => of_template(),
            Self::None => None,
            Self::This(family) => Some(family),
        }
    }
}

impl fmt::Display for ToolFamily {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl fmt::Display for ReasoningFamily {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
