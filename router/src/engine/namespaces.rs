//! Who may find whose computed prefixes: requests of one namespace. How long an answer takes shows whether its prompt was there
//! already, and so what others asked (CVE-2025-46570): tenants and salts keep apart what must not be told.
//!
//! Namespaces are exact: each text has a number of its own that no other ever gets, so nothing rests on a hash.

use std::collections::HashMap;
use std::sync::Arc;

/// Salts that are known of one group. When another comes they are forgotten: prompts are computed again, nothing is mixed up.
const MAX_SALTS: usize = 1024;
/// The first number of a salted namespace: groups have theirs below.
const FIRST_SALTED: u64 = 1 << 32;

#[derive(Debug, Default)]
pub(super) struct Namespaces {
    salts: HashMap<u32, HashMap<Arc<str>, u64>>,
    num_salted: u64,
}

impl Namespaces {
    /// Of a tenant's group and what a request says itself.
    pub(super) fn id(&mut self, group: u32, salt: Option<&Arc<str>>) -> u64 {
        let Some(salt) = salt else { return u64::from(group) };
        let salts = self.salts.entry(group).or_default();
        if let Some(id) = salts.get(salt) {
            return *id;
        }
        if salts.len() >= MAX_SALTS {
            salts.clear();
        }
        let id = FIRST_SALTED + self.num_salted;
        self.num_salted += 1;
        salts.insert(Arc::clone(salt), id);
        id
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_namespace_is_a_group_and_a_salt_and_no_two_share_a_number() {
        let mut namespaces = Namespaces::default();
        let salts = [None, Some("a"), Some("b")].map(|salt| salt.map(Arc::<str>::from));
        let mut all = HashSet::new();
        for group in [0, 1, u32::MAX] {
            for salt in &salts {
                assert!(all.insert(namespaces.id(group, salt.as_ref())));
            }
        }
        assert_eq!(namespaces.id(1, salts[1].as_ref()), namespaces.id(1, Some(&Arc::from("a"))));
    }

    #[test]
    fn memory_is_bounded_and_numbers_are_never_used_again() {
        let mut namespaces = Namespaces::default();
        let mut all = HashSet::new();
        for index in 0..3 * MAX_SALTS {
            assert!(all.insert(namespaces.id(7, Some(&index.to_string().into()))));
            assert!(namespaces.salts[&7].len() <= MAX_SALTS);
        }
        assert!(all.insert(namespaces.id(7, Some(&Arc::from("0")))), "forgotten, so it gets another");
    }
}
