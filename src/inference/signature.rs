//! Who vouches for a model: a signature (minisign) of its manifest, which lists every file that counts.

use std::path::Path;

use minisign_verify::{PublicKey, Signature};

use super::error::LoadError;
use super::files;
use super::folder::root_of;
use super::manifest::{Manifest, NAME};

/// The signature's name, as `minisign -S -m manifest.toml` gives it.
const SIGNATURE: &str = "manifest.toml.minisig";
/// What may lie in a signed folder without being listed: it is for people, and nothing opens it.
const FOR_PEOPLE: [&str; 4] = ["LICENSE", "NOTICE", "README", "USE_POLICY"];
/// More entries than a model folder has, and more levels of folders.
const MAX_ENTRIES: usize = 4096;
const MAX_DEPTH: usize = 4;

/// Checks that one of these keys has signed the manifest of a model, and that the manifest lists every file of the folder; with
/// no keys, nothing. The files themselves are held against the manifest when the model is loaded.
///
/// # Errors
/// A key is none, the signature is missing or wrong, or a file is not listed.
pub fn check(model: &Path, keys: &[String]) -> Result<(), LoadError> {
    if keys.is_empty() {
        return Ok(());
    }
    let root = if model.is_file() { root_of(model) } else { model.to_owned() };
    let (manifest, signature) = (root.join(NAME), root.join(SIGNATURE));
    let unsigned = "is missing, and `model.trusted_keys` asks for a signed manifest: `minisign -S -m manifest.toml` signs it";
    for path in [&manifest, &signature] {
        if path.symlink_metadata().is_err() {
            return Err(LoadError::file(path, unsigned));
        }
    }
    let text = files::read_text(&manifest)?;
    let signed = Signature::decode(&files::read_text(&signature)?)
        .map_err(|error| LoadError::file(&signature, format!("is no signature: {error}")))?;
    let mut is_known = false;
    for key in keys {
        let key = PublicKey::from_base64(key).map_err(|error| {
            let reason =
                format!("`model.trusted_keys`: `{key}` is no public key of minisign: {error}");
            LoadError::file(&manifest, reason)
        })?;
        is_known |= key.verify(text.as_bytes(), &signed, false).is_ok();
    }
    if !is_known {
        let reason = "is not signed by any of `model.trusted_keys`, or was changed since; fetch the model again";
        return Err(LoadError::file(&manifest, reason));
    }
    let listed = Manifest::of(&root)?.unwrap_or_default();
    match unlisted(&root, "", &listed, 0) {
        Some(name) => {
            let reason =
                format!("is not in the signed {NAME}; remove it, or have it listed and signed");
            Err(LoadError::file(root.join(name), reason))
        }
        None => Ok(()),
    }
}

/// The first file of a folder that its manifest does not list.
fn unlisted(folder: &Path, prefix: &str, manifest: &Manifest, depth: usize) -> Option<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_ENTRIES);
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let is_top = prefix.is_empty();
        let is_ours = is_top && (name == NAME || name == SIGNATURE);
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth >= MAX_DEPTH {
                return Some(name);
            }
            let below = unlisted(&entry.path(), &format!("{name}/"), manifest, depth + 1);
            if below.is_some() {
                return below;
            }
            continue;
        }
        let is_for_people = is_top && FOR_PEOPLE.iter().any(|begin| name.starts_with(begin));
        let is_listed = manifest.files.iter().any(|file| file.name == name);
        if !(is_ours || is_for_people || is_listed) {
            return Some(name);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const MANIFEST: &str = "[[file]]\nname='a.bin'\nbytes=3\nsha256='00'\n";

    fn sign(secret: &minisign::SecretKey, text: &str) -> String {
        minisign::sign(None, secret, Cursor::new(text), None, None).unwrap().into_string()
    }

    #[test]
    fn only_what_is_signed_and_listed_passes() {
        let dir = tempfile::tempdir().unwrap();
        let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let other = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        let trusted = [other.pk.to_base64(), keys.pk.to_base64()];
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let says = |keys: &[String]| check(dir.path(), keys).map_err(|error| error.to_string());
        write("a.bin", "abc");
        assert_eq!(says(&[]), Ok(()), "nobody asked for a signature");
        assert!(says(&trusted).unwrap_err().contains("manifest.toml: is missing, and"));
        write(NAME, MANIFEST);
        assert!(says(&trusted).unwrap_err().contains("manifest.toml.minisig: is missing, and"));
        write(SIGNATURE, "hello");
        assert!(says(&trusted).unwrap_err().contains("is no signature"));
        write(SIGNATURE, &sign(&keys.sk, MANIFEST));
        write("LICENSE.txt", "for people");
        assert_eq!(says(&trusted), Ok(()));
        assert!(says(&trusted[..1]).unwrap_err().contains("not signed by any of"));
        assert!(says(&["RWQ".into()]).unwrap_err().contains("no public key of minisign"));
        write(NAME, &MANIFEST.replace("bytes=3", "bytes=4"));
        assert!(says(&trusted).unwrap_err().contains("was changed since"));
        write(NAME, MANIFEST);
        for name in ["tokenizer.json", "READMEs/x", "onnx/model.onnx"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "x").unwrap();
            assert!(
                says(&trusted).unwrap_err().contains("is not in the signed manifest.toml"),
                "{name}"
            );
            std::fs::remove_file(&path).unwrap();
        }
    }
}
