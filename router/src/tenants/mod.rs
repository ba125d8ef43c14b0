//! Who a request comes from: its key names a tenant, and the tenant has a weight, limits and a name for the logs.
//!
//! Without any key everybody is one tenant without limits. Keys are kept as SHA-256 only: a digest is compared with all
//! of them, each in constant time, so that the time of an answer says nothing about which key came close.

mod file;
#[cfg(test)]
mod tests;
mod usage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use millrace_scheduler::TenantId;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::{Config, Secret};
pub use file::{BadKeyFile, MAX_TENANTS};
pub use usage::{Taken, Usage};

/// The tenant of requests without a key, where none is asked for, and of `--api-key`.
pub const DEFAULT_NAME: &str = "default";
/// The values of `priority` that any request may send; lower ones are served sooner.
pub const PRIORITIES: std::ops::RangeInclusive<i64> = -1000..=1000;

type KeyDigest = [u8; 32];

/// What an operator decided for one tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    pub id: TenantId,
    pub name: Arc<str>,
    /// Its share of the server, against the weights of others.
    pub weight: u32,
    /// The least weight of all tenants, whose part is the yardstick; `None`: nobody else could come.
    pub min_weight: Option<u32>,
    /// Requests inside the server at once.
    pub max_concurrent_requests: Option<u32>,
    /// Prompt tokens inside the server that wait for their turn.
    pub max_queued_tokens: Option<u32>,
    /// The lowest (soonest) `priority` that its requests may ask for.
    pub min_priority: i32,
    /// Whether it may use the admin routes.
    pub is_admin: bool,
    /// Whether it reads and fills the prefix cache that all tenants of this kind share.
    pub shares_cache: bool,
    pub usage: Arc<Usage>,
}

/// Everybody: no key, no limit. Nobody is served sooner than the others by asking for it.
impl Default for Tenant {
    fn default() -> Self {
        Self { min_priority: 0, ..Self::open() }
    }
}

impl Tenant {
    /// Whoever has a key that says nothing else.
    fn open() -> Self {
        Self {
            id: TenantId(0),
            name: Arc::from(DEFAULT_NAME),
            weight: 1,
            min_weight: None,
            max_concurrent_requests: None,
            max_queued_tokens: None,
            min_priority: i32::try_from(*PRIORITIES.start()).expect("a small constant"),
            is_admin: true,
            shares_cache: true,
            usage: Arc::new(Usage::new(DEFAULT_NAME)),
        }
    }

    /// How many places it may hold when so many are free: never all, if somebody else could come. The last one is for who
    /// has none, whatever the weights.
    pub fn max_places(&self, num_free: usize) -> u32 {
        let num_kept = u64::from(self.usage.places() > 0);
        let num_free = u64::try_from(num_free).unwrap_or(u64::MAX).saturating_sub(num_kept);
        let part = |least: u32| num_free.saturating_mul(self.weight.into()) / u64::from(least);
        self.min_weight.map_or(u32::MAX, |least| u32::try_from(part(least)).unwrap_or(u32::MAX))
    }

    /// How much it may hold of something of which others are left so much: never all, if somebody else could come.
    pub fn part(&self, left: usize) -> usize {
        let part = |least: u32| left.saturating_mul(self.weight as usize) / least as usize;
        self.min_weight.map_or(usize::MAX, part)
    }

    /// Which prefixes of others it may find: 0 is shared.
    pub fn cache_group(&self) -> u32 {
        if self.shares_cache { 0 } else { self.id.0 + 1 }
    }
}

/// The number of each name that has ever been in the file, and what it has in use: requests of a tenant that is gone may
/// still be inside, and its prompts in the cache.
type Names = HashMap<Arc<str>, (TenantId, Arc<Usage>)>;

/// All keys and their tenants at one time.
#[derive(Clone, Debug)]
struct Table {
    tenants: Vec<Arc<Tenant>>,
    /// What belongs to a name for as long as this process lives: a number is never given to another one.
    names: Names,
    /// Of the file's content.
    version: Option<KeyDigest>,
    /// With the index of the tenant. Empty: no key is asked for, and everybody is the first tenant.
    keys: Vec<(KeyDigest, u32)>,
}

/// All tenants. Cheap to clone; a reload is seen by every clone.
#[derive(Clone, Debug)]
pub struct Tenants {
    table: Arc<RwLock<Arc<Table>>>,
    file: Option<PathBuf>,
    api_key: Option<Secret>,
}

/// No key is asked for.
impl Default for Tenants {
    fn default() -> Self {
        let (tenants, keys) = (vec![Arc::default()], Vec::new());
        let table = Table { tenants, names: HashMap::new(), keys, version: None };
        Self { table: Arc::new(RwLock::new(Arc::new(table))), file: None, api_key: None }
    }
}

impl Tenants {
    /// Reads the file of keys, if the configuration names one.
    pub fn load(config: &Config) -> Result<Self, BadKeyFile> {
        let (file, api_key) = (config.api_key_file.clone(), config.api_key.clone());
        let table = Table::read(file.as_deref(), api_key.as_ref(), HashMap::new())?;
        if config.admin_routes && !table.tenants.iter().any(|tenant| tenant.is_admin) {
            return Err(BadKeyFile::NoAdmin { file: file.unwrap_or_default() });
        }
        Ok(Self { table: Arc::new(RwLock::new(Arc::new(table))), file, api_key })
    }

    /// Reads the file again if it has changed, and answers how many tenants there are then. On an error all stays as it
    /// was, until the next change. Tenants are known by their names: one that stays, or comes back, keeps its number and
    /// what it has in use; requests that are inside go on.
    pub fn refresh(&self) -> Result<Option<usize>, BadKeyFile> {
        let before = self.table();
        let Some(file) = &self.file else { return Ok(None) };
        let version = file::text(file)?.1;
        if before.version == Some(version) {
            return Ok(None);
        }
        let table = Table::read(Some(file), self.api_key.as_ref(), before.names.clone());
        let (table, outcome) = match table {
            Ok(table) => {
                let num_tenants = table.tenants.len();
                (table, Ok(Some(num_tenants)))
            }
            Err(error) => (Table { version: Some(version), ..Table::clone(&before) }, Err(error)),
        };
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
        outcome
    }

    /// Whether there is a file to read again.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Whose key it is. `None`: nobody's, or one is needed and none was given.
    pub fn identify(&self, key: Option<&[u8]>) -> Option<Arc<Tenant>> {
        let table = self.table();
        if table.keys.is_empty() {
            return table.tenants.first().cloned();
        }
        let given = digest(key?);
        let (mut found, mut is_known) = (0_u32, Choice::from(0));
        for (known, index) in &table.keys {
            let is_this = known.ct_eq(&given);
            found.conditional_assign(index, is_this);
            is_known |= is_this;
        }
        let tenant = table.tenants.get(found as usize)?;
        bool::from(is_known).then(|| Arc::clone(tenant))
    }

    fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Table {
    fn read(file: Option<&Path>, api_key: Option<&Secret>, mut names: Names) -> Result<Self, BadKeyFile> {
        let (mut entries, version) = match file {
            Some(file) => file::read(file).map(|(entries, version)| (entries, Some(version)))?,
            None => (Vec::new(), None),
        };
        if let Some(key) = api_key {
            // It opened everything before there were files of keys, and does so still.
            let keys = vec![digest(key.expose().as_bytes())];
            if let Some(file) = file {
                file::check_apart(file, &entries, DEFAULT_NAME, &keys)?;
            }
            entries.push(file::Entry { keys, tenant: Tenant { shares_cache: false, ..Tenant::open() } });
        }
        if entries.is_empty() {
            entries.push(file::Entry { keys: Vec::new(), tenant: Tenant::default() });
        }
        let least = entries.iter().map(|entry| entry.tenant.weight).min().filter(|_| entries.len() > 1);
        let (mut tenants, mut keys) = (Vec::with_capacity(entries.len()), Vec::new());
        for file::Entry { mut tenant, keys: digests } in entries {
            let next = TenantId(names.len() as u32);
            let known = names.entry(Arc::clone(&tenant.name));
            let (id, usage) = known.or_insert_with_key(|name| (next, Arc::new(Usage::new(name))));
            (tenant.id, tenant.usage) = (*id, Arc::clone(usage));
            tenant.min_weight = least;
            keys.extend(digests.into_iter().map(|digest| (digest, tenants.len() as u32)));
            tenants.push(Arc::new(tenant));
        }
        Ok(Self { tenants, names, version, keys })
    }
}

fn digest(key: &[u8]) -> KeyDigest {
    Sha256::digest(key).into()
}
