//! The file of keys: TOML, one `[[tenant]]` table each. Errors name the line and the field, and never show a key.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::{Spanned, Value};

use super::{KeyDigest, PRIORITIES, Tenant, digest};

/// Every request's key is compared with all of them, and each has its own series among the metrics.
pub const MAX_TENANTS: usize = 1000;
const MAX_WEIGHT: u32 = 1000;
const MAX_NAME: usize = 64;
/// Shorter ones can be guessed.
const MIN_KEY: usize = 16;
const MAX_KEY: usize = 512;

/// Why there are no tenants.
#[derive(Debug, thiserror::Error)]
pub enum BadKeyFile {
    #[error("cannot read the file of API keys {}: {source}", file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("the file of API keys is wrong: {}, line {line}: {problem}", file.display())]
    Line { file: PathBuf, line: usize, problem: String },
    #[error("the file of API keys {} names no tenant: it needs at least one [[tenant]] with `name` and `key`", file.display())]
    Empty { file: PathBuf },
    #[error("--admin-routes needs a tenant with `admin = true` in the file of API keys {}", file.display())]
    NoAdmin { file: PathBuf },
}

/// A tenant and the digests of its keys.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) tenant: Tenant,
    pub(super) keys: Vec<KeyDigest>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    tenant: Vec<Spanned<Raw>>,
}

/// One table as it stands in the file. Values are read as anything, so that no message of the parser repeats a key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    name: Option<Spanned<Value>>,
    key: Option<Spanned<Value>>,
    key_sha256: Option<Spanned<Value>>,
    weight: Option<Spanned<Value>>,
    max_concurrent_requests: Option<Spanned<Value>>,
    max_queued_tokens: Option<Spanned<Value>>,
    min_priority: Option<Spanned<Value>>,
    admin: Option<Spanned<Value>>,
    shared_cache: Option<Spanned<Value>>,
}

/// A problem and where it is.
type Found<T> = Result<T, (Range<usize>, String)>;

/// The file's content and what tells it from another.
pub(super) fn text(file: &Path) -> Result<(String, KeyDigest), BadKeyFile> {
    let text = fs::read_to_string(file).map_err(|source| BadKeyFile::Read { file: file.to_owned(), source })?;
    let version = digest(text.as_bytes());
    Ok((text, version))
}

pub(super) fn read(file: &Path) -> Result<(Vec<Entry>, KeyDigest), BadKeyFile> {
    let (text, version) = text(file)?;
    warn_if_open_to_all(file, &text);
    let at = |(place, problem): (Range<usize>, String)| BadKeyFile::Line {
        file: file.to_owned(),
        line: text.get(..place.start).unwrap_or_default().lines().count().max(1)
            + usize::from(text.get(..place.start).is_some_and(|before| before.ends_with('\n'))),
        problem,
    };
    let parsed: File =
        toml::from_str(&text).map_err(|error| at((error.span().unwrap_or_default(), error.message().to_owned())))?;
    if parsed.tenant.is_empty() {
        return Err(BadKeyFile::Empty { file: file.to_owned() });
    }
    Ok((entries(parsed).map_err(at)?, version))
}

fn entries(file: File) -> Found<Vec<Entry>> {
    let mut names: HashSet<String> = HashSet::new();
    let mut owners: HashMap<KeyDigest, String> = HashMap::new();
    let mut entries = Vec::with_capacity(file.tenant.len());
    for raw in file.tenant {
        let place = raw.span();
        let entry = raw.into_inner().entry(&place)?;
        let name = entry.tenant.name.to_string();
        if !names.insert(name.clone()) {
            return Err((place, format!("there are two tenants with the name {name:?}")));
        }
        for key in &entry.keys {
            if let Some(other) = owners.insert(*key, name.clone()) {
                return Err((place, format!("tenant {name:?} has a key that is {other:?}'s already")));
            }
        }
        entries.push(entry);
        if entries.len() > MAX_TENANTS {
            return Err((place, format!("there are more than {MAX_TENANTS} tenants")));
        }
    }
    Ok(entries)
}

/// The tenant of `--api-key` stands beside those of the file.
pub(super) fn check_apart(file: &Path, entries: &[Entry], name: &str, keys: &[KeyDigest]) -> Result<(), BadKeyFile> {
    let has_name = entries.iter().any(|entry| &*entry.tenant.name == name);
    let has_key = entries.iter().any(|entry| entry.keys.iter().any(|key| keys.contains(key)));
    let problem = match (has_name, has_key) {
        (true, _) => format!("the name {name:?} is that of the tenant of --api-key"),
        (_, true) => "one of the keys is that of --api-key".to_owned(),
        _ => return Ok(()),
    };
    Err(BadKeyFile::Line { file: file.to_owned(), line: 1, problem })
}

impl Raw {
    fn entry(self, place: &Range<usize>) -> Found<Entry> {
        let name = self.name.ok_or_else(|| (place.clone(), "this tenant has no `name`".to_owned()))?;
        let name = checked(&name, "name", "1 to 64 letters, digits, `.`, `_` or `-`", |value| {
            value.as_str().filter(|name| is_name(name)).map(str::to_owned)
        })?;
        let mut keys = Vec::new();
        if let Some(given) = &self.key {
            keys.extend(checked(
                given,
                "key",
                "a key, or a list of keys, of 16 to 512 visible ASCII characters",
                |value| {
                    texts(value)?
                        .into_iter()
                        .map(|key| is_key(key).then(|| digest(key.as_bytes())))
                        .collect::<Option<Vec<_>>>()
                },
            )?);
        }
        if let Some(given) = &self.key_sha256 {
            keys.extend(checked(
                given,
                "key_sha256",
                "a SHA-256, or a list of them, in 64 hexadecimal digits",
                |value| texts(value)?.into_iter().map(from_hex).collect::<Option<Vec<_>>>(),
            )?);
        }
        if keys.is_empty() {
            return Err((place.clone(), format!("tenant {name:?} has neither `key` nor `key_sha256`")));
        }
        let mut tenant = Tenant { name: name.into(), is_admin: false, shares_cache: false, ..Tenant::open() };
        if let Some(given) = &self.weight {
            tenant.weight =
                checked(given, "weight", "a whole number from 1 to 1000", |value| count(value, MAX_WEIGHT))?;
        }
        let counted = "a whole number of at least 1";
        if let Some(given) = &self.max_concurrent_requests {
            let limit = checked(given, "max_concurrent_requests", counted, |value| count(value, u32::MAX))?;
            tenant.max_concurrent_requests = Some(limit);
        }
        if let Some(given) = &self.max_queued_tokens {
            let limit = checked(given, "max_queued_tokens", counted, |value| count(value, u32::MAX))?;
            tenant.max_queued_tokens = Some(limit);
        }
        if let Some(given) = &self.min_priority {
            tenant.min_priority = checked(given, "min_priority", "a whole number from -1000 to 1000", |value| {
                value
                    .as_integer()
                    .filter(|value| PRIORITIES.contains(value))
                    .and_then(|value| i32::try_from(value).ok())
            })?;
        }
        let switch = |given: &Option<Spanned<Value>>, field| {
            given.as_ref().map_or(Ok(false), |given| checked(given, field, "true or false", Value::as_bool))
        };
        tenant.is_admin = switch(&self.admin, "admin")?;
        tenant.shares_cache = switch(&self.shared_cache, "shared_cache")?;
        Ok(Entry { tenant, keys })
    }
}

fn checked<T>(given: &Spanned<Value>, field: &str, form: &str, read: impl Fn(&Value) -> Option<T>) -> Found<T> {
    read(given.get_ref()).ok_or_else(|| (given.span(), format!("`{field}` must be {form}")))
}

/// A text, or a list of at least one.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(list) if !list.is_empty() => list.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

fn count(value: &Value, most: u32) -> Option<u32> {
    value.as_integer().and_then(|count| u32::try_from(count).ok()).filter(|count| (1..=most).contains(count))
}

/// Names stand in metrics and logs.
fn is_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_plain)
}

fn is_key(key: &str) -> bool {
    (MIN_KEY..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic())
}

fn from_hex(text: &str) -> Option<KeyDigest> {
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    (digits.len() == 64).then(|| bytes.try_into().ok()).flatten()
}

/// Keys in the clear are for the server's eyes only.
#[cfg(unix)]
fn warn_if_open_to_all(file: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    let is_open = fs::metadata(file).is_ok_and(|about| about.permissions().mode() & 0o004 != 0);
    let has_keys = text.lines().any(|line| line.split('=').next().is_some_and(|field| field.trim() == "key"));
    if is_open && has_keys {
        tracing::warn!(file = %file.display(), "every user of this machine can read the keys: take that right away, or keep key_sha256");
    }
}

#[cfg(not(unix))]
fn warn_if_open_to_all(_file: &Path, _text: &str) {}
