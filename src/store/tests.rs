//! What is kept is whole, what is half done is never found, and archives of strangers do nothing but give files.

use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use super::*;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")
}

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

struct Bench {
    folder: tempfile::TempDir,
    store: Store,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::at(folder.path().join("models"));
    Bench { folder, store }
}

impl Bench {
    fn import(&self, revision: &str) -> Kept {
        let about = Description { revision: Some(revision.into()), ..Description::default() };
        import_folder(&self.store, &self.store.lock().unwrap(), &demo(), &about).unwrap()
    }

    fn import_tar(&self, archive: &[u8]) -> Result<Kept, String> {
        let lock = self.store.lock().unwrap();
        let done = import_tar(&self.store, &lock, archive, &Description::default());
        done.map_err(|error| error.to_string())
    }

    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.store.root().join(INCOMING)).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

#[test]
fn a_folder_comes_in_and_goes_out_as_it_was() {
    let bench = bench();
    let Bench { store, .. } = &bench;
    assert_eq!(store.list().unwrap(), []);
    let lock = store.lock().unwrap();
    let kept = import_folder(store, &lock, &demo(), &Description::default()).unwrap();
    assert_eq!(kept.name.name(), "demo");
    assert_eq!(kept.name.revision().len(), 12, "made of the contents: {}", kept.name);
    store.verify(&kept.name, &[]).unwrap();
    let folder = store.folder(&kept.name);
    // What the manifest lists and what people read; no scripts, no tests.
    assert!(folder.join("README.md").is_file() && folder.join("model.onnx.data").is_file());
    assert!(!folder.join("train").exists() && !folder.join("eval.jsonl").exists());
    // The same once more is no mistake.
    let again = import_folder(store, &lock, &demo(), &Description::default()).unwrap();
    assert_eq!(again, kept);

    let mut archive = Vec::new();
    export(store, &kept.name, &mut archive).unwrap();
    let mut second = Vec::new();
    export(store, &kept.name, &mut second).unwrap();
    assert_eq!(archive, second);
    let other = self::bench();
    assert_eq!(other.import_tar(&archive).unwrap(), kept);
    other.store.verify(&kept.name, &[]).unwrap();
    assert_eq!(other.left(), [] as [&str; 0]);
}

#[test]
fn a_folder_without_a_manifest_gets_one() {
    let bench = bench();
    let plain = bench.folder.path().join("mine");
    std::fs::create_dir(&plain).unwrap();
    for file in ["model.onnx", "model.onnx.data", "genai_config.json", "tokenizer.json"] {
        std::fs::copy(demo().join(file), plain.join(file)).unwrap();
    }
    std::fs::create_dir(plain.join("1_Pooling")).unwrap();
    std::fs::write(plain.join("1_Pooling/config.json"), "{}").unwrap();
    let lock = bench.store.lock().unwrap();
    let kept = import_folder(&bench.store, &lock, &plain, &Description::default()).unwrap();
    assert_eq!(kept.name.name(), "mine");
    let manifest = bench.store.verify(&kept.name, &[]).unwrap();
    assert_eq!(manifest.files.len(), 5);
    assert!(bench.store.folder(&kept.name).join("1_Pooling/config.json").is_file());
    assert_eq!(manifest.revision.as_deref(), Some(kept.name.revision()));
    // One bit in the weights.
    let weights = bench.store.folder(&kept.name).join("model.onnx.data");
    let mut bytes = std::fs::read(&weights).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    let error = bench.store.verify(&kept.name, &[]).unwrap_err().to_string();
    assert!(error.contains("model.onnx.data: has the sha256"), "{error}");
}

#[test]
fn what_is_wrong_does_not_come_in() {
    let bench = bench();
    let broken = bench.folder.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for file in ["model.onnx", "genai_config.json", "tokenizer.json", "manifest.toml"] {
        std::fs::copy(demo().join(file), broken.join(file)).unwrap();
    }
    let lock = bench.store.lock().unwrap();
    let refused = |folder: &Path| {
        let done = import_folder(&bench.store, &lock, folder, &Description::default());
        done.unwrap_err().to_string()
    };
    assert!(refused(&broken).contains("model.onnx.data: is missing"), "{}", refused(&broken));
    // A link to what its maker may not read.
    std::fs::remove_file(broken.join("manifest.toml")).unwrap();
    std::fs::copy(demo().join("model.onnx.data"), broken.join("model.onnx.data")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", broken.join("notes.txt")).unwrap();
    assert!(refused(&broken).contains("notes.txt: is no plain file"), "{}", refused(&broken));
    assert_eq!(bench.store.list().unwrap(), []);
}

fn archive(entries: &[(&[u8], EntryType, &[u8])]) -> Vec<u8> {
    let mut archive = Builder::new(Vec::new());
    for (name, kind, contents) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(contents.len() as u64);
        // The library would refuse such names; strangers do not use it.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name_literal(b"/etc/passwd").unwrap();
        }
        header.set_cksum();
        archive.append(&header, *contents).unwrap();
    }
    archive.into_inner().unwrap()
}

#[test]
fn archives_do_not_leave_their_folder() {
    let bench = bench();
    let plain = EntryType::Regular;
    for (entries, words) in [
        (vec![(&b"../evil"[..], plain, &b"x"[..])], "no name of a file inside"),
        (vec![(b"m/../../evil", plain, b"x")], "no name of a file inside"),
        (vec![(b"/evil", plain, b"x")], "no name of a file inside"),
        (vec![(b"a/b/c/evil", plain, b"x")], "no name of a file inside"),
        (vec![(b"m/link", EntryType::Symlink, b"")], "neither a plain file nor a folder"),
        (vec![(b"m/link", EntryType::Link, b"")], "neither a plain file nor a folder"),
        (vec![(b"m/fifo", EntryType::Fifo, b"")], "neither a plain file nor a folder"),
        (vec![(b"m/null", EntryType::Char, b"")], "neither a plain file nor a folder"),
        (vec![(b"m/\xff", plain, b"x")], "not UTF-8"),
        (vec![(b"m/a", plain, b"x"), (b"m/a", plain, b"y")], "cannot write"),
        (vec![(b"m/notes", plain, b"x")], "no model folder"),
        (vec![(b"m", EntryType::Directory, b"")], "holds no files"),
    ] {
        let error = bench.import_tar(&archive(&entries)).unwrap_err();
        assert!(error.contains(words), "{error} / {words}");
        assert_eq!(bench.left(), [] as [&str; 0], "{error}");
    }
    assert!(!bench.folder.path().join("evil").exists());
    // A header that promises more than there is, and more than any disk has.
    let mut cut = archive(&[(b"m/a", plain, &[7; 2000])]);
    cut.truncate(1500);
    assert!(bench.import_tar(&cut).is_err());
    let mut huge = Header::new_gnu();
    huge.set_path("m/huge").unwrap();
    huge.set_size(1 << 62);
    huge.set_cksum();
    let error = bench.import_tar(huge.as_bytes()).unwrap_err();
    assert!(error.contains("are needed; free some"), "{error}");
    let error = bench.import_tar(b"\x1f\x8b\x08\x00").unwrap_err();
    assert!(error.contains("zcat FILE | promptd model import -"), "{error}");
    assert!(bench.import_tar(b"").unwrap_err().contains("holds no files"));
    assert_eq!(bench.store.list().unwrap(), []);
}

#[test]
fn the_current_one_changes_at_once_and_the_one_before_is_kept() {
    let bench = bench();
    let Bench { store, .. } = &bench;
    let (one, two) = (bench.import("1").name, bench.import("2").name);
    let lock = store.lock().unwrap();
    assert!(matches!(store.go_back(&lock), Err(StoreError::NoPrevious)));
    assert_eq!(store.resolve(Path::new("current")), store.root().join("current"));
    store.switch(&one, &lock).unwrap();
    assert_eq!((store.current(), store.previous()), (Some(one.clone()), None));
    store.switch(&two, &lock).unwrap();
    store.switch(&two, &lock).unwrap();
    assert_eq!((store.current(), store.previous()), (Some(two.clone()), Some(one.clone())));
    for path in [PathBuf::from("current"), store.root().join("current"), PathBuf::from("demo@2")] {
        assert_eq!(store.resolve(&path), store.folder(&two), "{path:?}");
    }
    for path in ["models/demo", "/srv/models/current", "demo", "demo@3", "./current"] {
        assert_eq!(store.resolve(Path::new(path)), Path::new(path));
    }
    assert!(matches!(store.remove(&two, &lock), Err(StoreError::InUse(_))));
    assert_eq!(store.go_back(&lock).unwrap(), store.folder(&one));
    assert_eq!((store.current(), store.previous()), (Some(one.clone()), Some(two.clone())));
    // One that does not work is no model to go back to.
    store.switch(&two, &lock).unwrap();
    store.give_up(&two).unwrap();
    assert_eq!((store.current(), store.previous()), (Some(one.clone()), None));
    store.give_up(&two).unwrap();
    assert_eq!(store.current(), Some(one.clone()));
    store.remove(&two, &lock).unwrap();
    let names: Vec<ModelName> = store.list().unwrap().into_iter().map(|kept| kept.name).collect();
    assert_eq!(names, [one]);
    assert_eq!(bench.left(), [] as [&str; 0]);
}

#[test]
fn while_none_was_chosen_there_is_the_default_and_one_can_go_back_to_it() {
    let bench = bench();
    let default = bench.folder.path().join("shipped");
    let store = bench.store.clone().with_default(Some(default.clone()));
    let current = Path::new("current");
    assert_eq!(store.resolve(current), store.root().join("current"), "it is not there");
    std::fs::create_dir(&default).unwrap();
    assert_eq!(store.resolve(current), default);
    assert_eq!(store.resolve(Path::new("previous")), store.root().join("previous"));
    let one = bench.import("1").name;
    let lock = store.lock().unwrap();
    assert!(matches!(store.go_back(&lock), Err(StoreError::NoPrevious)));
    store.switch(&one, &lock).unwrap();
    assert_eq!(store.resolve(current), store.folder(&one));
    // Back and forth, as often as one likes.
    for _ in 0..2 {
        assert_eq!(store.go_back(&lock).unwrap(), default);
        assert_eq!((store.current(), store.previous()), (None, Some(one.clone())));
        assert_eq!(store.go_back(&lock).unwrap(), store.folder(&one));
        assert_eq!((store.current(), store.previous()), (Some(one.clone()), None));
    }
    store.give_up(&one).unwrap();
    assert_eq!((store.resolve(current), store.previous()), (default, None));
}

#[test]
fn a_name_may_be_short_where_it_is_clear() {
    let bench = bench();
    bench.import("1a");
    assert_eq!(bench.store.find("demo").unwrap(), name("demo@1a"));
    bench.import("1b");
    let error = bench.store.find("demo@1").unwrap_err().to_string();
    assert!(error.contains("demo@1a, demo@1b"), "{error}");
    assert_eq!(bench.store.find("demo@1b").unwrap(), name("demo@1b"));
    let error = bench.store.find("llama").unwrap_err().to_string();
    assert!(error.contains("there are: demo@1a, demo@1b"), "{error}");
}

#[test]
fn two_at_a_time_are_one_too_many() {
    let bench = bench();
    let lock = bench.store.lock().unwrap();
    assert!(matches!(bench.store.lock(), Err(StoreError::Busy(_))));
    drop(lock);
    bench.store.lock().unwrap();
}

#[test]
fn the_model_of_a_name_that_came_last() {
    let bench = bench();
    assert_eq!(bench.store.newest("demo"), None);
    // Revisions have no order; the clock of the file system has one, in steps of some milliseconds.
    for revision in ["b", "c", "a"] {
        std::thread::sleep(std::time::Duration::from_millis(30));
        bench.import(revision);
        assert_eq!(bench.store.newest("demo"), Some(name(&format!("demo@{revision}"))));
    }
    std::thread::sleep(std::time::Duration::from_millis(30));
    std::fs::create_dir(bench.store.root().join("other@z")).unwrap();
    std::fs::write(bench.store.folder(&name("demo@b")).join("note"), "").unwrap();
    assert_eq!(bench.store.newest("demo"), Some(name("demo@a")));
    assert_eq!(bench.store.newest("dem"), None);
}
