use std::fs;
use std::path::PathBuf;

use super::*;

const KEY_A: &str = "sk-aaaaaaaaaaaaaaaaaaaa";
const KEY_B: &str = "sk-bbbbbbbbbbbbbbbbbbbb";

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, text: &str) -> PathBuf {
        let file = self.0.path().join("keys.toml");
        fs::write(&file, text).unwrap();
        file
    }
}

fn config(file: Option<&PathBuf>, api_key: &str, flags: &[&str]) -> Config {
    let arguments = ["millrace-router", "--model-id", "m"].iter().chain(flags).map(|flag| (*flag).to_owned());
    let file = file.map(|file| ["--api-key-file".to_owned(), file.display().to_string()]);
    Config::read(arguments.chain(file.into_iter().flatten()), |name| (name == "API_KEY").then(|| api_key.to_owned()))
        .unwrap()
}

fn load(text: &str) -> Result<Tenants, BadKeyFile> {
    let files = Files::new();
    Tenants::load(&config(Some(&files.write(text)), "", &[]))
}

fn problem(text: &str) -> String {
    let text = load(text).expect_err(text).to_string();
    assert!(!text.contains(KEY_A) && !text.contains(KEY_B), "{text}");
    text
}

fn name(tenants: &Tenants, key: &str) -> Option<String> {
    tenants.identify(Some(key.as_bytes())).map(|tenant| tenant.name.to_string())
}

#[test]
fn without_a_key_everybody_is_one_tenant_and_an_admin() {
    let tenants = Tenants::load(&config(None, "", &[])).unwrap();
    let anybody = tenants.identify(None).unwrap();
    assert_eq!((&*anybody.name, anybody.weight, anybody.is_admin), (DEFAULT_NAME, 1, true));
    assert_eq!(tenants.identify(Some(b"whatever")).unwrap().name, anybody.name);
    assert_eq!(anybody.max_places(1), u32::MAX);
}

#[test]
fn each_key_opens_its_tenant_and_nothing_else_does() {
    let sha256 = "91120d00c519c78c50959aabc182e67d97fc2fab890e99c33ba46337dce8af8e";
    let tenants = load(&format!(
        "[[tenant]]\nname = \"a\"\nkey = \"{KEY_A}\"\nweight = 3\nmax_concurrent_requests = 7\nmax_queued_tokens = 9\n\
         min_priority = -5\nadmin = true\n\n[[tenant]]\nname = \"b\"\nkey_sha256 = [\"{sha256}\"]\nshared_cache = true\n"
    ))
    .unwrap();
    let a = tenants.identify(Some(KEY_A.as_bytes())).unwrap();
    assert_eq!((&*a.name, a.weight, a.max_concurrent_requests, a.max_queued_tokens), ("a", 3, Some(7), Some(9)));
    assert_eq!((a.min_priority, a.is_admin, a.shares_cache), (-5, true, false));
    let b = tenants.identify(Some(KEY_B.as_bytes())).unwrap();
    assert_eq!(
        (&*b.name, b.weight, b.max_concurrent_requests, b.is_admin, b.shares_cache),
        ("b", 1, None, false, true)
    );
    assert!(a.cache_group() != 0 && b.cache_group() == 0 && a.id != b.id);
    for wrong in ["", "sk", &KEY_A[..KEY_A.len() - 1], &format!("{KEY_A} "), &KEY_A.to_uppercase(), sha256] {
        assert_eq!(name(&tenants, wrong), None, "{wrong:?}");
    }
    assert!(tenants.identify(None).is_none());
    assert_eq!((a.max_places(10), b.max_places(10)), (30, 10));
}

#[test]
fn a_tenant_may_have_several_keys_at_once() {
    let tenants = load(&format!("[[tenant]]\nname = \"a\"\nkey = [\"{KEY_A}\", \"{KEY_B}\"]\n")).unwrap();
    assert_eq!((name(&tenants, KEY_A), name(&tenants, KEY_B)), (Some("a".into()), Some("a".into())));
}

#[test]
fn the_key_of_the_environment_is_a_tenant_beside_those_of_the_file() {
    let files = Files::new();
    let file = files.write(&format!("[[tenant]]\nname = \"a\"\nkey = \"{KEY_A}\"\n"));
    let tenants = Tenants::load(&config(Some(&file), "hunter2", &["--admin-routes"])).unwrap();
    assert_eq!((name(&tenants, "hunter2"), name(&tenants, KEY_A)), (Some("default".into()), Some("a".into())));
    assert!(tenants.identify(Some(b"hunter2")).unwrap().is_admin);
    let twice = Tenants::load(&config(Some(&file), KEY_A, &[])).unwrap_err().to_string();
    assert!(twice.contains("--api-key"), "{twice}");
    let file = files.write(&format!("[[tenant]]\nname = \"default\"\nkey = \"{KEY_A}\"\n"));
    let twice = Tenants::load(&config(Some(&file), "hunter2", &[])).unwrap_err().to_string();
    assert!(twice.contains("\"default\""), "{twice}");
}

#[test]
fn mistakes_are_named_with_their_line() {
    let a = format!("[[tenant]]\nname = \"a\"\nkey = \"{KEY_A}\"\n");
    for (text, line, said) in [
        (format!("{a}wieght = 2\n"), 4, "wieght"),
        (format!("{a}weight = 0\n"), 4, "`weight` must be a whole number from 1 to 1000"),
        (format!("{a}weight = 1.5\n"), 4, "`weight`"),
        (format!("{a}min_priority = 5000\n"), 4, "`min_priority`"),
        (format!("{a}admin = \"yes\"\n"), 4, "`admin` must be true or false"),
        (format!("{a}max_concurrent_requests = -1\n"), 4, "`max_concurrent_requests`"),
        (format!("{a}\n{a}"), 5, "two tenants with the name \"a\""),
        (format!("{a}\n[[tenant]]\nname = \"b\"\nkey = \"{KEY_A}\"\n"), 5, "a key that is \"a\"'s already"),
        (format!("\n[[tenant]]\nkey = \"{KEY_A}\"\n"), 2, "no `name`"),
        ("[[tenant]]\nname = \"a\"\n".to_owned(), 1, "neither `key` nor `key_sha256`"),
        ("[[tenant]]\nname = \"a\"\nkey = \"short\"\n".to_owned(), 3, "`key` must be"),
        ("[[tenant]]\nname = \"a\"\nkey = []\n".to_owned(), 3, "`key` must be"),
        ("[[tenant]]\nname = \"a\"\nkey = 12345678901234567\n".to_owned(), 3, "`key` must be"),
        ("[[tenant]]\nname = \"a b\"\n".to_owned(), 2, "`name` must be"),
        ("[[tenant]]\nname = \"a\"\nkey_sha256 = \"123\"\n".to_owned(), 3, "`key_sha256` must be"),
        (format!("{a}key = \"{KEY_B}\"\n"), 4, "duplicate key"),
        (format!("{a}[other]\n"), 4, "other"),
        (format!("{a}weight =\n"), 4, ""),
    ] {
        let problem = problem(&text);
        assert!(problem.contains(&format!("line {line}:")) && problem.contains(said), "{text}: {problem}");
    }
}

#[test]
fn a_file_without_tenants_or_without_an_admin_that_is_needed_is_refused() {
    assert!(problem("# nobody\n").contains("names no tenant"));
    let files = Files::new();
    let file = files.write(&format!("[[tenant]]\nname = \"a\"\nkey = \"{KEY_A}\"\n"));
    let error = Tenants::load(&config(Some(&file), "", &["--admin-routes"])).unwrap_err();
    assert!(matches!(error, BadKeyFile::NoAdmin { .. }), "{error}");
    let error = Tenants::load(&config(Some(&files.0.path().join("absent")), "", &[])).unwrap_err();
    assert!(matches!(error, BadKeyFile::Read { .. }), "{error}");
}

#[test]
fn a_changed_file_changes_keys_and_keeps_who_stays() {
    let files = Files::new();
    let file = files.write(&format!("[[tenant]]\nname = \"a\"\nkey = \"{KEY_A}\"\n"));
    let tenants = Tenants::load(&config(Some(&file), "", &[])).unwrap();
    let before = tenants.identify(Some(KEY_A.as_bytes())).unwrap();
    let taken = before.usage.take(2, 2).unwrap();
    files.write("[[tenant]]\nname = \"a\"\n");
    assert!(tenants.refresh().is_err());
    assert_eq!(tenants.refresh().unwrap(), None, "one change, one complaint");
    assert_eq!(name(&tenants, KEY_A).as_deref(), Some("a"));
    let text = "[[tenant]]\nname = \"c\"\nkey = \"sk-cccccccccccccccccccc\"\n";
    files.write(&format!("{text}[[tenant]]\nname = \"a\"\nweight = 9\nkey = \"{KEY_B}\"\n"));
    assert_eq!(tenants.refresh().unwrap(), Some(2));
    assert_eq!(tenants.refresh().unwrap(), None);
    let after = tenants.identify(Some(KEY_B.as_bytes())).unwrap();
    assert_eq!((after.id, after.weight, after.usage.places(), name(&tenants, KEY_A)), (before.id, 9, 2, None));
    let other = tenants.identify(Some(b"sk-cccccccccccccccccccc")).unwrap();
    assert_ne!(other.id, before.id);
    drop(taken);
    assert_eq!(after.usage.places(), 0);
}

#[test]
fn a_number_is_never_given_to_another_and_who_comes_back_finds_what_it_held() {
    let file = |names: &[&str]| -> String {
        let tenant = |name: &&str| format!("[[tenant]]\nname = \"{name}\"\nkey = \"sk-{}\"\n", name.repeat(20));
        names.iter().map(tenant).collect()
    };
    let files = Files::new();
    let path = files.write(&file(&["a", "b"]));
    let tenants = Tenants::load(&config(Some(&path), "", &[])).unwrap();
    let of = |name: &str| tenants.identify(Some(format!("sk-{}", name.repeat(20)).as_bytes()));
    let before = of("b").unwrap();
    let held = before.usage.take(3, 4).unwrap();
    files.write(&file(&["a"]));
    assert!(tenants.refresh().unwrap() == Some(1) && of("b").is_none());
    files.write(&file(&["a", "c"]));
    assert_eq!(tenants.refresh().unwrap(), Some(2));
    let newcomer = of("c").unwrap();
    assert!(newcomer.id != before.id && newcomer.cache_group() != before.cache_group(), "{newcomer:?}");
    assert_eq!(newcomer.usage.places(), 0);
    files.write(&file(&["b", "d"]));
    assert_eq!(tenants.refresh().unwrap(), Some(2));
    let back = of("b").unwrap();
    assert_eq!((back.id, back.usage.places()), (before.id, 3));
    assert!(![before.id, newcomer.id].contains(&of("d").unwrap().id));
    drop(held);
    assert_eq!(back.usage.places(), 0);
}

#[test]
fn no_weight_takes_the_last_place_from_who_has_none() {
    let tenants = load(&format!(
        "[[tenant]]\nname = \"a\"\nkey = \"{KEY_A}\"\nweight = 1000\n[[tenant]]\nname = \"b\"\nkey = \"{KEY_B}\"\n"
    ))
    .unwrap();
    let [heavy, light] = [KEY_A, KEY_B].map(|key| tenants.identify(Some(key.as_bytes())).unwrap());
    for num_places in [1_usize, 2, 128] {
        let mut held = Vec::new();
        while held.len() < num_places {
            let Some(taken) = heavy.usage.take(1, heavy.max_places(num_places - held.len())) else { break };
            held.push(taken);
        }
        assert_eq!(held.len(), (num_places - 1).max(1));
        assert!(num_places == 1 || light.usage.take(1, light.max_places(1)).is_some());
    }
}

#[test]
fn places_are_taken_up_to_the_limit_and_given_back() {
    let usage = Arc::new(Usage::new("a"));
    let mut three = usage.take(3, 4).unwrap();
    assert!(usage.take(2, 4).is_none());
    let one = three.split(1).unwrap();
    assert!(three.split(3).is_none() || usage.places() == 3);
    drop(one);
    let mut two = usage.take(1, 4).unwrap();
    two.merge(three);
    assert!(usage.places() >= 1);
    drop(two);
    assert_eq!(usage.places(), 0);
}
